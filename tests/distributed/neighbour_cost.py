"""What global neighbours send and compute, as formulas, and the table of docs/scale.md that follows from them.

N molecules in the bank, W ranks, F = N / W rows of a rank, B molecules of a rank in a step, K neighbours, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT16, _INT64, _FLOAT64 = 2, 8, 8

# Assumed, not measured: no GPU was at hand. One H100 or H200 a rank.
GPU_PRODUCT = 3e13  # flop/s of float32 products with top-k, half of the 67 TFLOP/s of the data sheet
LINK = 2.5e10  # bytes/s in and out of a rank: 400 Gbit/s a GPU, half used
LATENCY = 1e-5  # seconds a collective and peer of a tree; log2(W) of them


@dataclass(frozen=True)
class Traffic:
    """Of one rank."""

    messages: int
    """Collective calls."""
    bytes: int
    """Sent to other ranks; as many arrive, where the molecules asked for are spread evenly."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)

    def seconds(self, world: int) -> float:
        """By the assumed link and latency."""
        return self.messages * LATENCY * max(1, (world - 1).bit_length()) + self.bytes / LINK


def search(world: int, queries: int, k: int, width: int) -> Traffic:
    """Queries and their numbers to every rank; distances and numbers of K + 1 candidates back from each."""
    others = world - 1
    asked = queries * (width * _FLOAT16 + _INT64)
    answered = queries * (k + 1) * (_FLOAT64 + _INT64)
    return Traffic(4, others * (asked + answered))


def fetch(world: int, leaving: int, arriving: int, width: int) -> Traffic:
    """Counts, the numbers of `leaving` rows to their owners; the `arriving` rows that others ask for, back."""
    return Traffic(3, (world - 1) * _INT64 + leaving * _INT64 + arriving * width * _FLOAT16)


def write(world: int, leaving: int, width: int) -> Traffic:
    """Counts, numbers and rows of the `leaving` molecules that other ranks own."""
    return Traffic(3, (world - 1) * _INT64 + leaving * (_INT64 + width * _FLOAT16))


def step(world: int, batch: int, k: int, width: int) -> Traffic:
    """A training step at its worst: no neighbour is in the batch, none is named twice."""
    elsewhere = batch * (world - 1) // world
    return (
        search(world, batch, k, width)
        + fetch(world, elsewhere * k, elsewhere * k, width)
        + write(world, elsewhere, width)
    )


def refresh(world: int, sample: int, k: int, width: int) -> Traffic:
    """Whether there is a row, recall by two searches, its sum, and the moments of the rows; building sends nothing."""
    own = -(-sample // world)
    counts = Traffic(2, (world - 1) * (_INT64 + 2 * _INT64))
    moments = Traffic(1, (world - 1) * (2 + width) * _FLOAT64)
    return search(world, own, k, width) + search(world, own, k, width) + counts + moments


def search_flops(molecules: int, world: int, batch: int, width: int) -> float:
    """Of one rank and step, exact: all queries of all ranks over its own rows."""
    return 2.0 * world * batch * (molecules / world) * width


def memory(molecules: int, world: int, width: int, *, lag: bool) -> float:
    """Bytes of a rank: bank with steps, snapshot with numbers, float32 rows with norms for the product.

    With `lag` another snapshot and product, while an index is built beside training.
    """
    rows = molecules / world
    snapshot = rows * (width * _FLOAT16 + _INT64 + width * 4 + 4)
    return rows * (width * _FLOAT16 + _INT64) + snapshot * (2 if lag else 1)


def rows_of_table() -> list[str]:
    """Returns the lines of the table of docs/scale.md, for B = 512 per rank, K = 16 and C = 256."""
    batch, k, width = 512, 16, 256
    rows = []
    for molecules in (10**6, 10**8, 10**9):
        for world in (8, 64, 256, 1024):
            one, renewed = step(world, batch, k, width), refresh(world, 256, k, width)
            search_s = search_flops(molecules, world, batch, width) / GPU_PRODUCT
            cells = (
                *(f"{molecules / 1e6:,.0f} M", f"{world:,}", f"{molecules // world:,}"),
                f"{memory(molecules, world, width, lag=True) / 1e9:.2f}",
                *(f"{one.messages}", f"{one.bytes / 1e6:,.1f}", f"{one.seconds(world) * 1e3:,.1f}"),
                *(f"{search_s * 1e3:,.0f}", f"{renewed.bytes / 1e6:,.2f}"),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return rows
