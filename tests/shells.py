"""Types a line into a real shell on a host, presses the tabulator, and tells what became of it."""

from __future__ import annotations

import os
import pty

from privatehost import PrivateHost
from waiting import wait_until

_BASH = """
    . /usr/share/bash-completion/completions/bootlock
    COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _bootlock_completion bootlock "${COMP_WORDS[-1]}" bootlock
    echo "${COMPREPLY[@]}"
"""

# Ctrl-X writes down what the line has become, and ends the shell.
_ZSH = r"""
    autoload -Uz compinit; compinit -u -D;
    show() { print -r -- "$BUFFER" >SHOWN.new; mv SHOWN.new SHOWN; BUFFER=exit; zle accept-line };
    zle -N show; bindkey '^X' show
"""


def completed(host: PrivateHost, shell: str, line: str) -> str:
    """The last word of the line as the shell has completed it; the line does not end in a space."""
    if shell == "zsh":
        return _zsh(host, line).split()[-1]
    argv = {
        "bash": ["bash", "-c", _BASH, "bash", line],
        "fish": ["fish", "-c", f"complete -C '{line}'"],
    }
    said = host.run(argv[shell], env={"HOME": str(host.images)}).stdout
    return said.partition("\t")[0].strip()


def _zsh(host: PrivateHost, line: str) -> str:
    """Its completion works on an interactive line only, so it gets a terminal."""
    shown = host.images / "completed"
    shown.unlink(missing_ok=True)
    ours, its = pty.openpty()
    env = {"HOME": str(host.images), "TERM": "dumb"}
    zsh = host.popen(["zsh", "-f", "-i"], stdin=its, stdout=its, stderr=its, env=env)
    os.close(its)
    try:
        setup = " ".join(_ZSH.replace("SHOWN", str(shown)).split())
        os.write(ours, f"{setup}\n{line}\t\x18".encode())
        wait_until(shown.exists, "zsh has completed the line")
        return shown.read_text("utf-8")
    finally:
        os.close(ours)
        zsh.wait(60)
