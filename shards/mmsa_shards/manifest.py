"""The manifest of a folder of shards: every shard with its blocks and digest, the ledger, options and versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mmsa_shards.atomic import write_atomically
from mmsa_shards.errors import PlaceError
from mmsa_shards.places import file_in, opened
from mmsa_shards.schema import SCHEMA_VERSION

MANIFEST_NAME = "manifest.json"
JOB_NAME = "job.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_OTHER_NAME = re.compile(r"(rejects/)?[A-Za-z0-9][A-Za-z0-9._-]*\.(parquet|json)")

Split = Literal["train", "val"]


class ManifestError(ValueError):
    """A manifest is missing or invalid; the message is one sentence that says which, what is wrong, and what to do."""


@dataclass(frozen=True)
class BlockEntry:
    """A block within its shard file."""

    offset: int
    """Byte offset of the data of the tar member."""
    size: int
    """Bytes."""
    molecules: int
    crc32: int
    """Checksum of those bytes, by zlib."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard file."""

    name: str
    split: Split
    molecules: int
    sha256: str
    bytes: int
    blocks: tuple[BlockEntry, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardEntry:
        """Returns the entry from its JSON, as written by `dataclasses.asdict`."""
        return cls(**{**data, "blocks": tuple(BlockEntry(**block) for block in data["blocks"])})


@dataclass(frozen=True)
class Ledger:
    """Counts of the records that were read, by outcome."""

    read: int = 0
    written: int = 0
    duplicates: int = 0
    joined: int = 0
    """PubChem3D records whose coordinates were given to the 2D record of the same CID and skeleton."""
    rejected: int = 0
    excluded: int = 0

    @property
    def balances(self) -> bool:
        """Whether every record that was read is accounted for."""
        return self.read == self.written + self.duplicates + self.joined + self.rejected + self.excluded


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a folder of shards.

    The number of a molecule in its split is its position in the concatenation of that split's shards, sorted by
    name, with blocks and rows in order.
    """

    shards: tuple[ShardEntry, ...]
    ledger: Ledger
    reject_reasons: dict[str, int] = field(default_factory=dict)
    conformer_sources: dict[str, int] = field(default_factory=dict)
    standardization: dict[str, int] = field(default_factory=dict)
    """Number of records that standardization changed, by kind of change; a record may count under several."""
    inputs: dict[str, int] = field(default_factory=dict)
    """Number of records in each input, by its name in the ledger."""
    intervals: dict[Split, int] = field(default_factory=dict)
    """Number of shards of each split, including empty ones, for which there are no files."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the preparation that affect its result."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that affect the result."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside the shards: refused records, and the job. Empty in older manifests."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(sorted(self.shards, key=lambda shard: shard.name)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two folders with equal digests hold the same molecules in the same order.

        `files` is left out: the job records paths and modification times of its inputs, which affect no molecule.
        """
        facts = {name: value for name, value in dataclasses.asdict(self).items() if name != "files"}
        canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def split(self, split: Split) -> tuple[ShardEntry, ...]:
        """Returns the shards of a split, sorted by name."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def molecules(self, split: Split) -> int:
        """Returns the number of molecules in a split."""
        return sum(shard.molecules for shard in self.split(split))

    def save(self, folder: str | Path) -> None:
        """Writes ``manifest.json`` into a local `folder` atomically."""
        text = json.dumps({**dataclasses.asdict(self), "digest": self.digest}, indent=1, sort_keys=True)
        with write_atomically(Path(folder) / MANIFEST_NAME) as file:
            file.write(text.encode() + b"\n")

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Reads the manifest of a folder, which may be any URL that fsspec supports.

        Raises:
            ManifestError: the folder or manifest is missing, damaged, or of another schema version.
        """
        return cls.load_file(file_in(folder, MANIFEST_NAME))

    @classmethod
    def load_file(cls, path: str | Path) -> Manifest:
        """Reads a manifest of any file name, as `load` does."""
        folder, _, name = str(path).rpartition("/")
        folder = folder or "."
        try:
            with opened(str(path)) as file:
                data = json.loads(file.read())
        except FileNotFoundError:
            mend = "folder that `mmsa prepare` has finished" if name == MANIFEST_NAME else "manifest that is there"
            raise ManifestError(f"no {name} in {folder}: name a {mend}") from None
        except NotADirectoryError:
            raise ManifestError(f"{folder} is not a folder: name one that `mmsa prepare` has finished") from None
        except PlaceError as error:
            raise ManifestError(str(error)) from error
        except OSError as error:
            raise ManifestError(f"cannot read {path}: {error}") from error
        except ValueError as error:
            raise ManifestError(f"{path} is damaged ({error}): fetch it again, or prepare the shards again") from error
        try:
            version = data.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise ManifestError(
                    f"{path} has block schema {version}, this version reads {SCHEMA_VERSION}: prepare the shards again"
                )
            digest = data.pop("digest")
            shards = tuple(map(ShardEntry.from_json, data.pop("shards")))
            manifest = cls(shards=shards, ledger=Ledger(**data.pop("ledger")), **data)
            others = manifest.files.keys()
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{path} is not a manifest of shards ({error!r}): prepare the shards again") from error
        if digest != manifest.digest:
            raise ManifestError(f"{path} does not match its own digest: it was changed by hand or damaged")
        for shard in manifest.shards:  # a manifest must not be able to name other files of the reader's machine
            if not _SHARD_NAME.fullmatch(shard.name):
                raise ManifestError(
                    f"{path} names a shard {shard.name!r}, which is not a file of its folder: do not trust it"
                )
        for other in others:
            if not _OTHER_NAME.fullmatch(other):
                raise ManifestError(
                    f"{path} names a file {other!r}, which is not a file of its folder: do not trust it"
                )
        return manifest
