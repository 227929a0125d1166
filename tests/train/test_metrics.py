"""What is written while a run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.train.metrics import MetricsLog


def lines(folder: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def log(folder: RunFolder, start: int, steps: list[int]) -> None:
    with MetricsLog(folder, steps=10, start=start, active=True) as metrics:
        for step in steps:
            metrics.write(step, {"train/loss": 1.0 / step, "bank/recall": math.nan})


def test_lines_are_valid_json_and_not_a_number_is_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log(folder, 0, [2, 4])
    assert lines(folder) == [
        {"step": 2, "train/loss": 0.5, "bank/recall": None},
        {"step": 4, "train/loss": 0.25, "bank/recall": None},
    ]


def test_a_resumed_run_does_not_say_a_step_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log(folder, 0, [2, 4, 6])
    log(folder, 4, [6, 8])
    assert [line["step"] for line in lines(folder)] == [2, 4, 6, 8]


def test_a_line_cut_short_by_a_kill_is_dropped_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log(folder, 0, [2, 4])
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "train/lo')
    log(folder, 4, [6])
    assert [line["step"] for line in lines(folder)] == [2, 4, 6]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with MetricsLog(RunFolder(tmp_path), steps=10, start=0, active=False) as metrics:
        metrics.write(1, {"train/loss": 1.0})
        metrics.advance(1)
        metrics.say("hello")
    assert list(tmp_path.iterdir()) == []
