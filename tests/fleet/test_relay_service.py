"""Relays as processes, on a real registry: one writes, and another does when it can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from bootlockd import relaystate
from bootlockd.config import Config, Fleet, Nova, Sources
from bootlockd.errors import ConfigError
from bootlockd.fleet import relays
from bootlockd.fleet.client import Client
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import OFFICE, RELAY, Entry, Registry, in_force
from bootlockd.fleet.relays import RelayReport
from bootlockd.relay import PLACED_BY
from bootlockd.relayservice import relay_service
from etcdcluster import Cluster
from fleet.proxy import Proxy
from lockdb.when import iso
from manager import Manager
from waiting import PATIENCE, wait_until

PROCESS = Path(__file__).with_name("relayprocess.py")
#: Seconds.
LEASE = 3


def uuid(number: int) -> str:
    return f"{number:08x}-1111-4222-8333-555555555555"


class RelayProcess:
    """One relay, and what its Nova says."""

    def __init__(self, name: str, endpoints: Sequence[str], keys: Keys, directory: Path) -> None:
        self.name = name
        self.manager = Manager(directory / f"{name}.sock")
        self._nova = directory / f"{name}.nova"
        self._log = directory / f"{name}.log"
        self.says()
        words = [name, ",".join(endpoints), keys.prefix, str(LEASE), str(self._nova)]
        command = [sys.executable, str(PROCESS), *words]
        #: Where systemd would have it say how it is.
        self.run = directory / f"{name}.run"
        self.run.mkdir()
        given = {"NOTIFY_SOCKET": str(self.manager.path), "RUNTIME_DIRECTORY": str(self.run)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | given)

    def says(self, **servers: str) -> None:
        """``_10="held"``: of server 10, from now on."""
        lines = [f"{uuid(int(number[1:]))} {said}\n" for number, said in servers.items()]
        new = self._nova.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self._nova)

    def log(self) -> str:
        return self._log.read_text()

    def status(self) -> str:
        """What ``systemctl status`` shows."""
        said = [line for line in self.manager.lines() if line.startswith("STATUS=")]
        return said[-1].removeprefix("STATUS=") if said else ""

    def leads(self) -> bool:
        return self.status().startswith("leads")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        self.end()
        self.manager.close()


class Starter(Protocol):
    def __call__(self, name: str, endpoints: Sequence[str] = ()) -> RelayProcess:
        """Start a relay that asks these members, or all."""


@pytest.fixture
def start(cluster: Cluster, keys: Keys, tmp_path: Path) -> Iterator[Starter]:
    running: list[RelayProcess] = []

    def started(name: str, endpoints: Sequence[str] = ()) -> RelayProcess:
        endpoints = endpoints or cluster.settings().endpoints
        running.append(RelayProcess(name, endpoints, keys, tmp_path))
        return running[-1]

    yield started
    for relay in running:
        relay.close()


def leader(start: Starter, *endpoints: str) -> RelayProcess:
    relay = start("one", endpoints)
    wait_until(relay.leads, "it has the office")
    return relay


def both(start: Starter, *endpoints: str) -> tuple[RelayProcess, RelayProcess]:
    one, two = leader(start, *endpoints), start("two")
    wait_until(lambda: "STATUS=stands by" in two.manager.lines(), "the other stands by")
    return one, two


def held(registry: Registry) -> set[int]:
    """The servers with a hold in force."""
    return {
        int(entry.record.order.instance[:8], 16)
        for entry in registry.holds()
        if entry.record and entry.record.order and in_force(entry, int(time.time()))
    }


def is_held(number: int, registry: Registry) -> bool:
    return number in held(registry)


def hold_of(number: int, registry: Registry) -> str:
    """The id of a server's hold."""
    records = [entry.record for entry in registry.holds() if entry.record]
    return next(r.id for r in records if r.order and r.order.instance == uuid(number))


def only(registry: Registry) -> Entry:
    (entry,) = registry.holds()
    return entry


def test_a_lock_is_a_hold_an_absence_nothing_an_unlocking_a_release(
    start: Starter, registry: Registry
) -> None:
    relay = leader(start)
    relay.says(_10="held")
    wait_until(lambda: held(registry) == {10}, "the lock is a hold")
    placed = only(registry).record
    assert placed
    assert placed.order
    assert placed.order.placed_by == PLACED_BY
    relay.says(_11="held")
    wait_until(lambda: 11 in held(registry), "a reading without the first was written")
    assert held(registry) == {10, 11}
    relay.says(_10="released", _11="held")
    wait_until(lambda: held(registry) == {11}, "the unlocking is a release")
    records = {entry.id: entry.record for entry in registry.holds()}
    ended = records[placed.id]
    assert ended
    assert ended.released
    assert ended.released.by == PLACED_BY
    assert ended.released.reason == f"GET {uuid(10)}: locked: false"


def test_of_two_one_writes_and_the_other_when_the_first_is_killed(
    start: Starter, registry: Registry
) -> None:
    one, two = both(start)
    two.says(_20="held")
    one.says(_10="held")
    wait_until(lambda: held(registry) == {10}, "the leader writes")
    one.says(_11="held")
    wait_until(lambda: held(registry) == {10, 11}, "the leader writes on")
    assert not two.leads()
    one.process.send_signal(signal.SIGKILL)
    wait_until(lambda: held(registry) == {10, 11, 20}, "the other writes")


def test_a_relay_that_ends_gives_the_office_to_the_other_and_its_holds_stay(
    start: Starter, registry: Registry, client: Client, keys: Keys
) -> None:
    one, two = both(start)
    one.says(_10="held")
    wait_until(lambda: held(registry) == {10}, "the leader writes")
    # The office is free before the lease is over: it is ended, not waited for.
    two.process.send_signal(signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(PATIENCE) == 0
    assert client.get(keys.lead(OFFICE))[1] is None
    two.process.send_signal(signal.SIGCONT)
    wait_until(two.leads, "the other has it")
    assert held(registry) == {10}


def test_an_ex_leader_that_was_cut_off_writes_nothing(start: Starter, registry: Registry) -> None:
    one, two = both(start)
    one.says(_10="held")
    wait_until(lambda: held(registry) == {10}, "the leader writes")
    one.process.send_signal(signal.SIGSTOP)
    two.says(_20="held")
    wait_until(lambda: held(registry) == {10, 20}, "the other took over")
    one.says(_10="released", _30="held")
    one.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "the office is not ours" in one.log(), "it knows that it is none any more")
    # As many looks as the other takes, one that wrongly goes on would take as well.
    for number in range(40, 50):
        two.says(**{f"_{number}": "held"})
        wait_until(partial(is_held, number, registry), "the other still writes")
    assert held(registry) == {10, 20, *range(40, 50)}


@pytest.mark.parametrize("late", [{"_30": "held"}, {"_10": "released"}])
def test_a_write_that_arrives_when_another_has_the_office_is_none(
    start: Starter, registry: Registry, cluster: Cluster, late: dict[str, str]
) -> None:
    with Proxy(cluster.url(0)) as proxy:
        one, two = both(start, proxy.url)
        one.says(_10="held")
        wait_until(lambda: held(registry) == {10}, "the leader writes")
        proxy.catch(b"/v3/kv/txn")
        one.says(**late)
        wait_until(proxy.caught.is_set, "a write is under way")
        one.process.send_signal(signal.SIGSTOP)
        two.says(_10="held", _20="held")
        wait_until(lambda: held(registry) == {10, 20}, "the other took over")
        proxy.let_go()
        wait_until(proxy.answered.is_set, "the write has arrived")
        assert held(registry) == {10, 20}
        one.process.send_signal(signal.SIGCONT)
        wait_until(
            lambda: "the office is not ours" in one.log(), "it knows that it is none any more"
        )
        two.says(_40="held")
        wait_until(partial(is_held, 40, registry), "the other still writes")
        assert held(registry) == {10, 20, 40}
        assert len(registry.holds()) == 3


def test_more_releases_than_allowed_wait_for_an_admin_who_does_them_himself(
    start: Starter, registry: Registry
) -> None:
    relay = leader(start)
    relay.says(_10="held", _11="held", _12="held", _13="held")
    wait_until(lambda: held(registry) == {10, 11, 12, 13}, "all are holds")
    relay.says(_10="released", _11="released", _12="released", _13="held")
    wait_until(lambda: "nothing is released: 3 of 4" in relay.log(), "the guard says so")
    assert held(registry) == {10, 11, 12, 13}
    by_hand = hold_of(10, registry)
    registry.release(by_hand, reason="case closed", by="root", now=int(time.time()))
    wait_until(lambda: held(registry) == {13}, "the rest is within the limits again")


# -- what an operator sees ------------------------------------------------------------------------


def fleet(cluster: Cluster, keys: Keys, directory: Path, *words: str) -> tuple[int, str]:
    """Exit code of ``bootlock fleet WORDS``, and what it said, or noted beside its table."""
    settings = directory / "admin.toml"
    endpoints = json.dumps(cluster.settings().endpoints)
    settings.write_text(f'[fleet]\nendpoints = {endpoints}\nprefix = "{keys.prefix}"\n')
    program = Path(sys.executable).with_name("bootlock")
    command = [str(program), "--config", str(settings), "fleet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stderr or done.stdout


def test_an_admin_sees_which_relay_leads_and_how_far_it_is(
    start: Starter,
    registry: Registry,
    cluster: Cluster,
    client: Client,
    keys: Keys,
    tmp_path: Path,
) -> None:
    assert fleet(cluster, keys, tmp_path, "status", "--json") == (
        0,
        '{\n  "hosts": [],\n  "relay": null\n}\n',
    )
    one, two = both(start)
    began = int(time.time())
    one.says(_10="held", _11="held")
    wait_until(lambda: (registry.relay() or RelayReport()).holds == 2, "it says how far it is")
    code, said = fleet(cluster, keys, tmp_path, "status", "--json")
    relay = json.loads(said)["relay"]
    assert (code, relay["name"], relay["leads"], relay["fault"]) == (0, "one", True, "")
    assert iso(began) <= relay["whole_at"] <= relay["read_at"] <= iso(int(time.time()))
    wait_until(lambda: one.status().startswith("leads; 2 holds; Nova read at 2"), one.status())
    assert two.status() == "stands by"
    one.end()
    wait_until(two.leads, "the other has the office")
    assert "relay: two leads; holds 2; " in fleet(cluster, keys, tmp_path, "hosts")[1]

    def noted() -> RelayReport:
        there = client.get(keys.relay(RELAY))[1]
        return relays.decoded(there.value) if there else RelayReport()

    wait_until(lambda: noted().name == "two", "the other says how far it is")
    two.end()
    wait_until(lambda: not (registry.relay() or RelayReport(leads=True)).leads, "none leads")
    code, said = fleet(cluster, keys, tmp_path, "hosts")
    assert code == 1
    assert "relay: none leads; the last was two; holds 2; Nova read at 2" in said
    assert "FAULT: no relay leads" in said


def test_releases_that_wait_and_what_nova_can_not_tell_are_shown(
    start: Starter, cluster: Cluster, keys: Keys, registry: Registry, tmp_path: Path
) -> None:
    relay = leader(start)
    relay.says(_10="held", _11="held", _12="held")
    wait_until(lambda: held(registry) == {10, 11, 12}, "all are holds")
    relay.says(_10="released", _11="released", _12="released", _13="unknown")
    wait_until(lambda: "3 releases wait" in relay.status(), "systemd is told")
    wait_until(lambda: (registry.relay() or RelayReport()).waiting == 3, "the registry is told")
    code, said = fleet(cluster, keys, tmp_path, "hosts")
    assert code == 1
    assert "Nova could not tell of 1 servers; 3 releases are too many at once" in said


def test_its_state_is_in_the_file_that_metrics_are_made_of(
    start: Starter, registry: Registry
) -> None:
    one, two = both(start)
    one.says(_10="held")
    wait_until(lambda: held(registry) == {10}, "the leader writes")

    def state(relay: RelayProcess) -> RelayReport:
        return relaystate.load(relay.run / relaystate.PATH.name) or RelayReport()

    wait_until(lambda: state(one).holds == 1, "it says so")
    assert (state(one).leads, state(two).name, state(two).leads) == (True, "two", False)
    assert (one.run / relaystate.PATH.name).stat().st_mode & 0o777 == 0o644
    one.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state(two).leads, "the other leads, and says so")


def test_without_a_registry_or_a_nova_it_says_what_is_missing() -> None:
    whole = Config(
        fleet=Fleet(endpoints=("http://127.0.0.1:1",)), sources=Sources(nova=Nova(cloud="site"))
    )
    for config in (Config(fleet=whole.fleet), Config(sources=whole.sources)):
        with pytest.raises(ConfigError) as raised:
            relay_service(config)
        assert "docs/nova.md" in raised.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--relay"], "docs/nova.md"), (["--relay", "--sync"], "processes of their own")],
)
def test_the_program_ends_with_2_where_it_can_be_no_relay(
    options: list[str], said: str, tmp_path: Path
) -> None:
    program, none = Path(sys.executable).with_name("bootlockd"), tmp_path / "none.toml"
    none.touch()
    done = subprocess.run(
        [str(program), *options, "--config", str(none)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
