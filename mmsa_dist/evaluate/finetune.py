"""Fine-tuning of the 2D encoder, the field's protocol (Hu et al. 2020, arXiv 1905.12265).

The model is the pre-trained GIN with mean pooling over atoms and one linear layer; Adam tunes all weights. Test
predictions come from the epoch that is best on the validation molecules. n molecules, T labels, B molecules in a batch.

Numerics: float32, on CPUs with one thread, so that results depend neither on the machine's cores nor on the number of
parallel jobs: the same command gives the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsa_dist.config.schema import Finetune
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.collate import collate
from mmsa_dist.encoders import Encoder, build_encoder
from mmsa_dist.evaluate.graphs import Graphs, graphs
from mmsa_dist.evaluate.methods import FINE_TUNED, Method, Outcome, Progress
from mmsa_dist.evaluate.metrics import better, learnable_labels, score_labels
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.targets import Targets
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.seeds import derived_seed
from mmsa_dist.runtime.threads import computing_threads

ENCODER = "gin"
_EVALUATION_BATCH_SIZE = 128  # molecules; 256 is up to an eighth slower per molecule on a CPU


class GraphPredictor(nn.Module):
    """An encoder with one linear layer on top."""

    def __init__(self, encoder: Encoder, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, labels)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, T): logits, or standardized values."""
        return self.head(self.encoder(batch))


def finetune_method(
    name: str, architecture: Mapping[str, object], weights: Mapping[str, Tensor] | None, options: Finetune
) -> Method:
    """Returns a row of the table of ``--protocol finetune``.

    Args:
        name: name of the encoder in the table.
        architecture: keyword arguments of the GIN, as `protocol_encoder` takes them.
        weights: state dict of the GIN; None keeps the random initialization, drawn from the seed.
        options: the ``finetune`` section of the configuration.
    """
    encoder = protocol_encoder(architecture, options)
    digest = hashlib.sha256(f"{sorted(encoder.items())} {options.model_dump_json()}".encode())
    for key, tensor in sorted((weights or {}).items()):
        digest.update(key.encode() + tensor.numpy(force=True).tobytes())
    fit = partial(fine_tune, architecture=dict(architecture), weights=weights, options=options)
    return Method(name, FINE_TUNED, graphs, fit, seeded=True, identity=digest.hexdigest(), gpu=True)


def taken_of(architecture: Mapping[str, object]) -> dict[str, object]:
    """Returns the keyword arguments of a GIN that fine-tuning keeps; the protocol sets dropout and pooling."""
    return {name: value for name, value in architecture.items() if name not in ("dropout", "pool")}


def protocol_encoder(architecture: Mapping[str, object], options: Finetune) -> dict[str, object]:
    """Returns the keyword arguments of the tuned GIN: the dropout of `options`, mean pooling over atoms."""
    return {**taken_of(architecture), "dropout": options.dropout, "pool": "mean"}


def fine_tune(
    x: Graphs,
    data: TaskData,
    split: Split,
    seed: int,
    progress: Progress,
    *,
    architecture: Mapping[str, object],
    weights: Mapping[str, Tensor] | None,
    options: Finetune,
) -> Outcome:
    """Tunes on the training molecules and predicts the test molecules at the best validation epoch.

    The last epoch is used if no label has both classes in training and in validation.

    Regression labels are standardized by the training molecules. Molecules without a graph are left out of training
    and get the mean prediction.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    targets = Targets(data, x.of(split.train))
    threads = 1 if device.type == "cpu" else torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), computing_threads(threads):
        torch.manual_seed(derived_seed("finetune", seed))
        model = GraphPredictor(build_encoder(ENCODER, protocol_encoder(architecture, options)), data.labels.shape[1])
        if weights is not None:
            model.encoder.load_state_dict(weights)
        model.to(device)
        training = _Training(model, x, x.of(split.train), targets, seed, options)
        valid, test = (_Judged(x, data, rows, targets, device) for rows in (split.valid, split.test))
        learnable = learnable_labels(data.labels[split.train], data.task)
        best, curve = math.nan, []
        for epoch in range(1, options.epochs + 1):
            progress(f"epoch {epoch} of {options.epochs}")
            loss = training.epoch()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"{data.task.name}, seed {seed}: the loss is {loss} at epoch {epoch}; lower finetune.lr "
                    f"(now {options.lr})"
                )
            value = valid.score(model, learnable)
            curve.append({"epoch": epoch, "loss": loss, "valid": value})
            nothing_chooses = math.isnan(best) and epoch == options.epochs
            if better(value, best, data.task) or nothing_chooses:
                best = value
                chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        # Test molecules are predicted only after everything is chosen.
        model.load_state_dict(chosen)
        predictions = targets.mean_T.repeat(len(data), axis=0)
        predictions[test.rows] = test.predict(model)
    return Outcome(predictions, best, tuple(curve))


class _Training:
    """A network with its optimizer and shuffled training molecules, trained epoch by epoch."""

    def __init__(
        self,
        model: GraphPredictor,
        x: Graphs,
        rows: NDArray[np.int64],
        targets: Targets,
        seed: int,
        options: Finetune,
    ) -> None:
        groups = [
            {"params": model.encoder.parameters(), "lr": options.lr * options.encoder_lr_scale},
            {"params": model.head.parameters(), "lr": options.lr},
        ]
        self._optimizer = torch.optim.Adam(groups, weight_decay=options.weight_decay, fused=True)
        self._rng = np.random.default_rng(derived_seed("finetune", seed))
        self._model, self._x, self._rows, self._targets = model, x, rows, targets
        self._batch_size = options.batch_size
        self._device = model.head.weight.device

    def epoch(self) -> float:
        """Trains on every molecule once and returns the mean loss of the batches."""
        self._model.train()
        losses = []
        for rows in batches(self._rng.permutation(self._rows), self._batch_size):
            batch = collate(self._x.take(rows), picture_size=None).to(self._device)
            loss = self._targets.loss(self._model(batch), rows, self._device)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())


class _Judged:
    """A part of the split to predict, with its batches built once."""

    def __init__(
        self, x: Graphs, data: TaskData, rows: NDArray[np.int64], targets: Targets, device: torch.device
    ) -> None:
        self.rows = x.of(rows)
        self._data, self._all, self._targets = data, rows, targets
        self._batches = [
            collate(x.take(some), picture_size=None).to(device) for some in batches(self.rows, _EVALUATION_BATCH_SIZE)
        ]

    @torch.inference_mode()
    def predict(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns (rows, T) predictions for the molecules `rows`."""
        model.eval()
        return self._targets.values(np.concatenate([model(batch).double().cpu().numpy() for batch in self._batches]))

    def score(self, model: nn.Module, learnable: NDArray[np.bool_]) -> float:
        """Returns the metric over all molecules of the part, averaged over the `learnable` (T,) labels."""
        predictions = self._targets.mean_T.repeat(len(self._data), axis=0)
        predictions[self.rows] = self.predict(model)
        truth, metric = self._data.labels[self._all], self._data.task.metric
        return score_labels(truth, predictions[self._all], metric, learnable).value


def batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Yields rows in batches; a single left-over molecule joins the batch before it.

    Batch norm cannot train on a batch of a single one-atom molecule.

    Args:
        rows: (m,) positions of molecules.
        size: molecules per batch.
    """
    ends = [*range(size, len(rows), size), len(rows)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    start = 0
    for end in ends:
        yield rows[start:end]
        start = end
