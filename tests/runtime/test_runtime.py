"""Files that appear whole, seeds that depend on where a run stands, and what a run folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmsa_dist.runtime.files import sha256_of, write_text_atomically
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.runtime.seeds import derived_seed, seed_step, shared_generator


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_text_atomically(file, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = [derived_seed(*parts) for parts in [("a", 1, 2), ("a", 2, 1), ("b", 1, 2), ("a", 12), ("a", 1, 2, 0)]]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_step_repeats_its_chances_whatever_came_before() -> None:
    def draw(step: int, rank: int) -> list[float]:
        seed_step(7, step, rank)
        return torch.rand(3).tolist()

    first = draw(5, 0)
    draw(6, 0)
    assert draw(5, 0) == first
    assert draw(5, 1) != first
    alike = [torch.randperm(9, generator=shared_generator(7, 5, 0)).tolist() for _ in range(2)]
    assert alike[0] == alike[1]


def test_a_run_folder_explains_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.describe("run: {}\n")
    about = json.loads(folder.environment.read_text())
    assert {"python", "platform", "libraries", "command", "git"} <= about.keys()
    assert about["libraries"]["torch"].startswith("2.")
    assert folder.config.read_text() == "run: {}\n"


def test_shards_are_those_named_or_inside_the_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.shards("") == str(tmp_path / "run" / "shards")
    assert folder.shards("/data/shards") == "/data/shards"
    assert folder.shards("s3://bucket/shards") == "s3://bucket/shards"
    (tmp_path / "run" / "shards").mkdir(parents=True)
    assert folder.shards(str(tmp_path)) == str(tmp_path)
    assert folder.shards("/former/run/shards") == str(tmp_path / "run" / "shards")  # moved with the run
    assert folder.shards("s3://bucket/shards") == "s3://bucket/shards"


def test_the_manifest_of_a_run_is_that_of_its_newest_checkpoint_or_of_its_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.manifest_digest is None

    (tmp_path / "model").mkdir()
    for content in ("[]", "no", "{}", '{"training": {"data": {}}}'):
        (tmp_path / "model" / "config.json").write_text(content)
        assert folder.manifest_digest is None
    (tmp_path / "model" / "config.json").write_text('{"training": {"data": {"manifest": "aa"}}}')
    assert folder.manifest_digest == "aa"

    for step, digest in ((9, "bb"), (10, "cc")):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step}" / "run.json").write_text(json.dumps({"manifest": digest}))
    (tmp_path / "checkpoints" / "latest").write_text("step_10\n")
    assert folder.manifest_digest == "cc"
    (tmp_path / "checkpoints" / "step_10" / "run.json").unlink()
    assert folder.manifest_digest == "aa", "which checkpoint is newest is unknown"
