"""Numbers as the matrix units read them, in planes of half precision, and products of such planes.

A float32 is the sum of three bf16 pieces: the number rounded, the remainder rounded, and what then remains. The six
largest products of pieces give all 24 bits, on the fastest units of the GPU. (Triton's own ``tf32x3`` splits numbers in
registers, which overflow from D = 128 on.) A number of half precision is its own single piece.
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
    """Returns `total` + a @ b, for a and b in pieces, each transposed on request.

    Matrix units cut the bits off that do not fit into the sum they add to, instead of rounding. In pieces, a product of
    blocks therefore has a sum of its own, the small products first, and only that is added to `total`.
    """
    product = total
    if PIECES > 1:
        product = tl.zeros_like(total)
    for n in tl.static_range(PIECES):
        for i in tl.static_range(n + 1):
            left, right = a[PIECES - 1 - n], b[n - i]
            if TRANSPOSE_A:
                left = tl.trans(left)
            if TRANSPOSE_B:
                right = tl.trans(right)
            if INTERPRETED:  # Triton's interpreter multiplies bf16 wrongly, and does not say so
                product = tl.dot(left.to(tl.float32), right.to(tl.float32), product)
            else:
                product = tl.dot(left, right, product)
    if PIECES > 1:
        product += total
    return product


@triton.jit
def load_pieces(ptr, place, mask, plane, PIECES: tl.constexpr):
    """Loads a block of numbers in pieces, which lie `plane` apart."""
    first = tl.load(ptr + place, mask=mask, other=0.0)
    pieces = (first,)
    if PIECES == 3:
        second = tl.load(ptr + plane + place, mask=mask, other=0.0)
        third = tl.load(ptr + 2 * plane + place, mask=mask, other=0.0)
        pieces = (first, second, third)  # type: ignore[assignment]
    return pieces


@triton.jit
def store_pieces(ptr, place, pieces, mask, plane, PIECES: tl.constexpr):
    """Stores a block of numbers in pieces, `plane` apart."""
    for i in tl.static_range(PIECES):
        tl.store(ptr + i * plane + place, pieces[i], mask=mask)


@triton.jit
def split(x, dtype: tl.constexpr, PIECES: tl.constexpr):
    """Splits float32 numbers into pieces."""
    first = x.to(dtype)
    pieces = (first,)
    if PIECES == 3:
        rest = x - first.to(tl.float32)
        second = rest.to(dtype)
        pieces = (first, second, (rest - second.to(tl.float32)).to(dtype))  # type: ignore[assignment]
    return pieces


@triton.jit
def whole(pieces, PIECES: tl.constexpr):
    """Returns the float32 numbers whose pieces these are."""
    x = pieces[0].to(tl.float32)
    for i in tl.static_range(1, PIECES):
        x += pieces[i].to(tl.float32)
    return x
