"""Files of molecules -> records as text, each with its place in its file. No chemistry happens here.

Malformed records (such as one that is cut off, or a line of ten megabytes) are yielded as `Refused`, in order with
the good records around them.
"""

from __future__ import annotations

import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from glob import has_magic
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from mmsa_shards.errors import ColumnError, PrepareError
from mmsa_shards.manifest import JOB_NAME, MANIFEST_NAME
from mmsa_shards.options import PrepareOptions
from mmsa_shards.places import locate, opened, reaching
from mmsa_shards.read.lines import cid_smiles_records, line_batches, smiles_records
from mmsa_shards.read.record import Place, Record, Refused, Structure
from mmsa_shards.read.sdf import sdf_records
from mmsa_shards.read.tables import csv_records, parquet_records
from mmsa_shards.read.unpack import plain, read_pieces, unpacked

__all__ = [
    "EXPORT_KEY",
    "Place",
    "Record",
    "Refused",
    "Structure",
    "check_kind",
    "files_of",
    "is_known_kind",
    "name_of",
    "read_records",
]

EXPORT_KEY = b"mmsa_origin"
"""Key in the metadata of Parquet files by which `mmsa embed` marks the parts that it writes."""

_LOG = logging.getLogger(__name__)


def read_records(
    path: str, options: PrepareOptions, *, name: str | None = None, progress: Callable[[int], None] | None = None
) -> Iterator[Record | Refused]:
    """Yields the records of a file, gzipped or not, whose kind is determined by its name.

    Args:
        path: local or any URL that fsspec supports; ``.smi .csv .tsv .parquet .sdf .mol``, text also with ``.gz``.
            PubChem's ``CID-SMILES`` is recognized by its name.
        options: `smiles_column`, `id_column` and `allow_truncated` are used.
        name: name of the file in the places of records, and in the ids of records that have none; None uses the last
            component of `path`.
        progress: called with the number of bytes read so far; for Parquet, estimated from the rows.

    Raises:
        PrepareError: the file cannot be opened, is of an unknown kind, holds no record, lacks a column, unpacks to
            far more than molecules do, or ends in the middle of a record and `allow_truncated` is off.
    """
    check_kind(path)
    kind = _kind(path)
    file, count, number = name or name_of(path), 0, 0
    try:
        with opened(path) as stream:
            if kind == ".parquet":
                records = parquet_records(stream, file, options, progress)
            else:
                pieces = read_pieces(stream, progress)
                records = _TEXT[kind](plain(unpacked(pieces, path), path), file, options)
            for record in records:
                count += 1
                number = record.place.number
                yield record
    except _truncation_errors() as error:
        truncated = not isinstance(error, zlib.error)
        what = "ends in the middle" if truncated else "is damaged"
        if not options.allow_truncated:
            raise PrepareError(
                f"{path} {what} after {count} records ({error}): fetch it again, or accept what is left of it with "
                "prepare.allow_truncated=true"
            ) from error
        reason = "truncated_file" if truncated else "damaged_file"
        warning = "" if truncated else "; records just before may be wrong"
        place = Place(file, number + 1)
        yield Refused(place.as_id, place, reason, f"the file {what} here ({error}): what follows is lost{warning}")
        return
    except ColumnError as error:
        raise ColumnError(f"{path} {error}") from None
    except FileNotFoundError:
        raise PrepareError(f"input {path} does not exist: check the path") from None
    except _access_errors() as error:
        raise PrepareError(f"cannot read {path}: {error}") from error
    if count == 0:
        raise PrepareError(f"{path} holds no records: leave it out or name another file")


def check_kind(path: str) -> None:
    """Raises PrepareError if the name of a file is not of a kind that `read_records` supports."""
    kind = _kind(path)
    if kind in _UNPACKERS:
        raise PrepareError(
            f"{path} is packed in an unsupported format: unpack it with {_UNPACKERS[kind]}, or pack it with gzip"
        )
    if not is_known_kind(path):
        raise PrepareError(
            f"{path} is of no kind that can be read: rename it to one of {' '.join(sorted(_KINDS))} (also with .gz)"
        )


def files_of(path: str, without: str = "", *, exports: bool = False) -> list[str]:
    """Returns the files to which a path or URL expands.

    Args:
        path: a file; a folder, which expands to all files below it of a kind that `read_records` supports; or a
            pattern with ``*``, which expands to matching files of these kinds. Hidden files must be named explicitly,
            and the parts of what `mmsa embed` wrote too, be it by a pattern such as ``part-*.parquet``. Folders of
            shards are left out. Warnings say what else is left out.
        without: folder whose files are left out, because it is the output folder.
        exports: whether to take those parts as well, where it does no harm that their molecules are read twice.

    Raises:
        PrepareError: `path` is empty, a folder or pattern expands to no file, or to one that is packed otherwise than
            by gzip, or the file system or server fails.
    """
    if not path:
        raise PrepareError("the name of an input is empty: name a file, a folder or a pattern")
    system, inner = locate(path)
    if "::" in path:  # a chain, such as simplecache::s3://library/a.smi, names one file
        return [path]
    try:
        with reaching(path):
            if system.isdir(inner):
                found = system.find(inner, detail=True)
            elif has_magic(path) and not system.exists(inner):  # a file may be called a[1].smi
                found = system.glob(inner, detail=True)
            else:
                return [path]
    except OSError as error:
        raise PrepareError(f"cannot read {path}: {error}") from error
    named = inner.split("/")
    every = [
        system.unstrip_protocol(file)
        for file, info in sorted(found.items())
        if info["type"] != "directory" and not any(p.startswith(".") and p not in named for p in file.split("/"))
    ]
    every = _outside(every, [_url(without)] if without else [])
    shards = _folders_of_shards(every)
    every = _outside(every, shards)
    files = [file for file in every if is_known_kind(file)]
    others = sorted(set(every) - set(files))
    for file in others:
        if _is_packed_kind(file) and file.rpartition(".")[0] not in files:
            check_kind(file)
    vectors = [] if exports or named[-1].startswith("part-") else _parts_of_exports(files)
    if vectors:  # their molecules would be read twice
        files = sorted(set(files) - set(vectors))
        what = f"vectors that mmsa embed wrote ({vectors[0]}{f' and {len(vectors) - 1:,} more' * (len(vectors) > 1)})"
        if not files:
            raise PrepareError(f"input {path} holds only {what}: to read their molecules, name each of these files")
        _LOG.warning("%s: left out are %s; to read their molecules, name each of these files", path, what)
        others = _outside(others, {file.rpartition("/")[0] for file in vectors})
    if not files:
        what = f", and holds shards ({shards[0]}): name what they were prepared from" if shards else ": check the path"
        raise PrepareError(f"input {path} matches no file that can be read{what}")
    if shards:
        _LOG.warning("%s: left out are shards (%s)", path, _a_few(shards))
    if others := [file for file in others if not file.endswith(_CHECKSUM)]:
        _LOG.warning("%s: left out are files of no kind that can be read (%s)", path, _a_few(others))
    return files


def _outside(files: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Returns the files that are in none of these folders."""
    starts = tuple(f"{folder}/" for folder in folders)
    return [file for file in files if not file.startswith(starts)]


def _folders_of_shards(files: Iterable[str]) -> list[str]:
    """Returns the folders that a preparation has written, whose refused records are tables without SMILES."""
    with_job = {file.rpartition("/")[0] for file in files if file.endswith(f"/{JOB_NAME}")}
    return [
        folder
        for file in files
        if file.endswith(f"/{MANIFEST_NAME}") and (folder := file.rpartition("/")[0]) in with_job
    ]


def _is_packed_kind(path: str) -> bool:
    """Returns whether the name of a file is of a kind that could be read were it packed by gzip or not at all."""
    return PurePosixPath(path.lower()).suffix in {*_UNPACKERS, ".gzip"} and is_known_kind(path.rpartition(".")[0])


def _a_few(paths: list[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _parts_of_exports(files: list[str]) -> list[str]:
    """Returns those of `files` that `mmsa embed` wrote, finished or not; of each folder one is opened."""
    parts = [file for file in files if _PART.fullmatch(PurePosixPath(file).name)]
    first_of = {file.rpartition("/")[0]: file for file in reversed(parts)}
    exports = {folder for folder, file in first_of.items() if _is_part_of_an_export(file)}
    return [file for file in parts if file.rpartition("/")[0] in exports]


def _is_part_of_an_export(path: str) -> bool:
    try:
        with reaching(path), opened(path) as stream:
            return EXPORT_KEY in (pq.ParquetFile(stream, pre_buffer=False).schema_arrow.metadata or {})
    except PrepareError:
        return False
    except _access_errors():  # reading its records says what is wrong with it
        return False


def _url(path: str) -> str:
    system, inner = locate(path)
    return str(system.unstrip_protocol(inner)).rstrip("/")


def is_known_kind(path: str) -> bool:
    """Returns whether the name of a file is of a kind that `read_records` supports."""
    return _kind(path) in _KINDS


def name_of(path: str) -> str:
    """Returns the name of a file, for a URL without the query behind it, such as ``?download=1``."""
    return PurePosixPath(urlsplit(path).path if path.startswith(("http://", "https://")) else path).name


def _truncation_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of truncated files or damaged compression."""
    return EOFError, zlib.error, *_aiohttp_error("ClientPayloadError")


def _access_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of unreadable files, disks and servers."""
    return OSError, pa.ArrowException, *_aiohttp_error("ClientError")


def _aiohttp_error(name: str) -> tuple[type[Exception], ...]:
    """Returns an error class of aiohttp, which fsspec does not convert to an OSError or EOFError."""
    return (getattr(sys.modules["aiohttp"], name),) if "aiohttp" in sys.modules else ()


def _kind(path: str) -> str:
    name = name_of(path)
    suffix = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    return _CID_SMILES if name.startswith(_CID_SMILES) and suffix in ("", ".smi", ".smiles") else suffix


def _csv(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    return csv_records(line_batches(pieces), file, options)


_NAMED = 3  # of the files that a warning is about
_CHECKSUM = ".md5"  # as `mmsa download` writes beside each file
_PART = re.compile(r"part-\d{5,}\.parquet")
_CID_SMILES = "CID-SMILES"
_Reader = Callable[[Iterable[bytes], str, PrepareOptions], Iterator[Record | Refused]]
_TEXT: dict[str, _Reader] = {
    ".smi": smiles_records,
    ".smiles": smiles_records,
    _CID_SMILES: cid_smiles_records,
    ".csv": _csv,
    ".tsv": _csv,
    ".sdf": sdf_records,
    ".mol": sdf_records,
    ".mdl": sdf_records,
}
_KINDS = {*_TEXT, ".parquet"}
_UNPACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".lz4": "unlz4", ".zip": "unzip", ".7z": "7z"}
