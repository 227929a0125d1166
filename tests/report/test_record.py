"""What is read of a run folder, and what is said of damaged parts."""

from __future__ import annotations

import pytest

from mmsa_dist.report.record import Series, read_metrics, read_record


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
