"""SDF and molfiles, cut at the ``$$$$`` lines without looking at the lines between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from mmsa_shards.options import PrepareOptions
from mmsa_shards.read.record import Place, Record, Refused, Structure, id_of, text_of, too_long
from mmsa_shards.read.tables import ID_COLUMNS

# Longer than any molecule that can be used; what is longer is refused without being held in memory.
_LONGEST_RECORD = 1 << 24

_END = b"\n$$$$"
_CTAB_END = b"\nM  END"

# Names of data items, in lower case.
_CID = b"pubchem_compound_cid"
_CONFORMER = b"pubchem_conformer_rmsd"  # of every record of PubChem3D; drawings may cite a conformer too, by its id
_ID_NAMES = tuple(name.encode() for name in ID_COLUMNS)


def sdf_records(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    """Records with the id that a data item or the title gives.

    Raises:
        EOFError: the file ends in a record: before its ``M  END``, or among data items.
    """
    for number, record in enumerate(_records(pieces), 1):
        place = Place(file, number)
        yield too_long(place) if record is None else _record(record, place, options)


def _records(pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yields records, each with a line end before it, and None for one too long to be of use."""
    rest, searched, dropped = b"\n", 0, False  # the line end before the next record, and what follows it
    for piece in pieces:
        rest += piece
        start = 0
        while (end := rest.find(_END, searched)) >= 0 and (line_end := rest.find(b"\n", end + 1)) >= 0:
            yield None if dropped or end - start > _LONGEST_RECORD else rest[start : end + 1]
            start = searched = line_end
            dropped = False
        rest = rest[start:]
        searched = end - start if end >= 0 else max(len(rest) - len(_END), 0)
        if len(rest) > _LONGEST_RECORD:
            rest, searched, dropped = rest[searched:], 0, True
    record, end_line, _ = rest.partition(_END)
    if dropped:
        yield None
    elif end_line:
        yield record + b"\n"
    elif record.strip():
        _, ctab_end, data = record.partition(_CTAB_END)
        if not ctab_end:
            raise EOFError("its last record has no 'M  END'")
        if data.partition(b"\n")[2].strip():
            raise EOFError("its last record has data, but no '$$$$' after them")
        yield record


def _record(record: bytes, place: Place, options: PrepareOptions) -> Record:
    end = record.find(_CTAB_END)
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
    """Finds the data items of use, of each its name and the first line of its value."""
    names = [re.escape(id_column.encode())] if id_column else [b"(?i:%s)" % b"|".join(_ID_NAMES)]
    names += [_CID.upper(), _CONFORMER.upper()]
    return re.compile(rb"\n>[^\n<]*<(%s)>[^\n]*(?=\n([^\n]*))" % b"|".join(names))
