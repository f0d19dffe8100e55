"""A guest's name is the caller's text: whatever it is, the verdict is right and nothing runs it."""

import json
from pathlib import Path

import libvirt
import pytest

from domainxml import domain_xml
from live.guests import place, refused, release, runs, somebody_new
from privatehost import PrivateHost

pytestmark = pytest.mark.live

HOSTILE = {
    "option": "-rf",
    "command": "$(touch run-by-a-name)",
    "backquotes": "`touch run-by-a-name`; touch run-by-a-name",
    "quotes": "o'neil's \"web\"",
    "markup": "<uuid>00000000-0000-4000-8000-000000000000<uuid>",
    "newline": "web\nbootlock: start allowed",
    "terminal": "größe \N{BOMB}",
    "sql": "'); DELETE FROM hold; --",
    "hook": "refuse 1 2 3 4",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_name(host: PrivateHost, qemu: libvirt.virConnect, name: str) -> None:
    uuid = somebody_new().uuid
    refusal = place(host, uuid)
    with refused(refusal):
        qemu.createXML(domain_xml(name, uuid))
    assert not runs(host, uuid)
    journal = host.bootlock("journal", "show", "--instance", uuid, "--json").stdout
    assert [entry["name"] for entry in json.loads(journal) if entry["event"] == "refused"] == [name]

    release(host, uuid)
    qemu.createXML(domain_xml(name, uuid))
    assert runs(host, uuid)
    assert not list(Path("/").glob("run-by-a-name*"))
