"""Paths and URLs that fsspec knows. What the libraries behind it raise comes out as one sentence with the mend.

Each of them has errors of its own for missing credentials or a server that does not answer, most of which are no
OSErrors. Those that are pass as they are: what a missing file or a full disk means, the caller knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from mmsa_shards.errors import PlaceError

_OF_THE_EXTRA = ("s3", "s3a", "gs", "gcs")


def file_in(folder: str | Path, name: str) -> str:
    """Returns the path or URL of the file `name` in a folder, itself a path or URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def locate(url: str) -> tuple[Any, str]:
    """Returns the file system of a path or URL, and the path within it.

    Raises:
        PlaceError: fsspec does not know this kind of URL, or lacks the package or the credentials for it.
    """
    with reaching(url):
        return fsspec.core.url_to_fs(url)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """Opens a file for reading.

    Raises:
        PlaceError: as `locate`.
        OSError: there is no such file, or it cannot be read.
    """
    with ExitStack() as stack:
        with reaching(url):
            file = stack.enter_context(fsspec.open(url, "rb"))
        yield file


def sha256_of(url: str) -> str:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        PlaceError: as `locate`.
        OSError: there is no such file, or it cannot be read.
    """
    with opened(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # fsspec's have `readinto`


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Around calls of fsspec and nothing else: turns what is no OSError into `PlaceError`."""
    try:
        yield
    except (OSError, PlaceError):
        raise
    except ImportError as error:
        protocol = url.partition("://")[0].rpartition("::")[2]
        mend = "run pip install 'mmsa-dist[cloud]'" if protocol in _OF_THE_EXTRA else "install the package it names"
        raise PlaceError(f"cannot reach {url} ({error}): {mend}, on every machine that takes part") from error
    except Exception as error:  # the libraries behind fsspec share no narrower class
        said = " ".join(str(error).split()) or type(error).__name__
        unknown = said.startswith("Protocol not known")
        mend = (
            "name a path, or one of s3://, gs:// or https://" if unknown else "check the URL and the credentials for it"
        )
        raise PlaceError(f"cannot reach {url} ({said}): {mend}") from error
