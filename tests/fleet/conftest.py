"""A real registry of three members, shared by the tests that break nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootlockd.config import Fleet
from bootlockd.fleet.client import Client
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import Registry
from etcdcluster import Cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    client = Client(cluster.settings())
    yield client
    client.close()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A prefix of the test's own."""
    return Keys(f"{tmp_path.name}/")


@pytest.fixture
def registry(client: Client, keys: Keys) -> Registry:
    return Registry(client, keys)


@pytest.fixture
def settings_file(cluster: Cluster, keys: Keys, tmp_path: Path) -> Path:
    """For the command: where the registry is."""
    file = tmp_path / "bootlock.toml"
    file.write_text(
        f"[fleet]\nendpoints = [{json.dumps(cluster.url(0))}]\nprefix = '{keys.prefix}'\n"
    )
    return file


@pytest.fixture
def host_settings(cluster: Cluster, keys: Keys) -> list[Fleet]:
    """Of the hosts h1 and h2, which follow the registry."""
    return [
        cluster.settings(host=name, prefix=keys.prefix, heartbeat=1, timeout=1)
        for name in ("h1", "h2")
    ]
