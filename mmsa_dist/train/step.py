"""One optimizer step: micro-batches in, one update out, and its meters.

B molecules in a micro-batch, C width of u, D width of g.
"""

from __future__ import annotations

import time
from collections import defaultdict

import psutil
import torch
from torch import Tensor

from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import Loader
from mmsa_dist.objective import ObjectiveOutput
from mmsa_dist.runtime.distributed import all_ranks_agree, all_reduce_mean, average_statistics, rank
from mmsa_dist.runtime.seeds import seed_step, shared_generator
from mmsa_dist.structure.sources import NeighbourSource
from mmsa_dist.train.bad_steps import BadSteps
from mmsa_dist.train.engine import (
    Engine,
    discard_gradients,
    gradients_are_finite,
    learning_rate,
    set_learning_rate,
    whole,
)


class TrainStep:
    """Makes optimizer steps, and collects their meters between two lines of the log.

    Args:
        engine: DeepSpeed's engine around the objective.
        config: configuration of the run.
        loader: gives the micro-batches of this rank.
        neighbours: source of neighbours; it observes the unified embeddings of each step.
        device: device of this rank.
        bad_steps: counts the steps that are skipped.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        loader: Loader,
        neighbours: NeighbourSource,
        device: torch.device,
        bad_steps: BadSteps,
    ) -> None:
        self._engine = engine
        self._config = config
        self._loader = loader
        self._neighbours = neighbours
        self._device = device
        self._bad_steps = bad_steps
        self._last: ObjectiveOutput | None = None
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self._micro_batches = 0
        self._steps = 0
        self._wait_s = 0.0
        self._busy_s = 0.0
        engine.train()  # once: walking through all modules takes the host half a millisecond

    def run(self, step: int, *, asked_to_stop: bool) -> bool:
        """Makes optimizer step `step` (collective).

        If a loss or gradient is not finite on any rank, all ranks skip the step: no parameter, moment, running
        statistic or row of the bank changes, and the ranks on which it was not finite list the molecules.

        Args:
            step: number of the step, from 0.
            asked_to_stop: whether this rank was asked to stop; all ranks learn of it.

        Returns:
            Whether some rank was asked to stop; the same on all ranks.

        Raises:
            BadStepsInARow: `train.max_bad_steps` in a row were skipped.
        """
        begin = time.perf_counter()
        train = self._config.train
        seed = self._config.run.seed
        seed_step(seed, step, rank())
        set_learning_rate(self._engine, learning_rate(self._config, step))
        outputs = []
        buffers = [buffer.clone() for buffer in self._engine.module.buffers()]
        good, stop = True, False
        for micro in range(train.accumulate):
            batch = self._next_batch()
            self._engine.set_gradient_accumulation_boundary(micro == train.accumulate - 1)
            output: ObjectiveOutput = self._engine(batch, self._neighbours, shared_generator(seed, step, micro))
            own_finite = bool(torch.isfinite(output.total))
            if not own_finite:
                self._bad_steps.list_molecules(step, batch.index_B, output.losses)
            finite, go_on = all_ranks_agree(own_finite, not asked_to_stop)
            good, stop = good and finite, stop or not go_on
            if good:
                self._engine.backward(output.total)
                self._look_ahead(last=micro == train.accumulate - 1 and step + 1 == (train.stop_after or train.steps))
                outputs.append((batch.index_B, output))
        if good and not gradients_are_finite(self._engine):
            good = False
            for index_B, output in outputs:  # gradients are averaged over ranks, so the cause may be on any of them
                self._bad_steps.list_molecules(step, index_B, output.losses)
        if good:
            self._engine.step()
            for index_B, output in outputs:
                fusion = output.model.fusion
                known_B = index_B.where(fusion.has_any_B, -1)
                self._neighbours.observe(known_B, fusion.unified_BC.detach(), step)
            self._bad_steps.good()
        else:
            discard_gradients(self._engine)
            for buffer, before in zip(self._engine.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
            outputs = []
        average_statistics(self._engine.module)
        self._steps += 1
        for _, output in outputs:
            self._count(output)
        self._busy_s += time.perf_counter() - begin
        if not good:
            self._bad_steps.bad(step)
        return stop

    def meters(self, step: int) -> dict[str, float]:
        """Returns the scalars since the last call by name, averaged over steps and ranks (collective).

        Args:
            step: number of steps done, for the learning rate.
        """
        scalars = {
            name: float(all_reduce_mean(value / max(self._micro_batches, 1))) for name, value in self._sums.items()
        }
        if self._last is not None:
            structure, present_B = self._last.model.structure, self._last.model.fusion.has_any_B
            memory = self._engine.module.model.structure.memory
            with whole(memory.parameters()):
                scalars |= memory.meters(structure.g_BD, structure.lse_B, present_B)
        scalars |= self._neighbours.meters()
        scalars |= {
            "train/lr": learning_rate(self._config, step - 1),
            "train/skipped_steps": float(self._bad_steps.total),
            "molecules_per_s": self._steps * self._config.data.batch_size / max(self._busy_s, 1e-9),
            "data_wait_s": self._wait_s / max(self._steps, 1),
            "memory/rss_mb": psutil.Process().memory_info().rss / 2**20,
            "memory/open_files": float(psutil.Process().num_fds()),
        }
        if self._device.type == "cuda":
            scalars["memory/gpu_peak_mb"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        self._sums.clear()
        self._micro_batches = self._steps = 0
        self._wait_s = self._busy_s = 0.0
        return scalars

    def _next_batch(self) -> MoleculeBatch:
        begin = time.perf_counter()
        batch = next(self._loader)
        self._wait_s += time.perf_counter() - begin
        return batch

    def _look_ahead(self, *, last: bool) -> None:
        """Sends the next batch to a GPU during its backward pass; a CPU has nothing to overlap."""
        if self._device.type == "cuda" and not last:
            begin = time.perf_counter()
            self._loader.look_ahead()
            self._wait_s += time.perf_counter() - begin

    def _count(self, output: ObjectiveOutput) -> None:
        self._last = output
        self._micro_batches += 1
        self._sums["train/loss"] += output.total.detach()
        for name, value in output.losses.items():
            self._sums[f"train/{name}_loss"] += value
