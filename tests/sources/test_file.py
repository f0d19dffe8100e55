"""Holds from files: what is there is held, and only a sound directory releases anything."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootlockd.sources.base import Known, Order, Reading, Said, SourceError
from bootlockd.sources.file import FileSource
from bootlockd.sources.reconcile import known
from lockdb.values import Kind, OnRunning
from sources.said import in_force, instances, order, state, take, uuid
from waiting import wait_until

ENTRY = '[[hold]]\ninstance = "{}"\nreason = "unpaid"\n'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "holds.d"
    path.mkdir()
    return path


def toml(*numbers: int, more: str = "") -> str:
    return "".join(ENTRY.format(uuid(number)) + more for number in numbers) or "hold = []\n"


def put(directory: Path, name: str, text: str | bytes) -> None:
    """As configuration management should: whole, under its name at once."""
    draft = directory / f".{name}.new"
    draft.write_bytes(text if isinstance(text, bytes) else text.encode())
    draft.rename(directory / name)


def source(directory: Path) -> FileSource:
    return FileSource(directory, interval=3600, settle=0.01)


def read(directory: Path, held_before: Known | None = None) -> Reading:
    return source(directory).read(held_before or Known())


def sync(directory: Path, path: Path) -> None:
    take(path, source(directory).read(known(path, "file")))


def knows(reading: Reading) -> Known:
    """What is known once this reading was taken in."""
    orders = {one.ref: one.order for one in reading.observations if one.order}
    return Known(reading.revision, orders)


def fault(directory: Path, name: str, text: str | bytes) -> str:
    put(directory, name, text)
    reading = read(directory)
    (only,) = reading.faults
    return only


def test_everything_that_a_file_can_say(directory: Path) -> None:
    put(
        directory,
        "a.toml",
        f"""
        count = 1
        [[hold]]
        id = "case-1/vm"
        instance = "{uuid(1).upper().replace("-", "")}"
        kind = "state-lock"
        reason = "its owner asked"
        notice = "ask its owner"
        case = "T-1"
        on_running = "managed-save"
        grace = 7
        isolate = true
        until = 2030-01-02T03:04:05+01:00
        placed_by = "alice"
        blocks = ["stop", "start", "delete"]
        """,
    )
    expected = Order(
        uuid(1),
        Kind.STATE_LOCK,
        "its owner asked",
        "ask its owner",
        "T-1",
        OnRunning.MANAGED_SAVE,
        7,
        True,
        1893549845,
        "alice",
        "start,stop,delete",
    )
    (seen,) = read(directory).observations
    assert (seen.ref, seen.said, seen.order) == ("a.toml:case-1/vm", Said.HELD, expected)


def test_toml_and_json_say_the_same(directory: Path) -> None:
    put(directory, "a.toml", toml(1, more="until = 2030-01-01T00:00:00\n"))
    entry = {"instance": uuid(1), "reason": "unpaid", "until": "2030-01-01T00:00:00Z"}
    put(directory, "b.json", json.dumps({"hold": [entry], "count": 1}))
    first, second = read(directory).observations
    assert first.order == second.order
    assert (first.ref, second.ref) == (
        f"a.toml:{uuid(1)}:boot_lock",
        f"b.json:{uuid(1)}:boot_lock",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty; write 'hold = []' for no holds, or remove it"),
        (" \n", "it is empty; write 'hold = []' for no holds, or remove it"),
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("[[hold]\n", "Expected ']]' at the end of an array declaration (at line 1, column 7)"),
        ("hold = 3\n", "hold: must be a list of tables, [[hold]]; 'hold = []' for none"),
        ("hold = [3]\n", "hold 1: must be a table"),
        ("x = 1\n", "'x': no such key; known: hold, count"),
        ("count = 2\n" + toml(1), "count: it is 2, holds there are 1"),
        ("count = true\n" + toml(1), "count: it is True, holds there are 1"),
        (toml(1) + "[[hold]]\n", "hold 2 (line 4): instance: is missing"),
        (toml(1, 1), "hold 2 (line 4): it is there twice: give each an id of its own"),
        ("\n" + toml(1, more="colour = 1\n"), "hold 1 (line 2): colour: no such key"),
        (toml(1, more="kind = 'lock'\n"), "hold 1 (line 1): kind: 'lock' is none of boot-lock, "),
        (
            toml(1, more="blocks = 'stop'\n"),
            "hold 1 (line 1): blocks: must be a list of operations",
        ),
        (toml(1, more="blocks = []\n"), "hold 1 (line 1): blocks: names no operation"),
        (toml(1, more="blocks = ['fly']\n"), "hold 1 (line 1): blocks: 'fly' is no operation"),
        (toml(1, more="kind = 1\n"), "hold 1 (line 1): kind: must be text, not 1"),
        (toml(1, more="grace = -1\n"), "hold 1 (line 1): grace: must be a number of seconds, 0 to"),
        (toml(1, more="grace = true\n"), "hold 1 (line 1): grace: must be a number of seconds"),
        (toml(1, more="isolate = 1\n"), "hold 1 (line 1): isolate: must be true or false, not 1"),
        (toml(1, more="until = '36h'\n"), "hold 1 (line 1): until: '36h' is not a time"),
        (toml(1, more="until = 0001-01-01\n"), "hold 1 (line 1): until: must be text, not"),
        (toml(1, more="until = 1900-01-01T00:00:00Z\n"), "hold 1 (line 1): until: must be a time"),
        (toml(1, more="id = 'a:b'\n"), "hold 1 (line 1): id: 'a:b' is not made of letters"),
        (toml(1, more="notice = '''a\nb'''\n"), "hold 1 (line 1): notice: unprintable character"),
        (toml(1).replace("unpaid", ""), "hold 1 (line 1): reason: must not be empty"),
        (toml(1).replace("0000", "wxyz"), "hold 1 (line 1): instance: "),
        ("x = " + "[" * 9999, ""),
        ("hold = 0x" + "f" * 9999, ""),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(
    directory: Path, text: str | bytes, problem: str
) -> None:
    said = fault(directory, "a.toml", text)
    assert said.startswith(f"a.toml: {problem}")
    assert said.isprintable()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", 'it must be an object: {"hold": [...]}'),
        ('{"hold": []', "Expecting ',' delimiter: line 1 column 12 (char 11)"),
        ('{"hold": [], "hold": []}', "'hold' is there twice in one object"),
        ('{"count": NaN, "hold": []}', "NaN is no number"),
        ('{"hold": [{"reason": "\\ud800", "instance": "x"}]}', "hold 1: instance: 'x' is not a"),
        ("[" * 99999, ""),
        ('{"hold": ' + "9" * 9999 + "}", ""),
    ],
)
def test_what_is_wrong_in_json_is_named(directory: Path, text: str, problem: str) -> None:
    assert fault(directory, "a.json", text).startswith(f"a.json: {problem}")


def test_no_lines_are_told_rather_than_wrong_ones(directory: Path) -> None:
    text = f'[[hold]]\ninstance = "{uuid(1)}"\nreason = """x\n[[hold]]"""\n'
    assert fault(directory, "a.toml", text).startswith("a.toml: hold 1: reason: unprintable")


def test_a_bad_entry_keeps_its_hold_and_no_other_suffers(directory: Path, path: Path) -> None:
    put(directory, "a.toml", toml(1, 2))
    put(directory, "b.toml", toml(3))
    sync(directory, path)
    before = in_force(path)
    put(directory, "a.toml", toml(1, 2).replace("unpaid", "", 1))
    put(directory, "b.toml", toml(3, 4))
    sync(directory, path)
    assert instances(path) == [uuid(number) for number in (1, 2, 3, 4)]
    assert set(before) <= set(in_force(path))
    assert state(path).faults.first == ("a.toml: hold 1 (line 1): reason: must not be empty",)
    put(directory, "a.toml", "[[hold")
    sync(directory, path)
    assert len(in_force(path)) == 4
    assert state(path).faults.count == 1
    assert state(path).vanished.count == 0


def test_a_removed_file_and_a_removed_entry_are_released(directory: Path, path: Path) -> None:
    put(directory, "a.toml", toml(1, 2))
    put(directory, "b.json", json.dumps({"hold": [{"instance": uuid(3), "reason": "r"}]}))
    sync(directory, path)
    put(directory, "a.toml", toml(2))
    reading = source(directory).read(known(path, "file"))
    assert [(one.ref, one.evidence) for one in reading.observations if not one.order] == [
        (
            f"a.toml:{uuid(1)}:boot_lock",
            f"{directory}/a.toml does not have it any more; 2 files there are sound",
        )
    ]
    (directory / "b.json").unlink()
    sync(directory, path)
    assert instances(path) == [uuid(2)]
    put(directory, "a.toml", "hold = []\n")
    sync(directory, path)
    assert instances(path) == []


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _of_everybody(path: Path) -> None:
    path.write_text("hold = []")
    path.chmod(0o666)


UNSOUND: dict[str, Callable[[Path], object]] = {
    "half a file": lambda path: path.write_text(toml(9)[:-5]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
    "empty": lambda path: path.touch(),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a directory": lambda path: path.mkdir(),
    "a pipe": _fifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "of everybody": _of_everybody,
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_directory_that_is_not_sound_releases_nothing(
    directory: Path, path: Path, kind: str
) -> None:
    put(directory, "a.toml", toml(1, 2))
    put(directory, "b.toml", toml(3))
    sync(directory, path)
    (directory / "b.toml").unlink()
    put(directory, "a.toml", toml(1))
    UNSOUND[kind](directory / "x.toml")
    sync(directory, path)
    assert len(in_force(path)) == 3
    found = state(path)
    assert (found.faults.count, found.vanished.count) == (1, 0)
    assert found.faults.first[0].startswith("x.toml: ")
    (directory / "x.toml").rmdir() if kind == "a directory" else (directory / "x.toml").unlink()
    sync(directory, path)
    assert instances(path) == [uuid(1)]


@pytest.mark.parametrize("name", [b"\xff.toml", b"a\nb.toml", b"a:b.json", b"-.toml"])
def test_a_name_that_can_not_be_part_of_a_holds_is_a_fault(directory: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_text(toml(1))
    put(directory, "a.toml", toml(2))
    reading = read(directory)
    assert len(reading.observations) == len(reading.faults) == 1
    assert reading.faults[0].isprintable()


def test_what_editors_and_others_leave_is_not_read(directory: Path) -> None:
    for name in (".a.toml.swp", ".a.toml", "a.toml~", "a.toml.bak", "README"):
        (directory / name).write_text("junk")
    put(directory, "b.toml", toml(1))
    reading = read(directory)
    assert (len(reading.observations), reading.faults) == (1, ())


def test_an_empty_directory_releases_nothing_and_marks_the_source(
    directory: Path, path: Path
) -> None:
    sync(directory, path)
    assert state(path).faults.count == 0
    put(directory, "a.toml", toml(1))
    sync(directory, path)
    (directory / "a.toml").unlink()
    sync(directory, path)
    assert instances(path) == [uuid(1)]
    assert (state(path).vanished.count, state(path).faults.count) == (1, 1)


@pytest.mark.parametrize("what", ["missing", "a file", "a loop", "of everybody"])
def test_what_is_no_directory_can_not_be_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "holds.d"
    if what == "a file":
        path.touch()
    elif what == "a loop":
        path.symlink_to(path)
    elif what == "of everybody":
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(SourceError, match=str(path)):
        read(path)


def test_another_directory_in_its_place_adds_and_releases_nothing(
    directory: Path, path: Path
) -> None:
    put(directory, "a.toml", toml(1))
    sync(directory, path)
    directory.rename(directory.with_name("old"))
    directory.mkdir()
    put(directory, "b.toml", toml(2))
    for _ in range(2):
        sync(directory, path)
        assert instances(path) == [uuid(1), uuid(2)]
        assert state(path).faults.first == (
            f"{directory}: another directory than before: it releases nothing",
        )
    put(directory, "a.toml", toml(1))
    sync(directory, path)
    assert (state(path).faults.count, state(path).vanished.count) == (0, 0)
    # It is the directory now.
    (directory / "a.toml").unlink()
    sync(directory, path)
    assert instances(path) == [uuid(2)]


def test_a_directory_that_changes_between_two_looks_releases_nothing_yet(directory: Path) -> None:
    put(directory, "a.toml", toml(1))
    put(directory, "b.toml", toml(2))
    before = knows(read(directory))
    (directory / "b.toml").unlink()

    class Hasty(FileSource):
        looks = 0

        def _look(self):  # type: ignore[no-untyped-def]
            self.looks += 1
            if self.looks == 2:
                put(directory, "c.toml", toml(3))
            return super()._look()

    reading = Hasty(directory, settle=0).read(before)
    assert {one.said for one in reading.observations} == {Said.HELD, Said.UNKNOWN}
    assert reading.faults == (f"{directory}: it changes: releases wait until it does not",)


def test_a_file_that_grows_is_read_again_whatever_its_times(directory: Path) -> None:
    held_twice = source(directory)
    for numbers in ([1], [2], [1, 2]):
        (directory / "a.toml").write_text(toml(*numbers))
        os.utime(directory / "a.toml", (1, 1))
        assert len(held_twice.read(Known()).observations) == len(numbers)


@contextmanager
def followed(directory: Path, path: Path) -> Iterator[list[Reading]]:
    """A thread that follows the directory and takes in what is read."""
    stop, readings = threading.Event(), list[Reading]()

    def follow() -> None:
        with suppress(SourceError):
            for reading in source(directory).follow(known(path, "file"), stop):
                readings.append(reading)
                take(path, reading)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield readings
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def test_it_is_followed_and_a_burst_is_one_look(directory: Path, path: Path) -> None:
    put(directory, "a.toml", toml(1))
    with followed(directory, path) as readings:
        wait_until(lambda: instances(path) == [uuid(1)], "the first look")
        for number in range(2, 60):
            put(directory, f"a{number}.toml", toml(number))
        wait_until(lambda: len(in_force(path)) == 59, "all of the burst")
        assert len(readings) < 20
        (directory / "a7.toml").unlink()
        wait_until(lambda: uuid(7) not in instances(path), "a release")


def test_an_unchanged_file_is_not_parsed_again(directory: Path) -> None:
    put(directory, "a.toml", toml(1))
    os.utime(directory / "a.toml", (1, 1))
    one = source(directory)
    wait_until(lambda: one.read(Known()).observations and one._seen, "its times are old enough")
    assert one.read(Known()).observations[0] is one.read(Known()).observations[0]


NAMES = st.sampled_from(["a.toml", "b.toml", "c.json", "d.json", ".e.toml", "f.txt"])
LINES = st.lists(
    st.sampled_from(
        [
            "[[hold]]",
            "hold = []",
            "count = 1",
            f'instance = "{uuid(1)}"',
            f'instance = "{uuid(2)}"',
            'reason = "r"',
            'id = "x"',
            "until = 2030-01-01T00:00:00Z",
            'until = "soon"',
            "grace = 5",
            "isolate = true",
            "[[hold",
            "\x00",
        ]
    ),
    max_size=9,
).map("\n".join)
CONTENTS = st.one_of(
    LINES.map(str.encode),
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([toml(1).encode(), toml(1, 2).encode(), toml(2, 3).encode()]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["hold", "instance", "reason", "id", "x"]), inner)
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, CONTENTS, max_size=4), st.booleans())
def test_whatever_is_in_it_nothing_breaks_and_nothing_is_released_without_cause(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], keep: bool
) -> None:
    directory = tmp_path_factory.mktemp("holds")
    if keep:
        put(directory, "kept.toml", toml(9))
    for name, data in files.items():
        put(directory, name, data)
    before = Known("", {f"old.toml:{uuid(8)}:boot_lock": order(8), "a.toml:x": order(7)})
    reading = FileSource(directory, settle=0).read(before)
    visible = keep or any(not name.startswith(".") and name != "f.txt" for name in files)
    ended = [one for one in reading.observations if one.said is Said.RELEASED]
    assert all(fault.isprintable() and fault for fault in reading.faults)
    assert len({one.ref for one in reading.observations}) == len(reading.observations)
    if reading.faults or not visible:
        assert ended == []
    else:
        assert f"old.toml:{uuid(8)}:boot_lock" in {one.ref for one in ended}


def test_time_is_not_lost_on_a_directory_without_changes(directory: Path) -> None:
    put(directory, "a.toml", toml(1))
    before = knows(read(directory))
    one = FileSource(directory, settle=3600)
    began = time.monotonic()
    assert one.read(before).faults == ()
    assert time.monotonic() - began < 60
