"""A real registry of three members, shared by the tests that break nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
