"""The kind of a file of molecules, which its name determines."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mmsa_shards.errors import PrepareError

#: The kind of PubChem's file of that name, which has the id before the SMILES.
CID_SMILES = "CID-SMILES"
_KINDS = {".smi", ".smiles", CID_SMILES, ".csv", ".tsv", ".sdf", ".mol", ".mdl", ".parquet"}
_UNPACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".lz4": "unlz4", ".zip": "unzip", ".7z": "7z"}
# Of a server, also at the end of a chain such as simplecache::https://library/a.smi.
_WEB_URL = re.compile(r"(?:.*::)?https?://")


def is_known_kind(path: str) -> bool:
    """Returns whether the name of a file is of a kind that `read_records` supports."""
    return kind_of(path) in _KINDS


def without_query(path: str) -> str:
    """Returns a web URL without what follows its path, such as ``?download=1``; any other path as it is."""
    return re.split("[?#]", path, maxsplit=1)[0] if _WEB_URL.match(path) else path


def name_of(path: str) -> str:
    """Returns the name of a file, for a web URL without its query."""
    return PurePosixPath(without_query(path)).name


def kind_of(path: str) -> str:
    """Returns the suffix of a file in lower case without ``.gz``, or `CID_SMILES`.

    It is that of the query of a web URL, such as ``get?file=a.csv``, if the path before it has none of a known kind.
    """
    kind = _kind_of_name(name_of(path))
    last = _kind_of_name(PurePosixPath(path).name)
    return last if last in _KINDS and kind not in {*_KINDS, *_UNPACKERS} else kind


def _kind_of_name(name: str) -> str:
    suffix = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    return CID_SMILES if name.startswith(CID_SMILES) and suffix in ("", ".smi", ".smiles") else suffix


def is_packed_kind(path: str) -> bool:
    """Returns whether the name of a file is of a kind that could be read were it packed by gzip or not at all."""
    return PurePosixPath(path.lower()).suffix in {*_UNPACKERS, ".gzip"} and is_known_kind(path.rpartition(".")[0])


def check_kind(path: str) -> None:
    """Raises PrepareError if the name of a file is not of a kind that `read_records` supports."""
    kind = kind_of(path)
    if kind in _UNPACKERS:
        raise PrepareError(
            f"{path} is packed in an unsupported format: unpack it with {_UNPACKERS[kind]}, or pack it with gzip"
        )
    if not is_known_kind(path):
        mend = "download it to a file with" if _WEB_URL.match(path) else "rename it to"
        raise PrepareError(
            f"{path} is of no kind that can be read: {mend} one of {' '.join(sorted(_KINDS))} (also with .gz)"
        )
