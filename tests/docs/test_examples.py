"""The examples of the documentation, run as they stand: the fences of a page in order, in one folder.

A fence with a title is a file; `python` and `sh` run; a comment ``<!-- not run: reason -->`` above a fence keeps it
from being run. Where a page speaks of a trained model, of shards or of tensors, small ones stand ready.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.embedders import random_embedder
from tests.fixtures.examples import PAGES, ROOT, examples

RUN_ELSEWHERE = {"docs/block_format.md": "tests/shards/test_format_document.py"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the reader of a page stands: a folder of their own, the package installed."""
    paths = [str(tmp_path), str(ROOT), str(ROOT / "kernels"), str(ROOT / "shards")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: Path, folder: Path, *, before: str = "") -> str:
    """Runs a page after `before` and returns what it printed; its Python fences share their names, as in a notebook."""
    script: list[str] = ["import subprocess", before]
    for example in examples(page):
        if example.title:
            (folder / example.title).write_text(example.text)
        elif example.reason:
            continue
        elif example.language == "sh":
            script.append(f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {example.text!r}], check=True)")
        elif example.language == "python":
            script.append(example.text)
        else:
            pytest.fail(f"{page.name} has a fence of {example.language} that is neither run nor a file")
    (folder / "page.py").write_text("\n".join(script))
    done = subprocess.run([sys.executable, "-u", "page.py"], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_no_page_is_forgotten():
    asked = {str(p.relative_to(ROOT)) for p in PAGES if any(e.reason is None for e in examples(p))}
    here = {
        "README.md",
        "kernels/README.md",
        *(f"docs/howto/{name}.md" for name in ("cluster", "encoder", "molecules")),
    }
    assert asked == here | set(RUN_ELSEWHERE)
    reasons = " ".join(example.reason or "" for page in PAGES for example in examples(page))
    named = [*RUN_ELSEWHERE.values(), *re.findall(r"tests/[\w/]+\.py", reasons)]
    assert [test for test in named if not (ROOT / test).exists()] == []


def test_the_readme(folder):
    random_embedder().save_pretrained(folder / "runs/quickstart/model")
    after = "import atexit; atexit.register(lambda: print(vectors.shape, [bad.row for bad in embedder.report_]))"
    assert run(ROOT / "README.md", folder, before=after) == "(2, 16) [1]\n"


def test_the_operator(folder):
    tensors = """
import torch
B, N, V, D = 4, 4, 5, 8
num_vertices = N + V
neighbours_BK, nearness_BK = torch.randint(num_vertices, (B, 3)), torch.rand(B, 3)
x_ND, bank_VD, anchors_SD = torch.randn(N, D), torch.randn(V, D), torch.randn(6, D)
"""
    run(ROOT / "kernels/README.md", folder, before=tensors)


def test_your_own_molecules(folder):
    pytest.importorskip("faiss")
    random_embedder().save_pretrained(folder / "runs/quickstart/model")
    out = run(ROOT / "docs/howto/molecules.md", folder)
    assert "(3, 16)\n1 not a molecule syntax" in out
    assert "(2, 16) [ 1.1 -3.8]" in out, "the labels of the rows that stayed"
    assert "{'id': 'none', 'smiles': 'not a molecule', 'ok': False, 'reason': 'syntax'}" in out


def test_your_own_encoder(folder, tiny_shards, monkeypatch):
    pytest.importorskip("deepspeed")
    assert tiny_shards == folder / "shards"
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    out = run(ROOT / "docs/howto/encoder.md", folder)
    assert "(2, 32)" in out


def test_a_cluster(folder):
    out = run(ROOT / "docs/howto/cluster.md", folder)
    assert "train:\n" in out
    assert "  steps: " in out
