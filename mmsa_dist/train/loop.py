"""A pre-training run from start, or from its newest checkpoint, to its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mmsa_dist.config.load import to_yaml
from mmsa_dist.config.schema import Config
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_dist.data.order import LoaderState
from mmsa_dist.losses.descriptor import descriptor_scale
from mmsa_dist.model import MMSAModel, picture_size
from mmsa_dist.objective import Objective
from mmsa_dist.runtime.distributed import all_ranks_agree, is_distributed, named_when_lost, rank, world_size
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.runtime.watchdog import Watchdog
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.structure.sources import BatchNeighbours, NeighbourSource, NoNeighbours
from mmsa_dist.train.bad_steps import BadSteps, BadStepsInARow
from mmsa_dist.train.checkpoint import CheckpointError, Checkpoints, RunState
from mmsa_dist.train.compiling import compile_encoders
from mmsa_dist.train.engine import (
    number_of_parameters,
    start_engine,
    start_processes,
    stop_processes,
    whole_state,
)
from mmsa_dist.train.export import export_model
from mmsa_dist.train.health import Health
from mmsa_dist.train.metrics import MetricsLog
from mmsa_dist.train.saving import CheckpointSaver
from mmsa_dist.train.step import TrainStep
from mmsa_dist.train.validate import validate
from mmsa_shards.manifest import ManifestError
from mmsa_shards.shard import ShardError
from mmsa_shards.verify import size_faults, verify_folder

_LOOKED_AT = 64  # molecules, to find out what encoders read


@dataclass
class _StopRequest:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C: finish the step, save, leave. A second Ctrl-C leaves at once."""

    log: MetricsLog
    asked: bool = field(default=False)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            self.log.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once, without one")
        self.asked = True


def pretrain(config: Config, *, resume: bool = False, verify: bool = False) -> RunFolder:
    """Trains as `config` says (every rank calls it) and exports the model at the end.

    A run that is already at its end is not done again.

    Args:
        config: the resolved configuration.
        resume: go on from the newest good checkpoint of `run.dir`; a fresh start if there is none.
        verify: read all shards before the first step, instead of only looking at their sizes.

    Raises:
        CheckpointError: `run.dir` holds checkpoints and `resume` is False, or they are of other shards.
        ShardError: a shard is missing, cut short, or with `verify` not what was written.
        ValueError: shards, lanes, batch or ranks that do not fit each other.
        BadStepsInARow: too many steps in a row without a finite loss, twice.
        RankLost: another rank has died.
    """
    with named_when_lost():
        device = start_processes()
        try:
            with Watchdog(config.train.lost_after_s) as watchdog:
                _refuse_broken_shards(config.shards_dir, verify=verify)
                run = _Run(config, device, watchdog, resume=resume)
                run.to_the_end()
            return run.folder
        finally:
            stop_processes()


class _Run:
    """All that a run consists of, on one rank."""

    def __init__(self, config: Config, device: torch.device, watchdog: Watchdog, *, resume: bool) -> None:
        self.config, self.device, self.watchdog = config, device, watchdog
        self.folder = RunFolder(Path(config.run.dir))
        self.reader = BlockReader(config.shards_dir, "train")
        self.held_out = BlockReader(config.shards_dir, "val") if config.prepare.val_fraction > 0 else None
        self.checkpoints = Checkpoints(self.folder.checkpoints)
        newest, self.news = self.checkpoints.newest_good()
        if newest is not None and not resume:
            raise CheckpointError(
                f"{self.folder.checkpoints} already holds {newest.name}; pass --resume to go on, or choose another "
                "run.dir"
            )
        torch.manual_seed(config.run.seed)
        self.objective = objective_for(config, self.reader)
        if newest is None:
            refuse_what_cannot_learn(self.objective.model, config, self.reader)
        self.objective.to(device)
        self.engine = start_engine(self.objective, config)
        if config.train.compile:
            with watchdog.slow("compiling encoders"):
                first = Loader(self.reader, loader_options(config), rank=0, world=world_size())
                compile_encoders(self.objective.model, config, next(iter(first)).to(device))
        self.state = RunState(step=0, loader=LoaderState())
        self.restore(newest)
        self.saver = CheckpointSaver(
            self.folder.checkpoints,
            keep=config.train.keep,
            config=config.model_dump(mode="json"),
            manifest_digest=self.reader.digest,
        )
        self.health = Health(quiet_steps=max(config.train.warmup_steps, config.train.valid_every))
        self.last_scalars: dict[str, float] = {}

    def restore(self, checkpoint: Path | None) -> None:
        """Sets everything to where `checkpoint` left it, or to the beginning of a run without one."""
        self.neighbours = neighbours_for(self.config, self.reader, self.device)
        if checkpoint is not None:
            restored = self.checkpoints.load(
                checkpoint,
                self.engine,
                manifest_digest=self.reader.digest,
                config=self.config.model_dump(mode="json"),
            )
            self.state = restored.run
            self.neighbours.load_state_dict(restored.neighbours)
            if restored.changed:
                self.news.append(f"{checkpoint.name} was saved with {restored.changed}; going on as now")
        self.loader = Loader(
            self.reader,
            loader_options(self.config),
            rank=rank(),
            world=world_size(),
            workers=self.config.data.workers,
            device=self.device,
            state=self.state.loader,
        )

    def to_the_end(self) -> None:
        """Trains until `train.steps`, a planned stop or a signal; saves there, and exports after the last step.

        A row of bad steps is answered once by going back to the newest checkpoint: what a fault of the machine has
        spoilt is mended by that, and what comes from data or learning rate comes again and then ends the run.
        """
        if rank() == 0:
            self.folder.describe(to_yaml(self.config))
        try:
            self._train()
        except BadStepsInARow as error:
            with self.watchdog.slow("going back to the newest checkpoint"):
                self.saver.finish()
                newest, faults = self.checkpoints.newest_good()
                if newest is None:
                    raise
                self.restore(newest)
            self.news = [*faults, f"{error}. Going back to {newest.name} once; if they come again, the run ends"]
            self._train()

    def _train(self) -> None:
        train = self.config.train
        end = train.stop_after or train.steps
        bad_steps = BadSteps(self.folder.bad_steps, self.reader, limit=train.max_bad_steps)
        step = TrainStep(self.engine, self.config, self.loader, self.neighbours, self.device, bad_steps)
        with (
            MetricsLog(self.folder, steps=end, start=self.state.step, active=rank() == 0) as log,
            _stop_on_signal(log) as stop,
        ):
            for words in (*self.news, self._first_words()):
                log.say(words)
            while self.state.step < end:
                step.run(self.state.step, asked_to_stop=stop.asked)
                self.state = RunState(self.state.step + 1, self.loader.state)
                self.watchdog.step_done()
                log.advance(self.state.step)
                with self.watchdog.slow("rebuilding the index of neighbours"):
                    renewed = self.neighbours.refresh(self.state.step)
                for words in self.neighbours.warnings() if renewed else ():
                    log.say(words)
                at_end = self.state.step == end or step.stop_agreed
                self._look(log, step, at_end=at_end)
                self._save(log, at_end=at_end)
                if step.stop_agreed:
                    log.say(f"stopped by a signal after step {self.state.step}; --resume goes on from there")
                    return
            if self.state.step == train.steps:
                with self.watchdog.slow("exporting the model"):
                    self._export(log)

    def _look(self, log: MetricsLog, step: TrainStep, *, at_end: bool) -> None:
        """Validates and logs when their turn has come."""
        train, done = self.config.train, self.state.step
        scalars: dict[str, float] = {}
        if self.held_out is not None and (done % train.valid_every == 0 or at_end):
            with self.watchdog.slow("validating"):
                scalars = validate(self.objective.model, self.held_out, self.config, self.device)
        if scalars or done % train.log_every == 0 or at_end:
            scalars |= step.meters(done)
            self.last_scalars |= scalars
            log.write(done, scalars)
            for words in self.health.look(done, scalars):
                log.say(words)

    def _save(self, log: MetricsLog, *, at_end: bool) -> None:
        """Begins a checkpoint when its turn has come, and completes one that has been written meanwhile.

        Raises:
            CheckpointError: the last one could not be saved, so that no later one will make up for it.
        """
        turn = self.state.step % self.config.train.save_every == 0 or at_end
        with self.watchdog.slow("saving"):
            outcome = self.saver.finish() if turn else self.saver.poll()
            if outcome is not None:
                log.say(outcome.words)
            if turn:
                self.saver.begin(self.engine, self.neighbours.state_dict(), self.state)
            outcome = self.saver.finish() if at_end else None
        if outcome is not None:
            if not outcome.saved:
                raise CheckpointError(outcome.words)
            log.say(outcome.words)

    def _export(self, log: MetricsLog) -> None:
        """Writes the model on rank 0, where it is not there yet (collective)."""
        if all(all_ranks_agree(self._is_exported())):
            return
        model = self.objective.model
        state = whole_state(model) if self.config.train.zero_stage == 3 else {}
        if rank() != 0:
            return
        if state:  # the trained model holds a share of its parameters, and is called by all ranks together
            model = MMSAModel(self.config.model)
            model.load_state_dict(state)
            model.to(self.device)
        export_model(model, self.config, self.reader, self.folder, self.device, self.last_scalars)
        log.say(f"exported {self.folder.model}")

    def _is_exported(self) -> bool:
        """Whether a model newer than the newest checkpoint is there."""
        model, latest = self.folder.model / "config.json", self.folder.checkpoints / "latest"
        return model.exists() and model.stat().st_mtime >= latest.stat().st_mtime

    def _first_words(self) -> str:
        config = self.config
        parameters = number_of_parameters(self.objective)
        start = f"resuming after step {self.state.step}" if self.state.step else "starting"
        return (
            f"{start}: {self.reader.molecules:,} molecules, {self.loader.steps_per_epoch} steps an epoch of "
            f"{config.data.batch_size}, {parameters / 1e6:.1f} M parameters, {world_size()} ranks, "
            f"ZeRO {config.train.zero_stage}, {config.train.precision}, neighbours "
            f"{config.model.structure.neighbours} → {config.run.dir}"
        )


def _refuse_broken_shards(folder: str, *, verify: bool) -> None:
    """Rank 0 looks for all ranks.

    Raises:
        ShardError: it names what is broken.
    """
    answer: list[Any] = [()]
    if rank() == 0:
        try:
            answer = [verify_folder(folder).faults if verify else size_faults(folder)]
        except ManifestError as error:
            answer = [(str(error),)]
    if is_distributed():
        torch.distributed.broadcast_object_list(answer, src=0)
    if answer[0]:
        more = f" (and {len(answer[0]) - 1} more; mmsa inspect --verify names them)" if len(answer[0]) > 1 else ""
        raise ShardError(f"{answer[0][0]}{more}")


def refuse_what_cannot_learn(model: MMSAModel, config: Config, reader: BlockReader) -> None:
    """Looks whether each encoder gets what it reads, and declares all that it reads.

    Raises:
        ValueError: it names the encoder, and the mend.
    """
    some = reader.read(0)
    all_there = collate(some.slice(0, min(len(some), _LOOKED_AT)), picture_size=config.data.picture_size)
    for name in config.model.encoders:
        encoder, declared = model.encoder(name), all_there
        if "coordinates" not in encoder.reads:
            declared = declared.without_conformers()
        elif not reader.has_conformers:
            others = ", ".join(other for other in config.model.encoders if other != name)
            raise ValueError(
                f"no molecule in {config.shards_dir} has 3D, which {name} among model.encoders learns from; prepare "
                "them with prepare.conformers=etkdg (or given)"
                + (f", or leave it out: model.encoders='[{others}]'" if others else "")
            )
        if "picture" not in encoder.reads:
            declared = declared.without_pictures()
        if not torch.equal(encoder.present(declared), encoder.present(all_there)):
            raise ValueError(
                f"{name} among model.encoders declares to read {', '.join(sorted(encoder.reads))} only, but which "
                f"molecules are present to it depends on more; add that to {type(encoder).__name__}.reads"
            )


def loader_options(config: Config) -> LoaderOptions:
    """What the configuration says about batches."""
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
    """The model that the configuration asks for, with random weights, and what it is to learn from `reader`."""
    scale = descriptor_scale(reader.descriptors_of_some()) if config.loss.descriptor > 0 else None
    return Objective(MMSAModel(config.model), config.loss, scale)


def neighbours_for(config: Config, reader: BlockReader, device: torch.device) -> NeighbourSource:
    """The source of neighbours that the configuration asks for, over the molecules of `reader`."""
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
