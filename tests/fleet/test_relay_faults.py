"""A relay that leads and can't reach the registry any more: all members gone, or the cable cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bootlockd.config import Config, Fleet, Nova, NovaScope, Sources, Sync
from bootlockd.fleet.client import Client
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import Registry, in_force
from bootlockd.relayservice import RelayService
from bootlockd.sources.nova import NovaSource
from etcdcluster import Cluster
from fleet.proxy import Proxy
from manager import Manager
from nova.fakenova import FakeNova, FakeServer
from waiting import wait_until

#: Seconds.
LEASE = 3


def uuid(number: int) -> str:
    return f"{number:08x}-1111-4222-8333-555555555555"


class Site:
    """A registry behind a cable, and what can happen to both."""

    def __init__(self, cluster: Cluster, proxies: list[Proxy]) -> None:
        self._cluster = cluster
        self._proxies = proxies
        self.endpoints = tuple(proxy.url for proxy in proxies)

    def kill(self) -> None:
        self._cluster.kill(0, 1, 2)

    def start(self) -> None:
        self._cluster.start()

    def cut(self) -> None:
        for proxy in self._proxies:
            proxy.is_cut = True

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.is_cut = False


@pytest.fixture
def site(cluster_of_its_own: Cluster) -> Iterator[Site]:
    with ExitStack() as stack:
        proxies = [Proxy(cluster_of_its_own.url(number)) for number in range(3)]
        yield Site(cluster_of_its_own, [stack.enter_context(proxy) for proxy in proxies])


@pytest.fixture(scope="module")
def cluster_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("own-etcd")) as cluster:
        yield cluster


@contextmanager
def relay(config: Config, nova: FakeNova) -> Iterator[RelayService]:
    source = NovaSource(config.sources.nova, interval=0.05, connect=nova.connect)
    service = RelayService(config, source, lease=LEASE)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join()


def held(registry: Registry) -> set[int]:
    found = [e.record for e in registry.holds() if in_force(e, int(time.time()))]
    return {int(one.order.instance[:8], 16) for one in found if one and one.order}


@pytest.mark.parametrize(("break_it", "mend_it"), [(Site.kill, Site.start), (Site.cut, Site.heal)])
def test_it_steps_down_says_so_and_comes_back_by_itself_having_lost_nothing(
    site: Site,
    cluster_of_its_own: Cluster,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Site], None],
    mend_it: Callable[[Site], None],
) -> None:
    manager = Manager(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    caplog.set_level("INFO")

    def status() -> str:
        return next((line for line in reversed(manager.lines()) if line.startswith("STATUS=")), "")

    nova = FakeNova(*(FakeServer(uuid(n), "admin", "bootlock: 1") for n in range(2)))
    nova.servers[uuid(2)] = FakeServer(uuid(2))
    config = Config(
        fleet=Fleet(endpoints=site.endpoints, prefix=keys.prefix, host="one", timeout=1),
        sources=Sources(nova=Nova(cloud="test", scope=NovaScope.CLOUD)),
        sync=Sync(max_release=10, max_release_percent=100),
    )
    with closing(Client(cluster_of_its_own.settings())) as client, relay(config, nova):
        registry = Registry(client, keys)
        wait_until(lambda: held(registry) == {0, 1}, "the locks are holds")
        wait_until(lambda: status().startswith("STATUS=leads"), "it says that it leads")
        break_it(site)
        wait_until(lambda: "the office is not ours" in caplog.text, "it steps down")
        wait_until(lambda: status() == "STATUS=stands by; failing: office", "it says so")
        assert "office: nothing is written, all holds stay: " in caplog.text
        # What Nova says meanwhile is not lost.
        nova.now += 60
        nova.unlock(uuid(0))
        nova.lock(uuid(2), "admin", "bootlock: 2")
        mend_it(site)
        wait_until(lambda: held(registry) == {1, 2}, "it writes what it missed")
        wait_until(lambda: status().startswith("STATUS=leads"), "it says so")
        assert len(registry.holds()) == 3, "nothing twice"
    manager.close()
