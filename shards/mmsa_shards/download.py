"""Fetches files from a source into a folder, several at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, Interrupted, Source
from mmsa_shards.download_transfer import RemoteFile, Transfer
from mmsa_shards.lock import locked

Progress = Callable[[int, int | None, str], None]
"""Called with the bytes received, the total bytes to receive (None if unknown), and a note on the current activity."""

_POLL_S = 0.2  # between progress reports


@dataclass(frozen=True)
class Outcome:
    """Counts of a finished download."""

    fetched: int
    received_bytes: int
    """Bytes received over the network in this run, without those of earlier runs."""
    present: int
    """Files that were present already."""
    present_bytes: int
    retries: int
    """Failures of the server or the connection that a retry resolved."""
    without_md5: int
    """Fetched files without a checksum on the server, checked by length and gzip's own checksum instead."""


def list_names(source: Source, folder: str, patience: Patience, progress: Progress) -> frozenset[str] | None:
    """Returns the names in a folder of a source, or None if it gives no listing.

    Raises:
        DownloadError: the server does not answer.
    """
    progress(0, None, f"listing of {folder}")
    try:
        return patience.call(
            lambda: source.names(folder), tell=lambda words: progress(0, None, f"listing of {folder} ({words})")
        )
    except Interrupted as error:
        raise DownloadError(
            f"cannot list {source.url}{folder}/ ({error}; tried {patience.tries} times): check the network and "
            "--base-url"
        ) from error


def download(
    source: Source,
    files: Sequence[RemoteFile],
    folder: str | Path,
    *,
    parallel: int,
    patience: Patience,
    progress: Progress,
) -> Outcome:
    """Fetches files to the same paths under `folder`; each gets its name only after its checksum is verified.

    If a file is missing on the server, or fails its check, the others are still fetched. A full disk ends the whole
    download, and so does a server that fails for `parallel` files in a row. Partial files are always kept.

    Args:
        source: the source of the files.
        files: files to fetch.
        folder: local; no other download may be writing to it.
        parallel: files at a time.
        patience: how often to retry after failures of the server and the connection.
        progress: see `Progress`; called from the calling thread.

    Raises:
        DownloadError: a file could not be fetched; explains the most severe failure and names the other files.
    """
    folder = Path(folder)
    with _locked(folder):
        workers = _Workers(source, files, folder, patience)
        workers.work(parallel, progress)
    workers.raise_failures()
    return workers.outcome()


class _Job:
    """A transfer and its state."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.state: Literal["waiting", "running", "fetched", "present", "failed"] = "waiting"
        self.error: DownloadError | None = None


class _FatalError(DownloadError):
    """A failure that would affect every other file too."""


class _RetriesExhausted(DownloadError):
    """The server still failed after all retries."""


class _Workers:
    """The threads of one download.

    They are daemons: a Ctrl-C must not wait for an unresponsive server, and partial files are valid at any moment.
    """

    def __init__(self, source: Source, files: Sequence[RemoteFile], folder: Path, patience: Patience) -> None:
        self._source, self._patience = source, patience
        self._halt = threading.Event()
        self._jobs = [_Job(Transfer(file, folder, source, patience, self._halt)) for file in files]

    def work(self, parallel: int, progress: Progress) -> None:
        """Fetches all files, unless a failure ends the whole download."""
        waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        ended: queue.SimpleQueue[_Job | Exception | None] = queue.SimpleQueue()
        for job in self._jobs:
            waiting.put(job)
        threads = [threading.Thread(target=self._run, args=(waiting, ended), daemon=True) for _ in range(parallel)]
        for thread in threads:
            thread.start()
        running, failures_in_a_row = parallel, 0
        try:
            while running:
                progress(*self._progress())
                try:
                    end = ended.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(end, Exception):
                    raise end
                if end is None:
                    running -= 1
                    continue
                failures_in_a_row = failures_in_a_row + 1 if isinstance(end.error, _RetriesExhausted) else 0
                if isinstance(end.error, _FatalError) or failures_in_a_row >= parallel:
                    self._halt.set()
        finally:
            self._halt.set()
            for thread in threads:
                thread.join(_POLL_S)
        progress(*self._progress())

    def raise_failures(self) -> None:
        """Raises DownloadError if files could not be fetched, with the most severe failure first."""
        failed = [(job.error, job.transfer.file.name) for job in self._jobs if job.error]
        if not failed:
            return
        failed.sort(key=lambda pair: not isinstance(pair[0], _FatalError))
        (worst, _), *others = failed
        names = ", ".join(name for _, name in others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        also = f"; {names} failed too" if others else ""
        is_kept = any(job.state == "fetched" or job.transfer.can_go_on for job in self._jobs)
        kept = " (received data is kept; run the same command again to resume)" if is_kept else ""
        raise DownloadError(f"{worst}{also}{kept}") from worst

    def outcome(self) -> Outcome:
        """Returns the counts of the download."""
        fetched = [job.transfer for job in self._jobs if job.state == "fetched"]
        present = [job.transfer for job in self._jobs if job.state == "present"]
        return Outcome(
            fetched=len(fetched),
            received_bytes=sum(transfer.received for transfer in fetched),
            present=len(present),
            present_bytes=sum(transfer.target.stat().st_size for transfer in present),
            retries=sum(transfer.retries for transfer in (*fetched, *present)),
            without_md5=sum(transfer.checked_by != "md5" for transfer in fetched),
        )

    def _run(self, waiting: queue.SimpleQueue[_Job], ended: queue.SimpleQueue[_Job | Exception | None]) -> None:
        """Main loop of a thread: puts finished jobs, or an unexpected exception, and finally None, into `ended`."""
        try:
            while not self._halt.is_set():
                job = waiting.get_nowait()
                self._fetch(job)
                ended.put(job)
        except queue.Empty:
            pass
        except Exception as error:
            ended.put(error)
        finally:
            ended.put(None)

    def _fetch(self, job: _Job) -> None:
        transfer, job.state = job.transfer, "running"
        try:
            job.state = transfer.run()
            return
        except DownloadError as error:
            job.error = error
        except Interrupted as error:
            if not self._halt.is_set():
                job.error = _RetriesExhausted(
                    f"cannot fetch {self._source.url}{transfer.file.path} ({error}; tried {self._patience.tries} times "
                    "without a new byte): check the network, or try later"
                )
        except OSError as error:  # of this machine; errors of the network are `Interrupted`
            where = error.filename or transfer.target
            job.error = _FatalError(f"cannot write {where} ({error.strerror}): make room, or choose another --out")
        job.state = "failed"

    def _progress(self) -> tuple[int, int | None, str]:
        """Returns the arguments of `Progress`; files of unknown size count as the mean of their folder's others."""
        sizes: dict[str, list[int]] = {}
        for job in self._jobs:
            if job.transfer.size is not None:
                sizes.setdefault(job.transfer.file.folder, []).append(job.transfer.size)
        means = {folder: sum(known) // len(known) for folder, known in sizes.items()}
        received = sum(job.transfer.received for job in self._jobs)
        total: int | None = received
        for job in self._jobs:
            if job.state in ("waiting", "running") and total is not None:
                mean, left = means.get(job.transfer.file.folder), job.transfer.left
                left = mean if left is None else left
                total = None if left is None else total + left
        running = [job.transfer for job in self._jobs if job.state == "running"]
        running.sort(key=lambda transfer: not transfer.note)  # those with problems first
        return received, total, ", ".join(f"{transfer.file.name} {transfer.note}".strip() for transfer in running)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder against a second download; the lock ends with the process, even if that is killed."""
    refusal = DownloadError(f"another download is writing to {folder}: wait until it ends, or choose another --out")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".download.lock", refusal))
        except OSError as error:
            raise DownloadError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
        yield
