"""A real etcd cluster of one's own, with whatever can happen to it.

    with Cluster(tmp_path / "etcd") as cluster:
        cluster.ctl("put", "key", "value")
        cluster.kill(0)
        cluster.start(0)

Members are ended by their process ids, and by the kernel when this process dies. Ports are free
ones on loopback; with ``net``, the process id of somebody in another network namespace, they are
etcd's usual ones on ``address`` there.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from bootlockd.config import Fleet
from waiting import PATIENCE, wait_until

_PEER, _CLIENT = 0, 1

#: Below what the kernel takes for outgoing connections (ip_local_port_range).
_NEVER_GIVEN = range(10_000, 32_000)


@dataclass(frozen=True)
class Certificates:
    """A CA's own directory: ``make`` gives certificates that it signed."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def make(self, name: str, subject: str = "/O=bootlock", days: int = 2) -> tuple[Path, Path]:
        """Certificate and key for loopback. ``days`` below 0: it has expired."""
        if not self.ca.exists():
            self._openssl("req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        asked = self.directory / f"{name}.csr"
        self._openssl("req", "-keyout", key, "-out", asked, "-subj", subject)
        extensions = self.directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        (self.directory / "index").write_text("")
        settings = self.directory / "ca.cnf"
        settings.write_text(
            "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\n"
            "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\norganizationName=supplied\n"
            "commonName=optional\n"
        )
        begin, end = ("20200101000000Z", "20200201000000Z") if days < 0 else ("", "")
        dates = ["-startdate", begin, "-enddate", end] if begin else ["-days", str(days)]
        command: list[str | Path] = [
            *("openssl", "ca", "-batch", "-notext", "-cert", "ca.pem", "-keyfile", "ca.key"),
            *(Path("-config"), settings, Path("-in"), asked, Path("-out"), cert),
            *("-extfile", str(extensions), *dates),
        ]
        subprocess.run(command, cwd=self.directory, check=True, capture_output=True)
        return cert, key

    def _openssl(self, *words: str | Path) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command = ["openssl", *words, *key]
        subprocess.run(command, cwd=self.directory, check=True, capture_output=True)


@dataclass
class _Member:
    name: str
    data: Path
    ports: tuple[int, int]
    process: subprocess.Popen[bytes] | None = None


class Cluster:
    """A cluster of ``size`` members; a context manager from its first leader to its end."""

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 3,
        certificates: Certificates | None = None,
        net: int | None = None,
        address: str = "127.0.0.1",
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.token = secrets.token_hex(4)
        self._certificates = certificates
        self._net = net
        self._address = address
        self._options = options
        ports = _free_ports(2 * size) if net is None else [2379 + 10 * at for at in range(2 * size)]
        self.members = [
            _Member(f"m{at}", directory / f"m{at}", (ports[2 * at], ports[2 * at + 1]))
            for at in range(size)
        ]
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"etcd said:\n{self.log()[-2000:]}")
        self.kill(*range(len(self.members)))

    # -- life ---------------------------------------------------------------------------------

    def start(self, *which: int, wait: bool = True) -> None:
        """Start these members, or all; ``wait`` until they answer."""
        numbers = which or range(len(self.members))
        for number in numbers:
            self._launch(self.members[number])
        if wait:
            wait_until(lambda: self._healthy(numbers), f"etcd answers; {self.log()[-500:]}")

    def kill(self, *which: int, how: int = signal.SIGKILL) -> None:
        """End these members."""
        for number in which:
            process = self.members[number].process
            if process is not None:
                process.send_signal(how)
        for number in which:
            process, self.members[number].process = self.members[number].process, None
            if process is not None:
                process.wait(PATIENCE)

    def pause(self, number: int) -> None:
        """Stop a member, without ending it."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let it go on."""
        self._signal(number, signal.SIGCONT)

    def wipe(self, *, same_token: bool = False) -> None:
        """All members lose their data: a new cluster at the same addresses."""
        self.kill(*range(len(self.members)))
        for member in self.members:
            shutil.rmtree(member.data)
        if not same_token:
            self.token = secrets.token_hex(4)
        self.start()

    def snapshot(self) -> Path:
        """The cluster's state now, in a file."""
        file = self.directory / f"snapshot-{secrets.token_hex(4)}"
        one = ["--endpoints", self.url(0)]
        self._etcdctl(*one, "snapshot", "save", str(file))
        return file

    def restore(self, file: Path) -> None:
        """All members go back to a snapshot, as the manual says; the cluster's id stays."""
        self.kill(*range(len(self.members)))
        for member in self.members:
            shutil.rmtree(member.data)
            self._etcdctl(
                *("snapshot", "restore", str(file), "--name", member.name),
                *("--data-dir", str(member.data), "--initial-cluster", self._peers()),
                *("--initial-cluster-token", self.token),
                *("--initial-advertise-peer-urls", self._url(member, _PEER)),
            )
        self.start()

    # -- use ----------------------------------------------------------------------------------

    def ctl(self, *words: str, check: bool = True) -> str:
        """``etcdctl WORDS`` on all members that run; what it printed."""
        living = [self._url(m, _CLIENT) for m in self.members if m.process is not None]
        return self._etcdctl("--endpoints", ",".join(living), *words, check=check)

    def put(self, key: str, value: str | bytes) -> None:
        """Write a key, whatever its value."""
        text = value if isinstance(value, bytes) else value.encode()
        self._etcdctl("--endpoints", self.url(0), "put", key, input_=text)

    def url(self, number: int) -> str:
        """Where a member answers."""
        return self._url(self.members[number], _CLIENT)

    def settings(self, **more: object) -> Fleet:
        """``[fleet]`` for a host of this cluster."""
        endpoints = tuple(self.url(number) for number in range(len(self.members)))
        known = Fleet(endpoints=endpoints, heartbeat=2, timeout=2)
        if self._certificates:
            known = replace(known, ca_file=self._certificates.ca)
        return replace(known, **more)  # type: ignore[arg-type]

    def log(self) -> str:
        """What the members said."""
        return "".join(file.read_text(errors="replace") for file in self.directory.glob("*.log"))

    # -- how ----------------------------------------------------------------------------------

    def _launch(self, member: _Member) -> None:
        peer, client = self._url(member, _PEER), self._url(member, _CLIENT)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "etcd"),
            *("--name", member.name, "--data-dir", str(member.data)),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--initial-cluster", self._peers(), "--initial-cluster-token", self.token),
            *("--heartbeat-interval", "50", "--election-timeout", "500", "--bcrypt-cost", "4"),
            *("--log-level", "error", "--logger", "zap", *self._options),
        ]
        if self._certificates:
            cert, key = self._certificates.make(f"server-{member.name}")
            command += ["--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth"]
            command += ["--trusted-ca-file", str(self._certificates.ca)]
        with (self.directory / f"{member.name}.log").open("a") as log:
            member.process = subprocess.Popen(
                self._inside(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )

    def _signal(self, number: int, how: int) -> None:
        process = self.members[number].process
        assert process
        process.send_signal(how)

    def _healthy(self, numbers: Sequence[int]) -> bool:
        urls = ",".join(self.url(number) for number in numbers)
        return "unhealthy" not in self._etcdctl("--endpoints", urls, "endpoint", "health", ok=True)

    def _etcdctl(
        self, *words: str, check: bool = True, ok: bool = False, input_: bytes = b""
    ) -> str:
        command = ["etcdctl", "--dial-timeout", "2s", *words]
        if self._certificates:
            cert, key = self._certificates.directory / "ctl.pem", ""
            if not cert.exists():
                self._certificates.make("ctl", "/O=bootlock/CN=root")
            key = str(cert.with_suffix(".key"))
            ca = str(self._certificates.ca)
            command += ["--cacert", ca, "--cert", str(cert), "--key", key]
        done = subprocess.run(
            self._inside(command),
            input=input_,
            capture_output=True,
            env=_environment() | {"ETCDCTL_API": "3"},
            check=False,
            timeout=PATIENCE,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if ok and done.returncode:
            return f"unhealthy: {said}"
        if check and done.returncode:
            raise AssertionError(f"etcdctl {words}: {said}")
        return said

    def _inside(self, command: Sequence[str]) -> list[str]:
        enter = [] if self._net is None else ["nsenter", f"--net=/proc/{self._net}/ns/net"]
        return [*enter, *command]

    def _url(self, member: _Member, which: int) -> str:
        secure = self._certificates and which == _CLIENT
        return f"{'https' if secure else 'http'}://{self._address}:{member.ports[which]}"

    def _peers(self) -> str:
        return ",".join(f"{member.name}={self._url(member, _PEER)}" for member in self.members)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, and that the kernel gives no outgoing connection meanwhile."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(_NEVER_GIVEN, len(_NEVER_GIVEN)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free port")


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD", "http", "HTTP"))}
    # `make deps` puts etcd beside the Python that runs this.
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}
