"""The network fence by itself: what passes to and from a guest, in all kinds of frames."""

import uuid as uuids
from collections.abc import Iterator

import pytest

from fences.frames import KINDS
from fences.netscene import (
    BRIDGE,
    PEER,
    PORT,
    Talker,
    build,
    flush,
    is_cut,
    is_up,
    rules,
    set_up,
)
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

ALL = sorted(KINDS)
DATABASE = "/var/lib/bootlock/lock.db"
#: Seconds for which nothing at all may pass.
SILENCE = "3"

LIFTED = ["lifted", ""]


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost() as host:
        host.install_bootlock()
        build(host)
        yield host


@pytest.fixture
def uuid() -> str:
    return str(uuids.uuid4())


@pytest.fixture
def tap(host: PrivateHost, request: pytest.FixtureRequest) -> Iterator[str]:
    """A tap on the bridge, by a name that a test may choose."""
    name = getattr(request, "param", "tap-test.0")
    host.run(["ip", "tuntap", "add", "dev", name, "mode", "tap"])
    host.run(["ip", "link", "set", "dev", name, "master", BRIDGE, "up"])
    yield name
    host.run(["ip", "link", "del", "dev", name])


@pytest.fixture
def guest(host: PrivateHost, tap: str, uuid: str) -> Iterator[Talker]:
    with guest_on(host, tap, uuid) as guest:
        yield guest


def guest_on(host: PrivateHost, tap: str, uuid: str) -> Talker:
    return Talker(host, "frames.py", "tap", tap, PEER, BRIDGE, "-uuid", uuid, greets=True)


def fence(host: PrivateHost, uuid: str, *, link_down: bool = True) -> Talker:
    how = "yes" if link_down else "no"
    return Talker(host, "fenceinside.py", DATABASE, how, uuid, "guest", greets=False)


def passes(seen: dict[str, list[str]]) -> bool:
    """Everything that a bridge lets through: the host gets only what is for everyone."""
    for_all = ["arp", "ipv6 multicast", "unknown"]
    return seen == {
        "guest to peer": ALL,
        "peer to guest": ALL,
        "guest to host": for_all,
        "host to guest": ALL,
    }


def silent(seen: dict[str, list[str]]) -> bool:
    return not any(seen.values())


@pytest.mark.parametrize("link_down", [True, False], ids=["and link down", "nftables alone"])
def test_all_frames_pass_before_none_while_isolated_all_after_release(
    host: PrivateHost, tap: str, guest: Talker, uuid: str, link_down: bool
) -> None:
    with fence(host, uuid, link_down=link_down) as network:
        assert passes(guest.say("1"))
        assert network.say("verify")[0] == "failed"
        assert network.say("apply") == ["enforced", f"cut: {tap}"]
        assert silent(guest.say(SILENCE))
        assert is_up(host, tap) != link_down
        assert network.say("lift") == LIFTED
        assert passes(guest.say("1"))
        assert "bootlock" not in rules(host)


def test_a_macvtap_is_cut_though_it_is_on_no_bridge(host: PrivateHost, uuid: str) -> None:
    host.run(["ip", "link", "set", PORT, "nomaster"])
    make = f"ip link add link {PORT} name mv0 address 52:54:00:aa:00:01 type macvtap mode bridge"
    try:
        host.run(["sh", "-ec", f"{make}; ip link set mv0 up"])
        arguments = ("macvtap", "mv0", PEER, PORT, "-uuid", uuid)
        with (
            Talker(host, "frames.py", *arguments, greets=True) as guest,
            fence(host, uuid) as network,
        ):
            before = guest.say("1")
            assert before["guest to peer"] == before["peer to guest"] == ALL
            assert network.say("apply") == ["enforced", "cut: mv0"]
            assert silent(guest.say(SILENCE))
            assert network.say("lift") == LIFTED
            assert guest.say("1") == before
    finally:
        host.run(["ip", "link", "del", "mv0"], check=False)
        host.run(["ip", "link", "set", PORT, "master", BRIDGE])


@pytest.mark.parametrize(
    "harm",
    [
        ["flush", "ruleset"],
        ["delete", "table", "netdev", "bootlock"],
        ["delete", "table", "bridge", "bootlock"],
        ["add table netdev bootlock { flags dormant; }"],
        ["add table bridge bootlock { flags dormant; }"],
        ["insert", "rule", "bridge", "bootlock", "from_held", "accept"],
        ["insert", "rule", "netdev", "bootlock", "CHAIN", "accept"],
        ["flush", "chain", "bridge", "bootlock", "to_held"],
        ["flush", "set", "bridge", "bootlock", "held"],
        ["delete", "chain", "netdev", "bootlock", "CHAIN"],
    ],
    ids=" ".join,
)
def test_whatever_is_done_to_the_rules_verify_sees_it_and_apply_mends_it(
    host: PrivateHost, tap: str, guest: Talker, uuid: str, harm: list[str]
) -> None:
    assert guest
    with fence(host, uuid) as network:
        network.say("apply")
        chain = f"cut_{uuid.replace('-', '')}_egress_{tap.encode().hex()}"
        host.run(["nft", *(chain if word == "CHAIN" else word for word in harm)])
        assert network.say("verify") == ["failed", f"{tap} is not cut"]
        assert network.say("apply") == ["enforced", f"cut: {tap}"]
        assert is_cut(host, tap)
        assert network.say("lift") == LIFTED


def test_the_watcher_mends_flushed_rules_and_a_link_set_up_by_itself(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    with fence(host, uuid) as network:
        network.say("apply")
        network.say("watch")
        flush(host)
        wait_until(lambda: is_cut(host, tap), "the rules are back")
        set_up(host, tap)
        wait_until(lambda: is_cut(host, tap), "the link is down again")
        host.run(["sh", "-ec", f"nft flush ruleset; ip link set {tap} up"])
        wait_until(lambda: is_cut(host, tap), "both at once")
        assert silent(guest.say("1"))
        assert network.say("lift") == LIFTED
        assert passes(guest.say("1"))


def test_a_renamed_device_is_cut_under_its_new_name(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    with fence(host, uuid) as network:
        network.say("apply")
        network.say("watch")
        host.run(["ip", "link", "set", "dev", tap, "name", "renamed0"])
        try:
            wait_until(lambda: is_cut(host, "renamed0"), "it is cut under its new name")
            assert network.say("verify") == ["enforced", "cut: renamed0"]
            assert silent(guest.say("1"))
            assert tap not in rules(host)
        finally:
            host.run(["ip", "link", "set", "dev", "renamed0", "name", tap])
        network.say("lift")


def test_a_link_that_was_down_before_stays_down_on_release(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    assert guest
    host.run(["ip", "link", "set", "dev", tap, "down"])
    with fence(host, uuid) as network:
        assert network.say("apply") == ["enforced", f"cut: {tap}"]
        assert network.say("lift") == LIFTED
    assert not is_up(host, tap)


def test_rules_of_others_are_left_alone(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    assert guest
    theirs = "table inet theirs { chain c { type filter hook input priority 0; policy accept; }; }"
    host.run(["nft", theirs])
    try:
        before = rules(host)
        with fence(host, uuid) as network:
            network.say("apply")
            assert before.strip() in rules(host)
            network.say("lift")
        assert rules(host) == before
    finally:
        host.run(["nft", "delete", "table", "inet", "theirs"])


@pytest.mark.parametrize(
    "tap", ["$(id)", 'a"b', "{};drop", "tap*", "-rf", "b\\n", "é"], indirect=True
)
def test_a_device_whose_name_fits_no_rule_is_set_down_and_the_failure_names_it(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    with fence(host, uuid) as network:
        state, detail = network.say("apply")
        assert state == "failed"
        assert repr(tap) in detail
        assert silent(guest.say("1"))
        assert network.say("lift") == LIFTED
        assert passes(guest.say("1"))
        assert "bootlock" not in rules(host)


@pytest.mark.parametrize("step", ["apply", "lift"])
@pytest.mark.parametrize("change", range(1, 7))
def test_killed_before_any_change_it_ends_where_it_would_have_ended(
    host: PrivateHost, tap: str, guest: Talker, uuid: str, step: str, change: int
) -> None:
    with fence(host, uuid) as network:
        if step == "lift":
            assert network.say("apply") == ["enforced", f"cut: {tap}"]
        network.say(f"kill {change}")
        network.say(step)
    with fence(host, uuid) as again:
        if step == "apply":
            assert again.say("apply") == ["enforced", f"cut: {tap}"]
            assert is_cut(host, tap)
        assert again.say("lift") == LIFTED
    assert passes(guest.say("1"))
    assert "bootlock" not in rules(host)
    assert not list(host.outside("/var/lib/bootlock").glob("network/*"))


def test_two_instances_are_cut_and_released_each_by_itself(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    other = str(uuids.uuid4())
    host.run(["sh", "-ec", f"ip tuntap add tap1 mode tap; ip link set tap1 master {BRIDGE} up"])
    try:
        with (
            guest_on(host, "tap1", other) as neighbour,
            fence(host, uuid) as network,
            fence(host, other) as theirs,
        ):
            network.say("apply")
            assert passes(neighbour.say("1"))
            theirs.say("apply")
            assert silent(neighbour.say("1"))
            network.say("lift")
            assert passes(guest.say("1"))
            assert silent(neighbour.say("1"))
            theirs.say("lift")
            assert passes(neighbour.say("1"))
    finally:
        host.run(["ip", "link", "del", "tap1"])


def test_a_device_that_was_moved_out_of_reach_is_a_failure(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    assert guest
    holder = host.popen(["unshare", "--net", "sh", "-c", "echo $$; exec sleep infinity"])
    assert holder.stdout
    pid = holder.stdout.readline().strip()
    try:
        with fence(host, uuid) as network:
            host.run(["ip", "link", "set", "dev", tap, "netns", pid])
            state, detail = network.say("apply")
            assert state == "failed"
            assert f"{tap!r} was moved to another network namespace" in detail
            network.say("lift")
    finally:
        host.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "set", tap, "netns", "1"])
        host.run(["kill", pid])


def test_without_nft_it_fails_and_still_sets_the_link_down(
    host: PrivateHost, tap: str, guest: Talker, uuid: str
) -> None:
    host.run(["mount", "--bind", "/dev/null", "/usr/sbin/nft"])
    try:
        with fence(host, uuid) as network:
            state, detail = network.say("apply")
            assert state == "failed"
            assert "nft" in detail
            assert not is_up(host, tap)
            assert silent(guest.say("1"))
    finally:
        host.run(["umount", "/usr/sbin/nft"])
    with fence(host, uuid) as network:
        assert network.say("apply") == ["enforced", f"cut: {tap}"]
        assert network.say("lift") == LIFTED
    assert passes(guest.say("1"))
