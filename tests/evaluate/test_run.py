"""An evaluation: its jobs, what is done again and what is not, and the same in parallel."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmsa_dist.evaluate import Results, Score, make_split, run_evaluation
from mmsa_dist.evaluate.job import Job
from mmsa_dist.evaluate.methods import Method, Outcome
from mmsa_dist.evaluate.side_by_side import parts
from mmsa_dist.evaluate.simple_models import forest
from tests.fixtures.labelled import TOLD, as_classification, some_of_freesolv, told


@pytest.fixture(scope="module")
def freesolv():
    return some_of_freesolv()


SEEDED = Method("told", "random forest", told, forest, seeded=True, identity="300")


def without_times(results: Results) -> list[Score]:
    return [replace(score, seconds=0) for score in results.scores]


def job_files(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted((folder / "jobs").rglob("*.json"))}


def test_methods_without_randomness_run_once_per_split(freesolv, tmp_path):
    results = run_evaluation([*TOLD, SEEDED], [freesolv], out=tmp_path, split="hu-scaffold", seeds=(0, 1, 2))
    runs = {(line.features, line.model): (len(line.values), line.spread is None) for line in results.summaries()}
    assert runs == {
        ("told", "linear"): (1, True),
        ("none", "constant"): (1, True),
        ("told", "random forest"): (3, False),
    }
    assert len(results.splits) == 1
    with pytest.raises(ValueError, match="at least one"):
        run_evaluation(TOLD, [freesolv], out=tmp_path, seeds=())


def test_what_is_done_is_kept_where_nothing_that_it_depends_on_has_changed(freesolv, tmp_path):
    options = {"out": tmp_path, "split": "random", "seeds": (0, 1), "resume": True}
    first = run_evaluation(TOLD, [freesolv], **options)
    before = job_files(tmp_path)
    assert len(before) == 4
    done = []
    again = run_evaluation(TOLD, [freesolv], **options, report=lambda done_, total, words: done.append((done_, total)))
    assert again.scores == first.scores
    assert job_files(tmp_path) == before
    assert done == []

    (tmp_path / "jobs/freesolv/told-linear-random-seed1.json").unlink()
    assert without_times(run_evaluation(TOLD, [freesolv], **options)) == without_times(first)
    after = job_files(tmp_path)
    assert [name for name in after if after[name] != before[name]] == ["told-linear-random-seed1.json"]

    other = [replace(TOLD[0], identity="another model"), TOLD[1]]
    run_evaluation(other, [freesolv], **options)
    changed = job_files(tmp_path)
    assert {name.split("-")[0] for name in changed if changed[name] != after[name]} == {"told"}

    renamed = [replace(freesolv, label_names=("energy",)), [replace(other[0], features="Told"), other[1]]]
    results = run_evaluation(renamed[1], [renamed[0]], **options)
    assert {score.features for score in results.scores} == {"Told", "none"}
    assert {label.label for score in results.scores for label in score.per_label} == {"energy"}
    run_evaluation(other, [freesolv], **options)
    changed = job_files(tmp_path)

    labels = freesolv.labels.copy()
    labels[0] += 1
    run_evaluation(other, [replace(freesolv, labels=labels)], **options)
    assert not set(job_files(tmp_path).items()) & set(changed.items())

    before = job_files(tmp_path)
    run_evaluation(other, [freesolv], **{**options, "resume": False})
    assert not set(job_files(tmp_path).items()) & set(before.items())


@pytest.mark.parametrize("content", ['{"digest": "', "[]", "{}", "null", "\x00"])
def test_a_damaged_file_of_a_job_counts_as_none(freesolv, tmp_path, content):
    options = {"out": tmp_path, "split": "random", "seeds": (0,), "resume": True}
    first = run_evaluation(TOLD, [freesolv], **options)
    path = tmp_path / "jobs/freesolv/told-linear-random-seed0.json"
    whole = json.loads(path.read_text())
    for damaged in (content, json.dumps(whole | {"score": {}}), json.dumps(whole | {"score": []})):
        path.write_text(damaged)
        again = run_evaluation(TOLD, [freesolv], **options)
        assert without_times(again) == without_times(first)
        assert again.notes() == [f"{path} is damaged; its job runs again"]
        assert json.loads(path.read_text())["digest"] == whole["digest"]


@pytest.mark.parametrize(("content", "fault"), [(None, "is missing"), (b"", "is damaged"), (b"PAR1", "is damaged")])
def test_a_job_without_its_predictions_is_done_again(freesolv, tmp_path, content, fault):
    options = {"out": tmp_path, "split": "random", "seeds": (0,), "resume": True}
    first = run_evaluation(TOLD, [freesolv], **options)
    path = tmp_path / "jobs/freesolv/told-linear-random-seed0.parquet"
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    again = run_evaluation(TOLD, [freesolv], **options)
    assert without_times(again) == without_times(first)
    assert again.notes() == [f"{path} {fault}; its job runs again"]
    assert path.read_bytes() == whole


def test_another_metric_is_another_job(freesolv, tmp_path):
    options = {"out": tmp_path, "split": "random", "seeds": (0,), "resume": True}
    run_evaluation(TOLD, [freesolv], **options)
    absolute = replace(freesolv, task=replace(freesolv.task, metric="mae"))
    (kept, _) = run_evaluation(TOLD, [absolute], **options).scores
    (fresh, _) = run_evaluation(TOLD, [absolute], out=tmp_path / "fresh", split="random", seeds=(0,)).scores
    assert (kept.metric, kept.value) == ("mae", fresh.value)


def test_what_would_be_taken_for_one_is_refused(freesolv, tmp_path):
    with pytest.raises(ValueError, match="two tasks are called 'freesolv' and cannot be told apart"):
        run_evaluation(TOLD, [freesolv, replace(freesolv, labels=freesolv.labels + 1)], out=tmp_path)
    with pytest.raises(ValueError, match="two jobs are called 'freesolv/told-linear-hu-scaffold-seed0'"):
        run_evaluation([*TOLD, replace(TOLD[0], features="TOLD!", identity="2")], [freesolv], out=tmp_path, seeds=(0,))
    with pytest.raises(ValueError, match="at least one task"):
        run_evaluation(TOLD, [], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_splits_from_files_are_seeds_like_others(freesolv, tmp_path):
    made = run_evaluation(TOLD, [freesolv], out=tmp_path / "made", split="random", seeds=(0, 1, 2))
    read = run_evaluation(TOLD, [freesolv], out=tmp_path / "read", split=str(tmp_path / "made/splits"), seeds=(0, 1, 2))
    assert [(x.mean, x.spread) for x in read.summaries()] == [(x.mean, x.spread) for x in made.summaries()]
    assert [table.title for table in read.tables()] == ["RMSE, lower is better; file split"]
    assert {score.split_source for score in read.scores} == {f"freesolv-random-seed{seed}" for seed in range(3)}


def test_a_prediction_that_is_not_finite_is_named(freesolv, tmp_path):
    def broken(x, data, split, seed, progress):
        return Outcome(np.full(data.labels.shape, np.nan), 0.0)

    method = replace(TOLD[0], fit_predict=broken)
    with pytest.raises(FloatingPointError, match="freesolv/told-linear-random-seed0: predictions are not finite"):
        run_evaluation([method], [freesolv], out=tmp_path, split="random", seeds=(0,))


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_computed(freesolv, tmp_path):
    def unwanted(data):
        raise AssertionError("computed in vain")

    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"the output folder .*file is a file; name another"):
        run_evaluation([replace(TOLD[0], make=unwanted)], [freesolv], out=tmp_path / "file", split="random", seeds=(0,))


def test_the_files_of_a_job(freesolv, tmp_path):
    data = as_classification(freesolv)
    results = run_evaluation(TOLD, [data], out=tmp_path, split="random", seeds=(0,))
    split = results.splits[0][0]
    table = pq.read_table(tmp_path / "jobs/two/told-linear-random-seed0.parquet")
    assert table["row"].to_pylist() == split.test.tolist()
    assert table["smiles"].to_pylist() == [data.smiles[row] for row in split.test]
    np.testing.assert_array_equal(table["some (label)"].to_numpy(), data.labels[split.test, 1])
    assert {"all (predicted)", "one class (predicted)"} < set(table.column_names)
    about = json.loads((tmp_path / "jobs/two/told-linear-random-seed0.json").read_text())
    assert about["score"]["value"] == results.scores[0].value
    assert (about["score"]["labels_scored"], about["score"]["labels"]) == (2, 3)


def _in_epochs(x, data, split, seed, progress):
    for epoch in (1, 2):
        progress(f"epoch {epoch} of 2")
        time.sleep(1.5)  # as a long epoch does, so that somebody asks meanwhile
    return Outcome(np.zeros(data.labels.shape), 0.0)


@pytest.mark.distributed
def test_jobs_side_by_side_say_how_far_they_are(freesolv, tmp_path):
    said: list[str] = []
    method = replace(TOLD[0], fit_predict=_in_epochs)
    run_evaluation(
        [method], [freesolv], out=tmp_path, split="random", seeds=(0,), parallel=2,
        report=lambda done, total, words: said.append(words),
    )  # fmt: skip
    assert "2 in parallel · freesolv/told-linear-random-seed0 epoch 2 of 2" in said


def test_without_a_gpu_forests_do_not_wait_for_fine_tunings(freesolv):
    split = make_split(freesolv, "random", 0)
    jobs = [Job(freesolv, replace(SEEDED, gpu=gpu), split, 0) for gpu in (False, True, False)]
    assert parts(jobs, has_gpus=False) == [(0, [0, 1, 2])]
    assert parts(jobs, has_gpus=True) == [(0.25, [1]), (0, [0, 2])]


@pytest.mark.distributed
def test_side_by_side_in_ray_is_the_same(freesolv, tmp_path):
    tasks = [freesolv, as_classification(freesolv)]
    told_ = []
    alone = run_evaluation([*TOLD, SEEDED], tasks, out=tmp_path / "alone", split="random", seeds=(0, 1))
    together = run_evaluation(
        [*TOLD, SEEDED], tasks, out=tmp_path / "ray", split="random", seeds=(0, 1), parallel=2,
        report=lambda done, total, words: told_.append((done, total)),
    )  # fmt: skip
    assert without_times(together) == without_times(alone)
    assert told_[-1] == (12, 12)
    assert (tmp_path / "ray/results.csv").exists()


def test_rows_of_one_molecule_in_two_parts_are_told(freesolv, tmp_path):
    thrice = replace(freesolv, smiles=freesolv.smiles * 3, labels=np.tile(freesolv.labels, (3, 1)))
    (note,) = [note for note in run_evaluation(TOLD, [thrice], out=tmp_path, split="random", seeds=(0,)).notes()
               if "training molecules too" in note]  # fmt: skip
    seen = int(note.split(": ")[1].split(" of ")[0])
    split = make_split(thrice, "random", 0)
    molecules = len(freesolv)
    assert seen == len([row for row in split.test if row % molecules in {row % molecules for row in split.train}])
    assert f"{seen} of {len(split.test)} test molecules" in note
    assert not any("training molecules too" in note for note in
                   run_evaluation(TOLD, [thrice], out=tmp_path, split="hu-scaffold", seeds=(0,)).notes())  # fmt: skip


def test_errors_of_several_labels_are_a_mean_of_what_may_not_be_comparable(freesolv, tmp_path):
    both = replace(freesolv, labels=np.repeat(freesolv.labels, 2, axis=1), label_names=("a", "b"))
    notes = run_evaluation(TOLD, [both], out=tmp_path, seeds=(0,)).notes()
    assert any("the mean of the errors of 2 labels" in note for note in notes)


def test_many_labels_are_counted_while_they_are_fitted(freesolv, tmp_path):
    data = as_classification(freesolv)  # two of three labels can be learned, from different molecules
    told = []
    run_evaluation(TOLD[:1], [data], out=tmp_path, split="random", seeds=(0,), report=lambda *at: told.append(at[-1]))
    assert [words.rpartition(" label ")[2] for words in told if " label " in words] == ["1 of 2", "2 of 2"]
