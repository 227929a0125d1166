"""The kind of a file of molecules, which its name determines."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from mmsa_shards.errors import PrepareError

#: The kind of PubChem's file of that name, which has the id before the SMILES.
CID_SMILES = "CID-SMILES"
_KINDS = {".smi", ".smiles", CID_SMILES, ".csv", ".tsv", ".sdf", ".mol", ".mdl", ".parquet"}
_UNPACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".lz4": "unlz4", ".zip": "unzip", ".7z": "7z"}


def is_known_kind(path: str) -> bool:
    """Returns whether the name of a file is of a kind that `read_records` supports."""
    return kind_of(path) in _KINDS


def name_of(path: str) -> str:
    """Returns the name of a file, for a URL without the query behind it, such as ``?download=1``."""
    return PurePosixPath(urlsplit(path).path if path.startswith(("http://", "https://")) else path).name


def kind_of(path: str) -> str:
    """Returns the suffix of a file in lower case without ``.gz``, or `CID_SMILES`."""
    name = name_of(path)
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
        raise PrepareError(
            f"{path} is of no kind that can be read: rename it to one of {' '.join(sorted(_KINDS))} (also with .gz)"
        )
