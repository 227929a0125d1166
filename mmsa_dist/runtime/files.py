"""Files that appear whole or not at all, and what tells that they are still what was written."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmsa_shards import atomic
from mmsa_shards.atomic import flush

__all__ = ["as_file_name", "flush", "sha256_of", "write_atomically"]

_CHUNK = 1 << 20  # bytes


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all: a failure leaves what was there."""
    with atomic.write_atomically(path) as file:
        file.write(text.encode())


def as_file_name(words: str) -> str:
    """Words as the name of a file: letters and digits in lower case, joined by hyphens; empty where there are none."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
