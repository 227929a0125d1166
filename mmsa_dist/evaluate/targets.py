"""Labels as training targets of a network. n molecules, T labels, B molecules in a batch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mmsa_dist.evaluate.tasks import TaskData


class Targets:
    """The labels of a task: classes as given, regression labels standardized by the training molecules.

    Args:
        data: the task.
        train: positions of the training molecules.
    """

    mean_T: NDArray[np.float64]
    """(1, T) mean of each label over the training molecules; 0 if none is known."""

    def __init__(self, data: TaskData, train: NDArray[np.int64]) -> None:
        known = ~np.isnan(data.labels)
        counts_T = np.maximum(known[train].sum(axis=0), 1)
        filled = np.where(known, data.labels, 0.0)
        self._classes = data.task.kind == "classification"
        self.mean_T = filled[train].sum(axis=0, keepdims=True) / counts_T
        spread_T = np.sqrt((np.where(known, data.labels - self.mean_T, 0.0)[train] ** 2).sum(axis=0) / counts_T)
        self._spread_T = np.where(spread_T > 0, spread_T, 1.0)
        self._y = filled if self._classes else np.where(known, (data.labels - self.mean_T) / self._spread_T, 0.0)
        self._known = known

    def loss(self, out_BT: Tensor, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Computes the mean cross entropy or squared error over the known labels of the molecules `rows`."""
        y_BT = torch.from_numpy(self._y[rows]).to(device, torch.float32)
        known_BT = torch.from_numpy(self._known[rows]).to(device, torch.float32)
        error = functional.binary_cross_entropy_with_logits if self._classes else functional.mse_loss
        return (error(out_BT, y_BT, reduction="none") * known_BT).sum() / known_BT.sum().clamp(min=1)

    def values(self, out: NDArray[np.float64]) -> NDArray[np.float64]:
        """Converts outputs of the network to probabilities, or to the unit of the labels."""
        return 1 / (1 + np.exp(-out)) if self._classes else out * self._spread_T + self.mean_T
