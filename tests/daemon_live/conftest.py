"""A guest, and a bootlockd where asked for."""

from collections.abc import Iterator

import pytest

from daemon_live.runner import Daemon, remove_guests
from live.guests import Identity, somebody_new
from privatehost import PrivateHost


@pytest.fixture
def guest(host: PrivateHost) -> Iterator[Identity]:
    """A name and a UUID; whatever guests there are at the end of the test are removed."""
    yield somebody_new()
    remove_guests(host)


@pytest.fixture
def daemon(host: PrivateHost) -> Iterator[Daemon]:
    with Daemon(host) as daemon:
        yield daemon
