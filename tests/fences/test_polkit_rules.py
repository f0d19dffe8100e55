"""The text of polkit's rules: what it says, and what no name of a disk can make it say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlockd import accessdriver
from bootlockd.polkitrules import Privileged, entry_of, proof_of, text
from lockdb import operations
from lockdb.operations import HARMLESS, PERMISSIONS, RULES, refused_permissions
from lockdb.values import CANARY_PREFIX, Hold, Kind, OnRunning, Operation, Permit

A, B = "11111111-aaaa-4333-8444-bbbbbbbbbbbb", "22222222-aaaa-4333-8444-bbbbbbbbbbbb"
NOBODY = Privileged()
POLICY = Path("/usr/share/polkit-1/actions/org.libvirt.api.policy")


def hold(**fields: Any) -> Hold:
    values: dict[str, Any] = {
        "id": "a",
        "instance": A,
        "kind": Kind.BOOT_LOCK,
        "source": "local",
        "reason": "r",
        "notice": "n",
        "case": "",
        "on_running": OnRunning.LEAVE,
        "grace": 60,
        "isolate": False,
        "was_running": None,
        "placed_at": 1,
        "placed_by": "t",
        "until": None,
        "released_at": None,
        "released_by": None,
        "release_reason": None,
    }
    return Hold(**values | fields)


def permit(operation: Operation, **fields: Any) -> Permit:
    values: dict[str, Any] = {
        "id": "p",
        "instance": A,
        "operation": operation,
        "reason": "r",
        "granted_at": 10,
        "granted_by": "t",
        "until": 20,
        "revoked_at": None,
        "revoked_by": None,
    }
    return Permit(**values | fields)


def data_of(made: str) -> dict[str, Any]:
    data = json.loads(made[made.index("{", made.index("var data")) :].partition("\n")[0])
    assert isinstance(data, dict)
    return data


def test_each_permission_that_libvirt_has_here_for_guests_and_volumes_is_classified() -> None:
    """A newer libvirt that has another fails this until the table says what it is."""
    found = _of_libvirt()
    assert len(found) > 30
    assert found == PERMISSIONS


def _of_libvirt() -> set[str]:
    prefix = "org.libvirt.api."
    ids = [part.partition('"')[0] for part in POLICY.read_text().split('<action id="')[1:]]
    names = {name.removeprefix(prefix) for name in ids if name.startswith(prefix)}
    ours = {name for name in names if name.partition(".")[0] in {"domain", "storage-vol"}}
    # The one of a pool that ends its volumes.
    return ours | (names & {"storage-pool.format"})


def test_nothing_harmless_is_ever_refused() -> None:
    assert not HARMLESS & refused_permissions(operations.ALL)


def test_a_hold_is_refused_until_it_ends_and_a_permit_lets_through_for_its_time() -> None:
    entry = entry_of([hold(until=99)], [permit(Operation.DELETE)], [])
    data = data_of(text({A: entry}, NOBODY))
    (until, blocked), (start, end, let_through) = data["held"][A][0], data["permits"][A][0]
    assert (until, start, end) == (99, 10, 20)
    assert set(data["sets"][blocked]) == refused_permissions(operations.ALL)
    assert set(data["sets"][let_through]) == RULES[Operation.DELETE].needed == {"domain.delete"}


def test_the_disks_of_an_instance_and_the_pool_they_are_in_are_its() -> None:
    keys = ["path:/images/a.img", "volume:default/a.img"]
    made = text({A: entry_of([hold()], [], keys), B: entry_of([hold()], [], keys[:1])}, NOBODY)
    assert data_of(made)["disks"] == {
        "path:/images/a.img": [A, B],
        "pool:default": [A],
        "volume:default/a.img": [A],
    }


def test_the_same_holds_make_the_same_text_whatever_their_order() -> None:
    holds = [
        hold(id=name, until=end, blocks=ops)
        for name, end, ops in (("a", None, "stop,delete"), ("b", 9, "delete"), ("c", None, None))
    ]
    texts = {
        text({A: entry_of(order, [], ["path:/b", "path:/a"])}, NOBODY)
        for order in (holds, holds[::-1], [holds[1], holds[2], holds[0]])
    }
    assert len(texts) == 1


def test_each_text_has_a_proof_of_its_own() -> None:
    some = [text({A: entry_of([hold(until=end)], [], [])}, NOBODY) for end in (None, 1, 2)]
    some.append(text({}, Privileged(("nova",), ())))
    assert len({proof_of(made) for made in some}) == 4
    assert all(proof_of(made).startswith(CANARY_PREFIX) for made in some)
    with pytest.raises(ValueError, match="changed"):
        proof_of(some[1].replace("[1, 0]", "[2, 0]"))


HOSTILE = st.text() | st.sampled_from(
    [
        '"',
        "\\",
        "*/",
        "//",
        "</script>",
        "\u2028",
        "__proto__",
        '"]}; polkit.addRule(',
        "\x00",
        "\n",
    ]
)


@given(st.lists(HOSTILE, max_size=4), st.lists(HOSTILE, max_size=2))
def test_no_name_of_a_disk_or_a_user_leaves_its_string(disks: list[str], users: list[str]) -> None:
    keys = [f"path:{name}" for name in disks]
    plain = text({A: entry_of([hold()], [], [])}, NOBODY)
    made = text({A: entry_of([hold()], [], keys)}, Privileged(tuple(users), ()))
    assert made.isascii()
    # One line is data; the others are ours.
    ours, theirs = ([line for line in t.splitlines() if line[0:1] != "{"] for t in (plain, made))
    assert ours == theirs
    assert set(data_of(made)["disks"]) == set(keys)
    assert data_of(made)["users"] == users


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        ("", False),
        ('access_drivers = [ "polkit" ]', True),
        ("access_drivers=['polkit']", True),
        ('access_drivers = [\n  "none",\n  "polkit"\n]', True),
        ('#access_drivers = [ "polkit" ]', False),
        ('  # access_drivers = [ "polkit" ]', False),
        ('access_drivers = [ "polkit" ]\naccess_drivers = [ ]', True),
        ('access_drivers = [ ]\naccess_drivers = [ "polkit" ]', False),
        ('access_drivers = [\n# "polkit"\n]', False),
        ('other_access_drivers = [ "polkit" ]', False),
    ],
)
def test_whether_the_settings_turn_the_access_driver_on(settings: str, is_on: bool) -> None:
    assert accessdriver.is_on(settings) is is_on


def test_a_daemon_of_libvirt_that_was_not_restarted_since_does_not_ask(tmp_path: Path) -> None:
    assert accessdriver.why_off(tmp_path, tmp_path) == "no daemon of libvirt runs"
    (tmp_path / "libvirtd.pid").write_text("1\n")
    assert "libvirtd.conf: No such file" in accessdriver.why_off(tmp_path, tmp_path)
    (tmp_path / "libvirtd.conf").write_text('access_drivers = [ "polkit" ]\n')
    assert accessdriver.why_off(tmp_path, tmp_path).endswith("was started: restart it")
    (tmp_path / "libvirtd.conf").write_text("\n")
    assert "no access_drivers" in accessdriver.why_off(tmp_path, tmp_path)
