"""Files fetched from a source into a folder, several at a time."""

from __future__ import annotations

import fcntl
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, Interrupted, Source
from mmsa_shards.download_transfer import RemoteFile, Transfer

Progress = Callable[[int, int | None, str], None]
"""Called with bytes received, bytes to receive in all as far as known, and what is going on."""

_POLL_S = 0.2  # between two reports of progress


@dataclass(frozen=True)
class Outcome:
    """What a download came to."""

    fetched: int
    received_bytes: int
    """Over the network, in this run; what an earlier one had of a file is not counted again."""
    present: int
    """Files that were here already."""
    present_bytes: int
    retries: int
    """Failures of the server or the connection that passed."""
    without_md5: int
    """Fetched files without a checksum on the server: gzip's own and the length were compared instead."""


def list_names(source: Source, folder: str, patience: Patience, progress: Progress) -> frozenset[str] | None:
    """Returns the names in a folder of a source, or None where it gives no listing.

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
    """Fetches files into the same places under `folder`. Each is compared with its checksum before it takes its name.

    A file that is not on the server, or is wrong, does not keep the others from being fetched. A full disk ends it
    all, and so does a server that fails for as many files in a row as are fetched at a time. Parts are always kept.

    Args:
        source: where from.
        files: what.
        folder: local; no other download may be writing to it.
        parallel: files at a time.
        patience: with failures of the server and the connection.
        progress: see `Progress`; called by the thread that called this.

    Raises:
        DownloadError: a file could not be fetched; the gravest failure is explained, the other files are named.
    """
    folder = Path(folder)
    with _locked(folder):
        crew = _Crew(source, files, folder, patience)
        crew.work(parallel, progress)
    crew.raise_failures()
    return crew.outcome()


class _Job:
    """A transfer and what became of it."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.state: Literal["waiting", "running", "fetched", "present", "failed"] = "waiting"
        self.error: DownloadError | None = None


class _Fatal(DownloadError):
    """Would meet every other file too."""


class _OutOfPatience(DownloadError):
    """The server failed once too often."""


class _Crew:
    """The threads of one download.

    They are daemons: a Ctrl-C must not wait for a silent server, and a part is in order at any moment.
    """

    def __init__(self, source: Source, files: Sequence[RemoteFile], folder: Path, patience: Patience) -> None:
        self._source, self._patience = source, patience
        self._halt = threading.Event()
        self._jobs = [_Job(Transfer(file, folder, source, patience, self._halt)) for file in files]

    def work(self, parallel: int, progress: Progress) -> None:
        """Works through all files, until something ends it all."""
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
                failures_in_a_row = failures_in_a_row + 1 if isinstance(end.error, _OutOfPatience) else 0
                if isinstance(end.error, _Fatal) or failures_in_a_row >= parallel:
                    self._halt.set()
        finally:
            self._halt.set()
            for thread in threads:
                thread.join(_POLL_S)
        progress(*self._progress())

    def raise_failures(self) -> None:
        """Raises what kept files from being fetched, the gravest first."""
        failed = [(job.error, job.transfer.file.name) for job in self._jobs if job.error]
        if not failed:
            return
        failed.sort(key=lambda pair: not isinstance(pair[0], _Fatal))
        (worst, _), *others = failed
        names = ", ".join(name for _, name in others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        also = f"; {names} failed too" if others else ""
        is_kept = any(job.state == "fetched" or job.transfer.can_go_on for job in self._jobs)
        kept = " (what has come is kept, and the same command goes on from it)" if is_kept else ""
        raise DownloadError(f"{worst}{also}{kept}") from worst

    def outcome(self) -> Outcome:
        """Sums up."""
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
        """The life of a thread: puts every job that it ends, what went wrong with the program, and at last None."""
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
                job.error = _OutOfPatience(
                    f"cannot fetch {self._source.url}{transfer.file.path} ({error}; tried {self._patience.tries} times "
                    "without a new byte): check the network, or try later"
                )
        except OSError as error:  # of this machine; those of the network are `Interrupted`
            where = error.filename or transfer.target
            job.error = _Fatal(f"cannot write {where} ({error.strerror}): make room, or choose another --out")
        job.state = "failed"

    def _progress(self) -> tuple[int, int | None, str]:
        """Returns what `Progress` is told. A file that has not begun counts as the mean of its folder's others."""
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
        running.sort(key=lambda transfer: not transfer.note)  # those in trouble first
        return received, total, ", ".join(f"{transfer.file.name} {transfer.note}".strip() for transfer in running)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second download out of the folder, until this process ends in whatever way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".download.lock").open("w")
    except OSError as error:
        raise DownloadError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"another download is writing to {folder}: wait for its end, or choose another --out"
            ) from None
        yield
