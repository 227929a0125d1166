"""Pre-training under DeepSpeed's own launcher: it trains, stops, resumes exactly and exports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsa_dist.report import write_report
from mmsa_dist.report.record import read_record
from tests.fixtures.pretraining import ROOT, SMALL, different, losses, metrics, pretrain, start

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


def test_descriptors_are_learned_also_after_a_stop(
    make_tiny_shards: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    described, words = make_tiny_shards(tmp_path, described=True), ("loss.descriptor=1.0", "train.steps=4", *SMALL)
    assert pretrain(tmp_path / "run", described, "train.stop_after=3", *words, ranks=1).returncode == 0
    done = pretrain(tmp_path / "run", described, "--resume", *words, ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run") if line["train/descriptor_loss"] > 0] == [1, 2, 3, 4]
    refused = pretrain(tmp_path / "other", shards, *words, ranks=1)
    assert refused.returncode == 2
    assert "prepare them with prepare.descriptors=true" in refused.stderr


def test_a_stopped_and_resumed_run_is_bitwise_the_undisturbed_one(undisturbed: Path, shards: Path) -> None:
    run = shards.parent / "resumed"
    assert pretrain(run, shards, "train.stop_after=5").returncode == 0
    assert not (run / "model").exists()
    done = pretrain(run, shards, "--resume", "train.keep=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step_5 was saved with train.keep=2, now 3; continuing with what is set now" in done.stderr
    assert losses(run) == losses(undisturbed)
    assert different(run, undisturbed) == []


def test_an_encoder_that_could_learn_from_no_molecule_is_named_before_the_first_step(
    make_tiny_shards: Callable[..., Path], tmp_path: Path
) -> None:
    flat = make_tiny_shards(tmp_path, flat=True)
    refused = pretrain(tmp_path / "run", flat, ranks=1)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "no molecule in" in refused.stderr
    assert "leave it out: model.encoders='[gin, resnet]'" in refused.stderr
    done = pretrain(tmp_path / "run", flat, "model.encoders=[gin,resnet]", "train.steps=3", ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bad_steps_are_skipped_by_all_ranks_and_a_row_of_them_goes_back_once(undisturbed: Path, shards: Path) -> None:
    """Rank 1 alone has a NaN: at step 2, which is skipped, then at 8 and 9, which goes back to the checkpoint of 6.

    Nothing is saved after step 8, although it is time to: what was skipped before would not be done again.
    """
    run = shards.parent / "faulty"
    script = "tests/fixtures/faulty_pretrain.py"
    settings = ("--verify", "train.max_bad_steps=2", "train.save_every=3")
    done = pretrain(run, shards, *settings, script=script, FAULTY_STEPS="8,9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 steps in a row, up to step 9" in done.stderr
    assert "Going back to step_6 once" in done.stderr
    listed = [json.loads(line) for line in (run / "bad_steps" / "rank-00001.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in listed] == [8, 9]
    assert all(len(entry["molecules"]) == 4 for entry in listed)
    assert not (run / "bad_steps" / "rank-00000.jsonl").exists()
    assert losses(run) == losses(undisturbed), "what was done again is what a run without the fault would have done"
    assert different(run, undisturbed) == []

    done = pretrain(run.with_name("skipped"), shards, "train.max_bad_steps=2", script=script, FAULTY_STEPS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = metrics(run.with_name("skipped"))
    assert lines[-1]["train/skipped_steps"] == 1
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_a_run_that_diverges_goes_back_once_and_ends_with_the_mend(shards: Path) -> None:
    run = shards.parent / "diverged"
    settings = ("train.lr=1.0e+30", "train.clip=0", "train.save_every=1", "train.max_bad_steps=2", *SMALL)
    done = pretrain(run, shards, *settings, ranks=1)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("Going back to") == 1
    assert "Lower train.lr" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_a_run_is_reported_on_and_sigterm_finishes_the_step_and_saves(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not where the run was started, with a path of its shards from there
    run = shards.parent / "terminated"
    words = ["train.steps=100000", "train.save_every=100000", "train.valid_every=100000"]
    process = start(run, Path(os.path.relpath(shards, ROOT)), *words)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(2):  # a report may be asked for at any moment
        assert write_report(run).stat().st_size > 100_000
        record = read_record(run)
        assert (record.shards, record.faults) == (str(shards), {})
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    latest = (run / "checkpoints" / "latest").read_text().strip()
    assert (run / "checkpoints" / latest / "run.json").exists()
    assert "--resume continues" in said


@pytest.mark.parametrize(
    ("harm", "words", "sentence"),
    [
        ("truncated", [], "train-00001.tar has 1,000 bytes instead of"),
        ("missing", [], "train-00001.tar is missing"),
        ("changed", ["--verify"], "train-00001.tar"),
    ],
)
def test_a_broken_shard_is_named_before_the_first_step(
    shards: Path, tmp_path: Path, harm: str, words: list[str], sentence: str
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    victim = broken / "train-00001.tar"
    if harm == "truncated":
        os.truncate(victim, 1000)
    elif harm == "missing":
        victim.unlink()
    else:
        flip_a_bit(victim)
    done = pretrain(tmp_path / "run", broken, *words, *SMALL, ranks=1)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "--repair" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_changed_shard_is_named_at_its_block(shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    flip_a_bit(broken / "train-00001.tar")
    done = pretrain(tmp_path / "run", broken, *SMALL, ranks=1)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "train-00001.tar" in done.stderr
    assert "Traceback" not in done.stderr


def flip_a_bit(shard: Path) -> None:
    """In the data of its first block, which begins behind a tar header of 512 bytes."""
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.shards=/nowhere"], "no manifest.json in /nowhere"),
        (["data.lanes=8", "data.batch_size=64"], "44 training molecules do not fill one batch"),
        (["data.lanes=16", "data.batch_size=16"], "data.lanes=16 is more than the 11 blocks"),
        (["model.encoders=[gin,schnet]"], "'schnet', which is not registered; known: ['comenet', 'gin', 'resnet']"),
        (
            ["loss.atom=1.0", "model.encoders=[resnet]", "train.lr_scale={}"],
            "needs an encoder with atom vectors, such as gin, in model.encoders",
        ),
        (["train.stepz=4"], "unknown key train.stepz"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(shards: Path, tmp_path: Path, words: list[str], sentence: str) -> None:
    done = pretrain(tmp_path / "run", shards, *words, ranks=1)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
