"""Fine-tuning of the 2D encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.encoders import build_encoder
from mmsa_dist.evaluate import Task, TaskData, finetune, make_split, simple_models
from mmsa_dist.evaluate.finetune import batches, fine_tune, finetune_method
from mmsa_dist.evaluate.graphs import graphs
from mmsa_dist.evaluate.metrics import score_labels
from mmsa_dist.evaluate.targets import Targets

ARCHITECTURE = {"layers": 2, "width": 32, "dropout": 0.0, "norm": "batch"}
CHAINS = tuple("C" * n + end for n in range(1, 9) for end in ("O", "N", "Cl", "C(=O)O", "c1ccccc1", "[NH3+].[Cl-]"))


def options(**changes: object):
    given = {"epochs": 12, "batch_size": 8, "lr": 1e-2, "dropout": 0.0, **changes}
    return load_config(None, [f"finetune.{key}={value}" for key, value in given.items()]).finetune


def lengths() -> TaskData:
    """How many carbon atoms there are, and nonsense of which most is missing."""
    carbons = np.array([text.replace("Cl", "").upper().count("C") for text in CHAINS], float)
    sparse = np.where(np.arange(len(CHAINS)) % 5 == 0, 100.0 + carbons, np.nan)
    return TaskData(
        Task("length", "regression", "rmse", ("length",)), CHAINS, np.stack([carbons, sparse], 1), ("n", "some"), ()
    )


def has_ring() -> TaskData:
    ring = np.array([["c1" in text] for text in CHAINS], float)
    return TaskData(Task("ring", "classification", "roc_auc", ("ring",)), CHAINS, ring, ("ring",), ())


def tuned(data: TaskData, seed: int = 0, weights=None, **changes: object):
    said: list[str] = []
    split = make_split(data, "random", 1)
    outcome = fine_tune(
        graphs(data).value, data, split, seed, said.append,
        architecture=ARCHITECTURE, weights=weights, options=options(**changes),
    )  # fmt: skip
    return outcome, split, said


def test_learns_a_regression_in_the_unit_of_the_labels():
    data = lengths()
    outcome, split, said = tuned(data, epochs=60)
    error = outcome.predictions[split.test] - data.labels[split.test]
    spread = np.nanstd(data.labels[:, 0])
    assert math.sqrt(np.mean(error[:, 0] ** 2)) < 0.4 * spread
    assert said == [f"epoch {number} of 60" for number in range(1, 61)]
    assert outcome.curve[-1]["loss"] < 0.5 * outcome.curve[0]["loss"]


def test_learns_a_classification():
    few = has_ring()
    data = replace(few, smiles=few.smiles * 4, labels=np.tile(few.labels, (4, 1)))
    outcome, split, _ = tuned(data)
    assert outcome.valid == max(epoch["valid"] for epoch in outcome.curve)
    assert ((outcome.predictions >= 0) & (outcome.predictions <= 1)).all()
    assert score_labels(data.labels[split.test], outcome.predictions[split.test], "roc_auc").value > 0.95


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_encoder_may_learn_more_slowly_with_pre_training_or_without(monkeypatch, pretrained):
    adam, made = torch.optim.Adam, []

    def watched(groups, **more):
        made.append(adam(groups, **more))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", watched)
    weights = build_encoder("gin", {**ARCHITECTURE, "pool": "mean"}).state_dict() if pretrained else None
    tuned(has_ring(), weights=weights, epochs=1, encoder_lr_scale=0.25)
    assert [group["lr"] for group in made[0].param_groups] == [0.0025, 0.01]


def test_the_same_bits_each_time_whatever_the_threads_and_the_callers_generator():
    before = torch.get_num_threads(), torch.get_rng_state()
    first, _, _ = tuned(lengths(), dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before[1]), "the caller's random numbers are left alone"
    torch.set_num_threads(2)
    torch.manual_seed(7)
    try:
        second, _, _ = tuned(lengths(), dropout=0.5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert first.curve == second.curve
    other, _, _ = tuned(lengths(), seed=1, dropout=0.5)
    assert other.curve != first.curve


def test_the_labels_of_the_test_molecules_are_not_seen():
    data = lengths()
    split = make_split(data, "random", 1)
    labels = data.labels.copy()
    labels[split.test] = 1e3
    first, _, _ = tuned(data)
    second, _, _ = tuned(replace(data, labels=labels))
    np.testing.assert_array_equal(first.predictions, second.predictions)


def test_the_best_validation_epoch_counts_and_not_the_last():
    data = lengths()
    outcome, split, _ = tuned(data, epochs=9, lr=0.2)  # jumps about
    best = int(np.argmin([epoch["valid"] for epoch in outcome.curve])) + 1
    assert best < 9, "otherwise this test shows nothing"
    until_then, _, _ = tuned(data, epochs=best, lr=0.2)
    np.testing.assert_array_equal(outcome.predictions[split.test], until_then.predictions[split.test])


def test_the_test_molecules_are_looked_at_once_when_all_is_chosen(monkeypatch):
    looked: list[tuple[int, ...]] = []
    predict = finetune._Judged.predict

    def spied(self, model):
        looked.append(tuple(self.rows))
        return predict(self, model)

    monkeypatch.setattr(finetune._Judged, "predict", spied)
    _, split, _ = tuned(lengths(), epochs=4)
    assert looked == [tuple(split.valid)] * 4 + [tuple(split.test)]


def test_where_no_validation_label_can_choose_the_last_epoch_counts(monkeypatch):
    few = has_ring()
    split = make_split(few, "random", 1)
    labels = few.labels.copy()
    labels[split.valid] = 1.0
    data = replace(few, labels=labels)
    outcome, _, _ = tuned(data, epochs=5)
    assert math.isnan(outcome.valid)
    # The same training, judged on labels of both classes: the last of its epochs is the best where it is the only one
    # that is judged.
    judged = iter([math.nan] * 4 + [0.5])
    monkeypatch.setattr(finetune._Judged, "score", lambda self, model, learnable: next(judged))
    last, _, _ = tuned(data, epochs=5)
    assert last.valid == 0.5
    np.testing.assert_array_equal(outcome.predictions[split.test], last.predictions[split.test])
    judged = iter([0.5] + [math.nan] * 4)
    first, _, _ = tuned(data, epochs=5)
    assert not np.array_equal(outcome.predictions[split.test], first.predictions[split.test])


def test_a_label_of_one_class_in_training_chooses_nothing(monkeypatch):
    ring = has_ring()
    split = make_split(ring, "random", 1)
    other = np.zeros((len(ring), 1))
    other[split.valid[:1]] = 1.0  # both classes among the validation molecules, one among those to learn from
    two = replace(ring, labels=np.hstack([ring.labels, other]), label_names=("ring", "other"))
    outcome, _, _ = tuned(two, epochs=3)
    asked = []
    score_labels_ = finetune.score_labels

    def watched(labels, predictions, metric, learnable):
        asked.append(learnable.tolist())
        return score_labels_(labels, predictions, metric, learnable)

    monkeypatch.setattr(finetune, "score_labels", watched)
    again, _, _ = tuned(two, epochs=3)
    assert asked == [[True, False]] * 3
    assert again.valid == outcome.valid
    x = ring.labels + np.random.default_rng(0).normal(scale=0.5, size=(len(ring), 2))
    of_one, of_both = (simple_models.linear(x, data, split, 0, str).valid for data in (ring, two))
    assert of_one == of_both > 0.5


def test_pre_trained_weights_are_where_it_begins():
    torch.manual_seed(3)
    weights = build_encoder("gin", ARCHITECTURE).state_dict()
    bare, _, _ = tuned(lengths(), epochs=1)
    given, _, _ = tuned(lengths(), epochs=1, weights=weights)
    assert given.curve != bare.curve
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    tuned(lengths(), epochs=2, weights=weights)
    assert all(torch.equal(copies[name], tensor) for name, tensor in weights.items()), "they are not tuned in place"

    method = finetune_method("GIN, pre-trained", ARCHITECTURE, weights, options())
    same = finetune_method("GIN, pre-trained", ARCHITECTURE, copies, options())
    shifted = {**copies, "x_embedding1.weight": copies["x_embedding1.weight"] + 1}
    others = [
        finetune_method("GIN, pre-trained", ARCHITECTURE, None, options()),
        finetune_method("GIN, pre-trained", ARCHITECTURE, weights, options(epochs=13)),
        finetune_method("GIN, pre-trained", ARCHITECTURE, shifted, options()),
    ]
    assert method.identity == same.identity
    assert len({method.identity, *(other.identity for other in others)}) == 4


def test_atoms_are_averaged_however_pre_training_pooled():
    data = lengths()
    split = make_split(data, "random", 1)
    mean, both = (
        finetune_method("GIN", {**ARCHITECTURE, "pool": pool}, None, options(epochs=1)) for pool in ("mean", "mean_max")
    )
    assert mean.identity == both.identity
    mean_said, both_said = (
        m.fit_predict(graphs(data).value, data, split, 0, lambda words: None).predictions for m in (mean, both)
    )
    np.testing.assert_array_equal(mean_said, both_said)


def test_a_molecule_without_a_graph_is_predicted_by_the_mean():
    data = replace(has_ring(), labels=has_ring().labels.copy())
    x = graphs(data).value
    split = make_split(data, "random", 1)
    lost = split.test[0]
    x.place[lost] = -1
    outcome = fine_tune(
        x, data, split, 0, lambda words: None, architecture=ARCHITECTURE, weights=None, options=options(epochs=2)
    )
    assert outcome.predictions[lost, 0] == pytest.approx(data.labels[split.train, 0].mean())
    assert np.isfinite(outcome.predictions[split.test]).all()


def test_a_loss_that_is_not_finite_ends_the_job():
    data = replace(lengths(), labels=lengths().labels * 1e200)
    with (
        pytest.raises(FloatingPointError, match=r"length, seed 0: the loss is .* lower finetune.lr \(now 1e\+18"),
        np.errstate(all="ignore"),
    ):
        tuned(data, lr=1e18)


def test_losses_by_hand():
    labels = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, np.nan]])
    task = Task("t", "classification", "roc_auc", ("t",))
    seen = Targets(TaskData(task, ("C",) * 3, labels, ("a", "b"), ()), np.array([0, 1]))
    loss = seen.loss(torch.tensor([[0.0, 9.0], [2.0, 0.0]]), np.array([0, 1]), torch.device("cpu"))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2)) + math.log(2)) / 3)
    assert seen.mean_T.tolist() == [[0.5, 1.0]]
    task = Task("t", "regression", "rmse", ("t",))
    seen = Targets(TaskData(task, ("C",) * 3, labels, ("a", "b"), ()), np.array([0, 1]))
    loss = seen.loss(torch.tensor([[0.0, 9.0], [2.0, 0.0]]), np.array([0, 1]), torch.device("cpu"))
    assert loss.item() == pytest.approx((1 + 9 + 0) / 3), "labels are 1 and -1, and 0 where they do not vary"
    assert seen.values(np.array([[1.0, 0.0]])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("n", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (8, [4, 4]), (1, [1]), (3, [3])])
def test_batches_leave_no_molecule_alone(n, sizes):
    dealt = list(batches(np.arange(n), 4))
    assert [len(rows) for rows in dealt] == sizes
    assert np.concatenate(dealt).tolist() == list(range(n))


def test_graphs_of_smiles_as_they_are_given():
    data = replace(has_ring(), smiles=("CC[NH3+].[Cl-]", "C[C@H](N)O"), labels=np.zeros((2, 1)))
    made = graphs(data)
    assert made.missing == 0
    columns = made.value.take(np.array([1, 0]))
    assert np.diff(columns.atom_ptr).tolist() == [4, 4], "the counter ion is still there"
    assert columns.atoms[:4, 0].tolist() == [5, 5, 6, 7]
