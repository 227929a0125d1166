"""A path, folder, pattern or URL -> the files of molecules that it stands for. What is left out is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from glob import has_magic
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import JOB_NAME, MANIFEST_NAME
from mmsa_shards.places import locate, opened, reaching
from mmsa_shards.read.failures import access_errors
from mmsa_shards.read.kinds import check_kind, is_known_kind, is_packed_kind

EXPORT_KEY = b"mmsa_origin"
"""Key in the metadata of Parquet files by which `mmsa embed` marks the parts that it writes."""

_LOG = logging.getLogger(__name__)

_NAMED = 3  # of the files that a warning is about
_CHECKSUM = ".md5"  # as `mmsa download` writes beside each file
_PART = re.compile(r"part-\d{5,}\.parquet")
# What a preparation writes into its folder. The refused records are a table, but without SMILES.
_OF_SHARDS = re.compile(
    r"(.*)/(?:manifest\.json|job\.json|manifests/\w+\.json|rejects/part-\d{5,}\.parquet|(?:train|val)-\d{5,}\.tar)"
)


def files_of(path: str, without: str = "", *, exports: bool = False) -> list[str]:
    """Returns the files to which a path or URL expands.

    Args:
        path: a file; a folder, which expands to all files below it of a kind that `read_records` supports; or a
            pattern with ``*``, which expands to matching files of these kinds. Hidden files must be named explicitly,
            and the parts of what `mmsa embed` wrote too, be it by a pattern such as ``part-*.parquet``. What `mmsa
            prepare` wrote is left out. Warnings say what else is left out.
        without: folder whose files are left out, because it is the output folder.
        exports: whether to take those parts as well, where it does no harm that their molecules are read twice.

    Raises:
        PrepareError: `path` is empty, a folder or pattern expands to no file, or to one that is packed otherwise than
            by gzip and does not lie there in a form that can be read too, or the file system or server fails.
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
    every = [file for file in every if not ((written := _OF_SHARDS.fullmatch(file)) and written[1] in shards)]
    files = [file for file in every if is_known_kind(file)]
    known = set(files)
    others = sorted(set(every) - known)
    for file in others:
        stem = file.rpartition(".")[0]
        if is_packed_kind(file) and not {stem, f"{stem}.gz"} & known:
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
        what = (
            f", and holds shards ({_a_few(shards)}): name the files that they were prepared from, or, to embed their "
            "molecules, the folder of the shards itself"
        )
        raise PrepareError(f"input {path} matches no file that can be read{what if shards else ': check the path'}")
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
    """Returns the folders into which a preparation has written; other files may lie there too."""
    with_job = {file.rpartition("/")[0] for file in files if file.endswith(f"/{JOB_NAME}")}
    return [
        folder
        for file in files
        if file.endswith(f"/{MANIFEST_NAME}") and (folder := file.rpartition("/")[0]) in with_job
    ]


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
    except access_errors():  # reading its records says what is wrong with it
        return False


def _url(path: str) -> str:
    system, inner = locate(path)
    return str(system.unstrip_protocol(inner)).rstrip("/")
