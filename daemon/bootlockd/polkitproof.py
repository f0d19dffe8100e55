"""Whether polkit runs our rules, this very text of them: asked of polkit, not of the file.

The rules refuse one thing that everybody may do by default, to look at a domain, for one reserved
UUID that is made of their own digest (``polkitrules.proof_of``). polkit reads a new file some
milliseconds after it was put in place, drops one that it can't read, and believes a file before
ours in the alphabet; all of this shows in its answer.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bootlockd.polkitrules import PROOF_PERMISSION

PKCHECK = Path("/usr/bin/pkcheck")
#: Seconds that polkit may take.
TIME_LIMIT = 10
#: How many processes it is asked about, if those before it have ended meanwhile.
_TRIES = 3

_ALLOWED, _REFUSED = 0, 1


def why_not(proof: str) -> str:
    """Why polkit does not run the rules with this proof, in one line; "" if it does."""
    said = "there is no process that is not root's, to ask polkit about"
    for pid in islice(_not_root(), _TRIES):
        command = [str(PKCHECK), "--action-id", PROOF_PERMISSION, "--process", str(pid)]
        try:
            done = subprocess.run(
                [*command, "--detail", "domain_uuid", proof],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIME_LIMIT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"polkit can't be asked: {error}"
        if done.returncode == _REFUSED:
            return ""
        if done.returncode == _ALLOWED:
            return "polkit does not run the rules in our file; see polkitd's log"
        said = f"polkit does not answer: {' '.join(done.stderr.split())[:200]}"
    return said


def _not_root() -> Iterator[int]:
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid != 0:
                yield int(name)
        except OSError:
            # It has ended.
            continue
