"""`make demo`: real libvirt refuses a held guest by every route, and starts it when released.

Everything happens on two libvirt hosts of the demo's own (see tests/privatehost.py): real
libvirtd, real QEMU, in private namespaces. The machine's own libvirt is not asked, and nothing is
left behind, whether the demo ends, fails or is interrupted.

It is a check too: it ends with status 1 at the first step that doesn't behave as told.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import FrameType

from domainxml import domain_xml, file_disk
from privatehost import PrivateHost, PrivateHostError

SOURCES = Path(__file__).resolve().parents[1]

UUID = "5f0e2c1a-9d0b-4c57-8b1e-6a4f4b7b2d10"
ANOTHER_UUID = "0b6f7c55-2d1e-4f0a-9a35-c1d2e3f4a5b6"
NOTICE = "unpaid since March, please call the desk"


class NotAsTold(Exception):
    """A step had another outcome than the demo says."""


class Screen:
    """Plain text, with colours where a person looks at a terminal."""

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def _in(self, colour: int, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text

    def heading(self, text: str) -> None:
        """Start a part of the story."""
        print(f"\n{self._in(1, text)}", flush=True)

    def command(self, host: str, words: str) -> None:
        """Say what is typed, and where."""
        print(f"\n{self._in(36, f'{host}# {words}')}", flush=True)

    def answer(self, text: str) -> None:
        """Repeat what the program said."""
        for line in text.strip().splitlines():
            print(f"    {line}")

    def good(self, text: str) -> None:
        """Say that it went as told."""
        print(self._in(32, f"  ok: {text}"), flush=True)

    def bad(self, text: str) -> None:
        """Say that it did not."""
        print(self._in(31, f"  NOT AS TOLD: {text}"), flush=True)


class Demo:
    """The guest `web` on the host `alpha`, which later could move to `beta`."""

    def __init__(self, screen: Screen, alpha: PrivateHost) -> None:
        self.screen = screen
        self.alpha = alpha
        self.refusals = 0
        self.disk = alpha.images / "web.qcow2"
        self.saved = alpha.images / "web.saved"
        self.xml = alpha.images / "web.xml"
        self.copy = alpha.images / "copy.xml"

    def run(self) -> None:
        """Tell it all."""
        self.before()
        self.hold()
        self.routes()
        self.reboot()
        self.look()
        self.release()
        self.migrate()
        self.screen.heading("The journal, where all of it is written down")
        self.works("every entry is as it was written", "bootlock", "journal", "verify")

    def before(self) -> None:
        """Show that it starts, and keep ways to start it later."""
        self.screen.heading("A guest, not held: it starts, is saved, and starts again")
        self.alpha.run(["qemu-img", "create", "-q", "-f", "qcow2", self.disk, "16M"])
        drive = file_disk(self.disk, image="qcow2")
        self.xml.write_text(domain_xml("web", UUID, disks=[drive]), encoding="utf-8")
        self.copy.write_text(domain_xml("copy", ANOTHER_UUID, disks=[drive]), encoding="utf-8")
        self.alpha.virsh("define", self.xml)
        self.starts()
        self.works("a snapshot of it running", "virsh", "snapshot-create-as", "web", "monday")
        self.works("its memory in a file; off", "virsh", "save", "web", str(self.saved))
        self.starts()
        self.works("its memory in libvirt's care; off", "virsh", "managedsave", "web")

    def hold(self) -> None:
        """Place a boot lock."""
        self.screen.heading("A boot lock is placed on it")
        reason = ("--reason", "invoice 4711", "--notice", NOTICE)
        self.works("the very next start is refused", "bootlock", "place", "web", *reason)

    def routes(self) -> None:
        """Try to start it in every way that a single host has."""
        self.screen.heading("Now nothing starts it. From its managed save, which stays as it is:")
        image = self.alpha.outside("/var/lib/libvirt/qemu/save/web.save")
        digest = sha256(image)
        self.refused("start", "virsh", "start", "web")
        self.expect(sha256(image) == digest, "the image is the same, byte for byte")
        self.alpha.virsh("managedsave-remove", "web")

        self.screen.heading("From cold, paused, or created anew from its XML:")
        self.refused("start", "virsh", "start", "web")
        self.refused("start", "virsh", "start", "--paused", "web")
        self.refused("start", "virsh", "create", str(self.xml))

        self.screen.heading("From the file with its memory, or back to its snapshot:")
        self.refused("start", "virsh", "restore", str(self.saved))
        self.refused("start", "virsh", "snapshot-revert", "web", "monday")
        self.alpha.virsh("snapshot-delete", "web", "monday")

        self.screen.heading("Under another name, or its disk in a guest with another UUID:")
        self.alpha.virsh("domrename", "web", "innocent")
        self.refused("start", "virsh", "start", "innocent")
        self.alpha.virsh("domrename", "innocent", "web")
        self.refused("start", "virsh", "create", str(self.copy))

    def reboot(self) -> None:
        """Show that autostart doesn't start it either; nobody is there to be told."""
        self.screen.heading("By autostart when the host boots: refused in libvirtd's log")
        self.works("from now on libvirt starts it at boot", "virsh", "autostart", "web")
        self.screen.command("alpha", "reboot")
        self.alpha.reboot()
        log = self.alpha.outside("/var/log/libvirt/libvirtd.log").read_text(errors="replace")
        lines = [line for line in log.splitlines() if "Failed to autostart" in line]
        self.screen.answer(shortened("\n".join(lines)))
        self.expect(NOTICE in "".join(lines), "libvirt was refused at boot, and logged why")
        self.expect_off()
        self.alpha.virsh("autostart", "--disable", "web")

    def look(self) -> None:
        """Show what the staff can see."""
        self.screen.heading("What the staff sees")
        self.screen.command("alpha", "bootlock list")
        # On a terminal, for which it draws a table.
        bootlock = Path(sys.executable).parent / "bootlock"
        table = self.alpha.run(["script", "-qec", f"stty cols 132; {bootlock} list", "/dev/null"])
        self.screen.answer(table.stdout)
        self.expect(UUID in table.stdout, "the hold is in force")
        self.works("all that is known of it", "bootlock", "show", "web")
        done = self.typed(self.alpha, "bootlock", "check", "web")
        self.expect(done.returncode == 1, "exit code 1: it would be refused")
        connect = ("--connect", "qemu:///system")
        self.works("every link of the chain was tested", "bootlock", *connect, "doctor")

    def release(self) -> None:
        """Release it: it starts."""
        self.screen.heading("It is released, and starts")
        what = ("--instance", "web", "--all", "--reason", "invoice 4711 was paid")
        self.works("nothing holds it any more", "bootlock", "release", *what)
        self.starts()

    def migrate(self) -> None:
        """Move it to a host that holds it, and then to one that doesn't."""
        self.screen.heading("It runs on alpha. A second host, beta, holds it: it can't move there")
        with PrivateHost(name="beta", network_of=self.alpha) as beta:
            install(beta)
            reason = ("--reason", "abuse", "--notice", NOTICE)
            self.works("beta knows only its UUID", "bootlock", "place", UUID, *reason, on=beta)
            move = ("virsh", "migrate", "--live", "--unsafe", "web", beta.uri, "tcp://127.0.0.1")
            self.refused("migrate", *move, off=False)
            self.expect(self.state(self.alpha) == "running", "it still runs on alpha")
            what = ("--instance", UUID, "--all", "--reason", "a mistake")
            self.works("nothing holds it there", "bootlock", "release", *what, on=beta)
            self.works("it has moved", *move)
            self.expect(self.state(beta) == "running", "it runs on beta")

    def starts(self) -> None:
        """Start it from cold or from its managed save."""
        self.works("it started", "virsh", "start", "web")
        self.expect(self.state(self.alpha) == "running", "it runs")

    def works(self, meaning: str, *words: str, on: PrivateHost | None = None) -> None:
        """Type a command that must succeed."""
        done = self.typed(on or self.alpha, *words)
        self.expect(done.returncode == 0, meaning)

    def refused(self, operation: str, *words: str, off: bool = True) -> None:
        """Type a command that libvirt must refuse with our line."""
        done = self.typed(self.alpha, *words)
        said = done.stdout + done.stderr
        ours = f"bootlock: {operation} refused: {NOTICE} [hold " in said
        self.expect(done.returncode != 0 and ours, "libvirt refused, and says why")
        self.refusals += 1
        if off:
            self.expect_off()

    def typed(self, host: PrivateHost, *words: str) -> CompletedProcess[str]:
        """Show a command, run it on the host, show what it said."""
        shown = [f'"{word}"' if " " in word else word for word in words]
        self.screen.command(host.name, " ".join(shown))
        program, *arguments = words
        does = host.virsh if program == "virsh" else host.bootlock
        done = does(*arguments, check=False)
        self.screen.answer(shortened(done.stdout + done.stderr))
        return done

    def expect(self, is_true: bool, meaning: str) -> None:
        """Go on only if it is as told."""
        if not is_true:
            self.screen.bad(meaning)
            raise NotAsTold
        self.screen.good(meaning)

    def expect_off(self) -> None:
        """No guest runs, by this or any other name."""
        running = self.alpha.virsh("list", "--name").stdout.split()
        if running:
            self.expect(False, f"nothing runs; but {', '.join(running)} does")

    def state(self, host: PrivateHost) -> str:
        """Libvirt's word on it."""
        return host.virsh("domstate", UUID, check=False).stdout.strip()


def install(host: PrivateHost) -> None:
    """Put on the host what `bootlock doctor` looks for, as an installation would."""
    host.install_bootlock()
    shutil.copy(SOURCES / "hooks/50-bootlock", host.outside("/usr/share/bootlock"))
    host.outside("/var/lib/bootlock").chmod(0o750)


def shortened(text: str) -> str:
    """The answer, less the environment that libvirt tells it gave the hook."""
    return re.sub(r"\(LC_ALL=C .*?(?=/etc/libvirt/hooks/)", "(", text)


def sha256(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def on_signal(do: Callable[[], None]) -> None:
    """Have the first Ctrl-C or request to end unwind the demo; the next ones find it at that."""

    def handle(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        do()

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, handle)


def interrupt() -> None:
    """Leave every `with` on the way out."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo. 0: all as told; 1: not; 130: interrupted."""
    on_signal(interrupt)
    screen = Screen()
    began = time.monotonic()
    screen.heading("A libvirt host of our own: libvirtd and QEMU in private namespaces")
    try:
        with PrivateHost(name="alpha") as alpha:
            install(alpha)
            demo = Demo(screen, alpha)
            demo.run()
    except NotAsTold:
        return 1
    except PrivateHostError as error:
        screen.bad(str(error))
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left behind")
        return 130
    took = time.monotonic() - began
    screen.heading(
        f"All as told, in {took:.0f} s: refused {demo.refusals + 1} times, started when released. "
        "Nothing is left behind."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
