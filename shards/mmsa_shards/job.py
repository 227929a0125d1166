"""Everything that determines the result of a preparation: inputs, options and library versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

from mmsa_shards import from_smiles
from mmsa_shards.errors import ChangedError, PrepareError
from mmsa_shards.folder import is_in_memory
from mmsa_shards.manifest import JOB_NAME
from mmsa_shards.options import PrepareOptions
from mmsa_shards.places import locate, reaching
from mmsa_shards.read import check_kind, files_of, without_query
from mmsa_shards.schema import SCHEMA_VERSION

# Options that affect the run time or which inputs are accepted, but not the result of an accepted input. What can be
# read of a truncated input does not depend on when it is allowed, and the ledger of refusals lists every such input.
_WITHOUT_EFFECT = ("workers", "work_dir", "allow_truncated")
_LIBRARIES = ("numpy", "pyarrow")

# Keys under which file systems and servers report the state of a file, the most reliable first.
_STATES = ("mtime", "ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated")
_UNKNOWN = "None"


@dataclass(frozen=True)
class Input:
    """A file of molecules, in the state in which it was found."""

    url: str
    name: str
    """Its name in the ledger and in ids: the shortest end of its path, without the query of a URL, that no other input
    has."""
    bytes: int
    """0 if its server does not report it."""
    changed: str
    """Its last change as its file system reports it; "None" if it does not."""

    @property
    def key(self) -> str:
        """Hash that identifies the input and its state."""
        return hashlib.blake2b("\0".join(map(str, asdict(self).values())).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Job:
    """The specification of a preparation; equal jobs give equal shards."""

    inputs: tuple[Input, ...]
    """Sorted by name."""
    exclude: tuple[Input, ...]
    options: dict[str, Any]
    """Options that affect the result; `exclude` has the names of the files above."""
    versions: dict[str, str]
    schema_version: int

    def to_json(self) -> bytes:
        """Returns the job as JSON for `from_json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Job:
        """Reads a job from the JSON of `to_json`.

        Raises:
            PrepareError: another version of this package wrote it.
        """
        try:
            data = json.loads(content)
            for name in ("inputs", "exclude"):
                data[name] = tuple(Input(**entry) for entry in data[name])
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            raise PrepareError(
                f"{JOB_NAME} was written by another version ({error!r}): prepare all inputs into another folder"
            ) from error

    def difference(self, other: Job) -> str:
        """Returns a description of the first difference between two jobs other than inputs; empty if there is none."""
        for name, ours, theirs in (
            *((name, value, other.options.get(name)) for name, value in self.options.items() if name != "exclude"),
            ("exclude", [entry.url for entry in self.exclude], [entry.url for entry in other.exclude]),
            *((name, value, other.versions.get(name)) for name, value in self.versions.items()),
            ("the block schema", self.schema_version, other.schema_version),
        ):
            if ours != theirs:
                return f"{name} was {theirs!r}, now {ours!r}"
        return "" if self.exclude == other.exclude else "a file of prepare.exclude has changed"


def describe(inputs: Sequence[str], options: PrepareOptions, before: Job | None, out: str = "") -> Job:
    """Checks every input and returns the job.

    Args:
        inputs: paths or URLs; a folder expands to all files below it of a kind that can be read, and a pattern with
            ``*`` to the files that it matches.
        options: of the preparation.
        before: the job from which the folder was prepared; its inputs become inputs of the new job.
        out: the output folder; files in it are not inputs, even if it lies below an input folder.

    Raises:
        PrepareError: there is no input, or one is missing, empty, of an unknown kind, named twice, or has changed
            since `before`.
    """
    if not inputs:
        raise PrepareError("no input was named: name at least one file of molecules")
    known = {entry.url: entry for entry in before.inputs} if before else {}
    found: dict[str, dict[str, Any]] = {}
    for path in chain.from_iterable(files_of(path, without=out) for path in inputs):
        facts = _facts_of(path)
        if facts["url"] in found:
            raise PrepareError(f"input {facts['url']} is named twice: name it once")
        found[facts["url"]] = facts
    for url in found.keys() & known.keys():
        if _has_changed(known[url], found[url]):
            raise PrepareError(
                f"input {url} has changed since this folder was prepared: prepare all inputs into another folder"
            )
    added = _named((found[url] for url in found.keys() - known.keys()), {entry.name for entry in known.values()})
    excluded = chain.from_iterable(files_of(path, exports=True) for path in options.exclude)
    exclude = tuple(_named(map(_facts_of, excluded), ()))
    kept = {name: value for name, value in asdict(options).items() if name not in _WITHOUT_EFFECT}
    kept["exclude"] = [entry.name for entry in exclude]  # independent of how they were named and where they are
    return Job(
        inputs=tuple(sorted((*known.values(), *added), key=attrgetter("name"))),
        exclude=exclude,
        options=kept,
        versions={**{name: importlib.metadata.version(name) for name in _LIBRARIES}, **from_smiles.versions()},
        schema_version=SCHEMA_VERSION,
    )


def check_unchanged(source: Input) -> None:
    """Checks that a file still is what the job says; to be called after the file has been read.

    Raises:
        ChangedError: it is not, so what was read may be of another state, or of two.
        PrepareError: it cannot be reached.
    """
    system, inner = locate(source.url)
    system.invalidate_cache(inner)
    if _has_changed(source, _facts_of(source.url)):
        raise ChangedError(
            f"file {source.url} has changed since this preparation began: run again once it stays as it is, or "
            "prepare a copy of it"
        )


def _has_changed(source: Input, facts: dict[str, Any]) -> bool:
    """Returns whether a file certainly is another: what is unknown, then or now, tells nothing."""
    sizes = {source.bytes, facts["bytes"]} - {0}
    states = {source.changed, facts["changed"]} - {_UNKNOWN}
    of_one_kind = len({state.endswith('"') for state in states}) == 1  # an ETag is quoted, a date is not
    return len(sizes) > 1 or (of_one_kind and len(states) > 1)


def _facts_of(path: str) -> dict[str, Any]:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise PrepareError(
            f"the name of input {shown} is not UTF-8, which ids and the ledger require: rename it"
        ) from None
    check_kind(path)
    if is_in_memory(path):
        raise PrepareError(
            f"input {path} is in the memory of one process, and inputs are read by many: name a file on a disk or in "
            "an object store"
        )
    system, inner = locate(path)
    try:
        with reaching(path):
            info = system.info(inner)
    except FileNotFoundError:
        raise PrepareError(f"input {path} does not exist: check the path") from None
    except OSError as error:
        raise PrepareError(f"cannot read input {path}: {error}") from error
    if info["type"] == "directory":
        raise PrepareError(f"input {path} is a folder: name the files in it")
    if info["size"] == 0:
        raise PrepareError(f"input {path} is empty: leave it out or fetch it again")
    changed = next((str(info[name]) for name in _STATES if info.get(name)), _UNKNOWN)
    return {"url": system.unstrip_protocol(inner), "bytes": info["size"] or 0, "changed": changed}


def _parts_of(url: str) -> list[str]:
    """Returns the parts of a path of which an end becomes a name; in place of a query, which may be secret, its digest.

    The digest comes first, so it is in a name only if two URLs differ in nothing else.
    """
    place = without_query(url)
    query = hashlib.blake2b(url.encode(), digest_size=4).hexdigest()
    return [*([query] if place != url else []), *place.split("/")]


def _named(files: Iterable[dict[str, Any]], taken: Collection[str]) -> list[Input]:
    """Names each file by the shortest end of its path that is neither `taken` nor another file's."""
    facts = sorted(files, key=itemgetter("url"))
    parts = [_parts_of(entry["url"]) for entry in facts]
    lengths = [1] * len(facts)
    while True:
        names = ["/".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]
        uses = Counter(names) + Counter(taken)
        longer = [
            min(length + (uses[name] > 1), len(own)) for name, own, length in zip(names, parts, lengths, strict=True)
        ]
        if longer == lengths:
            return [Input(name=name, **entry) for name, entry in zip(names, facts, strict=True)]
        lengths = longer
