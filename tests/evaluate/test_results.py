"""Tables, means, notes and files of results."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mmsa_dist.evaluate import Results, Score, evaluate, make_split
from mmsa_dist.evaluate.results import score_from_plain
from mmsa_dist.evaluate.splits import PARTS, Split
from tests.fixtures.labelled import TOLD, as_classification, some_of_freesolv


def score(task: str, features: str, value: float, seed: int = 0, **others) -> Score:
    given = {
        "task": task, "split": "random", "split_source": None, "split_digest": "d", "seed": seed,
        "features": features, "model": "m",
        "metric": "roc_auc", "value": value, "valid": value + 0.1, "labels_scored": 1, "labels": 1,
        "test_molecules": 3, "missing": 0, "seconds": 1.0,
    }  # fmt: skip
    return Score(**{**given, **others})


def test_means_over_tasks_by_hand():
    results = Results((
        score("a", "x", 0.6, 0), score("a", "x", 0.8, 1), score("a", "y", 0.75),
        score("b", "x", 0.5, 0), score("b", "x", 0.5, 1), score("b", "y", 0.4),
        score("c", "x", math.nan, 0), score("c", "x", math.nan, 1), score("c", "y", math.nan),
        score("r", "x", 1.0, 0, metric="rmse"), score("r", "y", 2.0, 0, metric="rmse"),
    ))  # fmt: skip
    x, y = results.means()
    assert (x.features, x.tasks, x.mean, x.best) == ("x", ("a", "b"), pytest.approx(0.6), True)
    assert x.spread == pytest.approx(np.std([0.55, 0.65], ddof=1))
    assert (y.mean, y.spread, y.best) == (pytest.approx(0.575), None, False)
    assert x.valid == pytest.approx(0.7)
    classification, regression = results.tables()
    assert classification.columns == ("a", "b", "c", "mean of 2")
    assert [cell.text for cell in classification.rows[0].cells] == [
        "70.0 ± 14.1", "50.0 ± 0.0", "not defined", "60.0 ± 7.1",
    ]  # fmt: skip
    assert [cell.best for cell in classification.rows[1].cells] == [True, False, False, False]
    assert regression.columns == ("r",)
    assert [row.cells[0].text for row in regression.rows] == ["1.000", "2.000"]
    assert [row.cells[0].best for row in regression.rows] == [True, False]


def test_a_label_of_one_class_in_training_is_left_out(tmp_path):
    data = as_classification(some_of_freesolv())
    split = make_split(data, "random", 0)
    labels = data.labels.copy()
    labels[split.train, 0] = 1.0
    linear = evaluate(TOLD, [replace(data, labels=labels)], out=tmp_path, split="random", seeds=(0,)).scores[0]
    assert (linear.labels_scored, linear.labels) == (1, 3)


def test_markdown():
    text = Results((score("a", "x", 0.6), score("a", "y", 0.7)), warnings=("beware",)).to_markdown()
    assert text == (
        "ROC-AUC, %, higher is better; random split\n\n"
        "| features | model | a |\n|---|---|---:|\n| x | m | 60.0 |\n| y | m | **70.0** |\n\n- beware\n"
    )


def test_what_a_reader_must_know(tmp_path):
    data = replace(as_classification(some_of_freesolv()), dropped=((4, "c1"), (9, "?")))
    ones = replace(data, task=replace(data.task, name="ones"), labels=np.ones_like(data.labels), dropped=())
    notes = evaluate(TOLD, [data, ones], out=tmp_path, split="random", seeds=(0,)).notes()
    assert notes == [
        "two: 2 of 202 rows do not parse and are left out (record 5, 10)",
        "two, seed 0: 1 of 3 labels have one class among the validation molecules, and have no validation value",
        "ones, seed 0: 3 of 3 labels have one class among the validation molecules, and have no validation value",
        "ones: no label has both classes among the training and the test molecules; it enters no mean",
        "two: 2 of 3 labels have both classes among the training and the test molecules; the others are left out of "
        "the mean",
    ]
    missing = Results((score("a", "x", 0.5, missing=3),))
    assert missing.notes() == ["a: x sees nothing of 3 molecules, which are given the mean"]


def test_results_are_written_with_their_splits(tmp_path):
    data = some_of_freesolv()
    results = evaluate(TOLD, [data], out=tmp_path, split="random", seeds=(0, 1), about={"protocol": "told"})
    about = json.loads((tmp_path / "results.json").read_text())
    assert about["protocol"] == "told"
    again = [score_from_plain({k: v for k, v in given.items() if k != "split_file"}) for given in about["scores"]]
    assert tuple(again) == results.scores
    assert len(again) == 4
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = [(line["features"], int(line["seed"]), float(line["value"])) for line in csv.DictReader(file)]
    assert lines == [(given.features, given.seed, given.value) for given in results.scores]
    for given in about["scores"]:
        split = json.loads((tmp_path / "splits" / given["split_file"]).read_text())
        parts = Split(split["split"], split["seed"], *(np.array(split[part]) for part in PARTS))
        assert split["digest"] == given["split_digest"] == parts.digest
        assert split["seed"] == given["seed"]


def test_undefined_metrics_are_null(tmp_path):
    Results((score("t", "f", math.nan),)).write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["scores"][0]["value"] is None
    assert "not defined" in (tmp_path / "results.md").read_text()
