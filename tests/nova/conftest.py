"""A real cloud, a libvirt host in it, and bootlock's sync there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nova.cloud import Cloud
from nova.synchost import SyncHost
from privatehost import PrivateHost

PAGE = Path(__file__).resolve().parents[2] / "docs/nova.md"


@pytest.fixture(scope="session")
def policy() -> str:
    """The rules as the documentation gives them."""
    (rules,) = re.findall(r"^```yaml\n(.*?policy\.d.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return str(rules)


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost(name="compute") as host:
        host.install_bootlock()
        yield host


@pytest.fixture(scope="module")
def cloud(host: PrivateHost, policy: str) -> Cloud:
    cloud = Cloud(host)
    cloud.start()
    cloud.set_policy(policy)
    return cloud


@pytest.fixture
def sync(host: PrivateHost, cloud: Cloud, policy: str) -> Iterator[SyncHost]:
    """``bootlockd --sync`` on a host that holds nothing, as the account of the documentation."""
    with SyncHost(host, cloud) as sync:
        yield sync
    cloud.set_policy(policy)
