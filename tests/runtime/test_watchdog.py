"""Ranks that are lost end the others with a sentence, and a run that ends well is not disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmsa_dist.runtime.watchdog import EXIT_STATUS
from tests.fixtures.pretraining import free_port

pytestmark = pytest.mark.distributed

LIMIT_S = 3.0
SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from mmsa_dist.runtime.watchdog import Watchdog

dist.init_process_group("gloo")
with Watchdog(float(sys.argv[1])) as watchdog:
    for step in range(int(sys.argv[2])):
        if step == 20 and dist.get_rank() == 1 and sys.argv[3] == "sleep":
            time.sleep(600)
        with watchdog.slow("validating"):
            time.sleep(0.02)
        dist.all_reduce(torch.ones(1))
        watchdog.step_done()
        if step == 20:
            print("ready", flush=True)
dist.destroy_process_group()
"""


@contextmanager
def ranks(tmp_path: Path, steps: int, fault: str = "") -> Iterator[list[subprocess.Popen[str]]]:
    (tmp_path / "ranks.py").write_text(SCRIPT)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "ranks.py"), str(LIMIT_S), str(steps), fault],
            env={**os.environ, **group, "RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_ranks_that_end_well_are_not_disturbed(tmp_path: Path) -> None:
    with ranks(tmp_path, steps=200) as processes:
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_the_other(tmp_path: Path, frozen: int) -> None:
    with ranks(tmp_path, steps=100_000) as processes:
        until_ready(processes[0])
        begin = time.monotonic()
        processes[frozen].send_signal(signal.SIGSTOP)
        _, said = processes[1 - frozen].communicate(timeout=60)
        assert processes[1 - frozen].returncode == EXIT_STATUS
        assert time.monotonic() - begin < 5 * LIMIT_S
        assert ("sent no heartbeat" if frozen else "could not be reached") in said or "has made no progress" in said
        assert "--resume" in said
        assert "all_reduce" in said, "it says where it waited"


def test_ranks_that_are_stopped_together_go_on(tmp_path: Path) -> None:
    with ranks(tmp_path, steps=150) as processes:
        until_ready(processes[0])
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                process.send_signal(number)
            time.sleep(3 * LIMIT_S if number == signal.SIGSTOP else 0)
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, "")


def test_a_rank_that_lives_but_hangs_ends_all(tmp_path: Path) -> None:
    with ranks(tmp_path, steps=100_000, fault="sleep") as processes:
        outputs = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] != [0, 0]
        assert "has made no progress for" in outputs[1]
        assert "time.sleep(600)" in outputs[1], "it says where it hung"
