"""Pre-training under DeepSpeed's own launcher: it trains, stops, resumes exactly and exports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "fixtures" / "mini.yaml"
METRICS = {
    "step",
    "train/loss",
    "train/contrast_loss",
    "train/reconstruct_loss",
    "train/memory_loss",
    "memory/anchor_entropy",
    "memory/dead_anchors",
    "bank/recall",
    "molecules_per_s",
    "data_wait_s",
}

pytestmark = pytest.mark.distributed


def environment() -> dict[str, str]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "kernels", "shards"))
    return {
        **os.environ,
        "PYTHONPATH": rooms,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        # The launcher starts `python` from the PATH of this very interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def pretrain(run: Path, shards: Path, *words: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    script = ["launch/pretrain.py", "--config", str(MINI), f"run.dir={run}", f"data.shards={shards}", *words]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
    command = [*launcher, *script] if ranks > 1 else [sys.executable, *script]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(int(line["step"]), line["train/loss"]) for line in metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("make_tiny_shards")(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> Path:
    """A run of 2 ranks from start to end."""
    run = shards.parent / "undisturbed"
    done = pretrain(run, shards)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_a_run_leaves_what_explains_it(undisturbed: Path) -> None:
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line.keys() >= METRICS for line in lines)
    assert [line["step"] for line in lines if "valid/retrieval_at_1" in line] == [6, 12]
    assert lines[-1]["bank/recall"] == 1.0, "a flat index finds every neighbour"
    assert lines[-1]["train/skipped_steps"] == 0
    found = {path.name for path in undisturbed.iterdir()}
    assert found >= {"config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints", "model"}
    assert (undisturbed / "checkpoints" / "latest").read_text() == "step_12\n"
    assert {p.name for p in (undisturbed / "checkpoints").glob("step_*")} == {"step_6", "step_12"}


def test_a_stopped_and_resumed_run_is_bitwise_the_undisturbed_one(undisturbed: Path, shards: Path) -> None:
    run = shards.parent / "resumed"
    assert pretrain(run, shards, "train.stop_after=5").returncode == 0
    assert not (run / "model").exists()
    done = pretrain(run, shards, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run) == losses(undisturbed)
    ours, theirs = weights(run), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_damaged_newest_checkpoint_is_noticed_and_the_one_before_is_used(undisturbed: Path, shards: Path) -> None:
    run = shards.parent / "damaged"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "model")
    victim = next((run / "checkpoints" / "step_12").glob("neighbours-*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    done = pretrain(run, shards, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step_12 is not used" in done.stderr
    assert "resuming after step 6" in done.stderr
    assert losses(run) == losses(undisturbed)


def test_a_run_that_is_there_is_not_overwritten_and_a_finished_one_is_not_done_again(
    undisturbed: Path, shards: Path
) -> None:
    refused = pretrain(undisturbed, shards, ranks=1)
    assert refused.returncode == 2
    assert "already holds step_12; pass --resume" in refused.stderr
    before = (undisturbed / "model" / "config.json").stat().st_mtime_ns
    assert pretrain(undisturbed, shards, "--resume", ranks=1).returncode == 0
    assert (undisturbed / "model" / "config.json").stat().st_mtime_ns == before
    assert len(metrics(undisturbed)) == 12


def test_sigterm_finishes_the_step_and_saves(shards: Path) -> None:
    run = shards.parent / "terminated"
    script = ["launch/pretrain.py", "--config", str(MINI), f"run.dir={run}", f"data.shards={shards}"]
    words = ["train.steps=100000", "train.save_every=100000", "train.valid_every=100000"]
    process = subprocess.Popen([sys.executable, *script, *words], cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    latest = (run / "checkpoints" / "latest").read_text().strip()
    assert (run / "checkpoints" / latest / "run.json").exists()
    assert b"--resume goes on" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.shards=/nowhere"], "no manifest.json in /nowhere"),
        (["data.lanes=8", "data.batch_size=64"], "44 training molecules do not fill one batch"),
        (["data.lanes=16", "data.batch_size=16"], "data.lanes=16 is more than the 11 blocks"),
        (["model.encoders=[gin,schnet]"], "'schnet', which is not registered; known: ['comenet', 'gin', 'resnet']"),
        (["loss.atom=1.0", "model.encoders=[resnet]", "train.lr_scale={}"], "needs gin among model.encoders"),
        (["train.stepz=4"], "unknown key train.stepz"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(shards: Path, tmp_path: Path, words: list[str], sentence: str) -> None:
    done = pretrain(tmp_path / "run", shards, *words, ranks=1)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
