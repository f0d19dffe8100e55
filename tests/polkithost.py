"""A private libvirt host whose libvirtd asks polkit: a system bus and polkitd of its own.

    with PolkitHost() as host:
        host.as_user("virsh", "destroy", "web")       # somebody in the group libvirt, not root
        host.polkit_says("domain.stop", domain_uuid=uuid)

Whoever is in the group libvirt may do everything there, as an admin would arrange it who turns
libvirt's access driver on; so what is refused, bootlock's rules refuse.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Self

from bootlockd.polkitrules import proof_of
from daemonhost import SETTINGS as PLAIN
from privatehost import PrivateHost
from waiting import wait_until

USER = "tester"
RULES = "/etc/polkit-1/rules.d/00-bootlock.rules"
POLICY = Path("/usr/share/polkit-1/actions/org.libvirt.api.policy")

#: The daemon's, with the fence.
SETTINGS = PLAIN.replace("[polkit]\nenabled = false", "")

_GRANT = """
polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.libvirt.") === 0 && subject.isInGroup("libvirt")) {
        return polkit.Result.YES;
    }
});
"""

#: Permissions that no libvirt of today has.
FUTURE = ("domain.transmute", "storage-vol.transmute")

_FUTURE = "<policyconfig>{}</policyconfig>".format(
    "".join(
        f'<action id="org.libvirt.api.{name}"><description>x</description><message>x</message>'
        "<defaults><allow_any>no</allow_any></defaults></action>"
        for name in FUTURE
    )
)

_ON = 'access_drivers = [ "polkit" ]'
_END = "# as it was\n"
_SOCKET_OF_LIBVIRT = """
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
"""
#: Who may connect is for polkit to say.
SOCKET_OF_SYSTEMD = """
unix_sock_rw_perms = "0777"
auth_unix_rw = "polkit"
"""

#: polkitd is told by its number: it writes no file with it.
_BUS = """
# polkitd is to be started by nobody else, as D-Bus would.
rm -f /usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service
mkdir -p /run/dbus
dbus-daemon --system --fork --nopidfile
"""

_START = """
/usr/lib/polkit-1/polkitd --no-debug >/dev/null 2>&1 </dev/null &
echo $! >/run/polkitd.pid
"""

#: Who is not root gets a libvirt of her own unless she says otherwise.
_VIRSH = ("virsh", "-c", "qemu:///system")

_REGISTERED = (
    "dbus-send --system --print-reply --dest=org.freedesktop.DBus / "
    "org.freedesktop.DBus.GetNameOwner string:org.freedesktop.PolicyKit1"
)


class PolkitHost(PrivateHost):
    """One with a user who is not root, and a libvirtd that asks polkit about her."""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.install_bootlock()
            self.run(["useradd", "--no-create-home", "--groups", "libvirt", USER])
            rules = "cat >/etc/polkit-1/rules.d/50-test.rules"
            self.run(["sh", "-c", rules], input=_GRANT)
            self.run(["sh", "-c", f"cat >{POLICY.parent}/future.policy"], input=_FUTURE)
            self.run(["sh", "-ec", _BUS])
            self.start_polkit()
            self.turn_on()
            # A process of hers that polkit can be asked about; it ends with the host.
            who = [
                "sh",
                "-c",
                "echo $$ >/run/user.pid; exec setpriv --reuid tester --regid tester "
                "--init-groups sleep infinity",
            ]
            self.popen(who, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: self._uid_of_user() not in ("", "0"), "somebody is there")
        except BaseException:
            self.stop()
            raise
        return self

    def start_polkit(self) -> None:
        """polkitd; it answers when this returns."""
        self.run(["sh", "-ec", _START])
        wait_until(
            lambda: self.run(["sh", "-c", _REGISTERED], check=False).returncode == 0,
            "polkitd answers",
        )

    def end_polkit(self) -> None:
        pid = self.outside("/run/polkitd.pid").read_text().strip()
        self.run(["kill", pid])
        wait_until(
            lambda: self.run(["sh", "-c", _REGISTERED], check=False).returncode != 0,
            "polkitd has ended",
        )

    def turn_on(self, on: bool = True, settings: str = _SOCKET_OF_LIBVIRT) -> None:
        """Have libvirtd ask polkit, or not; with these settings of its socket."""
        conf = self.outside("/etc/libvirt/libvirtd.conf")
        before = conf.read_text().rpartition(_END)[2]
        # Of two settings libvirt takes the first.
        conf.write_text(_ON + settings + _END + before if on else before)
        self.restart_libvirtd()

    def as_user(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside as somebody in the group libvirt."""
        become = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]
        return self.run([*become, *argv], check=check)

    def virsh_as_user(self, commands: list[str]) -> None:
        """Many commands of virsh by one connection of hers."""
        self.as_user(*_VIRSH, ";".join(commands))

    def refused(self, *argv: str) -> bool:
        """Whether libvirt's access driver refuses this command of virsh to her."""
        done = self.as_user(*_VIRSH, *argv, check=False)
        return done.returncode != 0 and "access denied" in done.stderr

    def polkit_says(self, questions: list[dict[str, str]]) -> list[bool]:
        """Whether she may, question by question: ``{"permission": "domain.stop", ...details}``."""
        script = Path(__file__).with_name("askpolkit.py")
        pid = self.outside("/run/user.pid").read_text().strip()
        argv: list[str | Path] = ["/usr/bin/python3", script, pid]
        answers: Any = json.loads(self.run(argv, input=json.dumps(questions)).stdout)
        return list(answers)

    def permissions(self, *objects: str) -> set[str]:
        """All that libvirt knows of these objects, by the list that it gives polkit."""
        listed = self.run(["sh", "-c", f"cat {POLICY.parent}/*.policy"]).stdout
        ids = re.findall(r'<action id="org\.libvirt\.api\.([^"]+)"', listed)
        return {name for name in ids if name.partition(".")[0] in objects}

    def runs(self, text: str) -> bool:
        """Whether polkit runs these rules."""
        return not self.polkit_says(
            [{"permission": "domain.getattr", "domain_uuid": proof_of(text)}]
        )[0]

    def rules(self, text: str | None = None) -> str:
        """bootlock's rules file; with a text, after it was written over by hand."""
        if text is not None:
            self.run(["sh", "-c", f"cat >{RULES}"], input=text)
        return self.run(["sh", "-c", f"cat {RULES} 2>/dev/null || true"]).stdout

    def _libvirt_answers(self) -> bool:
        # From inside: polkit can't tell who a process of another PID namespace is.
        return self.run(["virsh", "version"], check=False).returncode == 0

    def _uid_of_user(self) -> str:
        script = "ps -o uid= -p $(cat /run/user.pid 2>/dev/null) 2>/dev/null || true"
        return self.run(["sh", "-c", script]).stdout.strip()
