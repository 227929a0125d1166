"""Sends rows to the ranks that own them, and answers back.

N rows sent by this rank, M rows received by it, W ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mmsa_dist.runtime.distributed import is_distributed, world_size


class Route:
    """The routing of N rows to their owners (collective); N may differ between ranks.

    Args:
        owner_N: (N,) int64: the rank that each row goes to; on the device of the process group's collectives.
    """

    def __init__(self, owner_N: Tensor) -> None:
        self._order_N = owner_N.argsort(stable=True)
        sent_W = torch.bincount(owner_N, minlength=world_size())
        received_W = swap(sent_W[:, None])[:, 0]
        self._sent, self._received = sent_W.tolist(), received_W.tolist()

    def send(self, rows_N: Tensor) -> Tensor:
        """Sends row n of (N, ...) to its owner; returns the (M, ...) received, by sender and its order."""
        return _all_to_all(rows_N[self._order_N], self._sent, self._received)

    def send_back(self, answers_M: Tensor) -> Tensor:
        """Sends back answers to the rows that `send` returned, in their order; returns (N, ...) in the order sent."""
        answers_N = _all_to_all(answers_M, self._received, self._sent)
        rows_N = torch.empty_like(answers_N)
        rows_N[self._order_N] = answers_N
        return rows_N


def swap(blocks_WB: Tensor) -> Tensor:
    """Sends block w of (W, ...) to rank w; returns (W, ...), the block that each rank sent to this one."""
    if not is_distributed():
        return blocks_WB
    received_WB = torch.empty_like(blocks_WB)
    dist.all_to_all_single(received_WB, blocks_WB.contiguous())
    return received_WB


def _all_to_all(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    if not is_distributed():
        return rows
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent)
    return result
