"""What our configuration means to DeepSpeed and to the optimizer."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from torch import nn

from mmsa_dist.config.load import load_config
from mmsa_dist.train.engine import deepspeed_config, learning_rate, parameter_groups
from tests.fixtures.pretraining import environment


def test_the_batch_is_said_once_and_shared_out() -> None:
    config = load_config(None, ["data.batch_size=512", "data.lanes=64", "train.accumulate=2", "train.zero_stage=2"])
    theirs = deepspeed_config(config, world=4)
    assert theirs["train_batch_size"] == 512
    assert theirs["train_micro_batch_size_per_gpu"] == 64
    assert theirs["gradient_accumulation_steps"] == 2
    assert theirs["zero_optimization"] == {"stage": 2}


def test_ranks_that_do_not_divide_the_batch_are_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match=r"= 512 must be a multiple of the number of ranks, 3; change one"):
        deepspeed_config(load_config(), world=3)


def test_warm_up_is_linear_then_cosine_to_zero() -> None:
    config = load_config(None, ["train.lr=0.1", "train.steps=110", "train.warmup_steps=10"])
    assert learning_rate(config, 0) == pytest.approx(0.01)
    assert learning_rate(config, 9) == pytest.approx(0.1)
    assert learning_rate(config, 10) == pytest.approx(0.1)
    assert learning_rate(config, 35) == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(config, 60) == pytest.approx(0.05)
    assert learning_rate(config, 110) == pytest.approx(0.0)


class TwoEncoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"gin": nn.Linear(2, 2), "comenet": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 2)


def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay() -> None:
    module = TwoEncoders()
    config = load_config(None, ["train.lr_scale.comenet=0.1", "train.weight_decay=0.5"])
    groups = parameter_groups(module, config)
    of = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(of) == 6
    assert of[id(module.encoders["comenet"].weight)] == (0.1, 0.5)
    assert of[id(module.encoders["comenet"].bias)] == (0.1, 0.0)
    assert of[id(module.encoders["gin"].weight)] == (1.0, 0.5)
    assert of[id(module.head.bias)] == (1.0, 0.0)


def test_no_thread_of_the_process_group_outlives_it() -> None:
    """One that does aborts the process if it lets go of a tensor while Python ends."""
    code = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from mmsa_dist.train.engine import start_processes, stop_processes

def threads_of_gloo():
    return [name for task in Path("/proc/self/task").iterdir() if "gloo" in (name := (task / "comm").read_text())]

start_processes()
dist.all_reduce(torch.ones(1))
import torch._dynamo  # what PyTorch does by itself, sooner or later
before = threads_of_gloo()
stop_processes()
print(len(before) > 0, threads_of_gloo())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "True []\n", done.stderr
