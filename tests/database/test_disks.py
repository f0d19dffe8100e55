"""Which disks are an instance's own, and what they are called."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from database.soundness import log
from domains import (
    SOURCES,
    Disk,
    Domain,
    Formatter,
    Host,
    Source,
    block,
    file,
    libvirt_formatter,
    network,
    volume,
)
from lockdb import disks, holds
from lockdb.database import LockDB
from lockdb.decision import Verdict, decide
from lockdb.disks import keys_of, path_key, volume_key
from lockdb.errors import InvalidValue
from samples import FREE, HELD, NOW, OTHER, new_hold


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Formatter]:
    with libvirt_formatter() as formatter:
        yield formatter


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (file("/images/a b.img"), "path:/images/a b.img"),
        (file("/o'brien \"&\" <x>=' y"), "path:/o'brien \"&\" <x>=' y"),
        (file("/line\nfeed\tand\rreturn\r\n"), "path:/line feed and return  "),
        (file("/back\\slash\\n%s"), "path:/back\\slash\\n%s"),
        (file("/é漢😀\u2028"), "path:/é漢😀\u2028"),
        (file("/ends with a slash/"), "path:/ends with a slash/"),
        (block("/dev/vg/lv"), "path:/dev/vg/lv"),
        (volume("pool", "v&1"), "volume:pool/v&1"),
        (network("rbd", "pool/image", Host("mon1", "6789")), "net:rbd:pool/image"),
        (network("rbd", "pool/image"), "net:rbd:pool/image"),
        (network("iscsi", "iqn.x:y/1", Host("san", "3260")), "net:iscsi:iqn.x:y/1"),
        (network("nbd", "export", Host("::1", "10809")), "net:nbd:export@::1:10809"),
        (network("nbd", "", Host("h", "1"), Host("i", "2")), "net:nbd:@h:1"),
        (network("nbd", "e", Host(socket="/run/n b.sock")), "net:nbd:e@/run/n b.sock"),
        (network("gluster", "vol/img", Host("g", "24007")), "net:gluster:vol/img@g:24007"),
    ],
)
def test_each_kind_of_source_has_its_name(
    libvirt: Formatter, lock_db: LockDB, source: Source, key: str
) -> None:
    domain = Domain(OTHER, disks=(Disk(source),))
    written = libvirt.written
    document = libvirt.xml(domain)
    assert libvirt.written == written + 1, "libvirt did not accept this"
    assert source.key == key
    assert keys_of(document) == {key} == keys_of(domain.xml())
    _assert_refused(lock_db, document, {key})


@pytest.mark.parametrize("mark", ["readonly", "shareable", "transient"])
@pytest.mark.parametrize("device", ["disk", "cdrom", "floppy"])
def test_what_others_may_use_too_is_not_its_own(
    libvirt: Formatter, lock_db: LockDB, device: str, mark: str
) -> None:
    shared = Disk(file("/shared.img"), device=device, mark=mark)
    own = Disk(file("/own.img"), chain=(file("/base.img"), block("/dev/base")))
    media = Disk(file("/debian.iso"), device="cdrom", mark="readonly")
    held = Domain(HELD, disks=(own, shared, media))
    assert keys_of(libvirt.xml(held)) == {"path:/own.img"}

    holds.place(lock_db, new_hold(), now=NOW)
    disks.record(lock_db, HELD, keys_of(libvirt.xml(held)), now=NOW)
    neighbours = [
        Disk(file("/overlay.img"), chain=(file("/base.img"), block("/dev/base"))),
        Disk(file("/base.img")),
        media,
        Disk(file("/shared.img")),
    ]
    for disk in neighbours:
        document = libvirt.xml(Domain(FREE, disks=(disk,)))
        assert decide(lock_db, document, "start", now=NOW).verdict is Verdict.ALLOW
    thief = libvirt.xml(Domain(FREE, disks=(Disk(file("/overlay"), chain=(file("/own.img"),)),)))
    assert decide(lock_db, thief, "start", now=NOW).verdict is Verdict.REFUSE


def test_a_thousand_guests_on_one_base_image_are_not_refused_for_one_of_them(
    libvirt: Formatter, lock_db: LockDB
) -> None:
    base = (file("/base.img"),)
    guests = [
        Domain(f"{at:08x}-0000-4000-8000-000000000000", disks=(Disk(file(f"/{at}.img"), base),))
        for at in range(1000)
    ]
    documents = {guest.uuid: libvirt.xml(guest) for guest in guests}
    held = guests[500].uuid
    holds.place(lock_db, new_hold(held), now=NOW)
    disks.record(lock_db, held, keys_of(documents[held]), now=NOW)
    refused = [
        uuid
        for uuid, document in documents.items()
        if decide(lock_db, document, "start", now=NOW).verdict is not Verdict.ALLOW
    ]
    assert refused == [held]


@pytest.mark.parametrize(
    "disk",
    [
        "<disk type='nvme'><source type='pci' namespace='1'/></disk>",
        "<disk type='dir'><source dir='/d'/></disk>",
        "<disk type='vhostuser'><source type='unix' path='/s'/></disk>",
        "<disk device='cdrom'/>",
        "<disk/>",
        "<disk><source/></disk>",
        "<disk><source file=''/></disk>",
        "<filesystem><source dir='/d'/></filesystem>",
        "<interface><source dev='eth0'/></interface>",
    ],
)
def test_what_has_no_name_has_no_key(disk: str) -> None:
    assert keys_of(f"<domain><devices>{disk}</devices></domain>") == frozenset()


def test_a_disk_outside_the_devices_is_none() -> None:
    disk = "<disk type='file'><source file='/d'/></disk>"
    for document in (
        f"<domain><metadata>{disk}</metadata></domain>",
        f"<domain><metadata><devices>{disk}</devices></metadata></domain>",
        f"<domainsnapshot><domain><devices>{disk}</devices></domain></domainsnapshot>",
    ):
        assert keys_of(document) == frozenset()


@pytest.mark.parametrize("document", ["", "x", "<domain>", "<domain/><domain/>", "\0"])
def test_what_is_not_xml_is_an_invalid_value(document: str) -> None:
    with pytest.raises(InvalidValue, match=r"^domain XML: "):
        keys_of(document)


def test_keys_made_by_name_are_those_of_the_xml(libvirt: Formatter) -> None:
    path, pool, name = "/a\n'b\"&.img", "p\t1", "v<\r2"
    domain = Domain(OTHER, disks=(Disk(file(path)), Disk(volume(pool, name))))
    assert keys_of(libvirt.xml(domain)) == {path_key(path), volume_key(pool, name)}


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    mine=st.lists(
        st.builds(
            Disk,
            SOURCES,
            st.lists(SOURCES, max_size=2).map(tuple),
            st.sampled_from(["disk", "lun", "cdrom"]),
            st.sampled_from(["", "", "readonly", "shareable", "transient"]),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple)
)
def test_python_records_the_keys_that_the_decision_finds(
    libvirt: Formatter, lock_db: LockDB, mine: tuple[Disk, ...]
) -> None:
    domain = Domain(HELD, disks=mine)
    document = libvirt.xml(domain)
    assert keys_of(document) == domain.own_keys
    for disk in mine:
        another = libvirt.xml(Domain(FREE, disks=(Disk(disk.source), Disk(file("/more")))))
        _assert_refused(lock_db, another, {disk.source.key})


def test_recording_is_journalled_once_for_each_new_disk(lock_db: LockDB) -> None:
    holds.place(lock_db, new_hold(), now=NOW)
    disks.record(lock_db, HELD, ["path:/b", "path:/a", "path:/b"], now=NOW)
    disks.record(lock_db, HELD, ["path:/a"], now=NOW)
    disks.record(lock_db, HELD, [], now=NOW)
    disks.record(lock_db, HELD, ["path:/a", "path:/c"], now=NOW)
    assert disks.of_instance(lock_db, HELD) == ["path:/a", "path:/b", "path:/c"]
    recorded = [entry["disks"] for entry in log(lock_db) if entry["event"] == "disks_recorded"]
    assert recorded == [["path:/a", "path:/b"], ["path:/c"]]


def test_a_disk_may_belong_to_two_held_instances(lock_db: LockDB) -> None:
    document = Domain(FREE, disks=(Disk(file("/d")),)).xml()
    placed = []
    for at, instance in enumerate((HELD, OTHER)):
        placed.append(holds.place(lock_db, new_hold(instance), now=NOW + at))
        disks.record(lock_db, instance, ["path:/d"], now=NOW)
    for hold in placed:
        assert decide(lock_db, document, "start", now=NOW).hold == hold.id
        holds.release(lock_db, hold.id, reason="paid", by="clerk", now=NOW)
    assert decide(lock_db, document, "start", now=NOW).verdict is Verdict.ALLOW


def _assert_refused(lock_db: LockDB, document: str, keys: set[str]) -> None:
    """Refused for a held instance with these disks, and allowed without that."""
    now = int(time.time())
    assert decide(lock_db, document, "start", now=now).verdict is Verdict.ALLOW
    hold = holds.place(lock_db, new_hold("99999999-2222-4333-8444-555555555555"), now=now)
    disks.record(lock_db, hold.instance, keys, now=now)
    assert decide(lock_db, document, "start", now=now).hold == hold.id
    holds.release(lock_db, hold.id, reason="over", by="tester", now=now)
