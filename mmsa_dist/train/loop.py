"""A pre-training run from start, or from its newest checkpoint, to its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from mmsa_dist.config.load import to_yaml
from mmsa_dist.config.schema import Config
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_dist.data.order import LoaderState
from mmsa_dist.model import MMSAModel
from mmsa_dist.objective import Objective
from mmsa_dist.runtime.distributed import rank, world_size
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.structure.choice import neighbour_source
from mmsa_dist.structure.sources import NeighbourSource
from mmsa_dist.train.checkpoint import CheckpointError, Checkpoints, RunState
from mmsa_dist.train.engine import start_engine, start_processes, stop_processes
from mmsa_dist.train.export import export_model
from mmsa_dist.train.metrics import MetricsLog
from mmsa_dist.train.step import TrainStep
from mmsa_dist.train.validate import validate


@dataclass
class _StopRequest:
    """Set by SIGTERM or SIGUSR1: finish the step, save, leave."""

    asked: bool = field(default=False)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def pretrain(config: Config, *, resume: bool = False) -> RunFolder:
    """Trains as `config` says (every rank calls it) and exports the model at the end.

    A run that is already at its end is not done again.

    Args:
        config: the resolved configuration.
        resume: go on from the newest good checkpoint of `run.dir`; a fresh start if there is none.

    Raises:
        CheckpointError: `run.dir` holds checkpoints and `resume` is False, or they are of other shards.
        ValueError: shards, lanes, batch or ranks that do not fit each other.
        FloatingPointError: too many steps in a row without a finite loss.
    """
    device = start_processes()
    try:
        run = _Run(config, device, resume=resume)
        run.to_the_end()
        return run.folder
    finally:
        stop_processes()


class _Run:
    """All that a run consists of, on one rank."""

    def __init__(self, config: Config, device: torch.device, *, resume: bool) -> None:
        self.config, self.device = config, device
        self.folder = RunFolder(Path(config.run.dir))
        self.reader = BlockReader(config.shards_dir, "train")
        self.held_out = BlockReader(config.shards_dir, "val") if config.prepare.val_fraction > 0 else None
        self.checkpoints = Checkpoints(self.folder.checkpoints, keep=config.train.keep)
        newest, self.faults = self.checkpoints.newest_good()
        if newest is not None and not resume:
            raise CheckpointError(
                f"{self.folder.checkpoints} already holds {newest.name}; pass --resume to go on, or choose another "
                "run.dir"
            )
        torch.manual_seed(config.run.seed)
        self.objective = Objective(MMSAModel(config.model), config.loss).to(device)
        self.engine = start_engine(self.objective, config)
        self.neighbours = _neighbour_source(config, self.reader, device)
        self.state = RunState(step=0, loader=LoaderState())
        if newest is not None:
            self.state, saved = self.checkpoints.load(newest, self.engine, manifest_digest=self.reader.digest)
            self.neighbours.load_state_dict(saved)
        self.loader = Loader(
            self.reader,
            loader_options(config),
            rank=rank(),
            world=world_size(),
            workers=config.data.workers,
            pin_memory=device.type == "cuda",
            state=self.state.loader,
        )
        self.last_scalars: dict[str, float] = {}

    def to_the_end(self) -> None:
        """Trains until `train.steps`, a planned stop or a signal; saves there, and exports after the last step."""
        train = self.config.train
        end = train.stop_after or train.steps
        if rank() == 0:
            self.folder.describe(to_yaml(self.config))
        step = TrainStep(self.engine, self.config, self.loader, self.neighbours, self.device)
        with (
            MetricsLog(self.folder, steps=end, start=self.state.step, active=rank() == 0) as log,
            _stop_on_signal() as stop,
        ):
            for words in (*self.faults, self._first_words()):
                log.say(words)
            while self.state.step < end:
                step.run(self.state.step, asked_to_stop=stop.asked)
                self.state = RunState(self.state.step + 1, self.loader.state)
                log.advance(self.state.step)
                self.neighbours.refresh(self.state.step)
                at_end = self.state.step == end or step.stop_agreed
                self._look(log, step, at_end=at_end)
                if self.state.step % train.save_every == 0 or at_end:
                    log.say(f"saved {self._save()}")
                if step.stop_agreed:
                    log.say(f"stopped by a signal after step {self.state.step}; --resume goes on from there")
                    return
            if self.state.step == train.steps and rank() == 0 and not self._is_exported():
                export_model(
                    self.objective.model,
                    self.config,
                    self.reader,
                    self.folder,
                    self.device,
                    self.last_scalars,
                )
                log.say(f"exported {self.folder.model}")

    def _look(self, log: MetricsLog, step: TrainStep, *, at_end: bool) -> None:
        """Validates and logs when their turn has come."""
        train, done = self.config.train, self.state.step
        scalars: dict[str, float] = {}
        if self.held_out is not None and (done % train.valid_every == 0 or at_end):
            scalars = validate(self.objective.model, self.held_out, self.config, self.device)
        if scalars or done % train.log_every == 0 or at_end:
            scalars |= step.meters(done)
            self.last_scalars |= scalars
            log.write(done, scalars)

    def _save(self) -> Path:
        return self.checkpoints.save(
            self.engine,
            self.neighbours.state_dict(),
            self.state,
            config=self.config.model_dump(mode="json"),
            manifest_digest=self.reader.digest,
        )

    def _is_exported(self) -> bool:
        """Whether a model newer than the newest checkpoint is there."""
        model, latest = self.folder.model / "config.json", self.folder.checkpoints / "latest"
        return model.exists() and model.stat().st_mtime >= latest.stat().st_mtime

    def _first_words(self) -> str:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.objective.parameters())
        start = f"resuming after step {self.state.step}" if self.state.step else "starting"
        return (
            f"{start}: {self.reader.molecules:,} molecules, {self.loader.steps_per_epoch} steps an epoch of "
            f"{config.data.batch_size}, {parameters / 1e6:.1f} M parameters, {world_size()} ranks, "
            f"ZeRO {config.train.zero_stage}, {config.train.precision}, neighbours "
            f"{config.model.structure.neighbours} → {config.run.dir}"
        )


def loader_options(config: Config) -> LoaderOptions:
    """What the configuration says about batches."""
    return LoaderOptions(
        seed=config.run.seed,
        batch_size=config.data.batch_size,
        accumulate=config.train.accumulate,
        lanes=config.data.lanes,
        window_blocks=config.data.window_blocks,
        picture_size=config.picture_size,
        augment=config.data.augment,
    )


def _neighbour_source(config: Config, reader: BlockReader, device: torch.device) -> NeighbourSource:
    structure = config.model.structure
    return neighbour_source(
        structure.neighbours,
        structure.k,
        num_molecules=reader.molecules,
        width=config.model.code,
        refresh_every=structure.refresh_every,
        refresh_lag=structure.refresh_lag,
        index=structure.index,
        recall_sample=structure.recall_sample,
        recall_target=structure.recall_target,
        device=device,
    )


@contextmanager
def _stop_on_signal() -> Iterator[_StopRequest]:
    request = _StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
