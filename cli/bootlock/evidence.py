"""The archive of ``bootlock export``: all that is known of one instance, and how to check it.

A tar, written as it is read: a journal of a million entries takes no memory. Its bytes follow from
what it holds: fixed order, one time, no owners. The checking needs nothing of bootlock and is
written in its README, which a test carries out.

The journal's entries about other instances are not in it, only their hashes: each entry's ``link``
ties it to those, see lockdb.journal.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import IO, Any

from sqlite_utils import Database

from bootlock.output import json_text
from lockdb import journal
from lockdb.durable import sync_directory

#: Entries about the host itself, without any customer's data: how it stood with its enforcement.
HOST_EVENTS = (
    "created",
    "migrated",
    "armed",
    "disarmed",
    "break_glass_on",
    "break_glass_off",
    "clock",
)


@dataclass(frozen=True)
class Proof:
    """Where the journal's part of an archive begins and ends."""

    #: The first entry whose hash is in it, and the link that this entry must follow.
    first: int
    link: str
    #: How many entries are in it with their text.
    entries: int


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file at ``path``, 0600, there only when it is whole. Raises OSError.

    FileExistsError: there is one by that name, which stays what it is.
    """
    if os.path.lexists(path):
        raise FileExistsError(path)
    # Beside it, so that it can get its name by a link, which never replaces anything.
    descriptor, draft = tempfile.mkstemp(prefix=".bootlock-export-", dir=path.absolute().parent)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
    sync_directory(path.absolute().parent)


class Writer:
    """Puts files into a tar, one after the other, under one directory; the manifest last."""

    def __init__(self, file: IO[bytes], directory: str, mtime: int) -> None:
        # Closed by ``close``: what is not whole has no end either.
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._directory = directory
        self._mtime = mtime
        self._digests: dict[str, str] = {}

    def add(self, name: str, content: BufferedIOBase | bytes) -> None:
        """One file. A stream is read from its beginning."""
        stream = BytesIO(content) if isinstance(content, bytes) else content
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        self._digests[name] = _digest_of(stream)
        stream.seek(0)
        member = tarfile.TarInfo(f"{self._directory}/{name}")
        member.size, member.mtime, member.mode = size, self._mtime, 0o600
        self._tar.addfile(member, stream)

    def add_json(self, name: str, value: Any) -> None:
        """One file of JSON; times as everywhere."""
        self.add(name, f"{json_text(value)}\n".encode())

    def close(self) -> tuple[str, list[str]]:
        """Write the manifest: its digest, and the names of all others."""
        names = sorted(self._digests)
        lines = "".join(f"{self._digests[name]}  {name}\n" for name in names)
        self.add("MANIFEST", lines.encode())
        self._tar.close()
        return self._digests["MANIFEST"], names


def write_journal(
    db: Database, instance: str, first: int, *, entries: IO[bytes], hashes: IO[bytes]
) -> Proof:
    """The journal from entry ``first`` on: those about the instance in full, the hashes of all.

    Reads each once. ``hashes``: lines of ``SEQ HASH``; ``entries``: as in ``journal export``.
    """
    link = journal.link_after(db, first - 1)
    shown = 0
    wanted = ", ".join("?" * len(HOST_EVENTS))
    query = (
        # What is no JSON has no instance, and must not end the query.
        "SELECT seq, CAST(hash AS BLOB), CASE WHEN json_valid(entry) THEN CASE WHEN instance = ? "
        f"OR (instance IS NULL AND event IN ({wanted})) THEN CAST(entry AS BLOB) END END "
        "FROM journal WHERE seq >= ? ORDER BY seq"
    )
    for seq, hashed, entry in db.execute(query, [instance, *HOST_EVENTS, first]):
        hashes.write(b"%d %s\n" % (seq, hashed))
        if entry is not None:
            entries.write(entry + b"\n")
            shown += 1
    return Proof(first, link, shown)


def first_since(db: Database, moment: int | None) -> int:
    """The number of the first entry that was made at ``moment`` or later; 1 for none."""
    if moment is None:
        return 1
    (seq,) = db.execute("SELECT min(seq) FROM journal WHERE at >= ?", [moment]).fetchone()
    if seq is None:
        return journal.head(db).seq + 1
    return int(seq)


def entry_that_kept(db: Database, instance: str, sha256: str, *, first: int) -> int | None:
    """The number of the last entry, from ``first`` on, that has this digest of a definition."""
    query = (
        "SELECT max(seq) FROM journal WHERE instance = ? AND event = 'definition_kept' "
        "AND seq >= ? AND CASE WHEN json_valid(entry) THEN json_extract(entry, '$.sha256') = ? END"
    )
    (seq,) = db.execute(query, [instance, first, sha256]).fetchone()
    return seq and int(seq)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(stream: BufferedIOBase) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def readme(facts: Mapping[str, str]) -> bytes:
    """README.txt: what is in the archive, and how to check it."""
    return _README.format(**facts).encode()


# The lines that are indented by four blanks are the procedure; a test runs exactly them.
_README = """\
EVIDENCE about the instance {instance}
from the host {host}, made at {at} by bootlock {version}

WHAT IS HERE

  about.json           which host, which versions, when, by whom; where the journal's part ends
  holds.json           every hold there ever was on the instance, with its retention
  permits.json         every exception that was granted for it
  refusals.json        starts of it that were refused: how often, from when to when
  enforcements.json    what was done for each hold on this host: the state now
  disks.json           the names of its own disks, as far as they became known
  preserved.json       which of its disks were preserved, their sizes and SHA-256
  definition.xml       its definition without passwords: the one that bootlock kept while it was
                       held, or else as libvirt had it; about.json says which, or why it is not here
  definition-now.xml   what libvirt had instead of the one that was kept, if it had another
  snapshots/           its snapshots' metadata as libvirt had it; about.json has their names
  journal/             the host's journal:
  - entries.jsonl      its entries about the instance and about the host itself, as they were hashed
  - hashes.txt         number and hash of every entry; those about others are not here otherwise
  MANIFEST             the SHA-256 of each of these files

The journal is what to go by: it is append-only and chained. The other files are what the database
and libvirt said at the time of this export, for reading. A definition that was kept is tied to the
journal: the last entry "definition_kept" in it has the SHA-256 of definition.xml.

HOW TO CHECK IT

With a shell, sha256sum and python3, on any machine, nothing of bootlock. Unpack it, go into its
directory, and set the two things that were noted when it was handed over, from elsewhere than this
archive (bootlock export prints them, and the journal of the host has them):

  MANIFEST_SHA256   the SHA-256 of the file MANIFEST
  JOURNAL_HEAD      the head of the journal, SEQ:HASH (optional; a fleet's registry has it as well)

Then run:

    printf '%s  MANIFEST\\n' "$MANIFEST_SHA256" | sha256sum --check --strict --status || {{
      echo 'FALSE: MANIFEST is not the one that was noted'; exit 1; }}
    sha256sum --check --strict --quiet MANIFEST || {{
      echo 'FALSE: a file is not as the MANIFEST has it'; exit 1; }}
    python3 -I - <<'END'
    import hashlib, json, os, sys
    def false(why):
        sys.exit("FALSE: " + why)
    def sha256(data):
        return hashlib.sha256(data).hexdigest()
    listed = {{line[66:] for line in open("MANIFEST", encoding="utf-8").read().splitlines()}}
    found = {{os.path.relpath(os.path.join(top, name)) for top, _, names in os.walk(".")
             for name in names}}
    if found != listed | {{"MANIFEST"}}:
        false("files that the MANIFEST does not have: " + ascii(found - listed - {{"MANIFEST"}}))
    known = json.load(open("about.json", encoding="utf-8"))
    about, kept, shown = known["journal"], {{}}, {{}}
    for line in open("journal/entries.jsonl", "rb"):
        line = line.rstrip(b"\\n")
        shown[json.loads(line)["seq"]] = line
    link, before, expected, tied = about["link"], None, about["first"], 0
    hashes = {{}}
    for line in open("journal/hashes.txt", encoding="ascii"):
        number, value = line.split()
        number = int(number)
        if number != expected:
            false("an entry is missing before %d" % number)
        entry = shown.pop(number, None)
        if entry is not None:
            fields = json.loads(entry)
            if sha256(entry) != value:
                false("entry %d is not what was hashed" % number)
            if before is not None and fields["prev"] != before:
                false("entry %d does not follow the one before it" % number)
            if "link" in fields:
                if fields["link"] != link:
                    false("entry %d is not tied to the entries before it" % number)
                tied = number
            if fields["event"] == "definition_kept" and fields["instance"] == known["instance"]:
                kept[number] = fields["sha256"]
        link, before, expected = sha256((link + value).encode()), value, number + 1
        hashes[number] = value
    if shown:
        false("entries without a hash: " + ascii(sorted(shown)))
    last = expected - 1
    if about["head"] != "%d:%s" % (last, before or about["head"].partition(":")[2]):
        false("the hashes do not end at the head")
    print("%d entries, tied to each other up to %d" % (last - about["first"] + 1, tied))
    if tied < last:
        print("NOT SHOWN: that entries %d to %d, which are about others, follow" % (tied + 1, last))
    number = known["definition"].get("entry")
    if number is not None:
        if kept.get(number) != sha256(open("definition.xml", "rb").read()):
            false("definition.xml is not what entry %d says was kept" % number)
        print("definition.xml is what entry %d says was kept" % number)
    elif known["definition"]["origin"] == "kept":
        print("NOT SHOWN: that the journal knows definition.xml")
    noted = os.environ.get("JOURNAL_HEAD", "")
    if noted:
        number, _, value = noted.partition(":")
        if hashes.get(int(number)) != value:
            false("the head that was noted is not in this journal")
        print("the head that was noted is in it")
    print("TRUE")
    END

It ends with the line TRUE and exit status 0, or it is false. Each
hash in journal/hashes.txt is that of an entry; each entry that is here in full carries in "link" a
digest of all hashes before it. So what is here is part of one journal, at its place, and nothing
was put in or taken out between. That whole journal can be compared on the host, while it exists:

  bootlock journal verify --head JOURNAL_HEAD

WHAT IT DOES NOT SHOW

That the host wrote the truth. Whoever was root there could write another journal from the start:
a head that was noted earlier, elsewhere, shows if so. And whoever made this archive could leave an
entry about the instance out, all but its hash: the MANIFEST_SHA256 shows that it is the archive
that bootlock made, the whole journal on the host which entries are about the instance.
"""
