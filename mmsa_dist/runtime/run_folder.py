"""The folder of a run: its paths, and the files that document the run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmsa_dist.runtime.distributed import world_size
from mmsa_dist.runtime.files import write_text_atomically

_LIBRARIES = (
    "mmsa-dist",
    "torch",
    "torch-geometric",
    "deepspeed",
    "ray",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "triton",
    "rdkit",
    "scikit-learn",
    "numpy",
    "pyarrow",
    "webdataset",
)
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""Errors of JSON that is missing, damaged, or of another kind."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Libraries, machine, command line and git state, JSON."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folders ``step_N`` and the file ``latest``."""
        return self.root / "checkpoints"

    @property
    def bad_steps(self) -> Path:
        """Lists of the molecules in non-finite steps; absent if there were none."""
        return self.root / "bad_steps"

    @property
    def model(self) -> Path:
        """The exported model, readable by `mmsa_dist.embed.Embedder.from_pretrained`."""
        return self.root / "model"

    @property
    def embeddings(self) -> Path:
        """Parquet parts with vectors."""
        return self.root / "embeddings"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    def shards(self, named: str) -> str:
        """Returns the folder or URL of the run's shards.

        Args:
            named: `data.shards` of its configuration; empty for those inside the run folder. These are meant too, if
                there are some and the named ones are gone: the run was moved with them.
        """
        inside = self.root / "shards"
        gone = "://" not in named and "::" not in named and not Path(named).exists()
        return str(inside) if not named or (gone and inside.is_dir()) else named

    @property
    def manifest_digest(self) -> str | None:
        """Digest of the manifest that the run trains on, by its newest checkpoint or its model; None if unknown."""
        digest: str | None = None
        with suppress(*_UNREADABLE):
            digest = json.loads((self.model / "config.json").read_text())["training"]["data"]["manifest"]
        with suppress(*_UNREADABLE):
            newest = (self.checkpoints / "latest").read_text().strip()
            digest = json.loads((self.checkpoints / newest / "run.json").read_text())["manifest"]
        return digest

    def describe(self, config_yaml: str) -> None:
        """Writes the configuration, and the environment and number of ranks of this start of the run."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.config, config_yaml)
        write_text_atomically(self.environment, json.dumps(environment() | {"ranks": world_size()}, indent=2) + "\n")


def environment() -> dict[str, object]:
    """Returns versions, machine, command line and git state of this process."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "command": sys.argv,
        "git": git_state(),
    }


def git_state() -> dict[str, str | bool]:
    """Returns the revision of this package's checkout and whether it has uncommitted changes; {} if there is none."""
    git = shutil.which("git")
    here = Path(__file__).parent
    if git is None:
        return {}

    def output(*words: str) -> str:
        return subprocess.run([git, "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"revision": output("rev-parse", "HEAD"), "changed": bool(output("status", "--porcelain", "-uno"))}
    except subprocess.CalledProcessError:
        return {}
