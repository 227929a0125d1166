"""What is read of a run folder, and what is said of damaged parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest

from mmsa_dist.config.load import load_config, to_yaml
from mmsa_dist.config.recorded import as_recorded
from mmsa_dist.report.record import Series, read_metrics, read_record
from mmsa_shards.manifest import Ledger, Manifest


def test_metrics_of_a_run_that_is_still_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "a": 1, "b": null, "c": NaN}\n{"step": 4, "a": 3}\n\n{"step": 4, "a": 2.5}\n{"step": 6, "a"'
    )
    assert read_metrics(path) == {"a": Series((2, 4), (1.0, 2.5))}


@pytest.mark.parametrize("line", ["{", "[]", '{"a": 1}', '{"step": "x"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not a JSON object with a step"):
        read_metrics(path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"summaries": [{"task": "t"}]}', '{"summaries": 1}', '"text"', '{"summaries": [null]}']
)
def test_results_of_another_kind_are_named(tmp_path, content):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text(content)
    assert read_record(tmp_path).faults == {"evaluation": "results.json is not what `mmsa evaluate` writes"}


def test_a_whole_run(run):
    record = read_record(run)
    assert record.faults == {}
    assert record.steps == 60
    assert record.last("train/loss") == 2
    assert record.last("memory/g_cosine") is None
    assert record.manifest.ledger.written == len(record.embeddings.ids) == 55
    assert record.model.digest == record.embeddings.summary.origin.model


def trained(root: Path, shards: Path, *settings: str) -> Path:
    """A run folder after its first checkpoint, with what tells where its shards are and which they were."""
    (root / "checkpoints" / "step_5").mkdir(parents=True)
    (root / "checkpoints" / "step_5" / "run.json").write_text(json.dumps({"manifest": Manifest.load(shards).digest}))
    (root / "checkpoints" / "latest").write_text("step_5\n")
    (root / "config.yaml").write_text(to_yaml(as_recorded(load_config(None, settings))))
    return root


def other_shards(folder: Path) -> Manifest:
    folder.mkdir(parents=True)
    Manifest(shards=(), ledger=Ledger(read=7, rejected=7)).save(folder)
    return Manifest.load(folder)


def test_other_shards_of_that_name_in_the_current_folder_are_not_taken(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_shards.parent)
    run = trained(tmp_path / "run", tiny_shards, "data.shards=shards", "run.dir=run")
    other_shards(tmp_path / "elsewhere" / "shards")
    monkeypatch.chdir(tmp_path / "elsewhere")
    record = read_record(run)
    assert record.shards == str(tiny_shards)
    assert record.manifest.ledger.written == record.molecules.molecules == 55
    assert record.faults == {}


def test_shards_inside_a_run_folder_are_found_wherever_it_is(make_tiny_shards, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    run = trained(tmp_path / "run", make_tiny_shards(tmp_path / "run"), "run.dir=runs/mine")
    other_shards(tmp_path / "runs" / "mine" / "shards")
    monkeypatch.chdir(tmp_path)
    assert read_record(run).manifest.ledger.written == 55
    record = read_record(run.rename(tmp_path / "moved"))
    assert (record.manifest.ledger.written, record.faults) == (55, {})


def test_shards_at_a_url_are_not_read_unless_they_are_on_this_machine(tiny_shards, tmp_path):
    record = read_record(trained(tmp_path / "run", tiny_shards, f"data.shards=file://{tiny_shards}"))
    assert (record.molecules.molecules_read, record.faults) == (55, {})

    run = trained(tmp_path / "remote", tiny_shards, "data.shards=memory://bucket/shards")
    with fsspec.open("memory://bucket/shards/manifest.json", "wb") as file:
        file.write((tiny_shards / "manifest.json").read_bytes())
    record = read_record(run)
    assert record.manifest is None
    assert record.faults == {
        "preparation": "memory://bucket/shards is a URL, and a report reads local shards only; see `mmsa inspect "
        "memory://bucket/shards`"
    }


def test_nothing_is_taken_from_shards_that_are_not_those_of_the_run(tiny_shards, tmp_path):
    run = trained(tmp_path / "run", tiny_shards, f"data.shards={tiny_shards}")
    was = Manifest.load(tiny_shards).digest
    shutil.rmtree(tiny_shards)
    now = other_shards(tiny_shards).digest
    record = read_record(run)
    assert (record.manifest, record.molecules, record.sheet) == (None, None, None)
    assert record.faults == {
        "preparation": f"{tiny_shards} does not hold the run's shards: its manifest has the digest {now[:12]}, the "
        f"training used {was[:12]}; set data.shards in {run / 'config.yaml'} to the folder where they are"
    }
    shutil.rmtree(tiny_shards)
    assert read_record(run).faults == {
        "preparation": f"data.shards of {run / 'config.yaml'}: no manifest.json in {tiny_shards}: name a folder that "
        "`mmsa prepare` has finished"
    }
