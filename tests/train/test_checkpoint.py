"""Which checkpoint is taken, and which is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmsa_dist.data.order import LoaderState
from mmsa_dist.runtime.files import sha256_of
from mmsa_dist.train.checkpoint import CheckpointError, Checkpoints, neighbours_file
from mmsa_dist.train.engine_files import EngineFilesError, WeightsOnlyCheckpointEngine, load_engine


def make(folder: Path, step: int) -> Path:
    """A checkpoint as `Checkpoints.save` leaves it, as far as choosing one goes."""
    path = folder / f"step_{step}"
    (path / "engine").mkdir(parents=True)
    (path / "engine" / "states.pt").write_bytes(bytes(100))
    (path / "run.json").write_text("{}")
    files = [path / "run.json", path / "engine" / "states.pt"]
    (path / "digests.json").write_text(json.dumps({str(f.relative_to(path)): sha256_of(f) for f in files}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (9, 10, 100):
        make(tmp_path, step)
    return tmp_path


def test_the_newest_is_the_one_with_the_highest_step(folder: Path) -> None:
    newest, faults = Checkpoints(folder).newest_good()
    assert newest is not None
    assert (newest.name, faults) == ("step_100", [])


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").newest_good() == (None, [])


def test_an_unfinished_one_is_not_looked_at(folder: Path) -> None:
    (folder / "step_200.tmp").mkdir()
    newest, faults = Checkpoints(folder).newest_good()
    assert newest is not None
    assert (newest.name, faults) == ("step_100", [])


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "no digests"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(folder: Path, harm: str) -> None:
    file = folder / "step_100" / "engine" / "states.pt"
    if harm == "truncated":
        file.write_bytes(bytes(99))
    elif harm == "flipped":
        file.write_bytes(bytes(50) + b"\x01" + bytes(49))
    elif harm == "missing":
        file.unlink()
    else:
        (folder / "step_100" / "digests.json").unlink()
    newest, faults = Checkpoints(folder).newest_good()
    assert newest is not None
    assert newest.name == "step_10"
    assert len(faults) == 1
    assert "step_100 is not used" in faults[0]


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (Path.write_text, (self.target, "owned"))  # type: ignore[return-value]


def test_a_pickle_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    torch.save({"module": Malice(tmp_path / "proof")}, tmp_path / "states.pt")
    with pytest.raises(Exception, match="weights_only"):
        WeightsOnlyCheckpointEngine().load(str(tmp_path / "states.pt"))
    assert not (tmp_path / "proof").exists()


def test_no_pickle_is_executed_while_partitions_are_joined(tmp_path: Path) -> None:
    saved = tmp_path / "step_5"
    (saved / "engine").mkdir(parents=True)
    malice = {"optimizer_state_dict": Malice(tmp_path / "proof")}
    torch.save(malice, saved / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(EngineFilesError, match=r"saved by 2 ranks.*Weights only load failed"):
        load_engine(engine_of_stage(1), saved, "engine", ranks=2)
    assert not (tmp_path / "proof").exists()
    assert list(tmp_path.iterdir()) == [saved], "what was joined is removed"


MODEL = {"gin": {"width": 100, "layers": 5}}
HEADS = {"fingerprint": 0.5, "fingerprint_bits": 128, "memory": 1}


def engine_of_stage(stage: int) -> Any:
    """As much of an engine as is asked before DeepSpeed loads anything."""
    config = SimpleNamespace(checkpoint_config={"checkpoint_serialization": True})
    optimizer = SimpleNamespace(param_groups=[])
    return SimpleNamespace(zero_optimization_stage=lambda: stage, _config=config, optimizer=optimizer)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"format": 99}, "checkpoint format 99; this version reads 3"),
        ({"format": 3, "manifest": "a" * 64}, "was trained on other shards"),
        (
            {"format": 3, "manifest": "b" * 64, "config": {"model": {"gin": {"width": 300, "layers": 5}}}},
            r"saved with model.gin.width=300, now 100; restore that setting, or start a new run.dir",
        ),
        (
            {"format": 3, "manifest": "b" * 64, "ranks": 4, "config": {"model": MODEL, "train": {"zero_stage": 1}}},
            r"saved at train.zero_stage=1 and cannot be read at 0; set train.zero_stage=1",
        ),
        (  # it has groups of parameters that are no longer there
            {
                "format": 3,
                "manifest": "b" * 64,
                "config": {"model": MODEL, "train": {"zero_stage": 0, "lr_scale": {"gin": 0.5, "comenet": 1.0}}},
            },
            r"saved with train.lr_scale.gin=0.5, now \(not set\); restore that setting",
        ),
        (  # its head has parameters, and a checkpoint without it none for them
            {"format": 3, "manifest": "b" * 64, "config": {"model": MODEL, "loss": {"fingerprint": 0.0, "memory": 0}}},
            r"saved with loss.fingerprint=0.0, now 0.5; restore that setting",
        ),
        (
            {"format": 3, "manifest": "b" * 64, "config": {"model": MODEL, "loss": {**HEADS, "atom": 1}}},
            r"saved with loss.atom=1, now \(not set\); restore that setting",
        ),
        (
            {"format": 3, "manifest": "b" * 64, "config": {"model": MODEL, "loss": {**HEADS, "fingerprint_bits": 64}}},
            r"saved with loss.fingerprint_bits=64, now 128; restore that setting",
        ),
        (  # a version that had no model.gin.width saved it
            {
                "format": 3,
                "manifest": "b" * 64,
                "config": {
                    "model": {"gin": {"layers": 5}},
                    "train": {"zero_stage": 2},
                    "loss": {**HEADS, "fingerprint": 2.0},
                },
            },
            r"saved at train.zero_stage=2 and cannot be read at 0",
        ),
    ],
)
def test_what_cannot_be_resumed_is_said_before_anything_is_loaded(
    tmp_path: Path, about: dict[str, object], words: str
) -> None:
    path = make(tmp_path, 5)
    (path / "run.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=words):
        Checkpoints(tmp_path).load(
            path,
            engine=engine_of_stage(0),
            manifest_digest="b" * 64,
            config={"model": MODEL, "train": {"zero_stage": 0, "lr_scale": {}}, "loss": HEADS},
        )


def test_settings_that_differ_are_told_with_both_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, 5)
    was = {"data": {"x": 1, "z": 2}, "loss": {"b": 1}, "run": {"dir": "here"}, "train": {"zero_stage": 0}}
    now = {"data": {"x": 2, "y": 3}, "loss": {"b": 1}, "run": {"dir": "there"}, "train": {"zero_stage": 0}}
    about = {"format": 3, "manifest": "b", "config": was, "ranks": 1, "step": 5, "loader": {"epoch": 1, "step": 2}}
    (path / "run.json").write_text(json.dumps(about))
    save_file({"rows": torch.ones(2)}, path / neighbours_file(0))
    monkeypatch.setattr("mmsa_dist.train.checkpoint.load_engine", lambda *_, **__: None)
    restored = Checkpoints(tmp_path).load(path, engine_of_stage(0), manifest_digest="b", config=now)
    assert restored.news == (
        "step_5 was saved with data.x=1, now 2, data.y=(not set), now 3, data.z=2, now (not set); continuing with what "
        "is set now",
    )
    assert (restored.run.step, restored.run.loader) == (5, LoaderState(epoch=1, step=2))
    assert torch.equal(restored.neighbours["rows"], torch.ones(2))


@pytest.mark.parametrize("key", ["data.batch_size", "data.lanes", "data.window_blocks", "run.seed"])
@pytest.mark.parametrize(("loader", "then"), [((1, 2), (2, 0)), ((1, 0), (1, 0))])
def test_an_epoch_in_another_order_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, loader: tuple[int, int], then: tuple[int, int]
) -> None:
    path = make(tmp_path, 5)
    section, name = key.split(".")
    was, now = ({"train": {"zero_stage": 0}, section: {name: value}} for value in (4, 8))
    about = {"format": 3, "manifest": "b", "config": was, "ranks": 1, "step": 5}
    (path / "run.json").write_text(json.dumps(about | {"loader": dict(zip(("epoch", "step"), loader, strict=True))}))
    save_file({"rows": torch.ones(2)}, path / neighbours_file(0))
    monkeypatch.setattr("mmsa_dist.train.checkpoint.load_engine", lambda *_, **__: None)
    restored = Checkpoints(tmp_path).load(path, engine_of_stage(0), manifest_digest="b", config=now)
    assert restored.run.loader == LoaderState(*then)
    assert restored.news[0] == f"step_5 was saved with {key}=4, now 8; continuing with what is set now"
    left_out = f"the order of the molecules changes with {key}, so the rest of epoch 1 is left out: going on at the "
    assert restored.news[1:] == (() if loader == then else (f"{left_out}beginning of epoch 2",))
