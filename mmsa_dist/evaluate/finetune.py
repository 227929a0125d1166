"""Fine-tuning of the 2D encoder, the field's protocol (Hu et al. 2020, arXiv 1905.12265).

The pre-trained GIN, its mean over atoms and one linear layer; all weights are tuned with Adam; the test molecules are
judged at the epoch that is best on the validation molecules. n molecules, T labels, B molecules in a batch.

Numerics: float32 on one thread on CPUs, so that results depend neither on the machine's cores nor on how many jobs
run side by side: the same command gives the same bits.
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
from mmsa_dist.evaluate.methods import Method, Outcome, Progress
from mmsa_dist.evaluate.metrics import better, learnable_labels, score_labels
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.targets import Targets
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.seeds import derived_seed
from mmsa_dist.runtime.threads import computing_threads

ENCODER = "gin"
_JUDGED_AT_A_TIME = 128  # with 256 a molecule takes up to an eighth longer on a CPU


class GraphPredictor(nn.Module):
    """The encoder with one linear layer on top."""

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
    """A line of the table of ``--protocol finetune``.

    Args:
        name: what the table calls the encoder.
        architecture: keyword arguments of the GIN, as `protocol_encoder` takes them.
        weights: of the GIN; None leaves them as they are drawn, by the seed.
        options: section ``finetune`` of the configuration.
    """
    encoder = protocol_encoder(architecture, options)
    digest = hashlib.sha256(f"{sorted(encoder.items())} {options.model_dump_json()}".encode())
    for key, tensor in sorted((weights or {}).items()):
        digest.update(key.encode() + tensor.numpy(force=True).tobytes())
    fit = partial(fine_tune, architecture=dict(architecture), weights=weights, options=options)
    return Method(name, "fine-tuned", graphs, fit, seeded=True, identity=digest.hexdigest(), gpu=True)


def taken_of(architecture: Mapping[str, object]) -> dict[str, object]:
    """The keyword arguments of a GIN that fine-tuning takes; dropout and pooling are the protocol's own."""
    return {name: value for name, value in architecture.items() if name not in ("dropout", "pool")}


def protocol_encoder(architecture: Mapping[str, object], options: Finetune) -> dict[str, object]:
    """The keyword arguments of a GIN as it is tuned: with the dropout of `options`, and the mean over atoms."""
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
    """Tunes on the training molecules and predicts the test molecules at the best validation epoch, or the last one.

    The last one counts where no label has both classes among the training and among the validation molecules.

    Regression labels are standardized by the training molecules. A molecule without a graph takes no part in the
    training and is predicted by the mean.

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
        # The test molecules are looked at once everything is chosen.
        model.load_state_dict(chosen)
        predictions = targets.mean_T.repeat(len(data), axis=0)
        predictions[test.rows] = test.predict(model)
    return Outcome(predictions, best, tuple(curve))


class _Training:
    """A network with its optimizer and the order of its molecules, trained epoch by epoch."""

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
        """Trains on every molecule once, and returns the mean loss of the batches."""
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
    """A part of the split, its batches made once."""

    def __init__(
        self, x: Graphs, data: TaskData, rows: NDArray[np.int64], targets: Targets, device: torch.device
    ) -> None:
        self.rows = x.of(rows)
        self._data, self._all, self._targets = data, rows, targets
        self._batches = [
            collate(x.take(some), picture_size=None).to(device) for some in batches(self.rows, _JUDGED_AT_A_TIME)
        ]

    @torch.inference_mode()
    def predict(self, model: nn.Module) -> NDArray[np.float64]:
        """(rows, T) predictions of the molecules `rows`."""
        model.eval()
        return self._targets.values(np.concatenate([model(batch).double().cpu().numpy() for batch in self._batches]))

    def score(self, model: nn.Module, learnable: NDArray[np.bool_]) -> float:
        """The metric over all molecules of the part, of the (T,) labels that can be learned."""
        predictions = self._targets.mean_T.repeat(len(self._data), axis=0)
        predictions[self.rows] = self.predict(model)
        truth, metric = self._data.labels[self._all], self._data.task.metric
        return score_labels(truth, predictions[self._all], metric, learnable).value


def batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cuts rows into batches; one molecule that would be left over joins the batch before it.

    Batch norm has nothing to say about a molecule of one atom that is alone.

    Args:
        rows: (m,) positions of molecules.
        size: molecules in a batch.
    """
    ends = [*range(size, len(rows), size), len(rows)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    start = 0
    for end in ends:
        yield rows[start:end]
        start = end
