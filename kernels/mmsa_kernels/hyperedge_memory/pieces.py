"""Numbers as the matrix units take them, in planes of half precision, and products of such planes.

A float32 is the sum of three planes of bf16: the number rounded, what rounding left, rounded, and the rest. The six
largest of their products have all 24 bits, on the fastest units there are. (Triton's own ``tf32x3`` splits in
registers, which overflow from D = 128 on.) Numbers of half precision are their own one piece.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(
    a,
    b,
    total,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
    TRANSPOSE_A: tl.constexpr = False,
    TRANSPOSE_B: tl.constexpr = False,
):
    """Adds a @ b to `total`, either of them transposed if asked for; both in pieces."""
    for i in tl.static_range(PIECES):
        for j in tl.static_range(PIECES - i):
            left, right = a[i], b[j]
            if TRANSPOSE_A:
                left = tl.trans(left)
            if TRANSPOSE_B:
                right = tl.trans(right)
            if INTERPRETED:  # Triton's interpreter multiplies bf16 wrongly, without a word
                total = tl.dot(left.to(tl.float32), right.to(tl.float32), total)
            else:
                total = tl.dot(left, right, total)
    return total


@triton.jit
def load_pieces(ptr, place, mask, plane, PIECES: tl.constexpr):
    """A block of numbers in pieces, which lie `plane` apart."""
    first = tl.load(ptr + place, mask=mask, other=0.0)
    pieces = (first,)
    if PIECES == 3:
        second = tl.load(ptr + plane + place, mask=mask, other=0.0)
        third = tl.load(ptr + 2 * plane + place, mask=mask, other=0.0)
        pieces = (first, second, third)  # type: ignore[assignment]
    return pieces


@triton.jit
def store_pieces(ptr, place, pieces, mask, plane, PIECES: tl.constexpr):
    """Writes a block of numbers in pieces, `plane` apart."""
    for i in tl.static_range(PIECES):
        tl.store(ptr + i * plane + place, pieces[i], mask=mask)


@triton.jit
def split(x, dtype: tl.constexpr, PIECES: tl.constexpr):
    """Float32 numbers in pieces."""
    first = x.to(dtype)
    pieces = (first,)
    if PIECES == 3:
        rest = x - first.to(tl.float32)
        second = rest.to(dtype)
        pieces = (first, second, (rest - second.to(tl.float32)).to(dtype))  # type: ignore[assignment]
    return pieces


@triton.jit
def whole(pieces, PIECES: tl.constexpr):
    """The float32 numbers that pieces are of."""
    x = pieces[0].to(tl.float32)
    for i in tl.static_range(1, PIECES):
        x += pieces[i].to(tl.float32)
    return x
