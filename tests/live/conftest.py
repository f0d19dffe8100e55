"""What the live tests ask of a host."""

from collections.abc import Iterator

import libvirt
import pytest

from live.guests import remove_all
from privatehost import PrivateHost


@pytest.fixture
def qemu(host: PrivateHost) -> Iterator[libvirt.virConnect]:
    """A connection to the host's QEMU driver. Its guests are removed after the test."""
    connection = host.connect()
    yield connection
    connection.close()
    remove_all(host)
