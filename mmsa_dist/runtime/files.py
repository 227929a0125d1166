"""Atomically written files, their names and their digests."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmsa_shards import atomic
from mmsa_shards.atomic import flush

__all__ = ["as_file_name", "flush", "sha256_of", "write_atomically"]

_CHUNK = 1 << 20  # bytes


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically: after a failure the old content is still there."""
    with atomic.write_atomically(path) as file:
        file.write(text.encode())


def as_file_name(words: str) -> str:
    """Turns words into a file name: lower-case letters and digits, joined by hyphens; empty if there are none."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
