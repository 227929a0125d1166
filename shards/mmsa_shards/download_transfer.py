"""Fetches one file from a source: resumes an interrupted transfer, checks it, and names it only when complete.

Received bytes are in ``<name>.part``; ``<name>.part.json`` records the version of the file to which they belong. A
complete and verified part is renamed, and ``<name>.md5`` is written after it, by which later runs (and ``md5sum -c``)
recognize the file. So the process may be killed at any moment, and the next one continues.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from mmsa_shards.atomic import flush, write_atomically
from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, Interrupted, Source

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a source."""

    folder: str
    name: str
    has_checksum: bool = True
    """Whether ``<name>.md5`` may exist beside it; False saves the request."""

    @property
    def path(self) -> str:
        """Path relative to the source, and to the folder of the download."""
        return f"{self.folder}/{self.name}"


class Transfer:
    """A file and the progress of its transfer. One thread fetches it, another may read its attributes."""

    def __init__(self, file: RemoteFile, root: Path, source: Source, patience: Patience, halt: threading.Event) -> None:
        self.file = file
        self.target = root / file.path
        self.received = 0
        """Bytes received over the network, including failed attempts."""
        self.size: int | None = None
        self.left: int | None = None
        """Bytes still to receive, if known."""
        self.note = ""
        self.retries = 0
        self.checked_by: Literal["md5", "gzip", "size"] = "md5"
        self._source, self._patience, self._halt = source, patience, halt
        self._part = self._beside(".part")
        self._version_file = self._beside(".part.json")
        self._record = self._beside(".md5")

    def run(self) -> Literal["fetched", "present"]:
        """Fetches the file, unless its current version is present already.

        Raises:
            DownloadError: the file is not on the server, or failed its check twice.
            Interrupted: retries were exhausted, or `halt` was set; the part is kept.
            OSError: an error of the local file system.
        """
        self.target.parent.mkdir(parents=True, exist_ok=True)
        fault = ""
        for again in (False, True):
            expected = self._checksum()  # fetched again after a fault: the checksum may have been wrong or changed
            if not again and self._is_here(expected):
                self._remove_part()  # of a run that was killed during its cleanup
                return "present"
            modified = self._fill(expected)
            self.note = "checking"
            digest = _md5(self._part)
            fault = self._fault(digest, expected)
            if not fault:
                self._keep(digest, modified)
                return "fetched"
            self._remove_part()
            self.note, self.left, self.retries = f"({fault}; retrying)", None, self.retries + 1
        raise DownloadError(f"{self.file.path} came wrong twice: {fault}; try later, or another server with --base-url")

    @property
    def can_go_on(self) -> bool:
        """Whether there is a part that a later run can resume."""
        known = self._recorded_version()
        return known is not None and _size(self._part) > 0 and bool(known.validator or known.md5)

    def _checksum(self) -> str | None:
        """Returns the MD5 that the server gives for the file, or None if it gives none."""
        if not self.file.has_checksum:
            return None
        path = f"{self.file.path}.md5"
        text = self._with_retries(lambda: self._source.text(path))
        if text is None:
            return None
        found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
        if not found:
            raise DownloadError(f"{self._source.url}{path} holds no MD5 checksum: check --base-url")
        return found[0].lower()

    def _is_here(self, expected: str | None) -> bool:
        """Returns whether the complete file is present in the version that the server has now."""
        if not self.target.exists():
            return False
        recorded = self._recorded_md5()
        if expected is None:
            if recorded is None:
                return False
            here, there = self.target.stat(), self._with_retries(lambda: self._source.version(self.file.path))
            same_time = there.modified is None or abs(there.modified - here.st_mtime) < 1  # HTTP has whole seconds
            return there.size in (None, here.st_size) and same_time
        if recorded != expected:
            self.note = "checking"
            if _md5(self.target) != expected:
                return False
            self._write_record(expected)
        return True

    def _fill(self, expected: str | None) -> float | None:
        """Completes the part, and returns the modification time of the file on the server."""
        longest = _size(self._part)
        while True:
            try:
                return self._with_retries(lambda longest=longest: self._attempt(expected, longest))  # type: ignore[misc]
            except _Advanced as error:  # the count of retries starts again
                longest = error.size
                self.retries += 1
                self.note = f"({error}; resuming)"
                self._halt.wait(self._patience.first_wait_s)

    def _attempt(self, expected: str | None, longest: int) -> float | None:
        """Tries once to complete the part.

        Raises:
            _Advanced: the transfer broke off, but the part is longer than `longest`.
            Interrupted: the transfer broke off.
        """
        try:
            return self._receive(expected)
        except Interrupted as error:
            if _size(self._part) > longest and not self._halt.is_set():
                raise _Advanced(str(error), _size(self._part)) from error
            raise

    def _receive(self, expected: str | None) -> float | None:
        known = self._resumable_version(expected)
        offset = _size(self._part) if known else 0
        if known and known.size is not None and offset >= known.size:
            if offset == known.size:  # complete, but the process ended before the check
                return known.modified
            offset = 0
        validator = known.validator if known else None
        with self._source.open(self.file.path, offset, validator) as opened:
            if known is None or opened.start == 0:
                there = opened.version
                known = _PartVersion(there.size, there.modified, there.validator, expected)
                self._part.unlink(missing_ok=True)
                with write_atomically(self._version_file) as file:
                    file.write(json.dumps(dataclasses.asdict(known)).encode())
            self.size, self.note = known.size, ""
            with self._part.open("ab") as part:
                self._copy(opened.pieces, part, opened.start)
        came = _size(self._part)
        if known.size is not None and came < known.size:
            raise Interrupted(f"broke off at {came:,} of {known.size:,} bytes")
        return known.modified

    def _copy(self, pieces: Iterator[bytes], part: BinaryIO, offset: int) -> None:
        for piece in pieces:
            part.write(piece)
            part.flush()
            offset += len(piece)
            self.received += len(piece)
            self.left = None if self.size is None else self.size - offset
            if self._halt.is_set():
                raise Interrupted("stopped")

    def _with_retries(self, function: Callable[[], T]) -> T:
        def tell(words: str) -> None:
            self.retries += 1
            self.note = f"({words})"

        return self._patience.call(function, halt=self._halt, tell=tell)

    def _fault(self, digest: str, expected: str | None) -> str:
        """Returns what is wrong with a complete part; empty if nothing is."""
        if expected is not None:
            self.checked_by = "md5"
            return "" if digest == expected else f"expected MD5 {expected}, got {digest}"
        if not self.file.name.endswith(".gz"):
            self.checked_by = "size"
            return ""
        self.checked_by = "gzip"
        try:  # gzip has a checksum of its content
            with gzip.open(self._part) as file:
                while file.read(1 << 20):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return f"expected a whole gzip file, got one of MD5 {digest} that is not ({error})"
        return ""

    def _keep(self, digest: str, modified: float | None) -> None:
        """Renames the part, with the modification time of the server, by which later runs recognize the file."""
        if modified is not None:
            os.utime(self._part, (time.time(), modified))
        flush(self._part)
        self._record.unlink(missing_ok=True)  # of the file that is replaced
        self._part.replace(self.target)
        self._write_record(digest)
        self._remove_part()

    def _remove_part(self) -> None:
        self._part.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)

    def _resumable_version(self, expected: str | None) -> _PartVersion | None:
        """Returns the recorded version of the part, or None if the rest of the file might be of another one."""
        known = self._recorded_version()
        return known if known and known.md5 == expected and (known.validator or expected) else None

    def _recorded_version(self) -> _PartVersion | None:
        if not (self._part.exists() and self._version_file.exists()):
            return None
        return _PartVersion(**json.loads(self._version_file.read_bytes()))

    def _write_record(self, digest: str) -> None:
        with write_atomically(self._record) as file:
            file.write(f"{digest}  {self.file.name}\n".encode())

    def _recorded_md5(self) -> str | None:
        """Returns the recorded MD5 of the file, or None if there is none or the file has changed since."""
        if not self._record.exists() or self._record.stat().st_mtime_ns < self.target.stat().st_mtime_ns:
            return None
        return self._record.read_text().partition(" ")[0]

    def _beside(self, ending: str) -> Path:
        return self.target.with_name(self.target.name + ending)


@dataclass(frozen=True)
class _PartVersion:
    """The version of the file to which a part belongs."""

    size: int | None
    modified: float | None
    validator: str | None
    md5: str | None


class _Advanced(Exception):
    """A transfer broke off after receiving more of the file than any before it."""

    def __init__(self, reason: str, size: int) -> None:
        super().__init__(reason)
        self.size = size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
