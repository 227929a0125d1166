"""A pre-training run, from its beginning or its newest checkpoint to its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from mmsa_dist.config.load import to_yaml
from mmsa_dist.config.recorded import as_recorded
from mmsa_dist.config.schema import Config
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_dist.data.order import LoaderState
from mmsa_dist.embed.pretrained import refuse_other_content
from mmsa_dist.losses.descriptor import descriptor_scale
from mmsa_dist.model import MMSAModel, picture_size
from mmsa_dist.objective import Objective
from mmsa_dist.runtime.distributed import all_ranks_agree, named_when_lost, rank, world_size
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.runtime.watchdog import Watchdog
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.structure.sources import BatchNeighbours, NeighbourSource, NoNeighbours
from mmsa_dist.train.bad_steps import BadSteps, BadStepsInARow
from mmsa_dist.train.checkpoint import CheckpointError, Checkpoints, RunState
from mmsa_dist.train.compiling import compile_encoders
from mmsa_dist.train.engine import (
    number_of_parameters,
    parameters_are_finite,
    start_engine,
    start_processes,
    stop_processes,
    whole_state,
)
from mmsa_dist.train.export import export_model
from mmsa_dist.train.health import Health
from mmsa_dist.train.metrics import MetricsLog
from mmsa_dist.train.preconditions import refuse_broken_shards, refuse_what_cannot_learn
from mmsa_dist.train.saving import CheckpointSaver
from mmsa_dist.train.step import TrainStep
from mmsa_dist.train.validate import validate


@dataclass
class _StopRequest:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C: finish the step, save, exit. A second Ctrl-C exits at once."""

    log: MetricsLog
    asked: bool = field(default=False)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            self.log.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once, without one")
        self.asked = True


def pretrain(config: Config, *, resume: bool = False, verify: bool = False) -> RunFolder:
    """Trains as `config` says and exports the model at the end (collective).

    A run that has reached its end is not repeated.

    Args:
        config: the resolved configuration.
        resume: continue from the newest good checkpoint of `run.dir`; start afresh if there is none.
        verify: read all shards before the first step, instead of only checking their sizes.

    Raises:
        CheckpointError: `run.dir` holds checkpoints and `resume` is False, or they belong to other shards.
        ShardError: a shard is missing, truncated, or with `verify` not what was written.
        ModelFolderError: the run's folder ``model`` holds something other than a model.
        ValueError: shards, lanes, batch size and number of ranks do not fit together.
        BadStepsInARow: too many steps in a row had no finite loss or gradient, twice.
        RankLost: another rank has died.
    """
    with named_when_lost():
        device = start_processes()
        try:
            with Watchdog(config.train.lost_after_s) as watchdog:
                refuse_broken_shards(config.shards_dir, watchdog, verify=verify)
                Run(config, device, watchdog, resume=resume).to_the_end()
            return RunFolder(Path(config.run.dir))
        finally:
            stop_processes()


@dataclass(frozen=True)
class _Position:
    """How far a run is, and what depends on that; made anew whenever a checkpoint is read."""

    run: RunState
    neighbours: NeighbourSource
    loader: Loader


class Run:
    """A run on one rank, from its beginning or its newest good checkpoint (collective).

    Args:
        config: the resolved configuration.
        device: of this rank, from `start_processes`.
        watchdog: watches the steps, and is informed of what takes longer.
        resume: see `pretrain`, also for the errors.
    """

    def __init__(self, config: Config, device: torch.device, watchdog: Watchdog, *, resume: bool) -> None:
        self._config, self._device, self._watchdog = config, device, watchdog
        self._folder = RunFolder(Path(config.run.dir))
        self._reader = BlockReader(config.shards_dir, "train")
        self._held_out = BlockReader(config.shards_dir, "val") if config.prepare.val_fraction > 0 else None
        self._checkpoints = Checkpoints(self._folder.checkpoints)
        newest, self._news = self._checkpoints.newest_good()
        if newest is not None and not resume:
            raise CheckpointError(
                f"{self._folder.checkpoints} already holds {newest.name}; pass --resume to continue from it, or choose "
                "another run.dir"
            )
        if not self._is_exported():
            refuse_other_content(self._folder.model.resolve())  # now, not after days of training
        torch.manual_seed(config.run.seed)
        self._objective = objective_for(config, self._reader)
        if newest is None:
            refuse_what_cannot_learn(self._objective.model, config, self._reader)
        self._objective.to(device)
        self._engine = start_engine(self._objective, config)
        if config.train.compile:
            with watchdog.slow("compiling encoders"):
                first = Loader(self._reader, loader_options(config), rank=0, world=world_size())
                compile_encoders(self._objective.model, config, next(iter(first)).to(device))
        self._at = self._position(newest)
        self._saver = CheckpointSaver(
            self._folder.checkpoints,
            keep=config.train.keep,
            config=config.model_dump(mode="json"),
            manifest_digest=self._reader.digest,
        )
        self._health = Health(quiet_steps=max(config.train.warmup_steps, config.train.valid_every))
        self._last_scalars: dict[str, float] = {}

    def to_the_end(self) -> None:
        """Trains until `train.steps`, a planned stop or a signal; saves there, and exports after the last step.

        After too many bad steps in a row the run goes back to its newest checkpoint, once. This repairs what a
        transient hardware fault has damaged; a fault of the data or the learning rate recurs, and ends the run.
        """
        if rank() == 0:
            self._folder.describe(to_yaml(as_recorded(self._config)))
        try:
            self._train()
            return
        except BadStepsInARow as error:
            with self._watchdog.slow("looking for the newest checkpoint"):
                self._saver.finish()
                newest, faults = self._checkpoints.newest_good()
            if newest is None:
                raise
            self._news = [*faults, f"{error}. Going back to {newest.name} once; if this happens again, the run ends"]
        # Not in the handler: with its error, the bank, the index and the loader of the first training are kept alive.
        del self._at
        with self._watchdog.slow("going back to the newest checkpoint"):
            self._at = self._position(newest)
        self._train()

    def _position(self, checkpoint: Path | None) -> _Position:
        """Returns the position that `checkpoint` holds, and restores the engine; without one, the beginning."""
        run = RunState(step=0, loader=LoaderState())
        neighbours = neighbours_for(self._config, self._reader, self._device)
        if checkpoint is not None:
            restored = self._checkpoints.load(
                checkpoint,
                self._engine,
                manifest_digest=self._reader.digest,
                config=self._config.model_dump(mode="json"),
            )
            run = restored.run
            neighbours.load_state_dict(restored.neighbours)
            self._news.extend(restored.news)
        loader = Loader(
            self._reader,
            loader_options(self._config),
            rank=rank(),
            world=world_size(),
            workers=self._config.data.workers,
            device=self._device,
            state=run.loader,
        )
        return _Position(run, neighbours, loader)

    def _train(self) -> None:
        train, at = self._config.train, self._at
        end = train.stop_after or train.steps
        bad_steps = BadSteps(self._folder.bad_steps, self._reader, limit=train.max_bad_steps)
        step = TrainStep(self._engine, self._config, at.loader, at.neighbours, self._device, bad_steps)
        done = at.run.step
        with (
            MetricsLog(self._folder, steps=end, start=done, active=rank() == 0) as log,
            _stop_on_signal(log) as stop,
        ):
            for line in (*self._news, self._first_line()):
                log.say(line)
            while done < end:
                stopping = step.run(done, asked_to_stop=stop.asked)
                done += 1
                self._watchdog.step_done()
                log.advance(done)
                with self._watchdog.slow("rebuilding the index of neighbours"):
                    renewed = at.neighbours.refresh(done)
                for warning in at.neighbours.warnings() if renewed else ():
                    log.say(warning)
                at_end = done == end or stopping
                self._measure(log, step, done, at_end=at_end)
                if at_end and bad_steps.in_a_row and not parameters_are_finite(self._engine):
                    self._finish_saving(log)
                    if not stopping:
                        raise bad_steps.error(done - 1)
                    log.say(
                        f"stopped by a signal after step {done}, but not saved, because parameters are not finite; "
                        "--resume continues from the newest checkpoint"
                    )
                    return
                self._save(log, RunState(done, at.loader.state), due=at_end or self._is_due(done, bad_steps))
                if at_end:
                    self._finish_saving(log, is_last=True)
                if stopping:
                    log.say(f"stopped by a signal after step {done}; --resume continues from there")
                    return
            if done == train.steps:
                with self._watchdog.slow("exporting the model"):
                    self._export(log)

    def _measure(self, log: MetricsLog, step: TrainStep, done: int, *, at_end: bool) -> None:
        """Validates and logs if it is time to, after `done` steps."""
        train = self._config.train
        scalars: dict[str, float] = {}
        if self._held_out is not None and (done % train.valid_every == 0 or at_end):
            with self._watchdog.slow("validating"):
                scalars = validate(self._objective.model, self._held_out, self._config, self._device)
        if scalars or done % train.log_every == 0 or at_end:
            scalars |= step.meters(done)
            self._last_scalars |= scalars
            log.write(done, scalars)
            for warning in self._health.look(done, scalars):
                log.say(warning)

    def _is_due(self, done: int, bad_steps: BadSteps) -> bool:
        """Returns whether a checkpoint is due after `done` steps.

        None is within a row of bad steps: the row may be due to damaged parameters, and the run may go back.
        """
        return done % self._config.train.save_every == 0 and not bad_steps.in_a_row

    def _save(self, log: MetricsLog, state: RunState, *, due: bool) -> None:
        """Begins a checkpoint if one is due, and completes one that has been written meanwhile."""
        if due:
            self._finish_saving(log)
        with self._watchdog.slow("saving"):
            outcome = self._saver.poll()
            if due:
                self._saver.begin(self._engine, self._at.neighbours.state_dict(), state)
        if outcome is not None:
            log.say(outcome.message)

    def _finish_saving(self, log: MetricsLog, *, is_last: bool = False) -> None:
        """Completes the checkpoint in progress.

        Raises:
            CheckpointError: it is the last one of the run and could not be saved.
        """
        with self._watchdog.slow("saving"):
            outcome = self._saver.finish()
        if outcome is None:
            return
        if is_last and not outcome.saved:
            raise CheckpointError(outcome.message)
        log.say(outcome.message)

    def _export(self, log: MetricsLog) -> None:
        """Writes the model on rank 0 unless it is there already (collective)."""
        if all(all_ranks_agree(self._is_exported())):
            return
        model = self._objective.model
        state = whole_state(model) if self._config.train.zero_stage == 3 else {}
        if rank() != 0:
            return
        if state:  # the trained model holds only a partition of its parameters, and all ranks must call it together
            model = MMSAModel(self._config.model)
            model.load_state_dict(state)
            model.to(self._device)
        export_model(model, self._config, self._reader, self._folder, self._device, self._last_scalars)
        log.say(f"exported {self._folder.model}")

    def _is_exported(self) -> bool:
        """Returns whether there is a model newer than the newest checkpoint."""
        model, latest = self._folder.model / "config.json", self._folder.checkpoints / "latest"
        return model.exists() and latest.exists() and model.stat().st_mtime >= latest.stat().st_mtime

    def _first_line(self) -> str:
        config, done = self._config, self._at.run.step
        parameters = number_of_parameters(self._objective)
        start = f"resuming after step {done}" if done else "starting"
        return (
            f"{start}: {self._reader.molecules:,} molecules, {self._at.loader.steps_per_epoch} steps per epoch "
            f"in batches of {config.data.batch_size}, {parameters / 1e6:.1f} M parameters, {world_size()} ranks, "
            f"ZeRO {config.train.zero_stage}, {config.train.precision}, neighbours "
            f"{config.model.structure.neighbours} → {config.run.dir}"
        )


def loader_options(config: Config) -> LoaderOptions:
    """Returns the options of the loader from `config`."""
    return LoaderOptions(
        seed=config.run.seed,
        batch_size=config.data.batch_size,
        accumulate=config.train.accumulate,
        lanes=config.data.lanes,
        window_blocks=config.data.window_blocks,
        picture_size=picture_size(config),
        augment=config.data.augment,
    )


def objective_for(config: Config, reader: BlockReader) -> Objective:
    """Returns the model of `config` with random weights, and its losses on the molecules of `reader`."""
    scale = descriptor_scale(reader.descriptors_of_some()) if config.loss.descriptor > 0 else None
    return Objective(MMSAModel(config.model), config.loss, scale)


def neighbours_for(config: Config, reader: BlockReader, device: torch.device) -> NeighbourSource:
    """Returns the source of neighbours of `config`, over the molecules of `reader`."""
    structure = config.model.structure
    match structure.neighbours:
        case "none":
            return NoNeighbours()
        case "batch":
            return BatchNeighbours(structure.k)
        case "global":
            return GlobalNeighbours(reader.molecules, config.model.code, structure, device=device)


@contextmanager
def _stop_on_signal(log: MetricsLog) -> Iterator[_StopRequest]:
    request = _StopRequest(log)
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
