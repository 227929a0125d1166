"""Tables, means, notes and files of results."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mmsa_dist.config.load import load_config
from mmsa_dist.evaluate import Results, Score, make_split, run_evaluation
from mmsa_dist.evaluate.markdown import code_span
from mmsa_dist.evaluate.methods import FINE_TUNED
from mmsa_dist.evaluate.provenance import departures, judged
from mmsa_dist.evaluate.scores import LabelScore, score_from_plain
from mmsa_dist.evaluate.splits import PARTS, Split
from tests.fixtures.embedders import random_embedder
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
    assert (x.values, y.values) == (pytest.approx((0.55, 0.65)), pytest.approx((0.575,)))
    classification, regression = results.tables()
    assert classification.columns == ("a", "b", "c", "mean of 2")
    assert [cell.text for cell in classification.rows[0].cells] == [
        "70.0 ± 14.1", "50.0 ± 0.0", "not defined", "60.0 ± 7.1",
    ]  # fmt: skip
    assert [cell.best for cell in classification.rows[1].cells] == [True, False, False, False]
    assert regression.columns == ("r",)
    assert [row.cells[0].text for row in regression.rows] == ["1.000", "2.000"]
    assert [row.cells[0].best for row in regression.rows] == [True, False]


def test_a_seed_without_a_value_is_named_and_enters_no_mean_over_tasks():
    of_a = [score("a", "x", value, seed, split_digest=f"a{seed}") for seed, value in enumerate((0.6, math.nan, 0.8))]
    of_b = [score("b", "x", value, seed, split_digest=f"b{seed}") for seed, value in enumerate((0.5, 0.9, 0.6))]
    results = Results((*of_a, *of_b))
    (line,) = results.means()
    assert (line.seeds, line.mean) == ((0, 2), pytest.approx((0.55 + 0.7) / 2))
    assert line.spread == pytest.approx(np.std([0.55, 0.7], ddof=1)), "of the same seeds"
    assert results.notes() == [
        "a, seed 1: no label has both classes among the training and the test molecules; the numbers of a cover 2 of 3 "
        "seeds",
        "the mean over tasks covers 2 of 3 seeds, those for which all of its tasks are defined: 0, 2",
    ]
    apart = Results((*(replace(s, value=v) for s, v in zip(of_a, (0.5, math.nan, math.nan), strict=True)),
                     *(replace(s, value=v) for s, v in zip(of_b, (math.nan, 0.5, 0.5), strict=True))))  # fmt: skip
    assert apart.means() == []
    assert apart.notes()[-1].endswith("covers 0 of 3 seeds, those for which all of its tasks are defined: none")


def test_validation_means_are_over_the_same_scores_as_test_means():
    of_a = [
        score("a", "x", value, seed, split_digest=f"a{seed}", valid=valid)
        for seed, (value, valid) in enumerate(((0.6, 0.5), (math.nan, 0.9), (0.8, 0.7)))
    ]
    of_b = [
        score("b", "x", 0.5, seed, split_digest=f"b{seed}", valid=valid) for seed, valid in enumerate((0.3, 0.1, 0.5))
    ]
    results = Results((*of_a, *of_b))
    a, b = results.summaries()
    assert (a.mean, a.valid) == (pytest.approx(0.7), pytest.approx(0.6)), "without seed 1"
    assert b.valid == pytest.approx(0.3)
    (mean,) = results.means()
    assert (mean.seeds, mean.valid) == ((0, 2), pytest.approx((0.5 + 0.7 + 0.3 + 0.5) / 4))
    blind = Results((of_a[0], replace(of_a[2], valid=math.nan)))
    assert math.isnan(blind.summaries()[0].valid), "there is no such mean over the same seeds"


def test_a_method_that_runs_once_on_a_split_has_its_value_with_each_seed_of_the_split():
    results = Results((
        *(score("a", "x", value, seed, split_digest="a") for seed, value in enumerate((0.6, 0.8))),
        *(score("b", "x", value, seed, split_digest=f"b{seed}") for seed, value in enumerate((0.5, 0.6))),
        score("a", "y", 0.7, split_digest="a"),
        *(score("b", "y", value, seed, split_digest=f"b{seed}") for seed, value in enumerate((0.3, 0.5))),
    ))  # fmt: skip
    x, y = results.means()
    assert (x.spread, y.spread) == (
        pytest.approx(np.std([0.55, 0.7], ddof=1)),
        pytest.approx(np.std([0.5, 0.6], ddof=1)),
    )
    assert y.mean == pytest.approx(0.55)


def test_what_became_of_each_label(tmp_path):
    data = as_classification(some_of_freesolv())
    split = make_split(data, "random", 0)
    labels = data.labels.copy()
    labels[split.test, 1] = np.where(np.isnan(labels[split.test, 1]), np.nan, 0.0)
    data = replace(data, labels=labels)
    results = run_evaluation(TOLD, [data], out=tmp_path, split="random", seeds=(0,))
    told = results.scores[0].per_label
    assert told == (
        LabelScore("all", results.scores[0].value, ""),
        LabelScore("some", pytest.approx(math.nan, nan_ok=True), "not both classes among the test molecules"),
        LabelScore("one class", pytest.approx(math.nan, nan_ok=True), "not both classes among the training molecules"),
    )
    with (tmp_path / "results_per_label.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["features"], r["seed"], r["label"], r["value"], r["reason"]) for r in rows[:3]] == [
        ("told", "0", of.label, "" if of.reason else str(of.value), of.reason) for of in told
    ]
    assert len(rows) == 6
    again = run_evaluation(TOLD, [data], out=tmp_path, split="random", seeds=(0,), resume=True)
    assert [of.reason for of in again.scores[0].per_label] == [of.reason for of in told], "a job keeps them"


def test_how_results_were_made(tmp_path):
    config = load_config(None, ["finetune.epochs=3", "finetune.encoder_lr_scale=0.2", "embed.view=unified"])
    about = judged("finetune", {}, config, "none")
    data = replace(some_of_freesolv(), dropped=((3, "c1"), (7, "")))
    run_evaluation(TOLD, [data], out=tmp_path, split="random", seeds=(0, 1), about=about)
    made = json.loads((tmp_path / "results.json").read_text())
    assert (made["protocol"], made["checkpoint"], made["split"], made["seeds"]) == (
        "finetune",
        "none",
        "random",
        [0, 1],
    )
    assert (made["settings"]["finetune.epochs"], made["settings"]["finetune.lr"]) == (3, 1e-3)
    assert "embed.view" not in made["settings"], "a fine-tuning takes no vectors"
    assert "model.gin.layers" in made["settings"], "no model brings its architecture"
    assert "model.code" not in made["settings"], "of which the GIN alone is tuned"
    assert made["settings_of_the_protocol"] == {"finetune.epochs": 100, "finetune.encoder_lr_scale": 1.0}
    assert {"python", "libraries", "command", "git", "device"} <= set(made["environment"])
    assert {"torch", "rdkit", "scikit-learn", "mmsa-dist"} <= set(made["environment"]["libraries"])
    assert {"gpu", "processor", "threads"} <= set(made["environment"]["device"])
    assert made["tasks"]["freesolv"]["dropped"] == [
        {"record": 4, "smiles": "c1", "reason": "RDKit does not parse it"},
        {"record": 8, "smiles": "", "reason": "it has no atoms"},
    ]
    text = (tmp_path / "results.md").read_text()
    splits = ", ".join(f"freesolv, seed {seed} {make_split(data, 'random', seed).digest[:12]}" for seed in (0, 1))
    digests = f"- data freesolv {data.digest[:12]}; splits {splits}\n"
    assert f"- protocol finetune; split random; seeds 0, 1\n{digests}" in text
    sentence = (
        "settings that differ from the protocol: finetune.epochs=3 instead of 100, "
        "finetune.encoder_lr_scale=0.2 instead of 1.0"
    )
    assert f"- {sentence}\n" in text
    assert sentence in made["notes"]

    custom = judged("probe", {}, load_config(None, ["model.custom={mine: {layers: 3}}", "model.gin.layers=4"]))
    assert custom["settings"]["model.custom"] == {"mine": {"layers": 3}}
    assert custom["settings_of_the_protocol"] == {"model.custom": {}, "model.gin.layers": 5}
    models = {"pre-trained": random_embedder().pretrained}
    own = judged("probe", models, load_config(None, ["finetune.epochs=3"]), "runs/base/model")
    assert own["settings_of_the_protocol"] == {}
    settings = own["settings"]
    assert {"embed.view", "embed.conformers", "embed.pictures", "embed.batch_size", "run.seed"} < set(settings)
    inference = models["pre-trained"].inference
    assert settings["model.gin.width"] == inference.model.gin.width != load_config().model.gin.width
    assert own["networks"]["pre-trained"]["data.picture_size"] == inference.picture_size
    digest = models["pre-trained"].digest
    assert own["models"] == {"pre-trained": digest}
    text = replace(Results((score("a", "x", 0.6),)), about={**own, "split": "random", "seeds": [0]}).to_markdown()
    assert f"- models pre-trained {digest[:12]} (runs/base/model)\n" in text


def test_the_network_that_is_fine_tuned_is_that_of_the_model():
    model = random_embedder().pretrained
    gin = model.inference.model.gin
    about = judged("finetune", {"pre-trained": model}, load_config(None, ["model.gin.layers=9"]), "runs/base/model")
    assert {key: value for key, value in about["settings"].items() if key.startswith("model.")} == {
        f"model.gin.{name}": getattr(gin, name) for name in ("layers", "width", "norm", "atoms")
    }
    (sentence,) = departures(about)
    assert f"model.gin.width={gin.width} instead of 300" in sentence
    ogb = replace(
        model,
        inference=model.inference.model_copy(
            update={"model": model.inference.model.model_copy(update={"gin": gin.model_copy(update={"atoms": "ogb"})})}
        ),
    )
    both = judged("finetune", {"hu": model, "ogb": ogb}, load_config())
    assert "model.gin.atoms" not in both["settings"], "which they do not share"
    assert both["networks"]["ogb"]["model.gin.atoms"] == "ogb"
    (sentence,) = departures(both)
    assert "model.gin.atoms=ogb (ogb) instead of hu" in sentence


def test_arms_are_named_with_what_they_were_given():
    about = {
        "budget": {"shards": "s", "steps": 3},
        "arms": {"2D|3D": {"settings": {}, "ranks": 1}, "+ m": {"settings": {"loss.memory": 0.5}, "ranks": 8}},
    }
    assert replace(Results((score("a", "x", 0.6),)), about=about).to_markdown().splitlines()[-3:] == [
        "- every arm: `shards=s`, `steps=3`",
        "- arm 2D|3D: shared settings only; 1 rank",
        "- arm + m: `loss.memory=0.5`; 8 ranks",
    ]


def test_a_label_of_one_class_in_training_is_left_out(tmp_path):
    data = as_classification(some_of_freesolv())
    split = make_split(data, "random", 0)
    labels = data.labels.copy()
    labels[split.train, 0] = 1.0
    linear = run_evaluation(TOLD, [replace(data, labels=labels)], out=tmp_path, split="random", seeds=(0,)).scores[0]
    assert (linear.labels_scored, linear.labels) == (1, 3)


def test_markdown():
    text = Results((score("a", "x", 0.6), score("a", "y", 0.7)), warnings=("beware",)).to_markdown()
    assert text == (
        "ROC-AUC, %, higher is better; random split\n\n"
        "| features | model | a |\n|---|---|---:|\n| x | m | 60.0 |\n| y | m | **70.0** |\n\n- beware\n"
    )


def test_what_a_reader_must_know(tmp_path):
    data = replace(as_classification(some_of_freesolv()), dropped=((4, "c1"), (9, "C(" * 50)))
    ones = replace(data, task=replace(data.task, name="ones"), labels=np.ones_like(data.labels), dropped=())
    notes = run_evaluation(TOLD, [data, ones], out=tmp_path, split="random", seeds=(0,)).notes()
    assert notes == [
        f"two: 2 of 202 rows do not parse or have no atoms and are left out (record 5 `c1`, 10 `{'C(' * 20}...`)",
        "two, seed 0: 1 of 3 labels lack a class among the training or the validation molecules and have no "
        "validation value: one class",
        "ones, seed 0: 3 of 3 labels lack a class among the training or the validation molecules and have no "
        "validation value: all, some, one class",
        "two: 2 of 3 labels have both classes among the training and the test molecules; the others are left out of "
        "the mean: one class; results_per_label.csv says why",
        "ones: no label has both classes among the training and the test molecules; it is left out of all means",
    ]
    blind = some_of_freesolv()
    blind.labels[make_split(blind, "random", 0).valid] = np.nan
    assert run_evaluation(TOLD, [blind], out=tmp_path, split="random", seeds=(0,)).notes() == [
        "freesolv, seed 0: 1 of 1 labels lack values among the training or the validation molecules and have no "
        f"validation value: {blind.label_names[0]}"
    ]
    fine_tuned = [replace(method, model=FINE_TUNED) for method in TOLD]
    (note,) = run_evaluation(fine_tuned, [blind], out=tmp_path, split="random", seeds=(0,)).notes()
    assert note.endswith(f"validation value: {blind.label_names[0]}; fine-tuning uses its last epoch")
    missing = Results((score("a", "x", 0.5, missing=3),))
    assert missing.notes() == ["a: x cannot represent 3 molecules; they get the mean prediction"]


def test_results_are_written_with_their_splits(tmp_path):
    data = some_of_freesolv()
    results = run_evaluation(TOLD, [data], out=tmp_path, split="random", seeds=(0, 1), about={"protocol": "told"})
    about = json.loads((tmp_path / "results.json").read_text())
    assert about["protocol"] == "told"
    again = [score_from_plain({k: v for k, v in given.items() if k != "split_file"}) for given in about["scores"]]
    assert again == [replace(given, per_label=()) for given in results.scores]
    assert len(again) == 4
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = [(line["features"], int(line["seed"]), float(line["value"])) for line in csv.DictReader(file)]
    assert lines == [(given.features, given.seed, given.value) for given in results.scores]
    for given in about["scores"]:
        split = json.loads((tmp_path / "splits" / given["split_file"]).read_text())
        parts = Split(split["split"], split["seed"], *(np.array(split[part]) for part in PARTS))
        assert split["digest"] == given["split_digest"] == parts.digest
        assert "position, from 0" in split["index_space"]
        assert "row 0 is what messages call record 1" in split["index_space"]
        assert split["seed"] == given["seed"]


def test_names_that_are_markup_stay_one_cell():
    text = Results((score("a|b", "2D|base", 0.6),)).to_markdown()
    assert "| features | model | a\\|b |\n" in text
    assert "| 2D\\|base | m | **60.0** |" in text


def test_text_of_files_is_shown_as_it_is():
    assert code_span("[C@H](C)O*") == "`[C@H](C)O*`"
    assert (code_span(""), code_span("a\nb\x00")) == ("(empty)", "`a\\nb\\x00`")
    assert (code_span("a`b"), code_span("`a``")) == ("``a`b``", "``` `a`` ```")
    assert code_span(" a ") == "`  a  `"


def test_undefined_metrics_are_null(tmp_path):
    Results((score("t", "f", math.nan),)).write(tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["value"], line["valid"]) == ("", ""), "as results_per_label.csv has it"
    assert json.loads((tmp_path / "results.json").read_text())["scores"][0]["value"] is None
    assert "not defined" in (tmp_path / "results.md").read_text()
