"""Processes that are killed and disks that are full: what has been trained is not lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

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
                workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
                launcher = workers.stdout.split()[0]
                children = subprocess.run(["pgrep", "-P", launcher], capture_output=True, text=True).stdout.split()
                os.kill(int(chance.choice(children)), signal.SIGKILL)
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
