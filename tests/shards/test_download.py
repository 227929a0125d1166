"""Downloads from a server that behaves, and from one that drops, truncates, refuses, forgets and lies."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import socket
import time
from collections import deque
from pathlib import Path
from typing import ClassVar

import pytest

from mmsa_shards.download import Outcome, download
from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, FileSystemSource, Version, open_source
from mmsa_shards.download_transfer import RemoteFile
from tests.fixtures.download_server import Fault, Server, serving

HASTY = Patience(tries=4, first_wait_s=0.01, longest_wait_s=0.05)
FOLDER = "Compound/CURRENT-Full/SDF"
A, B = RemoteFile(FOLDER, "a.sdf.gz"), RemoteFile(FOLDER, "b.sdf.gz")


def noise(seed: int, size: int = 400_000) -> bytes:
    """A whole gzip file that does not get smaller."""
    return gzip.compress(random.Random(seed).randbytes(size), compresslevel=1, mtime=0)


@pytest.fixture
def server():
    with serving() as server:
        server.put(A.path, noise(1))
        yield server


def fetch(
    server: Server | str, out: Path, *files: RemoteFile, parallel: int = 2, progress=lambda *words: None
) -> Outcome:
    source = open_source(server if isinstance(server, str) else server.url)
    return download(source, files or (A,), out, parallel=parallel, patience=HASTY, progress=progress)


def assert_is_here(server: Server, out: Path, file: RemoteFile = A) -> None:
    content = server.files[file.path]
    assert (out / file.path).read_bytes() == content
    assert (out / f"{file.path}.md5").read_text() == f"{hashlib.md5(content).hexdigest()}  {file.name}\n"
    assert not list(out.rglob("*.part*"))


def ranges(server: Server, file: RemoteFile = A) -> list[tuple[str | None, int]]:
    return [(line.range, line.status) for line in server.asked(file.path)]


def test_what_a_kill_left_beside_a_whole_file_goes(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / f"{A.path}.part.json").write_text("{}")
    assert fetch(server, tmp_path).present == 1
    assert_is_here(server, tmp_path)


def test_a_second_run_asks_for_checksums_and_nothing_else(server, tmp_path):
    first = fetch(server, tmp_path)
    size = len(server.files[A.path])
    assert first == Outcome(fetched=1, received_bytes=size, present=0, present_bytes=0, retries=0, without_md5=0)
    assert_is_here(server, tmp_path)
    assert server.asked(A.path)[0].agent.startswith("mmsa-dist python-requests/")

    server.log.clear()
    second = fetch(server, tmp_path)
    assert second == Outcome(fetched=0, received_bytes=0, present=1, present_bytes=size, retries=0, without_md5=0)
    assert [line.path for line in server.log] == [f"{A.path}.md5"]


@pytest.mark.parametrize("kind", ["drop", "truncate"])
@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "Last-Modified"])
def test_a_broken_connection_is_gone_on_with(server, tmp_path, kind, etags):
    server.etags = etags
    server.faults[A.path] = deque([Fault(kind, 200_000), Fault(kind, 100_000)])
    outcome = fetch(server, tmp_path)
    assert_is_here(server, tmp_path)
    assert outcome.retries == 2
    (first, *others) = ranges(server)
    assert first == (None, 200)
    offsets = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked, status in others if status == 206]
    assert len(offsets) == len(others) == 2
    assert 0 < offsets[0] < offsets[1]
    if kind == "truncate":  # an orderly end: all that was sent has come
        assert offsets == [200_000, 300_000]
        assert outcome.received_bytes == len(server.files[A.path])


def test_a_connection_may_break_more_often_than_patience_lasts_while_bytes_come(server, tmp_path):
    server.faults[A.path] = deque([Fault("truncate", 70_000)] * 5)
    assert fetch(server, tmp_path).retries == 5 > HASTY.tries
    assert_is_here(server, tmp_path)


def test_a_server_that_is_busy_is_asked_again(server, tmp_path):
    server.faults[A.path] = deque([Fault("status", status=503), Fault("status", status=500)])
    server.faults[f"{A.path}.md5"] = deque([Fault("status", status=502)])
    assert fetch(server, tmp_path).retries == 3
    assert [status for _, status in ranges(server)] == [503, 500, 200]
    assert_is_here(server, tmp_path)


def test_a_server_may_say_when_to_come_back(server, tmp_path):
    server.faults[A.path] = deque([Fault("status", status=429, retry_after=1)])
    began = time.monotonic()
    fetch(server, tmp_path)
    assert time.monotonic() - began >= 1
    assert [status for _, status in ranges(server)] == [429, 200]


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    server.faults[A.path] = deque([Fault("truncate", 200_000)])
    fetch(server, tmp_path)
    assert ranges(server) == [(None, 200), ("bytes=200000-", 200)]
    assert_is_here(server, tmp_path)


def test_a_server_that_never_comes_further_is_given_up(server, tmp_path):
    server.ranges = False
    server.always[A.path] = Fault("truncate", 200_000)
    server.put(B.path, noise(2))
    words = r"a\.sdf\.gz \(Connection broken.*tried 4 times without a new byte\).* \(received data is kept"
    with pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path, A, B)
    assert len(server.asked(A.path)) == 1 + HASTY.tries  # the first of them brought bytes
    assert (tmp_path / f"{A.path}.part").stat().st_size == 200_000
    assert (tmp_path / B.path).read_bytes() == server.files[B.path]


def test_what_is_not_there_is_an_error_at_once_and_the_others_come(server, tmp_path):
    words = r"b\.sdf\.gz is not on the server \(HTTP 404 Not Found\)"
    with pytest.raises(
        DownloadError, match=rf"{words}.* \(received data is kept; run the same command again to resume"
    ):
        fetch(server, tmp_path, B, A)
    assert len(server.asked(B.path)) == 1
    assert_is_here(server, tmp_path, A)


def test_a_server_that_is_down_ends_it_all_after_as_many_files_as_are_fetched_at_a_time(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        files = [RemoteFile(FOLDER, f"{i}.sdf.gz") for i in range(40)]
        with pytest.raises(DownloadError, match=r"Connection refused.* failed too") as caught:
            fetch(f"http://127.0.0.1:{nobody.getsockname()[1]}/", tmp_path, *files)
    assert str(caught.value).count(".sdf.gz") <= 4
    assert "kept" not in str(caught.value), "nothing has come"


def test_a_checksum_that_is_wrong_once_has_the_file_fetched_once_more(server, tmp_path):
    right = server.files[A.path]
    server.files[A.path] = right[:-9] + b"?" + right[-8:]
    server.after = lambda path: server.files.update({path: right}) if path == A.path else None
    outcome = fetch(server, tmp_path)
    assert ranges(server) == [(None, 200)] * 2
    assert outcome.retries == 1
    assert_is_here(server, tmp_path)


def test_a_checksum_that_stays_wrong_is_named_and_nothing_is_left(server, tmp_path):
    server.put(A.path, noise(1), md5="0" * 32)
    server.put(B.path, noise(2))
    got = hashlib.md5(noise(1)).hexdigest()
    with pytest.raises(DownloadError, match=rf"SDF/a\.sdf\.gz came wrong twice: expected MD5 {'0' * 32}, got {got}"):
        fetch(server, tmp_path, A, B)
    assert ranges(server) == [(None, 200)] * 2
    assert not (tmp_path / A.path).exists()
    assert_is_here(server, tmp_path, B)


def test_a_checksum_file_that_holds_none_is_named(server, tmp_path):
    server.put(f"{A.path}.md5", b"<html>welcome</html>", md5=False)
    with pytest.raises(DownloadError, match=r"a\.sdf\.gz\.md5 holds no MD5 checksum: check --base-url$"):
        fetch(server, tmp_path)
    assert not server.asked(A.path)


@pytest.mark.parametrize("md5", [True, False], ids=["with MD5", "without MD5"])
@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "Last-Modified"])
def test_a_file_that_changes_between_two_attempts_is_begun_again(server, tmp_path, md5, etags):
    server.etags = etags
    server.files.clear()
    server.put(A.path, noise(1), md5=md5)
    server.faults[A.path] = deque([Fault("truncate", 200_000)])
    new = noise(3, 500_000)

    def change(path: str) -> None:
        if path == A.path and server.files[path] != new:
            server.put(A.path, new, md5=md5, time=1_750_000_000.0)

    server.after = change
    fetch(server, tmp_path)
    assert server.files[A.path] == new
    assert_is_here(server, tmp_path)
    assert ranges(server)[1] == ("bytes=200000-", 200)


@pytest.mark.parametrize(("size", "status"), [(500_000, 206), (100_000, 416)], ids=["longer", "shorter"])
def test_a_server_that_sends_the_rest_of_another_version_is_found_out(server, tmp_path, size, status):
    server.if_range = False
    server.files.clear()
    server.put(A.path, noise(1), md5=False)
    server.faults[A.path] = deque([Fault("truncate", 200_000)])
    server.after = lambda path: server.put(A.path, noise(3, size), md5=False)
    outcome = fetch(server, tmp_path)
    assert ranges(server) == [(None, 200), ("bytes=200000-", status), (None, 200)]
    assert (tmp_path / A.path).read_bytes() == noise(3, size)
    assert outcome.received_bytes == 200_000 + len(noise(3, size))  # of the rest not a byte was taken


def test_a_part_of_a_version_that_is_gone_is_not_gone_on_with(server, tmp_path):
    server.always[A.path] = Fault("status", status=403)
    server.faults[A.path] = deque([Fault("truncate", 200_000)])
    with pytest.raises(DownloadError, match="is refused by the server"):
        fetch(server, tmp_path)
    assert (tmp_path / f"{A.path}.part").stat().st_size == 200_000
    server.always.clear()
    server.log.clear()
    server.put(A.path, noise(4))
    fetch(server, tmp_path)
    assert ranges(server) == [(None, 200)]  # the new checksum tells it before a byte is asked for
    assert_is_here(server, tmp_path)


def test_a_part_that_is_whole_is_checked_and_not_fetched(server, tmp_path):
    content, target = server.files[A.path], tmp_path / A.path
    fetch(server, tmp_path)
    known = {"size": len(content), "modified": None, "validator": None, "md5": hashlib.md5(content).hexdigest()}
    target.rename(f"{target}.part")
    Path(f"{target}.part.json").write_text(json.dumps(known))
    server.log.clear()
    assert fetch(server, tmp_path).fetched == 1
    assert [line.path for line in server.log] == [f"{A.path}.md5"]
    assert_is_here(server, tmp_path)


def test_without_a_checksum_on_the_server_that_of_gzip_counts(server, tmp_path):
    server.put(B.path, noise(2), md5=False)
    outcome = fetch(server, tmp_path, B)
    assert (outcome.fetched, outcome.without_md5) == (1, 1)
    assert_is_here(server, tmp_path, B)

    server.log.clear()
    assert fetch(server, tmp_path, B).present == 1
    assert [(line.method, line.path) for line in server.log] == [("GET", f"{B.path}.md5"), ("HEAD", B.path)]

    server.put(B.path, noise(5), md5=False, time=1_750_000_000.0)  # as long as before, and newer
    assert fetch(server, tmp_path, B).fetched == 1
    assert_is_here(server, tmp_path, B)

    broken = noise(6)
    server.put(B.path, broken[:1000] + b"?" + broken[1001:], md5=False, time=1_760_000_000.0)
    with pytest.raises(DownloadError, match=r"b\.sdf\.gz came wrong twice: expected a whole gzip file"):
        fetch(server, tmp_path, B)
    assert (tmp_path / B.path).read_bytes() == noise(5)


def test_the_question_for_a_checksum_that_the_listing_lacks_is_saved(server, tmp_path):
    server.put(B.path, noise(2), md5=False)
    fetch(server, tmp_path, RemoteFile(B.folder, B.name, has_checksum=False))
    assert [line.path for line in server.log] == [B.path]


def test_a_file_that_was_touched_is_checked_anew(server, tmp_path):
    target = tmp_path / A.path
    target.parent.mkdir(parents=True)
    target.write_bytes(server.files[A.path])  # brought by other means
    assert fetch(server, tmp_path).present == 1
    assert_is_here(server, tmp_path)

    with target.open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    later = time.time_ns() + 10**9
    os.utime(target, ns=(later, later))
    assert fetch(server, tmp_path).fetched == 1
    assert_is_here(server, tmp_path)


def test_progress_counts_bytes_up_to_all_of_them(server, tmp_path):
    server.put(B.path, noise(2, 900_000))
    server.ranges = False
    server.faults[A.path] = deque([Fault("truncate", 200_000)])
    seen: list[tuple[int, int | None, str]] = []
    outcome = fetch(server, tmp_path, A, B, parallel=1, progress=lambda *words: seen.append(words))
    received = [done for done, _, _ in seen]
    assert received == sorted(received)
    assert all(total is None or total >= done for done, total, _ in seen)
    everything = 200_000 + len(noise(1)) + len(noise(2, 900_000))
    assert seen[-1] == (everything, everything, "")
    assert outcome.received_bytes == everything
    assert any("a.sdf.gz" in note for _, _, note in seen)


def test_an_interruption_keeps_the_part(server, tmp_path):
    server.always[A.path] = Fault("hang", 150_000)

    def press_ctrl_c(received: int, total: int | None, note: str) -> None:
        if received >= 131_072:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, progress=press_ctrl_c)
    assert time.monotonic() - began < 10  # it does not wait for the server
    have = (tmp_path / f"{A.path}.part").stat().st_size
    assert have >= 131_072
    server.always.clear()
    server.log.clear()
    fetch(server, tmp_path)
    assert ranges(server) == [(f"bytes={have}-", 206)]
    assert_is_here(server, tmp_path)


def test_two_downloads_do_not_write_to_one_folder(server, tmp_path):
    def a_second_one(*words: object) -> None:
        with pytest.raises(DownloadError, match="another download is writing to"):
            fetch(server, tmp_path)

    fetch(server, tmp_path, progress=a_second_one)
    assert_is_here(server, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"cannot write to .*file/out .*choose another --out"):
        fetch(server, tmp_path / "file" / "out")


def test_a_mirror_may_be_anything_that_fsspec_knows(server, tmp_path):
    mirror = tmp_path / "mirror"
    fetch(server, mirror)
    outcome = fetch(f"file://{mirror}", tmp_path / "copy")
    assert (outcome.fetched, outcome.without_md5) == (1, 0)
    assert_is_here(server, tmp_path / "copy")
    assert fetch(f"file://{mirror}", tmp_path / "copy").present == 1
    with pytest.raises(DownloadError, match=r"b\.sdf\.gz does not exist"):
        fetch(f"file://{mirror}", tmp_path / "copy", B)
    with pytest.raises(DownloadError, match="cannot reach nothing://x/"):
        open_source("nothing://x")


def test_a_file_of_a_mirror_is_gone_on_with_while_it_is_the_same(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    os.utime(tmp_path / "x", (1_700_000_000, 1_700_000_000))
    source = FileSystemSource(f"file://{tmp_path}/")
    version = source.version("x")
    assert (version.size, version.modified) == (10, 1_700_000_000)
    with source.open("x", 4, version.validator) as opened:
        assert (opened.version, opened.start, b"".join(opened.pieces)) == (version, 4, b"456789")
    (tmp_path / "x").write_bytes(b"abc")
    with source.open("x", 4, version.validator) as opened:
        assert (opened.start, b"".join(opened.pieces)) == (0, b"abc")
    assert source.names("") == {"x"}
    assert source.names("nowhere") is None
    assert isinstance(source.version("x"), Version)


def test_a_mirror_that_ends_too_early_is_read_on(server, tmp_path):
    class EndsEarly(FileSystemSource):
        """Ends after a piece, as some file systems do when their connection is lost."""

        starts: ClassVar[list[int]] = []

        def _pieces(self, file, path, start):
            self.starts.append(start)
            yield next(super()._pieces(file, path, start))

    fetch(server, tmp_path / "mirror")
    source = EndsEarly(f"file://{tmp_path}/mirror/")
    outcome = download(source, [A], tmp_path / "copy", parallel=1, patience=HASTY, progress=lambda *words: None)
    assert_is_here(server, tmp_path / "copy")
    assert source.starts == list(range(0, len(server.files[A.path]), 65_536))
    assert outcome.retries == len(source.starts) - 1
