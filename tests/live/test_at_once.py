"""Many starts at the same time: each gets its own verdict."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import libvirt
import pytest

from domainxml import domain_xml
from live.guests import Identity, place, runs, somebody_new
from privatehost import PrivateHost

pytestmark = pytest.mark.live


def test_ten_held_and_ten_free_guests_started_at_once(
    host: PrivateHost, qemu: libvirt.virConnect
) -> None:
    guests = [somebody_new() for _ in range(20)]
    for guest in guests:
        qemu.defineXML(domain_xml(guest.name, guest.uuid))
    refusals = {guest.uuid: place(host, guest.uuid) for guest in guests[::2]}

    def start(guest: Identity) -> str:
        with closing(host.connect()) as connection:
            try:
                connection.lookupByUUIDString(guest.uuid).create()
            except libvirt.libvirtError as error:
                return str(error)
            return ""

    with ThreadPoolExecutor(len(guests)) as at_once:
        answers = list(at_once.map(start, guests))

    for guest, answer in zip(guests, answers, strict=True):
        refusal = refusals.get(guest.uuid)
        assert runs(host, guest.uuid) == (refusal is None)
        assert answer.endswith(f"{refusal.line()}\n") if refusal else answer == ""
