"""Bytes and FLOPs of the operator: what any implementation must move and compute, and the predicted times of ours.

B rows of K entries, N vertices with a gradient, S anchors, D width; `size` bytes a number. A gathered row counts as
read from memory each time, anchors once. The derivation stands in ``kernels/README.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """A problem: the K entries of a row are itself and others, drawn from the B fresh rows and a bank of `vertices`."""

    name: str
    rows: int
    entries_per_row: int
    vertices: int
    width: int
    anchors: int
    fresh: bool = False
    """Whether the bank is part of x, and gets a gradient too."""

    @property
    def entries(self) -> int:
        """E."""
        return self.rows * self.entries_per_row

    @property
    def fresh_vertices(self) -> int:
        """N."""
        return self.rows + self.vertices * self.fresh

    def as_in_training(self) -> Shape:
        """Returns the shape that training has: x has a row for every entry, its own or a neighbour's, and no bank."""
        return replace(self, vertices=self.rows * (self.entries_per_row - 1), fresh=True)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("P", 1_024, 10, 1_000_000, 256, 128),
        Shape("L", 65_536, 16, 4_000_000, 256, 1_024),
        Shape("A", 65_536, 16, 4_000_000, 256, 8_192),
        Shape("G", 262_144, 32, 8_000_000, 128, 128),
    )
}
"""P has the size of the paper, L is large, A has many anchors, G gathers many rows."""


@dataclass(frozen=True)
class Ceilings:
    """The measured best rates of a device."""

    bytes_per_s: float
    """Of a large copy: bytes read plus bytes written."""
    flops_per_s: float
    """Of a large product of matrices of the dtype, to its full precision."""


@dataclass(frozen=True)
class Cost:
    """The cost of one pass."""

    bytes: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def floor_s(self, ceilings: Ceilings) -> float:
        """Returns the seconds that no implementation can beat: moving and computing fully overlapped."""
        return max(self.bytes / ceilings.bytes_per_s, self.flops / ceilings.flops_per_s)


INDEX, WEIGHT = 8, 4  # bytes


def forward(shape: Shape, size: int) -> Cost:
    """Returns the cost of the forward pass: a gather, two products with the anchors, and the writing of all outputs."""
    B, E, S, D = shape.rows, shape.entries, shape.anchors, shape.width
    moved = size * (E * D + S * D + 2 * B * D) + (INDEX + WEIGHT) * E + INDEX * (B + 1) + 4 * B
    return Cost(moved, 2 * E * D + 4 * B * S * D)


def backward(shape: Shape, size: int) -> Cost:
    """Returns the cost of the backward pass, for the gradients of the N fresh vertices, the weights and the anchors.

    Five products with the anchors; rows of x gathered for the weights; gradients of g gathered by the entries that are
    fresh, with a bank few.
    """
    B, E, S, D, N = shape.rows, shape.entries, shape.anchors, shape.width, shape.fresh_vertices
    fresh = B + (E - B) * N // (B + shape.vertices)
    moved = size * (E * D + fresh * D + 2 * S * D + 4 * B * D + N * D)
    moved += (INDEX + 2 * WEIGHT) * E + INDEX * (B + 1) + INDEX * (N + 1) + 8 * B
    return Cost(moved, 2 * E * D + 2 * fresh * D + 10 * B * S * D)


# The prediction assumes that random rows are gathered at this share of the bandwidth of a copy, that products run at
# this share of the rate of a large one, and that kernels run one after the other. The attention and the gradient of the
# scores are written once and read, the latter twice: (rows, anchors) numbers are moved five times. For the transpose,
# indices are read twice, and written and read once more as entries of vertices.
GATHER_SHARE, PRODUCT_SHARE, ATTENTION_PASSES = 0.9, 0.75, 5
LAUNCH_S = 5e-6


def predicted_s(shape: Shape, size: int, ceilings: Ceilings) -> tuple[float, float]:
    """Returns the seconds predicted for our forward and our backward pass."""
    products_per_s, bandwidth = ceilings.flops_per_s * PRODUCT_SHARE, ceilings.bytes_per_s * GATHER_SHARE
    product = 2 * shape.rows * shape.anchors * shape.width / products_per_s
    attention = ATTENTION_PASSES * size * shape.rows * shape.anchors
    ahead = forward(shape, size).bytes / bandwidth + 2 * product + 2 * LAUNCH_S
    transpose = 4 * INDEX * shape.entries
    back = (backward(shape, size).bytes + attention + transpose) / bandwidth + 5 * product + 12 * LAUNCH_S
    return ahead, back
