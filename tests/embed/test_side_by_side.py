"""Parts of an export in Ray: the bytes of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmsa_dist.embed import Embedder, ExportError, export_embeddings, read_embeddings
from mmsa_dist.embed.part import make_part
from tests.fixtures.embedders import DRUGS, random_embedder
from tests.fixtures.local_ray import started_ray

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def ray():
    with started_ray():
        yield


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder(batch_size=4)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 rows, two of them no molecules."""
    path = tmp_path_factory.mktemp("molecules") / "drugs.smi"
    path.write_text("".join(f"{smiles} D{n}\n" for n, smiles in enumerate([*DRUGS * 3, "junk", "c1ccc", *DRUGS[:3]])))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_two_workers_write_the_bytes_of_one_process(
    embedder: Embedder, molecules: Path, tiny_shards: Path, tmp_path: Path, kind: str
) -> None:
    source = molecules if kind == "file" else tiny_shards
    seen: list[tuple[int, int | None]] = []
    alone = export_embeddings(embedder, source, tmp_path / "alone" / "out", rows_per_part=5, format="npy")
    together = export_embeddings(
        embedder, source, tmp_path / "2" / "out", rows_per_part=5, format="npy", parallel=2,
        progress=lambda *at: seen.append(at),
    )  # fmt: skip
    assert contents(tmp_path / "2" / "out") == contents(tmp_path / "alone" / "out")
    assert (together.rows, together.reasons) == (alone.rows, alone.reasons)
    assert seen[-1] == (alone.rows, alone.rows)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_holes_are_filled_and_a_lost_worker_is_replaced(
    embedder: Embedder, molecules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_embeddings(embedder, molecules, tmp_path / "alone" / "out", rows_per_part=5)
    whole = contents(tmp_path / "alone" / "out")
    out = tmp_path / "2" / "out"
    export_embeddings(embedder, molecules, out, rows_per_part=5, parallel=2)
    for number in (1, 4):
        (out / f"part-{number:05d}.parquet").unlink()
    monkeypatch.setattr("mmsa_dist.embed.side_by_side.make_part", dying)
    summary = export_embeddings(embedder, molecules, out, rows_per_part=5, parallel=2)
    assert (summary.parts, summary.reused_parts) == (8, 6)
    del whole["_export.json"]
    assert whole.items() <= contents(out).items()


def dying(embedder: Embedder, origin: object, url: str, number: int, piece: object) -> object:
    marker = Path(url).parent / f"died-{number}"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return make_part(embedder, origin, url, number, piece)


def test_an_error_of_a_part_is_told(molecules: Path, tmp_path: Path) -> None:
    large = random_embedder(batch_size=4)
    for parameter in large.pretrained.model.structure.theta.parameters():
        parameter.mul_(1e6)
    with pytest.raises(ExportError, match="too large for float16"):
        export_embeddings(large, molecules, tmp_path / "out", rows_per_part=5, parallel=2)


def test_a_folder_that_workers_do_not_share_is_said(embedder: Embedder, molecules: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"lacks part-0000\d\.parquet.*every process of Ray sees"):
        export_embeddings(embedder, molecules, f"memory://{tmp_path.name}/out", rows_per_part=20, parallel=2)


COMMAND = """
import sys
from mmsa_dist.embed import export_embeddings
from tests.fixtures.embedders import random_embedder
export_embeddings(random_embedder(batch_size=4), sys.argv[1], sys.argv[2], rows_per_part=5, parallel=2)
"""


def test_a_killed_run_goes_on(embedder: Embedder, tmp_path: Path) -> None:
    many = tmp_path / "many.smi"
    many.write_text("".join(f"{smiles} D{n}\n" for n, smiles in enumerate(DRUGS * 30)))
    out = tmp_path / "out"
    run = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(many), str(out)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while len(list(out.glob("part-*.parquet"))) < 3:
            assert run.poll() is None, "it was over too soon"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    time.sleep(1)  # its workers notice
    written = {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}
    assert len(written) >= 3
    finished = export_embeddings(embedder, many, out, rows_per_part=5, parallel=2)
    assert finished.parts == 66
    assert finished.reused_parts >= 3
    assert written.items() <= contents(out).items()
    vectors = read_embeddings(out).vectors
    np.testing.assert_allclose(vectors, np.tile(embedder.transform(DRUGS), (30, 1)), atol=1e-3, rtol=1e-3)
