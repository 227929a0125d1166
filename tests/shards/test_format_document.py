"""The example of docs/block_format.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "block_format.md"


def test_the_example_reads_a_shard(tiny_shards, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    monkeypatch.chdir(tiny_shards.parent)
    names: dict[str, object] = {}
    exec(example, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "M-CO CO (2, 3)"
    assert len(lines) == 20 - 4, "one block of five has no 3D"
    xyz = names["xyz"]
    assert isinstance(xyz, np.ndarray)
    # The last of the shard is butylbenzene: its first two atoms are bonded carbons.
    assert 1.45 < np.linalg.norm(xyz[1] - xyz[0]) < 1.6
    drawing = names["drawing"]
    assert isinstance(drawing, np.ndarray)
    assert 1.4 < np.linalg.norm(drawing[1] - drawing[0]) < 1.6
