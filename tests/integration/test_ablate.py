"""An ablation as a person runs it: two arms, one table, and nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARMS = """
cumulative: true
arms:
  2D+3D: {model.encoders: [gin, comenet], loss.memory: 0.0, model.structure.neighbours: none, embed.view: unified}
  + memory: {loss.memory: 0.5, embed.view: structure}
"""


FEW = ("finetune.epochs=1", "finetune.batch_size=8")


def ablate(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "kernels", "shards"))
    command = [
        *(sys.executable, "-m", "mmsa_dist", "ablate", "--arms", folder / "arms.yaml", "--out", folder / "out"),
        *("--config", ROOT / "tests/fixtures/mini.yaml", "train.steps=3"),
        *("--csv", folder / "acids.csv", "--label-columns", "acid", "--split", "random", "--seeds", 2, *words),
    ]
    environment = {**os.environ, "PYTHONPATH": rooms, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.distributed
def test_two_arms(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text(ARMS)
    chains = ["C" * n + end for n in range(1, 16) for end in ("O", "C(=O)O")]
    (tmp_path / "acids.csv").write_text("smiles,acid\n" + "".join(f"{s},{int('=' in s)}\n" for s in chains))
    shards = f"data.shards={tiny_shards}"

    first = ablate(tmp_path, shards, *FEW)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 of 2: 2D+3D" in first.stdout
    about = json.loads((tmp_path / "out/results.json").read_text())
    lines = [line["features"] for line in about["summaries"]]
    assert lines == ["GIN, 2D+3D", "GIN, + memory", "GIN, no pre-training", "ECFP4", "none"]
    assert about["budget"] == {"shards": str(tiny_shards), "steps": 3, "batch_size": 8, "seed": 0}
    assert about["arms"]["+ memory"]["settings"]["loss.memory"] == 0.5
    assert [arm["ranks"] for arm in about["arms"].values()] == [1, 1]
    assert "- arm + memory: `model.encoders=" in (tmp_path / "out/results.md").read_text()
    assert len(set(about["models"].values())) == 2
    losses = {
        arm: {
            name
            for line in (tmp_path / "out" / arm / "metrics.jsonl").read_text().splitlines()
            for name in json.loads(line)
            if name.startswith("train/") and name.endswith("_loss")
        }
        for arm in ("2d-3d", "memory")
    }
    assert losses["memory"] - losses["2d-3d"] == {"train/memory_loss"}

    again = ablate(tmp_path, shards, *FEW)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 2: 2D+3D is already trained" in again.stdout
    assert json.loads((tmp_path / "out/results.json").read_text()) == about

    probe = ablate(tmp_path, shards, "--protocol", "probe", "--seeds", 1)
    assert probe.returncode == 0, probe.stdout + probe.stderr
    about = json.loads((tmp_path / "out/results.json").read_text())
    assert list(dict.fromkeys(line["features"] for line in about["summaries"])) == [
        *("MMSA, 2D+3D (unified)", "MMSA, + memory (structure)", "MMSA, no pre-training (unified)", "ECFP4", "none"),
    ]

    unknown = ablate(tmp_path, shards, "--split", "hu", "--out", tmp_path / "elsewhere")
    assert unknown.returncode == 2
    assert "the split 'hu' is neither one of" in unknown.stderr
    assert not (tmp_path / "elsewhere").exists(), "nothing was trained"

    late = tmp_path / "late"
    late.mkdir()
    (late / "acids.csv").write_bytes((tmp_path / "acids.csv").read_bytes())
    (late / "arms.yaml").write_text("cumulative: false\narms:\n  blind: {model.encoders: [comenet]}\n")
    blind = ablate(late, shards)
    assert blind.returncode == 2
    assert "the model 'blind' has no encoder 'gin'" in blind.stderr
    assert not (late / "out").exists(), "nothing was trained"

    other = ablate(tmp_path, shards, "train.lr=1e-4")
    assert other.returncode == 2
    assert "holds an arm '2D+3D' with train.lr=0.001, now 0.0001; choose another --out, or" in other.stderr
    unused = ablate(tmp_path, shards, "--protocol", "probe", "finetune.epochs=1", "run.dir=x")
    assert unused.returncode == 2
    assert "mmsa ablate --protocol probe does not use finetune.epochs=1, run.dir=x: each arm has its" in unused.stderr
    refused = ablate(tmp_path)
    assert refused.returncode == 2
    assert "set data.shards=FOLDER" in refused.stderr
