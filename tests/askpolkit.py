"""Asks polkitd, as libvirtd does, whether a process may: run inside, as root.

argv: the process. stdin: a JSON list of {"permission": ..., details}. stdout: a list of booleans.
"""

from __future__ import annotations

import json
import subprocess
import sys

answers = []
for question in json.load(sys.stdin):
    command = ["pkcheck", "--action-id", "org.libvirt.api." + question.pop("permission")]
    command += ["--process", sys.argv[1]]
    for name, value in question.items():
        command += ["--detail", name, value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        sys.exit(done.stderr)
    answers.append(done.returncode == 0)
sys.stdout.write(json.dumps(answers))
