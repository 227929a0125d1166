"""Atomically written text files, names of files and their digests."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmsa_shards.atomic import flush, write_atomically

__all__ = ["as_file_name", "flush", "sha256_of", "write_text_atomically"]


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8; if that fails, `path` stays as it was.

    `mmsa_shards.atomic.write_atomically` does the same for bytes, as a context.
    """
    with write_atomically(path) as file:
        file.write(text.encode())


def as_file_name(words: str) -> str:
    """Turns words into a file name: lower-case letters and digits, joined by hyphens; empty if there are none."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
