"""Preparation the way clusters start it: as a submitted Ray job, by the Slurm script, by the RayJob."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from mmsa_dist.config.load import load_config
from mmsa_shards.manifest import Manifest

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in (".", "kernels", "shards")),
    # A cluster asks for a token; all who speak with it here have this one.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
SETTINGS = ["prepare.conformers=none", "prepare.shards=2", "prepare.val_fraction=0"]


@pytest.fixture
def molecules(tmp_path: Path) -> Path:
    folder = tmp_path / "molecules"
    folder.mkdir()
    (folder / "a.smi").write_text("\n".join(f"{'C' * n}O m{n}" for n in range(1, 40)))
    (folder / "b.csv").write_text("smiles,id\nCCN,ethylamine\nc1cccc1,bad\n")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def head(tmp_path: Path, dashboard: int) -> Iterator[None]:
    """A Ray head of its own, as an administrator starts one."""
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=100000000"]
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_a_submitted_job(molecules: Path, tmp_path: Path) -> None:
    port = free_port()
    words = [molecules, "--out", tmp_path / "shards", *SETTINGS]
    submit = [BIN / "ray", "job", "submit", f"--address=http://127.0.0.1:{port}", "--"]
    with head(tmp_path, port):
        for _ in range(60):
            done = subprocess.run(
                [*submit, sys.executable, LAUNCH / "prepare.py", *map(str, words)],
                env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240,
            )  # fmt: skip
            if "Failed to connect" not in done.stderr and "Max retries" not in done.stderr:
                break
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "head.log").read_text()
    assert "41  records read" in done.stdout
    assert Manifest.load(tmp_path / "shards").ledger.written == 40


@pytest.mark.slow
def test_the_slurm_script(molecules: Path, tmp_path: Path) -> None:
    """Run as Slurm runs it, on one node whose `srun` starts what it is given right here."""
    script = (LAUNCH / "slurm" / "prepare.sbatch").read_text()
    first, middle, last = script.index("prepare=("), script.index(")\n", script.index("prepare=(")), len(script)
    words = shlex.join(map(str, ["mmsa", "prepare", molecules, "--out", tmp_path / "shards", *SETTINGS]))
    edited = f"{script[:first]}prepare=({words}{script[middle:last]}".replace("source .venv/bin/activate\n", "")
    (tmp_path / "prepare.sbatch").write_text(edited)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    shims = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
        "scontrol": "echo node-1\n",
        "mmsa": f'exec {sys.executable} -c "from mmsa_dist.cli import main; main()" "$@"\n',
    }
    for name, body in shims.items():
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (bin_folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "2"}
    environment = {**ENVIRONMENT, **slurm, "SLURM_JOB_NUM_NODES": "1", "PATH": f"{bin_folder}:{ENVIRONMENT['PATH']}"}
    done = subprocess.run(
        ["bash", tmp_path / "prepare.sbatch"], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Manifest.load(tmp_path / "shards").ledger.written == 40


def test_the_rayjob_says_what_the_command_line_understands() -> None:
    text = (LAUNCH / "ray" / "rayjob.yaml").read_text()
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command, verb, *words = shlex.split(job["spec"]["entrypoint"])
    assert (command, verb) == ("mmsa", "prepare")
    load_config(None, [word for word in words if "=" in word])
    (extras,) = re.findall(r"'mmsa-dist\[(.*)\]'", text)
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = " ".join(package for extra in extras.split(",") for package in brought[extra])
    assert [name in packages for name in ("ray[", "s3fs", "gcsfs")] == [True] * 3, "it speaks of s3:// and gs://"
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data"}


@pytest.mark.parametrize("path", ["ray/rayjob.yaml", "slurm/prepare.sbatch"])
def test_the_two_places_to_edit_are_marked(path: str) -> None:
    text = (LAUNCH / path).read_text()
    assert [text.count(f"EDIT {n} of 2") for n in (1, 2, 3)] == [1, 1, 0]


@pytest.mark.parametrize("name", ["prepare", "pretrain"])
def test_every_srun_is_told_the_cores_of_a_task(name: str, tmp_path: Path) -> None:
    """It does not read them from the job itself since Slurm 22.05."""
    script = (LAUNCH / "slurm" / f"{name}.sbatch").read_text().replace("source .venv/bin/activate\n", "")
    shims = {
        "srun": f'echo ${{SRUN_CPUS_PER_TASK-none}} >>{tmp_path}/seen\n[[ "$*" != *"ray start"* ]] || exec sleep 60\n',
        "scontrol": "echo node-1\n",
        "ray": "",
    }
    for shim, body in shims.items():
        (tmp_path / shim).write_text(f"#!/usr/bin/env bash\n{body}")
        (tmp_path / shim).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-1", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"}
    environment = {**ENVIRONMENT, **slurm, "SLURM_JOB_NUM_NODES": "1", "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    done = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set((tmp_path / "seen").read_text().split()) == {"12"}


@pytest.mark.parametrize("name", ["prepare", "pretrain"])
def test_the_slurm_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / "slurm" / f"{name}.sbatch"], check=True)
