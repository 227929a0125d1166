"""`mmsa download pubchem` as a person types it, stops it, kills it and types it again."""

from __future__ import annotations

import gzip
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.download_server import Fault, Server, serving

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = (
    f"Compound/CURRENT-Full/SDF/Compound_{name}.sdf.gz" for name in ("000000001_000500000", "000500001_001000000")
)


@pytest.fixture
def server():
    with serving() as server:
        for seed, path in enumerate((FIRST, SECOND)):
            server.put(path, gzip.compress(random.Random(seed).randbytes(500_000), compresslevel=1))
        yield server


def start(server: Server, out: Path, *words: str, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "kernels", "shards"))
    environment = {**os.environ, "PYTHONPATH": rooms, "COLUMNS": "200"}
    command = [sys.executable, "-c", "from mmsa_dist.cli import main; main()", "download", "pubchem"]
    words = (*(words or ("--from", "1", "--to", "1000000")), "--out", str(out), "--base-url", server.url)
    return subprocess.Popen(
        [*command, *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def wait_for(size: int, part: Path) -> None:
    until = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < size:
        assert time.monotonic() < until, f"{part} did not come to {size} bytes"
        time.sleep(0.02)


def assert_all_is_here(server: Server, out: Path) -> None:
    for path in (FIRST, SECOND):
        assert (out / path).read_bytes() == server.files[path]
    assert not list(out.rglob("*.part*"))


def test_what_came_is_summed_up_with_the_next_command_and_a_second_run_does_nothing(server, tmp_path):
    code, out, err = end(start(server, tmp_path / "to [here]"))
    assert code == 0, err
    assert "2  files fetched, 1.0 MB" in out
    assert f"next: mmsa prepare '{tmp_path}/to [here]'/Compound/CURRENT-Full/SDF/*.sdf.gz --out shards" in out
    assert err.startswith("download 1.0 MB/1.0 MB · ")
    assert_all_is_here(server, tmp_path / "to [here]")

    server.log.clear()
    code, out, _ = end(start(server, tmp_path / "to [here]"))
    assert code == 0
    assert "0  files fetched: everything was here already" in out
    assert "2  files here, 1.0 MB" in out
    assert not server.asked(FIRST)


def test_after_kill_9_the_same_command_asks_only_for_the_rest(server, tmp_path):
    server.always[SECOND] = Fault("hang", 200_000)
    process = start(server, tmp_path)
    part = tmp_path / f"{SECOND}.part"
    wait_for(196_608, part)  # three pieces of 64 KiB
    wait_for(0, tmp_path / f"{FIRST}.md5")
    process.kill()
    process.communicate()
    have = part.stat().st_size
    assert have < len(server.files[SECOND])
    server.always.clear()
    server.log.clear()

    code, out, err = end(start(server, tmp_path))
    assert code == 0, err
    assert "1  files fetched, " in out
    assert not server.asked(FIRST)
    assert [(line.range, line.status) for line in server.asked(SECOND)] == [(f"bytes={have}-", 206)]
    assert_all_is_here(server, tmp_path)


def test_ctrl_c_keeps_the_parts_and_says_how_to_go_on(server, tmp_path):
    server.always[SECOND] = Fault("hang", 200_000)
    process = start(server, tmp_path)
    wait_for(196_608, tmp_path / f"{SECOND}.part")
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130
    assert "interrupted; what is finished is kept, and the same command goes on from it" in err
    assert (tmp_path / f"{SECOND}.part").stat().st_size >= 196_608


def test_a_full_disk_is_one_sentence_and_keeps_the_part(server, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the bytes beyond it likewise."""
    process = start(server, tmp_path, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)))
    code, _, err = end(process)
    assert code == 2
    words = err.strip().splitlines()[-1]
    assert words.startswith(f"mmsa: cannot write {tmp_path}/Compound/CURRENT-Full/SDF/Compound_000")
    assert "make room, or choose another --out" in words
    assert "(received data is kept; run the same command again to resume)" in words
    assert max(part.stat().st_size for part in tmp_path.rglob("*.part")) == 300_000

    code, _, err = end(start(server, tmp_path))
    assert code == 0, err
    assert (f"bytes={300_000}-", 206) in [(line.range, line.status) for line in server.log]
    assert_all_is_here(server, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--from", "0", "--to", "5"), "compounds 0 to 5 are not a range"),
        (("--from", "7", "--to", "5"), "compounds 7 to 5 are not a range"),
        (("--from", "2000000", "--to", "2000001"), "has no file for compounds 2,000,000 to 2,000,001"),
    ],
)
def test_a_wrong_range_is_said_in_a_sentence(server, tmp_path, words, said):
    code, _, err = end(start(server, tmp_path, *words))
    assert code == 2
    assert said in err.strip().splitlines()[-1]


def test_help_teaches(server, tmp_path):
    code, out, _ = end(start(server, tmp_path, "--help"))
    assert code == 0
    assert "mmsa download pubchem --from 1 --to 5000000 --3d --out pubchem" in out
    assert "the same command continues" in " ".join(out.split())
