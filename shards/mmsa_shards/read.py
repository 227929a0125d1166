"""Files of molecules -> records as text, each with its place in its file. No chemistry happens here.

What a file does not hold properly (a record cut off, a line of ten megabytes) comes out as `Refused` between
the good records around it.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmsa_shards.errors import PrepareError
from mmsa_shards.options import PrepareOptions

# Longer than any molecule that can be used; what is longer is refused without being held in memory.
_LONGEST_LINE = 1 << 20
_LONGEST_SDF_RECORD = 1 << 24
_PIECE = 1 << 18  # bytes read or unzipped at a time

_TAG = re.compile(r"<([^>]*)>")

_SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles", "can_smiles", "mol", "structure")
_ID_COLUMNS = (
    "id",
    "cid",
    "chembl_id",
    "molecule_chembl_id",
    "mol_id",
    "compound_id",
    "zinc_id",
    "name",
    "title",
)


class Structure(NamedTuple):
    """A structure as text."""

    form: Literal["SMILES", "molfile"]
    text: str


class Place(NamedTuple):
    """Where a record stands."""

    file: str
    number: int
    """From 1: the line of SMILES and CSV files, the record of SDF, the row of Parquet."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record to be standardized."""

    id: str
    structure: Structure
    place: Place
    conformer_source: Literal["input", "pubchem3d"] = "input"
    """What 3D coordinates of the record, if it has such, are to be called."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that did not make it, here or in a later stage."""

    id: str
    place: Place
    reason: str
    message: str


def read_records(path: str, options: PrepareOptions, *, name: str | None = None) -> Iterator[Record | Refused]:
    """Reads a file by the kind that its name says, gzipped or not.

    Args:
        path: local or any URL that fsspec knows; ``.smi .csv .tsv .parquet .sdf .mol``, text also with ``.gz``.
            PubChem's own ``CID-SMILES`` is known by its name.
        options: `smiles_column`, `id_column` and `allow_truncated` are used.

    Raises:
        PrepareError: the file cannot be opened, is of no known kind, holds no record, lacks a column, or ends in
            the middle of a record and `allow_truncated` is off.
    """
    check_kind(path)
    reader = _READERS[_kind(path)]
    file, count = name or PurePosixPath(path).name, 0
    try:
        with fsspec.open(path, "rb") as stream:
            content = stream if reader is _parquet else _lines(_pieces(stream), file)
            for record in reader(content, file, options):
                count += 1
                yield record
    except (EOFError, zlib.error) as error:
        truncated = isinstance(error, EOFError)
        what = "ends in the middle" if truncated else "is damaged"
        if not options.allow_truncated:
            raise PrepareError(
                f"{path} {what} after {count} records ({error}): fetch it again, or accept what is left of it with "
                "prepare.allow_truncated=true"
            ) from error
        reason = "truncated_file" if truncated else "damaged_file"
        yield Refused(f"{file}:{count + 1}", Place(file, count + 1), reason, f"the file {what} here: {error}")
        return
    except FileNotFoundError:
        raise PrepareError(f"input {path} does not exist: check the path") from None
    except (OSError, pa.ArrowException) as error:
        raise PrepareError(f"cannot read {path}: {error}") from error
    if count == 0:
        raise PrepareError(f"{path} holds no records: leave it out or name another file")


def check_kind(path: str) -> None:
    """Raises PrepareError where the name of a file says no kind that `read_records` knows."""
    if not is_known_kind(path):
        kinds = " ".join(sorted(_READERS))
        raise PrepareError(f"{path} is of no kind that can be read: rename it to one of {kinds} (also with .gz)")


def is_known_kind(path: str) -> bool:
    """Whether the name of a file says a kind that `read_records` knows."""
    return _kind(path) in _READERS


def _kind(path: str) -> str:
    name = PurePosixPath(path).name.lower().removesuffix(".gz")
    return ".smi" if name == "cid-smiles" else PurePosixPath(name).suffix


def _smiles(lines: Iterator[str | None], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    """Lines of a SMILES, white space, and the id up to the next tab or the end; ``#`` begins a comment."""
    cid_first = file.startswith("CID-SMILES")
    for number, line in enumerate(lines, 1):
        place = Place(file, number)
        if line is None:
            yield _too_long(place)
            continue
        fields = [field.strip() for field in line.strip().split("\t" if "\t" in line else None, 1)]
        if not fields or not fields[0] or fields[0].startswith("#"):
            continue
        if number == 1 and fields[0].lower() in _SMILES_COLUMNS:
            continue  # a header
        if cid_first and len(fields) > 1:
            yield Record(f"CID{fields[0]}", Structure("SMILES", fields[1]), place)
            continue
        rest = fields[1] if len(fields) > 1 else ""
        if rest.startswith("|"):  # ChemAxon's extension stands between the SMILES and the id
            rest = rest[1:].partition("|")[2].strip()
        yield Record(rest.partition("\t")[0] or _default_id(place), Structure("SMILES", fields[0]), place)


def _csv(lines: Iterator[str | None], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    too_long: list[Refused] = []

    def bounded() -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if line is None:
                too_long.append(_too_long(Place(file, number)))
            yield f"{line or ''}\n"

    source = bounded()
    header = next(source, "")
    delimiter = max(",\t;", key=header.count)
    columns = next(csv.reader([header], delimiter=delimiter), [])
    smiles_at, id_at = _columns(columns, file, options)
    rows = csv.reader(source, delimiter=delimiter)
    while True:
        place = Place(file, rows.line_num + 2)
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Refused(_default_id(place), place, "syntax", f"cannot be read as a row of CSV: {error}")
            continue
        yield from too_long
        too_long.clear()
        if row is None:
            return
        if row:
            cells = {at: row[at] for at in (smiles_at, id_at) if at is not None and at < len(row)}
            yield _from_cells(cells.get(smiles_at), cells.get(id_at) if id_at is not None else None, place)


def _parquet(stream: BinaryIO, file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    table = pq.ParquetFile(stream)
    names = table.schema_arrow.names
    smiles_at, id_at = _columns(names, file, options)
    wanted = [names[smiles_at]] + ([] if id_at is None else [names[id_at]])
    number = 0
    for batch in table.iter_batches(batch_size=8192, columns=wanted):
        values = batch.to_pydict()
        for smiles, name in zip(values[wanted[0]], values[wanted[-1]], strict=True):
            number += 1
            yield _from_cells(smiles, None if id_at is None else name, Place(file, number))


def _sdf(lines: Iterator[str | None], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    number, record, size = 1, list[str](), 0
    for line in lines:
        if line is None:
            size += _LONGEST_SDF_RECORD + 1
        elif line.startswith("$$$$"):
            yield _from_sdf(record, size, Place(file, number), options)
            number, record, size = number + 1, [], 0
        else:
            size += len(line)
            if size <= _LONGEST_SDF_RECORD:
                record.append(line)
    if any(line.strip() for line in record):
        if not any(line.startswith("M  END") for line in record):
            raise EOFError(f"record {number} has no 'M  END'")
        yield _from_sdf(record, size, Place(file, number), options)


_Reader = Callable[[Any, str, PrepareOptions], Iterator[Record | Refused]]
_READERS: dict[str, _Reader] = {
    ".smi": _smiles,
    ".smiles": _smiles,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".sdf": _sdf,
    ".mol": _sdf,
    ".mdl": _sdf,
}


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the content of a file, unzipped if it is gzipped, to the last byte before it breaks off.

    Raises:
        EOFError: a gzip member is cut short. (The gzip module raises it before it has given out all there is.)
        zlib.error: a gzip member is damaged.
    """
    packed = stream.read(_PIECE)
    if not packed.startswith(b"\x1f\x8b"):
        while packed:
            yield packed
            packed = stream.read(_PIECE)
        return
    member = zlib.decompressobj(wbits=31)
    while packed:
        yield member.decompress(packed, _PIECE)  # bounded, however far it would expand
        packed = member.unconsumed_tail
        if member.eof:
            packed = member.unused_data.lstrip(b"\0") or stream.read(_PIECE).lstrip(b"\0")
            if not packed:
                return
            member = zlib.decompressobj(wbits=31)
        packed = packed or stream.read(_PIECE)
    raise EOFError("its gzip stream has no end")


def _lines(pieces: Iterable[bytes], file: str) -> Iterator[str | None]:
    r"""Yields lines that end in \n, \r or \r\n, without that, and None for one too long to be of use."""
    tail, too_long, first = b"", False, True
    for piece in pieces:
        if first and piece:
            if piece.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise PrepareError(f"{file} is in UTF-16: save it as UTF-8")
            piece, first = piece.removeprefix(b"\xef\xbb\xbf"), False
        lines = (tail + piece).splitlines(keepends=True)
        tail = lines.pop() if lines else b""  # whole only once it is seen what follows
        for line in lines:
            yield None if too_long else _decoded(line)
            too_long = False
        if len(tail) > _LONGEST_LINE:
            tail, too_long = b"", True
    if tail or too_long:
        yield None if too_long else _decoded(tail)


def _decoded(line: bytes) -> str:
    line = line.rstrip(b"\r\n")
    try:
        return line.decode()
    except UnicodeDecodeError:  # names in old files; every byte means something in Latin-1
        return line.decode("latin-1")


def _columns(names: Sequence[str], file: str, options: PrepareOptions) -> tuple[int, int | None]:
    """Returns the positions of the SMILES and the id column."""
    smiles_at = _find(names, options.smiles_column, _SMILES_COLUMNS)
    id_at = _find(names, options.id_column, _ID_COLUMNS)
    for at, option, wanted in (
        (smiles_at, "smiles_column", options.smiles_column or "SMILES"),
        (id_at, "id_column", options.id_column),
    ):
        if at is None and wanted:
            raise PrepareError(
                f"{file} has no {wanted} column, its columns are {', '.join(repr(name[:40]) for name in names)}: "
                f"name one of them with prepare.{option}=..."
            )
    assert smiles_at is not None
    return smiles_at, id_at


def _find(names: Sequence[str], asked: str, usual: Iterable[str]) -> int | None:
    if asked:
        return names.index(asked) if asked in names else None
    lower = [name.strip().lower() for name in names]
    return next((lower.index(name) for name in usual if name in lower), None)


def _from_cells(smiles: Any, name: Any, place: Place) -> Record:
    text = "" if smiles is None else str(smiles).strip()
    return Record(_default_id(place) if name in (None, "") else str(name), Structure("SMILES", text), place)


def _from_sdf(lines: Sequence[str], size: int, place: Place, options: PrepareOptions) -> Record | Refused:
    if size > _LONGEST_SDF_RECORD:
        return _too_long(place)
    end = next((at for at, line in enumerate(lines, 1) if line.startswith("M  END")), len(lines))
    tags = _tags(lines[end:])
    cid = tags.get("PUBCHEM_COMPOUND_CID")
    usual = tags.get(options.id_column) if options.id_column else (f"CID{cid}" if cid else _usual_id(tags))
    title = lines[0].strip() if lines else ""
    pubchem3d = cid is not None and any(tag.startswith("PUBCHEM_CONFORMER_") for tag in tags)
    return Record(
        usual or title or _default_id(place),
        Structure("molfile", "\n".join(lines[:end]) + "\n"),
        place,
        "pubchem3d" if pubchem3d else "input",
    )


def _tags(lines: Sequence[str]) -> dict[str, str]:
    """Returns the data items of an SDF record, of each the first line."""
    tags: dict[str, str] = {}
    for line, following in pairwise([*lines, ""]):
        if line.startswith(">") and (name := _TAG.search(line)):
            tags[name[1]] = following.strip()
    return tags


def _usual_id(tags: dict[str, str]) -> str:
    lower = {name.lower(): value for name, value in tags.items()}
    return next((lower[name] for name in _ID_COLUMNS if lower.get(name)), "")


def _too_long(place: Place) -> Refused:
    return Refused(_default_id(place), place, "too_long", "is longer than any molecule that can be used")


def _default_id(place: Place) -> str:
    return f"{place.file}:{place.number}"
