"""Sources of files to download: an HTTP server, or any file system that fsspec supports.

A source opens a file at an offset and distinguishes temporary failures (`Interrupted`) from permanent ones
(`DownloadError`). It never retries by itself.
"""

from __future__ import annotations

import email.utils
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import BinaryIO, Protocol
from urllib.parse import quote, unquote, urlsplit

import requests
import urllib3

from mmsa_shards.errors import PlaceError
from mmsa_shards.places import locate, reaching

_PIECE_BYTES = 1 << 16  # bytes; the most that a broken connection loses
_TIMEOUT_S = (20, 60)  # to connect, and between two reads
_TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_MAX_TEXT_BYTES = 1 << 16


class DownloadError(ValueError):
    """A download failed; the message is one sentence that says what could not be fetched, why, and what to do."""


class Interrupted(Exception):
    """A temporary failure, with the wait that the server requests, in seconds."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Version:
    """Metadata of a file on a server."""

    size: int | None
    """Bytes."""
    modified: float | None
    """Unix time in seconds."""
    validator: str | None
    """Changes with the content: a strong ETag, or the time of the last change."""


@dataclass(frozen=True)
class Opened:
    """A file opened for transfer."""

    version: Version
    start: int
    """Offset of the first byte; 0 if the server cannot send only the rest."""
    pieces: Iterator[bytes]


class Source(Protocol):
    """A folder of a server, to which paths are relative; safe for use by several threads."""

    url: str

    def names(self, folder: str) -> frozenset[str] | None:
        """Returns the names in a folder, or None if the server does not list it."""

    def text(self, path: str) -> str | None:
        """Returns the content of a small file, or None if there is no such file."""

    def version(self, path: str) -> Version:
        """Returns the present metadata of a file."""

    def open(self, path: str, offset: int, validator: str | None) -> AbstractContextManager[Opened]:
        """Opens a file at `offset`, or at its beginning if it no longer matches `validator`."""


def open_source(url: str) -> Source:
    """Returns the source for a base URL.

    Raises:
        DownloadError: fsspec does not support this kind of URL, or lacks the package or the credentials for it.
    """
    url = url.rstrip("/") + "/"
    if urlsplit(url).scheme in ("http", "https"):
        return HttpSource(url)
    try:
        return FileSystemSource(url)
    except PlaceError as error:
        raise DownloadError(str(error)) from error


class HttpSource:
    """A folder of an HTTP server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._of_thread = threading.local()

    def names(self, folder: str) -> frozenset[str] | None:
        """Returns the names that the page of a folder links to."""
        with self._ask("GET", f"{folder}/") as answer:
            if answer.status_code in (403, 404):
                return None
            _refuse_failure(answer)
            if "html" not in answer.headers.get("Content-Type", ""):
                return None
            links = _Links()
            with _network_errors():
                links.feed(answer.text)
            return frozenset(links.names)

    def text(self, path: str) -> str | None:
        """Returns the content of a small file."""
        with self._ask("GET", path) as answer:
            if answer.status_code == 404:
                return None
            _refuse_failure(answer)
            with _network_errors():
                return answer.raw.read(_MAX_TEXT_BYTES, decode_content=True).decode("latin-1")

    def version(self, path: str) -> Version:
        """Returns the metadata of a file, by a HEAD request."""
        with self._ask("HEAD", path) as answer:
            _refuse_failure(answer)
            return _version(answer)

    @contextmanager
    def open(self, path: str, offset: int, validator: str | None) -> Iterator[Opened]:
        """Opens a file by a Range request, with If-Range so that a changed file is sent whole."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator:
            headers["If-Range"] = validator
        with self._ask("GET", path, headers) as answer:
            start: int | None = 0
            if answer.status_code == 206:
                start = _start_of_range(answer)
                changed = validator and _version(answer).validator not in (None, validator)  # If-Range was ignored
                if start != offset or changed:
                    answer.close()
                    with self.open(path, 0, None) as whole:
                        yield whole
                    return
            elif answer.status_code == 416:  # the file is now shorter than the part that was received
                with self.open(path, 0, None) as whole:
                    yield whole
                return
            _refuse_failure(answer)
            yield Opened(_version(answer), start or 0, _body(answer))

    @contextmanager
    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        session = getattr(self._of_thread, "session", None)
        if session is None:  # sessions are not thread-safe
            session = self._of_thread.session = requests.Session()
            session.headers["User-Agent"] = f"mmsa-dist {requests.utils.default_user_agent()}"
            # The raw bytes of the file, to which the checksum refers, without compression in transit.
            session.headers["Accept-Encoding"] = "identity"
        with _network_errors():
            answer = session.request(
                method, self.url + quote(path), headers=headers, stream=True, timeout=_TIMEOUT_S, allow_redirects=True
            )
        with answer:
            yield answer


class _Links(HTMLParser):
    """Collects the last path components of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (link := dict(attrs).get("href")):
            self.names.add(unquote(urlsplit(link).path.rpartition("/")[2]))


@contextmanager
def _network_errors() -> Iterator[None]:
    """Converts failures of a connection into `Interrupted`, and invalid URLs into `DownloadError`."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise DownloadError(f"{error}: check --base-url") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        inner = error.args[0] if error.args else error
        reason = str(getattr(inner, "reason", inner))
        raise Interrupted(reason.rpartition("Failed to establish a new connection: ")[2]) from error


def _refuse_failure(answer: requests.Response) -> None:
    status = answer.status_code
    if status < 400:
        return
    if status in _TEMPORARY_STATUSES:
        asked = answer.headers.get("Retry-After", "")
        raise Interrupted(f"HTTP {status} {answer.reason}", float(asked) if asked.isdecimal() else 0.0)
    what = "is not on the server" if status in (404, 410) else "is refused by the server"
    raise DownloadError(f"{answer.url} {what} (HTTP {status} {answer.reason}): check --base-url and the range")


def _version(answer: requests.Response) -> Version:
    headers = answer.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    changed = headers.get("Last-Modified")
    date = email.utils.parsedate_tz(changed) if changed else None
    etag = headers.get("ETag")
    return Version(
        int(total) if total.isdecimal() else None,
        email.utils.mktime_tz(date) if date else None,
        etag if etag and not etag.startswith("W/") else changed,
    )


def _start_of_range(answer: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _body(answer: requests.Response) -> Iterator[bytes]:
    while True:
        with _network_errors():
            piece = answer.raw.read(_PIECE_BYTES, decode_content=False)
        if not piece:
            return
        yield piece


class FileSystemSource:
    """A folder on any file system that fsspec supports: ``file://``, ``s3://``, ``gs://``, ``ftp://``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, self._root = locate(url)

    def names(self, folder: str) -> frozenset[str] | None:
        """Returns the names in a folder."""
        with self._errors(folder):
            try:
                paths = self._files.ls(self._at(folder), detail=False)
            except FileNotFoundError:
                return None
            return frozenset(path.rstrip("/").rpartition("/")[2] for path in paths)

    def text(self, path: str) -> str | None:
        """Returns the content of a small file."""
        with self._errors(path):
            try:
                with self._files.open(self._at(path), "rb") as file:
                    return file.read(_MAX_TEXT_BYTES).decode("latin-1")
            except FileNotFoundError:
                return None

    def version(self, path: str) -> Version:
        """Returns size and modification time of a file."""
        with self._errors(path):
            size = self._files.info(self._at(path)).get("size")
            try:
                modified = self._files.modified(self._at(path)).timestamp()
            except NotImplementedError:
                modified = None
        return Version(size, modified, None if modified is None else f"{size} {modified}")

    @contextmanager
    def open(self, path: str, offset: int, validator: str | None) -> Iterator[Opened]:
        """Opens a file at `offset`, or at its beginning if it no longer matches `validator`."""
        version = self.version(path)
        start = offset if validator in (None, version.validator) else 0
        with self._errors(path):
            file = self._files.open(self._at(path), "rb")
        with file:
            yield Opened(version, start, self._pieces(file, path, start))

    def _pieces(self, file: BinaryIO, path: str, start: int) -> Iterator[bytes]:
        with self._errors(path):
            file.seek(start)
        while True:
            with self._errors(path):
                piece = file.read(_PIECE_BYTES)
            if not piece:
                return
            yield piece

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            with reaching(f"{self.url}{path}"):
                yield
        except PlaceError as error:
            raise DownloadError(str(error)) from error
        except FileNotFoundError as error:
            raise DownloadError(f"{self.url}{path} does not exist: check --base-url and the range") from error
        except PermissionError as error:
            raise DownloadError(f"{self.url}{path} may not be read: {error}") from error
        except OSError as error:
            raise Interrupted(str(error)) from error
