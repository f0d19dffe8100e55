"""The network fence's pure parts: rules as values, and what libvirt and QEMU say of NICs."""

from pathlib import Path

import pytest

from bootlockd import nft, nics
from bootlockd.fences.network import NetworkFence
from bootlockd.nft import Cut, Rules
from bootlockd.values import Case
from lockdb.values import Hold, Kind, OnRunning, Operation, Permit

A = "11111111-2222-4333-8444-555555555555"
B = "11111111-2222-4333-8444-666666666666"


def hold(*, isolate: bool, kind: Kind = Kind.BOOT_LOCK) -> Hold:
    return Hold(
        id="h",
        instance=A,
        kind=kind,
        source="local",
        reason="r",
        notice="n",
        case="",
        on_running=OnRunning.LEAVE,
        grace=0,
        isolate=isolate,
        was_running=None,
        placed_at=0,
        placed_by="t",
        until=None,
        released_at=None,
        released_by=None,
        release_reason=None,
    )


@pytest.fixture
def fence(tmp_path: Path) -> NetworkFence:
    return NetworkFence(tmp_path / "lock.db")


def test_only_a_boot_lock_with_isolate_is_wanted(fence: NetworkFence) -> None:
    assert fence.wanted(Case(A, 0, [hold(isolate=False), hold(isolate=True)]))
    assert not fence.wanted(Case(A, 0, [hold(isolate=False)]))
    assert not fence.wanted(Case(A, 0, [hold(isolate=True, kind=Kind.STATE_LOCK)]))


def test_a_permit_does_not_end_the_isolation(fence: NetworkFence) -> None:
    permit = Permit("p", A, Operation.START, "r", 0, "t", 10, None, None)
    case = Case(A, 1, [hold(isolate=True)], [permit])
    assert case.is_permitted
    assert fence.wanted(case)


def cut(*names: str) -> Cut:
    return Cut(frozenset(names), frozenset(names))


def ours(*cuts: tuple[str, str]) -> Rules:
    """The rules that cut these devices of these instances."""
    chains = {
        nft._chain(instance, hook, device): [
            f'type filter hook {hook} device "{device}" priority -500; policy drop;'
        ]
        for instance, device in cuts
        for hook in nft.HOOKS
    }
    return Rules(chains, False, {device: instance for instance, device in cuts}, True)


def test_rules_as_wanted_need_no_command() -> None:
    rules = ours((A, "vnet0"), (B, "vnet1"))
    assert rules.effective(A) == cut("vnet0")
    assert nft.commands(rules, {A: cut("vnet0")}) == []
    assert nft.commands(Rules(), {}) == []


def test_one_instance_s_release_touches_only_its_own() -> None:
    told = nft.commands(ours((A, "vnet0"), (B, "vnet1")), {A: Cut()})
    assert {next(iter(command)) for command in told} == {"delete"}
    assert b"vnet1".hex() not in str(told)
    assert "'table': {" not in str(told)


def test_the_last_release_takes_the_tables_along() -> None:
    assert nft.commands(ours((A, "vnet0")), {A: Cut()}) == [
        {"delete": {"table": {"family": "netdev", "name": "bootlock"}}},
        {"delete": {"table": {"family": "bridge", "name": "bootlock"}}},
    ]


def test_a_name_goes_over_to_the_instance_that_has_it_now() -> None:
    told = nft.commands(ours((A, "vnet0")), {A: Cut(), B: cut("vnet0")})
    elements = [command for command in told if "element" in next(iter(command.values()))]
    assert [next(iter(command)) for command in elements] == ["delete", "add"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        ['type filter hook egress device "vnet1" priority -500; policy drop;'],
        ['type filter hook ingress device "vnet0" priority -500; policy drop;'],
        ['type filter hook egress device "vnet0" priority -500; policy accept;'],
        ['type filter hook egress device "vnet0" priority -500; policy drop;', "accept"],
    ],
)
def test_a_chain_that_is_not_as_we_made_it_cuts_nothing(body: list[str]) -> None:
    rules = ours((A, "vnet0"))
    name = nft._chain(A, "egress", "vnet0")
    spoilt = Rules({**(rules.chains or {}), name: body}, False, rules.names, True)
    assert spoilt.effective(A).devices == frozenset()
    assert nft.commands(spoilt, {A: cut("vnet0")})


def test_other_spellings_of_nft_for_the_same_chain_are_sound() -> None:
    name = nft._chain(A, "ingress", "tap-1.x")
    for device in ('device "tap-1.x"', "device tap-1.x", 'devices = { "tap-1.x" }'):
        line = f"type filter hook ingress {device} priority filter - 500; policy drop;"
        assert name in Rules({name: [line]}).sound_chains()


def test_a_table_that_is_switched_off_is_seen() -> None:
    text = "table netdev bootlock {\n\tflags dormant\n\tchain x {\n\t\tdrop\n\t}\n}\n"
    assert nft.parse_netdev(text) == ({"x": ["drop"]}, True)
    assert nft.parse_netdev("table netdev other {\n\tchain x {\n\t}\n}\n") == (None, False)


@pytest.mark.parametrize("name", ["vnet0", "tap1234abcd-56", "a.b", "0a", "_x", "x" * 15])
def test_plain_names(name: str) -> None:
    assert nft.is_plain(name)


@pytest.mark.parametrize("name", ["", "v*", "-rf", "a b", 'a"b', "a\n", "é", "x" * 16, "{", "@a"])
def test_names_that_fit_no_rule(name: str) -> None:
    assert not nft.is_plain(name)


XML = """<domain><devices>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='vnet0'/></interface>
<interface type='direct'><target dev='tap7-fixed'/></interface>
<interface type='null'/>
<interface type='{kind}'><mac address='52:54:00:00:00:02'/></interface>
</devices></domain>"""


@pytest.mark.parametrize(
    "kind", ["user", "hostdev", "vhostuser", "vdpa", "server", "client", "mcast", "udp", "new"]
)
def test_an_interface_without_a_device_is_named(kind: str) -> None:
    faults = nics.in_xml(nics.interfaces(XML.format(kind=kind)), frozenset({"vnet0", "tap7-fixed"}))
    assert faults == (f"{kind} interface 52:54:00:00:00:02 has no device on the host: detach it",)


def test_an_interface_whose_device_nobody_holds_is_named() -> None:
    (fault,) = nics.in_xml(nics.interfaces(XML.format(kind="null")), frozenset({"vnet0"}))
    assert "'tap7-fixed' is not among its process's descriptors" in fault


def test_only_names_of_the_owners_own_are_known_before() -> None:
    assert nics.own_names(nics.interfaces(XML.format(kind="null"))) == {"tap7-fixed"}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["-netdev", "user,id=mynet"], 1),
        (["-netdev", '{"type":"user","id":"mynet"}'], 1),
        (["-netdev", '{"type":'], 1),
        (["-netdev", "vhost-user,id=x,chardev=c"], 1),
        (["-nic", "user"], 1),
        (["-nic", "none"], 0),
        (["-netdev", "tap,fd=3,id=mynet"], 0),
        (["-netdev", '{"type":"user","id":"hostnet0"}'], 0),
    ],
)
def test_networks_of_the_command_line_that_are_not_libvirt_s(words: list[str], count: int) -> None:
    assert len(list(nics._on_command_line(words))) == count
