"""Processes that are killed and disks that are full: what has been trained is not lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mmsa_dist.train.checkpoint import Checkpoints
from tests.fixtures.pretraining import SMALL, different, losses, metrics, pretrain, start

pytestmark = pytest.mark.distributed

ENDLESS = ("train.steps=100000", "train.valid_every=100000")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("make_tiny_shards")(tmp_path_factory.mktemp("never-lost"))


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Until the process says `words`."""
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line)
        if words in line:
            return
    raise AssertionError("".join(heard))


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)
    process.communicate(timeout=60)


def steps_done(run: Path) -> int:
    return int(metrics(run)[-1]["step"]) if (run / "metrics.jsonl").exists() and metrics(run) else 0


def kill_and_resume(run: Path, shards: Path, *words: str, kills: int, ranks: int, save_every: int) -> None:
    """Kills a run `kills` times at random moments past a first checkpoint, one rank or all; then lets it end."""
    chance = random.Random(5)
    settings = (*words, f"train.save_every={save_every}")
    for _ in range(kills):
        process = start(run, shards, *settings, "--resume", ranks=ranks)
        try:
            wait_for(process, "saved ")
            time.sleep(chance.uniform(0, 1.5))
            assert process.poll() is None, "the run ended before it could be killed; train longer"
            before = steps_done(run)
            if ranks > 1 and chance.random() < 0.5:
                workers = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children()]
                chance.choice(workers).kill()
                process.communicate(timeout=90)
                assert process.returncode != 0
        finally:
            if process.poll() is None:
                end(process)
        newest, faults = Checkpoints(run / "checkpoints").newest_good()
        assert newest is not None
        assert faults == [], "a folder with the name of a checkpoint is complete"
        kept = int(newest.name.removeprefix("step_"))
        # The newest may have been on its way to disk: its steps, and those that were done while it was written.
        assert kept >= before - 2 * save_every
    done = pretrain(run, shards, *settings, "--resume", ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(shards: Path) -> None:
    run, whole = shards.parent / "killed", shards.parent / "whole"
    words = (*SMALL, "train.steps=150", "train.valid_every=150")
    assert pretrain(whole, shards, *words, "train.save_every=150", ranks=1).returncode == 0
    kill_and_resume(run, shards, *words, kills=2, ranks=1, save_every=3)
    assert losses(run) == losses(whole)
    assert different(run, whole) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_twenty_moments_goes_on_to_the_same_end(shards: Path) -> None:
    run, whole = shards.parent / "killed-20", shards.parent / "whole-20"
    words = (*SMALL, "train.steps=1500", "train.valid_every=500")
    assert pretrain(whole, shards, *words, "train.save_every=1500").returncode == 0
    kill_and_resume(run, shards, *words, kills=20, ranks=2, save_every=5)
    assert losses(run) == losses(whole)
    assert different(run, whole) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stop", [1, 5, 7, 12])
def test_a_run_stopped_anywhere_goes_on_bitwise(shards: Path, stop: int) -> None:
    """An epoch has 5 steps: the stops are after the first, at the end of an epoch, and twice amid one."""
    run, whole = shards.parent / f"stopped-{stop}", shards.parent / "unstopped"
    words = ("train.steps=40", "train.valid_every=10", "train.save_every=40")
    if not whole.exists():
        assert pretrain(whole, shards, *words).returncode == 0
    assert pretrain(run, shards, *words, f"train.stop_after={stop}").returncode == 0
    assert pretrain(run, shards, *words, "--resume").returncode == 0
    assert losses(run) == losses(whole)
    assert different(run, whole) == []


@pytest.mark.slow
def test_usr1_on_one_of_two_ranks_saves_and_ends_all_well(shards: Path) -> None:
    """As Slurm sends it before the time of a job is over."""
    run = shards.parent / "usr1"
    process = start(run, shards, *ENDLESS, "train.save_every=100000", *SMALL, ranks=2)
    try:
        wait_for(process, "step 20/")
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children()]
        workers[-1].send_signal(signal.SIGUSR1)
        begin = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - begin < 30
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            end(process)
    newest, faults = Checkpoints(run / "checkpoints").newest_good()
    assert newest is not None
    assert faults == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_steps_take_no_more_memory_or_files(shards: Path) -> None:
    run = shards.parent / "soak"
    words = ("train.steps=2000", "train.save_every=100", "train.valid_every=100", "train.log_every=50", *SMALL)
    done = pretrain(run, shards, *words, ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {int(line["step"]): line for line in metrics(run)}
    for meter in ("memory/rss_mb", "memory/open_files"):
        early, late = (max(lines[step + more][meter] for more in (0, 50, 100)) for step in (400, 1900))
        assert late <= 1.02 * early, f"{meter} grew from {early} to {late}"


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    shards: Path, small_disk: Callable[[str], tuple[Path, Callable[[str], None]]]
) -> None:
    disk, resize = small_disk("300k")
    run = disk / "run"
    process = start(run, shards, *ENDLESS, *SMALL, "train.save_every=20", "train.log_every=20")
    try:
        wait_for(process, "was not saved")
        assert not list((run / "checkpoints").glob("step_*"))
        resize("200m")
        wait_for(process, "saved ")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            end(process)
    newest, faults = Checkpoints(run / "checkpoints").newest_good()
    assert newest is not None
    assert faults == []
    assert not list((run / "checkpoints").glob("*.tmp"))


def test_no_room_for_the_last_checkpoint_is_an_error(
    shards: Path, small_disk: Callable[[str], tuple[Path, Callable[[str], None]]]
) -> None:
    disk, _ = small_disk("300k")
    done = pretrain(disk / "run", shards, *SMALL, "train.steps=3", ranks=1)
    assert done.returncode == 2
    assert "checkpoint step_3 was not saved" in done.stderr
    assert "Traceback" not in done.stderr
