"""A step that goes wrong changes nothing, and a run of them ends with words."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.data.loader import BlockReader, Loader
from mmsa_dist.model import MMSAModel
from mmsa_dist.objective import Objective
from mmsa_dist.runtime.watchdog import Watchdog
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.train import loop
from mmsa_dist.train.bad_steps import BadSteps, BadStepsInARow
from mmsa_dist.train.checkpoint import Checkpoints
from mmsa_dist.train.engine import Engine, start_engine, start_processes, stop_processes
from mmsa_dist.train.loop import Run, loader_options
from mmsa_dist.train.step import TrainStep
from tests.fixtures.pretraining import SMALL

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"


class Sometimes(Objective):
    """An objective whose loss or gradient, or all that it computes, is not finite when it is told so."""

    harm = ""

    def forward(self, batch: Any, *arguments: Any) -> Any:
        if self.harm == "input":
            batch.xyz_A3.fill_(torch.inf)
        if self.harm == "no 3D of the first":
            batch.has_xyz_B[0] = False
        output = super().forward(batch, *arguments)
        if self.harm == "loss":
            output.total.data.fill_(torch.nan)
        if self.harm == "gradient":
            output.total.register_hook(lambda gradient: gradient * torch.inf)
        return output


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """The device of a process group of one; DeepSpeed joins one only once in the life of a process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # so that what `start_processes` sets is taken back
            patch.delenv(name)
        yield start_processes()
        stop_processes()


@pytest.fixture
def parts(
    tiny_shards: Path, device: torch.device, tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[TrainStep, Engine, Any]:
    config = load_config(MINI, getattr(request, "param", []))
    torch.manual_seed(0)
    objective = Sometimes(MMSAModel(config.model), config.loss)
    engine = start_engine(objective, config)
    reader = BlockReader(str(tiny_shards), "train")
    source = GlobalNeighbours(reader.molecules, config.model.code, config.model.structure)
    bad_steps = BadSteps(tmp_path / "bad_steps", reader, limit=3)
    step = TrainStep(engine, config, Loader(reader, loader_options(config)), source, device, bad_steps)
    return step, engine, source


def snapshot(engine: Engine, source: GlobalNeighbours) -> list[torch.Tensor]:
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    tensors = [*engine.module.parameters(), *engine.module.buffers(), *moments, source.bank.step_L]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("harm", ["loss", "gradient", "input"])
def test_a_step_that_is_not_finite_changes_nothing(
    parts: tuple[TrainStep, Engine, Any], tmp_path: Path, harm: str
) -> None:
    step, engine, source = parts
    step.run(0, asked_to_stop=False)
    before = snapshot(engine, source)
    engine.module.harm = harm
    assert not step.run(1, asked_to_stop=False), "a bad step is no request to stop"
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(engine, source), strict=True))
    engine.module.harm = ""
    step.run(2, asked_to_stop=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(engine, source), strict=True))
    assert step.meters(3)["train/skipped_steps"] == 1
    (line,) = (tmp_path / "bad_steps" / "rank-00000.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["step"] == 1
    assert len(set(entry["molecules"])) == 8
    assert all(isinstance(name, str) and name for name in entry["molecules"])
    assert set(entry["losses"]) == {"contrast", "reconstruct", "memory"}


def test_a_request_to_stop_is_answered_after_the_step_is_made(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, source = parts
    before = snapshot(engine, source)
    assert step.run(0, asked_to_stop=True)
    assert len(snapshot(engine, source)) > len(before), "the optimizer has moments now"
    assert not step.run(1, asked_to_stop=False)
    assert step.meters(2)["train/skipped_steps"] == 0


def test_a_run_of_them_stops_with_the_mend(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, _ = parts
    engine.module.harm = "loss"
    step.run(0, asked_to_stop=False)
    step.run(1, asked_to_stop=False)
    with pytest.raises(BadStepsInARow, match=r"3 steps in a row, up to step 2,.*bad_steps.*Lower train\.lr"):
        step.run(2, asked_to_stop=False)


def test_a_good_step_ends_the_count(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, _ = parts
    for number in range(6):
        engine.module.harm = "" if number == 2 else "loss" if number < 5 else ""
        step.run(number, asked_to_stop=False)
    assert step.meters(6)["train/skipped_steps"] == 4


@pytest.mark.parametrize("parts", [["model.encoders=[comenet]"]], indirect=True)
def test_a_molecule_without_a_modality_is_nobodys_neighbour(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, source = parts
    engine.module.harm = "no 3D of the first"
    step.run(0, asked_to_stop=False)
    assert int((source.bank.step_L == 0).sum()) == 7, "of the 8 molecules of the step"
    known = source.bank.rows_LC[source.bank.step_L == 0]
    assert known.any(dim=1).all()


def settings(tiny_shards: Path, run: Path, *words: str) -> Config:
    some = ("train.steps=6", "train.save_every=2", "train.max_bad_steps=3", *words, *SMALL)
    return load_config(MINI, [f"data.shards={tiny_shards}", f"run.dir={run}", *some])


def train(config: Config, device: torch.device, *, resume: bool = False) -> Run:
    with Watchdog(60) as watchdog:
        run = Run(config, device, watchdog, resume=resume)
        run.to_the_end()
    return run


@pytest.mark.parametrize(
    "damaged", [pytest.param(3, id="when it is time to save"), pytest.param(4, id="at the end of the run")]
)
def test_damaged_parameters_are_not_saved_and_the_run_heals(
    tiny_shards: Path, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    train(settings(tiny_shards, tmp_path / "sound"), device)
    sources: list[weakref.ref[Any]] = []
    alive: list[int] = []
    make, run = loop.neighbours_for, TrainStep.run

    def noted(*arguments: Any) -> Any:
        source = make(*arguments)
        sources.append(weakref.ref(source))
        return source

    def run_and_damage(self: TrainStep, step: int, *, asked_to_stop: bool) -> bool:
        if step == damaged and len(sources) == 1:
            with torch.no_grad():
                self._engine.module.model.fusion.project["gin"].weight[0, 0] = torch.nan
        if step == 5:
            gc.collect()
            alive.append(sum(source() is not None for source in sources))
        return run(self, step, asked_to_stop=asked_to_stop)

    monkeypatch.setattr(loop, "neighbours_for", noted)
    monkeypatch.setattr(TrainStep, "run", run_and_damage)
    train(settings(tiny_shards, tmp_path / "healed"), device)
    sound, healed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("sound", "healed"))
    assert sound.keys() == healed.keys()
    assert all(torch.equal(sound[name], healed[name]) for name in sound)
    assert (len(sources), alive) == (2, [1, 1]), "the bank of the first training is let go of"


def test_a_new_checkpoint_takes_the_place_of_damaged_later_ones(
    tiny_shards: Path, device: torch.device, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (20, 30):
        (checkpoints / f"step_{step}").mkdir(parents=True)
    train(settings(tiny_shards, tmp_path / "run", "train.stop_after=2"), device, resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_2"]
    newest, faults = Checkpoints(checkpoints).newest_good()
    assert newest is not None
    assert (newest.name, faults) == ("step_2", [])


@pytest.mark.parametrize("stage", [0, 1])
def test_options_of_the_optimizer_are_those_of_now(
    tiny_shards: Path, device: torch.device, tmp_path: Path, stage: int
) -> None:
    words = (f"train.zero_stage={stage}", "train.stop_after=2")
    run = train(settings(tiny_shards, tmp_path, *words, "train.weight_decay=0.5"), device)
    assert not hasattr(run._engine.checkpoint_engine, "copies"), "they take memory only while they are written"
    run = train(settings(tiny_shards, tmp_path, *words, "train.weight_decay=0.25"), device, resume=True)
    groups = run._engine.optimizer.param_groups
    assert {(group["lr_scale"], group["weight_decay"]) for group in groups} == {
        *((scale, decay) for scale in (0.1, 1.0) for decay in (0.0, 0.25))
    }
