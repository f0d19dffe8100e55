"""A cloud of one's own: real nova-api and real keystone, inside a private libvirt host.

They come from packages, into a virtual environment that is kept: below ``$BOOTLOCK_NOVA_CACHE``,
or ``~/.cache/bootlock-nova``. So are their empty databases, since Nova's take most of a minute to
make. Both are made anew if what is written here about them changes. Nothing of it is in the tree.

The services run in the private host's namespaces, on its loopback, with fixed ports and paths, and
end with it. There is no nova-compute and no message queue: servers are seeded with Nova's own
objects. Locking, unlocking and reading are Nova's, from the API down to its databases.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid as uuids
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privatehost import PrivateHost
from waiting import wait_until

#: keystone and the others follow from what Nova allows.
PACKAGES = ("nova==34.0.0", "keystone==30.0.0", "waitress==3.0.2")
CACHE = Path(os.environ.get("BOOTLOCK_NOVA_CACHE") or Path.home() / ".cache/bootlock-nova")
PEERS = Path(__file__).parent / "peers"

#: All of the cloud's own files, as seen inside.
STATE = Path("/run/cloud")
KEYSTONE = "http://127.0.0.1:5000/v3"
NOVA = "http://127.0.0.1:8774/v2.1"

NOVA_CONF = f"""\
[DEFAULT]
state_path = {STATE}
log_file = {STATE}/log/nova.log
transport_url = fake:/
[wsgi]
api_paste_config = {STATE}/nova/api-paste.ini
[api_database]
connection = sqlite:///{STATE}/db/api.db?timeout=30
sqlite_synchronous = false
[database]
connection = sqlite:///{STATE}/db/cell1.db?timeout=30
sqlite_synchronous = false
max_retries = 1
retry_interval = 1
[oslo_concurrency]
lock_path = {STATE}/lock
[oslo_policy]
policy_file = {STATE}/nova/policy.yaml
[notifications]
notification_format = unversioned
[oslo_messaging_notifications]
driver = noop
[neutron]
endpoint_override = http://127.0.0.1:9696
auth_type = none
[keystone]
endpoint_override = {KEYSTONE}
[keystone_authtoken]
www_authenticate_uri = {KEYSTONE}
auth_url = {KEYSTONE}
auth_type = password
username = nova
password = nova
project_name = service
user_domain_id = default
project_domain_id = default
service_token_roles_required = true
# Or a token that was revoked would be good for five minutes.
token_cache_time = -1
"""

KEYSTONE_CONF = f"""\
[DEFAULT]
log_file = {STATE}/log/keystone.log
[database]
connection = sqlite:///{STATE}/db/keystone.db?timeout=30
sqlite_synchronous = false
[token]
provider = fernet
[fernet_tokens]
key_repository = {STATE}/keystone/fernet
[fernet_receipts]
key_repository = {STATE}/keystone/fernet
[credential]
key_repository = {STATE}/keystone/credential
"""

#: Where a server's rows are, by database and table, and the column with its UUID.
_SERVER_ROWS = {
    "cell1": {
        "instances": "uuid",
        "instance_extra": "instance_uuid",
        "instance_info_caches": "instance_uuid",
        "instance_system_metadata": "instance_uuid",
    },
    "api": {"instance_mappings": "instance_uuid"},
}

#: Who there is, besides keystone's first admin: user (and password), project, roles.
#: ``operator`` is what takes the provider's locks, ``bootlock`` what the source reads as.
ACCOUNTS = (
    ("nova", "service", ("admin", "service")),
    ("operator", "operations", ("admin",)),
    ("bootlock", "service", ("reader", "bootlock")),
    ("stranger", "service", ("reader",)),
    ("customer", "customer", ("member", "reader")),
)


@dataclass(frozen=True)
class Seed:
    """A server that is to be: off, on a compute host, and locked if ``locked_by`` says so."""

    uuid: str
    host: str
    locked_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Answer:
    """What an API said."""

    status: int
    headers: dict[str, str]
    body: Any


class Cloud:
    """nova-api and keystone inside ``host``; its ``stop()`` ends them."""

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self._tokens: dict[str, str] = {}
        self._pids: dict[str, int] = {}
        self._asker = host.popen([sys.executable, "-B", PEERS / "asker.py"], stdin=subprocess.PIPE)

    @property
    def state(self) -> Path:
        """Where the cloud's files are for this process."""
        return self.host.outside(STATE)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Install and initialise what is not there yet, then start both services."""
        with _alone():
            kept = CACHE / f"databases-{_fingerprint()}"
            self._install()
            if kept.exists():
                shutil.copytree(kept, self.state)
                self._serve_keystone()
            else:
                for older in CACHE.glob("databases-*"):
                    shutil.rmtree(older)
                self._initialise()
                self._serve_keystone()
                self._populate()
                part = kept.with_suffix(".part")
                self.stop_service("keystone")
                shutil.copytree(self.state, part)
                part.rename(kept)
                self._serve_keystone()
        self.serve_nova()

    def serve_nova(self) -> None:
        """Start nova-api."""
        self._serve("nova", 8774, NOVA)

    def stop_service(self, name: str, how: str = "KILL") -> None:
        """End ``nova`` or ``keystone``, and wait until it is gone."""
        pid = self._pids.pop(name)
        self.host.run(["kill", "-s", how, str(pid)])
        wait_until(
            lambda: self.host.run(["kill", "-0", str(pid)], check=False).returncode != 0,
            f"{name} has ended",
        )

    def signal_nova(self, how: str) -> None:
        """Send nova-api a signal: STOP and CONT make a service that hangs."""
        self.host.run(["kill", "-s", how, str(self._pids["nova"])])

    def set_policy(self, text: str) -> None:
        """Replace Nova's policy file, which Nova reads again when it was changed."""
        new = self.state / "nova/policy.new"
        new.write_text(text)
        new.rename(self.state / "nova/policy.yaml")

    def revoke_tokens(self, user: str) -> None:
        """Make keystone refuse each token that this account has; a new one is granted."""
        token = {"X-Auth-Token": self._log_in("admin", "first", "admin")}
        (person,) = self.ask("GET", f"{KEYSTONE}/users?name={user}", token).body["users"]
        for enabled in (False, True):
            change = {"user": {"enabled": enabled}}
            said = self.ask("PATCH", f"{KEYSTONE}/users/{person['id']}", token, change)
            assert said.status == 200, said
        self._tokens.pop(user, None)

    @contextmanager
    def without_cell(self) -> Iterator[None]:
        """The cell's database is not to be read within."""
        database = self.state / "db/cell1.db"
        away = database.with_suffix(".away")
        database.rename(away)
        database.mkdir()
        try:
            yield
        finally:
            database.rmdir()
            away.rename(database)

    # -- what one does with a cloud -----------------------------------------------------------

    def seed(self, seeds: Iterable[Seed]) -> None:
        """Make these servers, the customer's all."""
        owner = json.loads((self.state / "customer.json").read_text())
        servers = json.dumps([asdict(seed) | owner for seed in seeds])
        python = self._program("python")
        self.host.run(
            [python, "-B", PEERS / "seed.py", STATE / "nova/nova.conf"],
            input=servers,
            env=self._settings(),
            timeout=120,
        )

    def lock(self, uuid: str, *, by: str = "operator", reason: str | None = None) -> None:
        """Lock a server as that account."""
        order = None if reason is None else {"locked_reason": reason}
        self._act(uuid, by, {"lock": order})

    def unlock(self, uuid: str, *, by: str = "operator") -> None:
        """Unlock a server as that account."""
        self._act(uuid, by, {"unlock": None})

    def seed_like(self, uuid: str, others: Iterable[str]) -> None:
        """Make servers that are as that one is, row by row: hundreds a second."""
        pairs = [{"new": other, "old": uuid} for other in others]
        for database, tables in _SERVER_ROWS.items():
            with closing(sqlite3.connect(self.state / f"db/{database}.db")) as db, db:
                for table, key in tables.items():
                    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
                    columns.remove("id")
                    values = ", ".join(":new" if name == key else name for name in columns)
                    db.executemany(
                        f"INSERT INTO {table} ({', '.join(columns)})"
                        f" SELECT {values} FROM {table} WHERE {key} = :old",
                        pairs,
                    )

    def delete(self, uuid: str) -> None:
        """Leave a server as Nova does that has deleted it: all there, but for its state."""
        with closing(sqlite3.connect(self.state / "db/cell1.db")) as db, db:
            db.execute(
                "UPDATE instances SET deleted = id, vm_state = 'deleted', task_state = NULL,"
                " deleted_at = datetime(), updated_at = datetime(), terminated_at = datetime()"
                " WHERE uuid = ?",
                [uuid],
            )

    def move(self, uuid: str, host: str) -> None:
        """Leave a server as Nova does that has moved it to another compute host."""
        with closing(sqlite3.connect(self.state / "db/cell1.db")) as db, db:
            db.execute(
                "UPDATE instances SET host = ?, node = ?, updated_at = datetime() WHERE uuid = ?",
                [host, host, uuid],
            )

    def nova(
        self, method: str, path: str, body: object = None, *, by: str, microversion: str = "2.79"
    ) -> Answer:
        """Ask Nova as that account."""
        headers = {
            "X-Auth-Token": self.token(by),
            "OpenStack-API-Version": f"compute {microversion}",
        }
        return self.ask(method, NOVA + path, headers, body)

    def token(self, user: str) -> str:
        """A token of that account, always the same."""
        if user not in self._tokens:
            projects = {name: project for name, project, _ in ACCOUNTS}
            self._tokens[user] = self._log_in(user, user, projects[user])
        return self._tokens[user]

    def clouds_yaml(self, user: str, password: str = "") -> str:
        """What openstacksdk reads to be that account."""
        projects = {name: project for name, project, _ in ACCOUNTS}
        auth = {
            "auth_url": KEYSTONE,
            "username": user,
            "password": password or user,
            "project_name": projects[user],
            "user_domain_id": "default",
            "project_domain_id": "default",
        }
        # JSON is YAML.
        return json.dumps({"clouds": {"test": {"auth": auth, "region_name": "RegionOne"}}})

    def ask(
        self, method: str, url: str, headers: dict[str, str] | None = None, body: object = None
    ) -> Answer:
        """One request from within; ``status`` 0 if nobody answers."""
        assert self._asker.stdin
        assert self._asker.stdout
        print(json.dumps([method, url, headers or {}, body]), file=self._asker.stdin, flush=True)
        return Answer(*json.loads(self._asker.stdout.readline()))

    # -- how it is done -----------------------------------------------------------------------

    def _act(self, uuid: str, by: str, action: dict[str, Any]) -> None:
        said = self.nova("POST", f"/servers/{uuid}/action", action, by=by)
        assert said.status == 202, said

    def _log_in(self, user: str, password: str, project: str) -> str:
        domain = {"id": "default"}
        person = {"name": user, "password": password, "domain": domain}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": person}},
            "scope": {"project": {"name": project, "domain": domain}},
        }
        said = self.ask("POST", f"{KEYSTONE}/auth/tokens", body={"auth": auth})
        assert said.status == 201, said
        return said.headers["x-subject-token"]

    @property
    def _venv(self) -> Path:
        return CACHE / f"venv-{_digest(PACKAGES, sys.version)}"

    def _program(self, name: str) -> Path:
        return self._venv / "bin" / name

    def _settings(self) -> dict[str, str]:
        return {
            "OS_NOVA_CONFIG_DIR": f"{STATE}/nova",
            "OS_KEYSTONE_CONFIG_DIR": f"{STATE}/keystone",
            "OS_NOVA_DISABLE_EVENTLET_PATCHING": "1",
        }

    def _install(self) -> None:
        if (self._venv / "done").exists():
            return
        shutil.rmtree(self._venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", self._venv], check=True)
        pip = (self._program("pip"), "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, *PACKAGES], check=True, capture_output=True)
        (self._venv / "done").touch()

    def _initialise(self) -> None:
        for part in ("nova", "keystone/fernet", "keystone/credential", "db", "log", "lock"):
            (self.state / part).mkdir(parents=True)
        (self.state / "nova/nova.conf").write_text(NOVA_CONF)
        (self.state / "nova/policy.yaml").write_text("{}\n")
        shutil.copy(self._venv / "etc/nova/api-paste.ini", self.state / "nova")
        (self.state / "keystone/keystone.conf").write_text(KEYSTONE_CONF)
        self._manage("nova", "api_db", "sync")
        self._manage("nova", "cell_v2", "map_cell0", "--database_connection", _database("cell0"))
        self._manage("nova", "db", "sync")
        self._manage(
            "nova",
            *("cell_v2", "create_cell", "--name", "cell1", "--transport-url", "fake:/"),
            *("--database_connection", _database("cell1")),
        )
        self._manage("keystone", "db_sync")
        for keys in ("fernet_setup", "credential_setup"):
            self._manage("keystone", keys, "--keystone-user", "root", "--keystone-group", "root")
        self._manage(
            "keystone",
            *("bootstrap", "--bootstrap-password", "first", "--bootstrap-region-id", "RegionOne"),
            *("--bootstrap-public-url", KEYSTONE, "--bootstrap-internal-url", KEYSTONE),
        )

    def _manage(self, what: str, *args: str) -> None:
        self.host.run(
            [
                self._program(f"{what}-manage"),
                *("--config-file", f"{STATE}/{what}/{what}.conf"),
                *args,
            ],
            env=self._settings(),
            timeout=300,
        )

    def _populate(self) -> None:
        """Make the accounts, and tell keystone where Nova is."""
        token = {"X-Auth-Token": self._log_in("admin", "first", "admin")}

        def made(kind: str, **fields: Any) -> str:
            said = self.ask("POST", f"{KEYSTONE}/{kind}s", token, {kind: fields})
            assert said.status == 201, said
            return str(said.body[kind]["id"])

        service = made("service", type="compute", name="nova")
        made("endpoint", service_id=service, interface="public", region_id="RegionOne", url=NOVA)
        roles = {
            role["name"]: role["id"]
            for role in self.ask("GET", f"{KEYSTONE}/roles", token).body["roles"]
        }
        for name in {role for *_, wanted in ACCOUNTS for role in wanted} - roles.keys():
            roles[name] = made("role", name=name)
        projects: dict[str, str] = {}
        for name, project, wanted in ACCOUNTS:
            if project not in projects:
                projects[project] = made("project", name=project, domain_id="default")
            user = made("user", name=name, password=name, domain_id="default")
            for role in wanted:
                where = f"projects/{projects[project]}/users/{user}/roles/{roles[role]}"
                said = self.ask("PUT", f"{KEYSTONE}/{where}", token)
                assert said.status == 204, said
            if name == "customer":
                owner = {"user": user, "project": projects[project]}
                (self.state / "customer.json").write_text(json.dumps(owner))

    def _serve_keystone(self) -> None:
        self._serve("keystone", 5000, KEYSTONE)

    def _serve(self, name: str, port: int, url: str) -> None:
        log = STATE / f"log/{name}.out"
        # The shell tells the PID that the service has inside: signals are sent there.
        # No exec: nsenter stops along with a child that is stopped, and is not continued with it.
        logging = 'log=$1; shift; "$@" >"$log" 2>&1 & echo $!; wait'
        serve = (self._program("python"), "-B", PEERS / "serve.py", name, str(port))
        started = self.host.popen(["sh", "-c", logging, "sh", log, *serve], env=self._settings())
        assert started.stdout
        self._pids[name] = int(started.stdout.readline())
        wait_until(lambda: self.ask("GET", url).status, f"{name} answers, or see {log}")


def some_uuids(count: int) -> list[str]:
    """So many UUIDs that nothing has."""
    return [str(uuids.uuid4()) for _ in range(count)]


def _database(name: str) -> str:
    return f"sqlite:///{STATE}/db/{name}.db?timeout=30"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _fingerprint() -> str:
    """Of everything that the empty databases come from."""
    return _digest(sys.version, Path(__file__).read_text("utf-8"))


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process at a time installs and initialises."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
