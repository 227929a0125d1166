"""SDF and molfiles, split at the ``$$$$`` lines, or, if those are missing, before the headers of molfiles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise

from mmsa_shards.options import PrepareOptions
from mmsa_shards.read.record import Place, Record, Refused, Structure, id_of, text_of, too_long
from mmsa_shards.read.tables import ID_COLUMNS

# Bytes, more than any usable molecule needs; longer records are refused without being held in memory.
_LONGEST_RECORD = 1 << 24

_END = b"\n$$$$"
_CTAB_END = b"\nM  END"
_DATA = b"\n>"
_VERSION = re.compile(rb"V[23]000")
# The fourth line of a molfile, after title, program and comment.
_COUNTS = re.compile(rb"\n[ \d]{6,40}V[23]000[ \t]*(?=\n)")

# Names of data items, in lower case.
_CID = b"pubchem_compound_cid"
_CONFORMER = b"pubchem_conformer_rmsd"  # in all PubChem3D records; 2D records may cite a conformer, but by id
_ID_NAMES = tuple(name.encode() for name in ID_COLUMNS)


def sdf_records(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    """Yields records, with the id from a data item or the title.

    Raises:
        EOFError: the file ends within a record: before its ``M  END``, or among data items.
    """
    for number, record in enumerate(_records(pieces), 1):
        place = Place(file, number)
        yield too_long(place) if record is None else _record(record, place, options)


def _records(pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yields records, each preceded by a line end, and None for one that is too long."""
    rest, searched, dropped = b"\n", 0, False  # the line end before the next record, and what follows it
    for piece in pieces:
        rest += piece
        start = 0
        while (end := rest.find(_END, searched)) >= 0 and (line_end := rest.find(b"\n", end + 1)) >= 0:
            if dropped or end - start > _LONGEST_RECORD:
                yield None
            else:
                yield from _molfiles(rest[start : end + 1])
            start = searched = line_end
            dropped = False
        rest = rest[start:]
        searched = end - start if end >= 0 else max(len(rest) - len(_END), 0)
        if len(rest) > _LONGEST_RECORD and not dropped:
            *whole, last = _molfiles(rest)
            yield from whole
            rest, searched = last, max(searched - len(rest) + len(last), 0)
        if len(rest) > _LONGEST_RECORD:
            rest, searched, dropped = rest[searched:], 0, True
    record, end_line, _ = rest.partition(_END)
    if dropped:
        yield None
    elif end_line:
        yield from _molfiles(record + b"\n")
    elif record.strip():
        *whole, record = _molfiles(record)
        yield from whole
        _, ctab_end, data = record.partition(_CTAB_END)
        if not ctab_end:
            raise EOFError("its last record has no 'M  END'")
        if data.partition(b"\n")[2].strip():
            raise EOFError("its last record has data, but no '$$$$' after them")
        yield record


def _molfiles(record: bytes) -> list[bytes]:
    """Separates molfiles without a ``$$$$`` line between them; each is preceded by a line end and keeps its data items.

    A data item may contain a molfile too. The header of such a molfile follows the line with the item's name, or other
    text of the item; the header of a record follows a structure, or the blank line that ends a data item.
    """
    if len(_VERSION.findall(record)) < 2:  # the only check that almost every record needs
        return [record]
    cuts = [1]  # offsets of titles
    first: dict[bytes, int] = {}

    def occurs(what: bytes, title: int) -> bool:
        """Returns whether `what` is between the last cut and a title; searched only once after each cut."""
        if first.get(what, -1) < cuts[-1]:
            at = record.find(what, cuts[-1])
            first[what] = at if at >= 0 else len(record)
        return first[what] + len(what) <= title

    for counts in _COUNTS.finditer(record):
        title = counts.start()  # the line end before it, three lines up
        for _ in range(3):
            title = record.rfind(b"\n", 0, max(title, 0))
        if title < cuts[-1] or not (_COUNTS.search(record, cuts[-1] - 1, title + 1) or occurs(_CTAB_END, title)):
            continue  # this is the header of the current molfile
        line_before = record[record.rfind(b"\n", 0, title) + 1 : title]
        if occurs(_DATA, title) and line_before.strip():
            continue
        glued = record.startswith(_CTAB_END, title)  # the previous file had no final line end
        cuts.append(title + (len(_CTAB_END) if glued else 1))
    return [b"\n" + record[begin:end] for begin, end in pairwise([*cuts, len(record)])]


def _record(record: bytes, place: Place, options: PrepareOptions) -> Record | Refused:
    end = record.find(_CTAB_END)
    data = record.find(_DATA, end + 1)
    if (molfiles := record.count(_CTAB_END, 0, data if data >= 0 else len(record))) > 1:
        return Refused(
            place.as_id,
            place,
            "syntax",
            f"holds {molfiles} molfiles, and where they begin is not clear: put a line '$$$$' after each of them",
        )
    end = record.find(b"\n", end + 1) if end >= 0 else -1
    if end < 0:
        end = len(record)
    items = {name.lower(): value.strip() for name, value in _items(options.id_column).findall(record, end)}
    cid = items.get(_CID)
    if options.id_column:
        name = items.get(options.id_column.encode().lower(), b"")
    else:
        name = b"CID" + cid if cid else next((items[known] for known in _ID_NAMES if items.get(known)), b"")
    pubchem3d = cid is not None and _CONFORMER in items
    molfile = text_of(record[1 : end + 1])
    return Record(
        id_of(text_of(name) or molfile.partition("\n")[0], place),
        Structure("molfile", molfile),
        place,
        "pubchem3d" if pubchem3d else "input",
    )


@cache
def _items(id_column: str) -> re.Pattern[bytes]:
    """Returns the pattern of relevant data items, with groups for the name and the first line of the value."""
    names = [re.escape(id_column.encode())] if id_column else [b"(?i:%s)" % b"|".join(_ID_NAMES)]
    names += [_CID.upper(), _CONFORMER.upper()]
    return re.compile(rb"\n>[^\n<]*<(%s)>[^\n]*(?=\n([^\n]*))" % b"|".join(names))
