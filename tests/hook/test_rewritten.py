"""An arriving migration's XML after another hook has printed it: libvirt hands that on to ours."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from xml.dom import minidom

import pytest

from domainxml import disk_xml
from hook.both import ask_both
from hookrunner import Hook, domain_xml
from lockdb import database, disks
from lockdb.decision import Verdict
from samples import FREE, HELD, NOW, OTHER

Rewrite = Callable[[str], str]


def by_minidom(document: str) -> str:
    """CloudStack's agent and oVirt's vdsm do this."""
    return minidom.parseString(document).toxml() + "\n"


def by_elementtree(document: str) -> str:
    return ET.tostring(ET.fromstring(document), encoding="unicode", xml_declaration=True)


def by_elementtree_in_ascii(document: str) -> str:
    return ET.tostring(ET.fromstring(document)).decode()


def by_sed(document: str) -> str:
    return document.replace("65536", "131072")


REWRITES = [by_minidom, by_elementtree, by_elementtree_in_ascii, by_sed]
# Each is an attribute's value as libvirt writes it, and the path that it stands for.
PATHS = {
    "/images/web.img": "/images/web.img",
    "/a &apos;b&apos; c=&quot;d&quot;": "/a 'b' c=\"d\"",
    "/&lt;x&gt; &amp;amp; y/&apos;": "/<x> &amp; y/'",
}


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", ["web", "a=\"b' <uuid>", "é & 'x'", '?> ="'])
def test_the_instance_is_known(hook: Hook, rewrite: Rewrite, name: str) -> None:
    held = ask_both(hook, rewrite(domain_xml(HELD, name)), "migrate")
    assert held.verdict is Verdict.REFUSE
    assert ask_both(hook, rewrite(domain_xml(FREE, name)), "migrate").verdict is Verdict.ALLOW


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("path", PATHS)
def test_its_disks_are_known(hook: Hook, rewrite: Rewrite, path: str) -> None:
    with database.open_db(hook.database) as lock_db:
        disks.record(lock_db, HELD, [f"path:{PATHS[path]}", "net:nbd:x@10.0.0.1:10809"], now=NOW)
    file = disk_xml("file", f"<source file='{path}' index='1'/>")
    host = "<host name='10.0.0.1' port='10809'/>"
    nbd = disk_xml("network", f"<source protocol='nbd' name='x'>{host}</source>")
    other = disk_xml("file", "<source file='/images/other.img'/>")
    for held in (file, nbd):
        document = rewrite(domain_xml(OTHER, disks=[other, held]))
        assert ask_both(hook, document, "migrate").verdict is Verdict.REFUSE
    document = rewrite(domain_xml(OTHER, disks=[other]))
    assert ask_both(hook, document, "migrate").verdict is Verdict.ALLOW


@pytest.mark.parametrize("operation", ["prepare", "start"])
def test_where_libvirt_writes_it_nothing_else_is_believed(hook: Hook, operation: str) -> None:
    decision = ask_both(hook, by_minidom(domain_xml(FREE)), operation)
    assert decision.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    "document",
    [
        "<?xml version='1.0'",
        "<?xml version='1.0'?>",
        "<?xml ?><!-- <uuid>" + FREE + "</uuid> -->" + domain_xml(HELD),
        "<?xml ?><?xml ?>" + domain_xml(FREE),
        "<!DOCTYPE x>" + domain_xml(FREE),
        by_minidom(domain_xml(FREE)).replace("<name>", "<title>x</title><name>"),
        by_minidom(domain_xml(FREE)) + "<domain/>",
        repr(by_elementtree(domain_xml(FREE)).encode()),
    ],
)
def test_what_no_library_would_write_is_undecided(hook: Hook, document: str) -> None:
    assert ask_both(hook, document, "migrate").verdict is Verdict.UNDECIDED
