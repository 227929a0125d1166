"""The Triton kernels. The mathematics stands in ``kernels/README.md``; launches are in ``launch.py``.

A program owns a block of rows, adds up the rows of x that each of them gathers, and walks over all anchors with a
running softmax, as FlashAttention does (Dao 2023) with the anchors as keys and values. Scores live in base 2.
The backward is two kernels, one owning rows and one owning anchors, each computing the scores anew, and a gather
over the transposed operator: every number is written by one program that adds in a fixed order, so nothing is
atomic and the same bits come out of every run.

What is gathered goes to memory, few rows at a time, and is read back as a whole by the program that wrote it: rows
that are summed and rows that enter a matrix product want other layouts, and both at once do not fit in registers.

What enters a matrix product are planes of half precision numbers. A float32 is the sum of three planes of bf16: the
number rounded, what rounding left, rounded, and the rest. The six largest of their products have all 24 bits, on the
fastest units there are. (Triton's own ``tf32x3`` splits in registers, which overflow from D = 128 on.)

Sizes of blocks: BM rows, of which GM are gathered at a time, BN anchors, BD >= D columns. Comments give shapes.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_EPS: tl.constexpr = tl.constexpr(1e-8)


@triton.jit
def _dot(
    a, b, total, PIECES: tl.constexpr, TRANSPOSE: tl.constexpr, INTERPRETED: tl.constexpr, FENCED: tl.constexpr = False
):
    """Adds a @ b, or a @ bᵀ, to `total`; both in pieces. FENCED: see `tiles.is_fenced`."""
    for i in tl.static_range(PIECES):
        for j in tl.static_range(PIECES - i):
            left, right = a[i], b[j]
            if TRANSPOSE:
                right = tl.trans(right)
            if INTERPRETED:  # Triton's interpreter multiplies bf16 wrongly, without a word
                total = tl.dot(left.to(tl.float32), right.to(tl.float32), total)
            else:
                total = tl.dot(left, right, total)
                if FENCED:
                    tl.debug_barrier()
    return total


@triton.jit
def _load_pieces(ptr, place, mask, plane, PIECES: tl.constexpr):
    """A block of numbers in pieces, which lie `plane` apart."""
    first = tl.load(ptr + place, mask=mask, other=0.0)
    pieces = (first,)
    if PIECES == 3:
        second = tl.load(ptr + plane + place, mask=mask, other=0.0)
        third = tl.load(ptr + 2 * plane + place, mask=mask, other=0.0)
        pieces = (first, second, third)  # type: ignore[assignment]
    return pieces


@triton.jit
def _split(x, dtype: tl.constexpr, PIECES: tl.constexpr):
    """Float32 numbers in pieces."""
    first = x.to(dtype)
    pieces = (first,)
    if PIECES == 3:
        rest = x - first.to(tl.float32)
        second = rest.to(dtype)
        pieces = (first, second, (rest - second.to(tl.float32)).to(dtype))  # type: ignore[assignment]
    return pieces


@triton.jit
def _whole(pieces, PIECES: tl.constexpr):
    """The float32 numbers that pieces are of."""
    x = pieces[0].to(tl.float32)
    for i in tl.static_range(1, PIECES):
        x += pieces[i].to(tl.float32)
    return x


@triton.jit
def _entries_of(rowptr_ptr, row, in_rows):
    """Where the entries of rows begin, and how many each has."""
    start = tl.load(rowptr_ptr + row, mask=in_rows, other=0).to(tl.int64)
    end = tl.load(rowptr_ptr + row + 1, mask=in_rows, other=0).to(tl.int64)
    return start, (end - start).to(tl.int32)


@triton.jit
def _load_vertices(
    x_ptr,
    stale_ptr,
    col_ptr,
    entry,
    here,
    num_fresh,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    HAS_STALE: tl.constexpr,
):
    """The rows of the vertices of entries: of x, or for those beyond its end of the stale table."""
    column = tl.arange(0, BD)  # [BD]
    vertex = tl.load(col_ptr + entry, mask=here, other=0).to(tl.int64)
    place = x_ptr + vertex * X_STRIDE
    if HAS_STALE:
        place = tl.where(vertex < num_fresh, place, stale_ptr + (vertex - num_fresh) * STALE_STRIDE)
    x = tl.load(place[:, None] + column[None, :], mask=here[:, None] & (column < D)[None, :], other=0.0)
    return x.to(tl.float32)


@triton.jit
def _gather(
    x_ptr,
    stale_ptr,
    rowptr_ptr,
    col_ptr,
    weight_ptr,
    row,
    in_rows,
    num_fresh,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    GM: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_STALE: tl.constexpr,
):
    """The weighted sums of the entries of GM rows."""
    start, length = _entries_of(rowptr_ptr, row, in_rows)
    total = tl.zeros([GM, BD], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):  # side by side, so that their loads are in flight together
            here = first + step < length  # [GM]
            entry = start + (first + step)
            weight = tl.load(weight_ptr + entry, mask=here, other=0.0).to(tl.float32)
            x = _load_vertices(
                x_ptr, stale_ptr, col_ptr, entry, here, num_fresh, X_STRIDE, STALE_STRIDE, D, BD, HAS_STALE
            )
            total += weight[:, None] * x  # [GM, BD]
    return total


# A new number of rows or vertices must not compile anew: it is another in every batch.
@triton.jit(do_not_specialize=["num_fresh", "num_rows", "num_anchors"])
def forward_kernel(
    x_ptr,
    stale_ptr,
    rowptr_ptr,
    col_ptr,
    weight_ptr,
    anchors_ptr,
    anchor_length_ptr,
    g_ptr,
    g_pieces_ptr,
    readout_ptr,
    lse_ptr,
    row_scale_ptr,
    num_fresh,
    num_rows,
    num_anchors,
    scale,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    GM: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_STALE: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """g, the read-out and the log-sum-exp of a block of rows, and what the backward needs again."""
    first_row = tl.program_id(0).to(tl.int64) * BM
    row_plane = num_rows.to(tl.int64) * D
    column = tl.arange(0, BD)  # [BD]
    in_columns = column < D
    for first in range(0, BM, GM):
        row = first_row + first + tl.arange(0, GM)  # [GM]
        in_rows = row < num_rows
        total_g = _gather(
            x_ptr, stale_ptr, rowptr_ptr, col_ptr, weight_ptr, row, in_rows, num_fresh,
            X_STRIDE, STALE_STRIDE, D, GM, BD, UNROLL, HAS_STALE,
        )  # fmt: skip
        few = (first + tl.arange(0, GM))[:, None] * D + column[None, :]  # [GM, BD], from the first row on
        in_few = in_rows[:, None] & in_columns[None, :]
        tl.store(g_ptr + first_row * D + few, total_g.to(g_ptr.dtype.element_ty), mask=in_few)
        if COSINE:
            square = tl.sum(total_g * total_g, axis=1)  # [GM]
            has_direction = square > _EPS * _EPS
            inverse_length = tl.where(has_direction, 1.0 / tl.sqrt(tl.where(has_direction, square, 1.0)), 0.0)
            tl.store(row_scale_ptr + row, scale * inverse_length, mask=in_rows)
            total_g *= inverse_length[:, None]
        if COSINE or PIECES > 1:
            pieces = _split(total_g, g_pieces_ptr.dtype.element_ty, PIECES)
            for i in tl.static_range(PIECES):
                tl.store(g_pieces_ptr + i * row_plane + first_row * D + few, pieces[i], mask=in_few)
    tl.debug_barrier()  # the rows were written by other threads of this program than those that read them now

    row = first_row + tl.arange(0, BM)  # [BM]
    in_rows = row < num_rows
    in_block = in_rows[:, None] & in_columns[None, :]
    element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD], from the first row on
    g = _load_pieces(g_pieces_ptr + first_row * D, element, in_block, row_plane, PIECES)
    highest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    readout = tl.zeros([BM, BD], tl.float32)
    anchor_element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD], from the first anchor on
    for first in tl.range(0, num_anchors, BN, num_stages=STAGES):
        anchor = first + tl.arange(0, BN)  # [BN]
        in_anchors = anchor < num_anchors
        m = _load_pieces(
            anchors_ptr + first * D, anchor_element, in_anchors[:, None] & in_columns[None, :], num_anchors * D, PIECES
        )  # [BN, BD]
        score = _dot(g, m, tl.zeros([BM, BN], tl.float32), PIECES, True, INTERPRETED) * (scale * _LOG2_E)  # [BM, BN]
        score = tl.where(in_anchors[None, :], score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, axis=1))
        shrink = tl.exp2(highest - new_highest)
        p = tl.exp2(score - new_highest[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        if COSINE:  # the values of unit anchors are as long as the anchors
            p *= tl.load(anchor_length_ptr + anchor, mask=in_anchors, other=0.0)[None, :]
        p = _split(p, anchors_ptr.dtype.element_ty, PIECES)
        readout = _dot(p, m, readout * shrink[:, None], PIECES, False, INTERPRETED)
        highest = new_highest
    readout = readout / total[:, None]
    tl.store(readout_ptr + first_row * D + element, readout.to(readout_ptr.dtype.element_ty), mask=in_block)
    tl.store(lse_ptr + row, (highest + tl.log2(total)) * _LN_2, mask=in_rows)


@triton.jit(do_not_specialize=["num_fresh", "num_rows", "num_anchors"])
def backward_rows_kernel(
    x_ptr,
    stale_ptr,
    rowptr_ptr,
    col_ptr,
    anchors_ptr,
    anchor_length_ptr,
    g_pieces_ptr,
    readout_ptr,
    lse_ptr,
    row_scale_ptr,
    grad_g_ptr,
    grad_readout_ptr,
    grad_lse_ptr,
    attention_grad_g_ptr,
    total_grad_g_ptr,
    delta_ptr,
    grad_weight_ptr,
    num_fresh,
    num_rows,
    num_anchors,
    scale,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    GM: tl.constexpr,
    UNROLL: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_STALE: tl.constexpr,
    COSINE: tl.constexpr,
    HAS_GRAD_G: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    WANTS_GRAD_WEIGHT: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The whole gradient of g, <r̄, r> − l̄ of each row, and the gradient of the weights."""
    first_row = tl.program_id(0).to(tl.int64) * BM
    row = first_row + tl.arange(0, BM)  # [BM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < num_rows
    in_columns = column < D
    in_block = in_rows[:, None] & in_columns[None, :]
    element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD], from the first row on

    row_plane = num_rows.to(tl.int64) * D
    grad_readout = _load_pieces(grad_readout_ptr + first_row * D, element, in_block, row_plane, PIECES)
    readout = tl.load(readout_ptr + first_row * D + element, mask=in_block, other=0.0).to(tl.float32)
    delta = tl.sum(_whole(grad_readout, PIECES) * readout, axis=1)  # [BM]
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + row, mask=in_rows, other=0.0).to(tl.float32)
    tl.store(delta_ptr + row, delta, mask=in_rows)

    g = _load_pieces(g_pieces_ptr + first_row * D, element, in_block, row_plane, PIECES)
    lse = tl.load(lse_ptr + row, mask=in_rows, other=0.0) * _LOG2_E
    row_scale = tl.full([BM], scale, tl.float32)
    if COSINE:
        row_scale = tl.load(row_scale_ptr + row, mask=in_rows, other=0.0)
    grad_g = tl.zeros([BM, BD], tl.float32)
    anchor_element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD], from the first anchor on
    for first in tl.range(0, num_anchors, BN, num_stages=STAGES):
        anchor = first + tl.arange(0, BN)  # [BN]
        in_anchors = anchor < num_anchors
        m = _load_pieces(
            anchors_ptr + first * D, anchor_element, in_anchors[:, None] & in_columns[None, :], num_anchors * D, PIECES
        )  # [BN, BD]
        score = _dot(g, m, tl.zeros([BM, BN], tl.float32), PIECES, True, INTERPRETED) * (scale * _LOG2_E)  # [BM, BN]
        p = tl.exp2(tl.minimum(score - lse[:, None], 0.0))  # never above one, whatever rounding says
        p = tl.where(in_anchors[None, :], p, 0.0)
        grad_p = _dot(grad_readout, m, tl.zeros([BM, BN], tl.float32), PIECES, True, INTERPRETED)  # [BM, BN]
        if COSINE:
            grad_p *= tl.load(anchor_length_ptr + anchor, mask=in_anchors, other=0.0)[None, :]
        grad_score = _split(p * (grad_p - delta[:, None]), anchors_ptr.dtype.element_ty, PIECES)
        grad_g = _dot(grad_score, m, grad_g, PIECES, False, INTERPRETED)  # [BM, BD]
    grad_g *= row_scale[:, None]
    tl.store(attention_grad_g_ptr + first_row * D + element, grad_g, mask=in_block)
    tl.debug_barrier()  # as in the forward: other threads go on with it

    for first in range(0, BM, GM):
        few_rows = first_row + first + tl.arange(0, GM)  # [GM]
        are_rows = few_rows < num_rows
        in_few = are_rows[:, None] & in_columns[None, :]
        few = (first + tl.arange(0, GM))[:, None] * D + column[None, :]  # [GM, BD], from the first row on
        total = tl.load(attention_grad_g_ptr + first_row * D + few, mask=in_few, other=0.0)
        if COSINE:  # what lengthens g changes no cosine
            unit_g = _whole(_load_pieces(g_pieces_ptr + first_row * D, few, in_few, row_plane, PIECES), PIECES)
            total -= tl.sum(total * unit_g, axis=1)[:, None] * unit_g
        if HAS_GRAD_G:
            total += tl.load(grad_g_ptr + first_row * D + few, mask=in_few, other=0.0).to(tl.float32)
        tl.store(total_grad_g_ptr + first_row * D + few, total.to(total_grad_g_ptr.dtype.element_ty), mask=in_few)
        if WANTS_GRAD_WEIGHT:
            start, length = _entries_of(rowptr_ptr, few_rows, are_rows)
            for first_entry in range(0, tl.max(length), UNROLL):
                for step in tl.static_range(UNROLL):
                    here = first_entry + step < length  # [GM]
                    entry = start + (first_entry + step)
                    x = _load_vertices(
                        x_ptr, stale_ptr, col_ptr, entry, here, num_fresh, X_STRIDE, STALE_STRIDE, D, BD, HAS_STALE
                    )
                    grad_weight = tl.sum(total * x, axis=1)
                    tl.store(grad_weight_ptr + entry, grad_weight.to(grad_weight_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["num_rows", "num_anchors", "rows_per_split"])
def backward_anchors_kernel(
    anchors_ptr,
    anchor_length_ptr,
    anchor_turns_ptr,
    g_pieces_ptr,
    lse_ptr,
    grad_readout_ptr,
    delta_ptr,
    partial_ptr,
    overlap_ptr,
    num_rows,
    num_anchors,
    rows_per_split,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
    FENCED: tl.constexpr,
):
    """What a split of the rows adds to the gradient of a block of anchors.

    For cosine, what it adds to |m| times that gradient, before the part along the anchor is taken out, and to the
    share of the values in that part.
    """
    first_anchor = tl.program_id(0) * BN
    anchor = first_anchor + tl.arange(0, BN)  # [BN]
    split = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BD)  # [BD]
    in_anchors = anchor < num_anchors
    in_columns = column < D
    in_block = in_anchors[:, None] & in_columns[None, :]
    element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD], from the first anchor on

    row_plane = num_rows.to(tl.int64) * D
    m = _load_pieces(anchors_ptr + first_anchor * D, element, in_block, num_anchors * D, PIECES)
    if COSINE:
        anchor_length = tl.load(anchor_length_ptr + anchor, mask=in_anchors, other=1.0)
        turning_scale = scale * tl.load(anchor_turns_ptr + anchor, mask=in_anchors, other=0.0)
    overlap = tl.zeros([BN, BM], tl.float32)
    grad_m = tl.zeros([BN, BD], tl.float32)
    row_element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD], from the first row on
    for first in tl.range(0, rows_per_split, BM, num_stages=STAGES):
        first_row = split * rows_per_split + first
        row = first_row + tl.arange(0, BM)  # [BM]
        in_rows = row < num_rows
        mask = in_rows[:, None] & in_columns[None, :]
        g = _load_pieces(g_pieces_ptr + first_row * D, row_element, mask, row_plane, PIECES)
        lse = tl.load(lse_ptr + row, mask=in_rows, other=float("inf")) * _LOG2_E  # no attention beyond the last row
        delta = tl.load(delta_ptr + row, mask=in_rows, other=0.0)
        score = _dot(m, g, tl.zeros([BN, BM], tl.float32), PIECES, True, INTERPRETED, FENCED)  # [BN, BM]
        score *= scale * _LOG2_E
        p = tl.exp2(tl.minimum(score - lse[None, :], 0.0))
        grad_readout = _load_pieces(grad_readout_ptr + first_row * D, row_element, mask, row_plane, PIECES)
        grad_p = _dot(m, grad_readout, tl.zeros([BN, BM], tl.float32), PIECES, True, INTERPRETED, FENCED)  # [BN, BM]
        if COSINE:
            overlap += p * grad_p
            grad_score = p * (grad_p * anchor_length[:, None] - delta[None, :]) * turning_scale[:, None]
            p *= anchor_length[:, None]
        else:
            grad_score = p * (grad_p - delta[None, :]) * scale
        p = _split(p, anchors_ptr.dtype.element_ty, PIECES)
        grad_m = _dot(p, grad_readout, grad_m, PIECES, False, INTERPRETED, FENCED)  # [BN, BD]
        grad_score = _split(grad_score, anchors_ptr.dtype.element_ty, PIECES)
        grad_m = _dot(grad_score, g, grad_m, PIECES, False, INTERPRETED, FENCED)
    if COSINE:
        tl.store(overlap_ptr + split * num_anchors + anchor, tl.sum(overlap, axis=1) * anchor_length, mask=in_anchors)
    tl.store(partial_ptr + (split * num_anchors + first_anchor) * D + element, grad_m, mask=in_block)


@triton.jit(do_not_specialize=["num_rows"])
def gather_kernel(
    x_ptr,
    rowptr_ptr,
    col_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    D: tl.constexpr,
    GM: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Weighted sums of rows: with the transposed operator and the gradient of g, the gradient of x."""
    row = tl.program_id(0).to(tl.int64) * GM + tl.arange(0, GM)  # [GM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < num_rows
    total = _gather(x_ptr, x_ptr, rowptr_ptr, col_ptr, weight_ptr, row, in_rows, 0, D, D, D, GM, BD, UNROLL, False)
    tl.store(
        out_ptr + row[:, None] * D + column[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=in_rows[:, None] & (column < D)[None, :],
    )
