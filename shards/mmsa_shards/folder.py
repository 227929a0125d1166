"""A folder to which complete files are written, on a local disk or at any URL that fsspec supports."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from mmsa_shards.atomic import write_atomically
from mmsa_shards.places import file_in, locate, reaching


def is_in_memory(url: str | os.PathLike[str]) -> bool:
    """Returns whether a URL, or the end of a chained one, is on fsspec's in-memory file system, one per process."""
    system, _ = locate(os.fspath(url))
    while (inner := getattr(system, "fs", None)) is not None:
        system = inner
    return isinstance(system, MemoryFileSystem)


class Folder:
    """A folder whose files appear under their names complete or not at all.

    Args:
        url: a path, or a URL such as ``s3://bucket/shards`` or ``file:///data/shards``.

    Raises:
        PlaceError: the URL cannot be reached with the setup of this machine; raised by all methods too.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._system, self._root = locate(os.fspath(url))
        self.path = Path(self._root) if isinstance(self._system, LocalFileSystem) else None
        """Its path on this machine; None if it is not on a local disk."""
        self.url = str(self.path) if self.path is not None else self._system.unstrip_protocol(self._root)
        """URL or absolute path, valid for `fsspec.open` in any process."""

    def names(self) -> list[str]:
        """Returns the sorted names of the entries of the folder; an empty list if it does not exist."""
        with reaching(self.url):
            entries = self._system.ls(self._root, detail=False) if self._system.isdir(self._root) else []
        return sorted(entry.rstrip("/").rpartition("/")[2] for entry in entries)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if there is none."""
        try:
            with reaching(self.url):
                return self._system.cat_file(self._at(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, replacing any of that name."""
        if self.path is None:  # an object store shows an object only once it is complete
            with reaching(self.url):
                self._system.pipe_file(self._at(name), content)
            return
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path / name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        with contextlib.suppress(FileNotFoundError), reaching(self.url):
            self._system.rm_file(self._at(name))

    def take(self, file: Path, name: str) -> None:
        """Moves a local file into the folder, replacing any of that name."""
        if self.path is None:
            with reaching(self.url):
                self._system.put_file(str(file), self._at(name))
            file.unlink()
            return
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_dev == self.path.stat().st_dev:
            file.replace(self.path / name)
            return
        with file.open("rb") as source, write_atomically(self.path / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        file.unlink()

    def _at(self, name: str) -> str:
        return file_in(self._root, name)
