"""Paths and URLs that fsspec supports. Errors of the libraries behind it become one sentence that says what to do.

Each library has its own errors for missing credentials or an unresponsive server, most of which are not OSErrors.
OSErrors pass unchanged, because the caller knows what a missing file or a full disk means.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mmsa_shards.errors import PlaceError

_CLOUD_PROTOCOLS = ("s3", "s3a", "gs", "gcs")


def file_in(folder: str | Path, name: str) -> str:
    """Returns the path or URL of the file `name` in a folder, itself a path or URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def locate(url: str) -> tuple[Any, str]:
    """Returns the file system of a path or URL, and the path within it.

    Raises:
        PlaceError: fsspec does not support this kind of URL, or lacks the package or the credentials for it.
    """
    with reaching(url):
        system, path = fsspec.core.url_to_fs(url)
    return system, _without_dots(path) if isinstance(system, LocalFileSystem) else path


def _without_dots(path: str) -> str:
    """Returns an absolute path without ``..``, so that a file has one path from any working folder.

    Symbolic links stay, except where a ``..`` behind one leads elsewhere than the text suggests.
    """
    if ".." not in path.split("/"):
        return path
    shortened = os.path.normpath(path)
    return shortened if os.path.realpath(shortened) == os.path.realpath(path) else os.path.realpath(path)


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """Opens a file for reading.

    Raises:
        PlaceError: as `locate`.
        OSError: the file does not exist or cannot be read.
    """
    with ExitStack() as stack:
        with reaching(url):
            file = stack.enter_context(fsspec.open(url, "rb"))
        yield file


def sha256_of(url: str) -> str:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        PlaceError: as `locate`.
        OSError: the file does not exist or cannot be read.
    """
    with opened(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # files of fsspec have `readinto`


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Converts errors other than OSError into `PlaceError`; to be put around calls of fsspec only."""
    try:
        yield
    except (OSError, PlaceError):
        raise
    except ImportError as error:
        protocol = url.partition("://")[0].rpartition("::")[2]
        mend = "run pip install 'mmsa-dist[cloud]'" if protocol in _CLOUD_PROTOCOLS else "install the package it names"
        raise PlaceError(f"cannot reach {url} ({error}): {mend} on every machine that takes part") from error
    except Exception as error:  # the libraries behind fsspec have no narrower class in common
        said = " ".join(str(error).split()) or type(error).__name__
        unknown = said.startswith("Protocol not known")
        mend = (
            "name a path, or one of s3://, gs:// or https://" if unknown else "check the URL and the credentials for it"
        )
        raise PlaceError(f"cannot reach {url} ({said}): {mend}") from error
