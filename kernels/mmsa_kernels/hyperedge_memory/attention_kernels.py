"""The Triton kernels of the attention over anchors. Mathematics: ``kernels/README.md``; launches: ``launch.py``.

A program owns a block of rows of g and loops over all anchors with a running softmax, as FlashAttention does (Dao
2023), with the anchors as keys and values. Scores are in base 2. In the backward it loops once more, and stores the
attention of its rows and the gradient of their scores; the gradients of g and of the anchors are products with these.
The backward is launched for some rows at a time, so that little of this is stored at once. Every number is written by
one program that adds in a fixed order.

Block sizes: BM rows, BN anchors, BD >= D columns. Comments give shapes. Factors of products are in pieces
(``pieces.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmsa_kernels.hyperedge_memory.pieces import dot, load_pieces, split, store_pieces, whole

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_anchors(
    anchors_ptr, first, element, in_anchors, in_columns, num_anchors, D: tl.constexpr, PIECES: tl.constexpr
):
    """Loads a block of anchors that begins at `first`, [BN, BD] in pieces."""
    mask = in_anchors[:, None] & in_columns[None, :]
    return load_pieces(anchors_ptr + first * D, element, mask, num_anchors.to(tl.int64) * D, PIECES)


# The number of rows differs in every batch, and must not cause a recompilation.
@triton.jit(do_not_specialize=["num_rows", "num_anchors"])
def forward_kernel(
    anchors_ptr,
    anchor_length_ptr,
    g_pieces_ptr,
    readout_ptr,
    lse_ptr,
    num_rows,
    num_anchors,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes the read-out and the log-sum-exp of a block of rows."""
    first_row = tl.program_id(0).to(tl.int64) * BM
    row = first_row + tl.arange(0, BM)  # [BM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < num_rows
    in_columns = column < D
    in_block = in_rows[:, None] & in_columns[None, :]
    element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD], relative to the first row
    g = load_pieces(g_pieces_ptr + first_row * D, element, in_block, num_rows.to(tl.int64) * D, PIECES)
    highest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    readout = tl.zeros([BM, BD], tl.float32)
    anchor_element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD], relative to the first anchor
    for first in tl.range(0, num_anchors, BN, num_stages=STAGES):
        anchor = first + tl.arange(0, BN)  # [BN]
        in_anchors = anchor < num_anchors
        m = _load_anchors(
            anchors_ptr, first, anchor_element, in_anchors, in_columns, num_anchors, D, PIECES
        )  # [BN, BD]
        score = dot(g, m, tl.zeros([BM, BN], tl.float32), PIECES, INTERPRETED, TRANSPOSE_B=True)  # [BM, BN]
        score *= scale * _LOG2_E
        score = tl.where(in_anchors[None, :], score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, axis=1))
        shrink = tl.exp2(highest - new_highest)
        p = tl.exp2(score - new_highest[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        if COSINE:  # values are the anchors themselves: unit anchors times their lengths
            p *= tl.load(anchor_length_ptr + anchor, mask=in_anchors, other=0.0)[None, :]
        p = split(p, anchors_ptr.dtype.element_ty, PIECES)
        readout = dot(p, m, readout * shrink[:, None], PIECES, INTERPRETED)
        highest = new_highest
    readout = readout / total[:, None]
    tl.store(readout_ptr + first_row * D + element, readout.to(readout_ptr.dtype.element_ty), mask=in_block)
    tl.store(lse_ptr + row, (highest + tl.log2(total)) * _LN_2, mask=in_rows)


@triton.jit(do_not_specialize=["num_rows", "num_anchors", "first_row", "last_row", "attention_blocks"])
def backward_scores_kernel(
    anchors_ptr,
    anchor_length_ptr,
    g_pieces_ptr,
    readout_ptr,
    lse_ptr,
    grad_readout_ptr,
    grad_lse_ptr,
    attention_ptr,
    grad_score_ptr,
    num_rows,
    num_anchors,
    first_row,
    last_row,
    attention_blocks,
    attention_plane,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ATTENTION_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    COSINE: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes the attention of rows `first_row` to `last_row` - 1, computed anew, and the gradient of their scores.

    For cosine the attention is multiplied by |m| of its anchor, because values are unit anchors times their lengths.

    Each is (rows, attention_blocks * ATTENTION_BLOCK), with zeros beyond the last anchor.
    """
    first_local = tl.program_id(0).to(tl.int64) * BM
    first_row += first_local
    row = first_row + tl.arange(0, BM)  # [BM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < last_row
    in_columns = column < D
    in_block = in_rows[:, None] & in_columns[None, :]
    element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD], relative to the first row

    row_plane = num_rows.to(tl.int64) * D
    attention_plane = attention_plane.to(tl.int64)
    grad_readout = load_pieces(grad_readout_ptr + first_row * D, element, in_block, row_plane, PIECES)
    readout = tl.load(readout_ptr + first_row * D + element, mask=in_block, other=0.0).to(tl.float32)
    delta = tl.sum(whole(grad_readout, PIECES) * readout, axis=1)  # [BM]
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + row, mask=in_rows, other=0.0).to(tl.float32)
    g = load_pieces(g_pieces_ptr + first_row * D, element, in_block, row_plane, PIECES)
    lse = tl.load(lse_ptr + row, mask=in_rows, other=0.0) * _LOG2_E
    anchor_element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD], relative to the first anchor
    tl.static_assert(ATTENTION_BLOCK % BN == 0)  # otherwise a block would cross the end of its row
    stride = attention_blocks * ATTENTION_BLOCK
    place = first_local * stride + tl.arange(0, BM)[:, None] * stride + tl.arange(0, BN)[None, :]  # [BM, BN]
    for first in tl.range(0, stride, BN, num_stages=STAGES):
        anchor = first + tl.arange(0, BN)  # [BN]
        in_anchors = anchor < num_anchors
        m = _load_anchors(
            anchors_ptr, first, anchor_element, in_anchors, in_columns, num_anchors, D, PIECES
        )  # [BN, BD]
        score = dot(g, m, tl.zeros([BM, BN], tl.float32), PIECES, INTERPRETED, TRANSPOSE_B=True)  # [BM, BN]
        score *= scale * _LOG2_E
        p = tl.exp2(tl.minimum(score - lse[:, None], 0.0))  # never above one, in spite of rounding
        p = tl.where(in_anchors[None, :], p, 0.0)
        grad_p = dot(grad_readout, m, tl.zeros([BM, BN], tl.float32), PIECES, INTERPRETED, TRANSPOSE_B=True)
        if COSINE:
            length = tl.load(anchor_length_ptr + anchor, mask=in_anchors, other=0.0)
            grad_score = p * (grad_p * length[None, :] - delta[:, None])
            p *= length[None, :]
        else:
            grad_score = p * (grad_p - delta[:, None])
        p = split(p, attention_ptr.dtype.element_ty, PIECES)
        store_pieces(attention_ptr + first, place, p, in_rows[:, None], attention_plane, PIECES)
        grad_score = split(grad_score, attention_ptr.dtype.element_ty, PIECES)
        store_pieces(grad_score_ptr + first, place, grad_score, in_rows[:, None], attention_plane, PIECES)


@triton.jit(do_not_specialize=["num_anchors", "first_row", "last_row", "attention_blocks"])
def backward_rows_kernel(
    anchors_ptr,
    inverse_length_ptr,
    grad_score_ptr,
    attention_grad_g_ptr,
    num_anchors,
    first_row,
    last_row,
    attention_blocks,
    attention_plane,
    scale,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ATTENTION_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes what the attention adds to the gradient of g, for cosine with its part along g; row 0 is `first_row`."""
    first_local = tl.program_id(0).to(tl.int64) * BM
    row = first_row + first_local + tl.arange(0, BM)  # [BM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < last_row
    in_columns = column < D
    stride, attention_plane = attention_blocks * ATTENTION_BLOCK, attention_plane.to(tl.int64)
    place = first_local * stride + tl.arange(0, BM)[:, None] * stride + tl.arange(0, BN)[None, :]  # [BM, BN]
    anchor_element = tl.arange(0, BN)[:, None] * D + column[None, :]  # [BN, BD]; both relative to the first anchor
    grad_g = tl.zeros([BM, BD], tl.float32)
    for first in tl.range(0, num_anchors, BN, num_stages=STAGES):
        in_anchors = first + tl.arange(0, BN) < num_anchors
        grad_score = load_pieces(grad_score_ptr + first, place, in_rows[:, None], attention_plane, PIECES)  # [BM, BN]
        m = _load_anchors(
            anchors_ptr, first, anchor_element, in_anchors, in_columns, num_anchors, D, PIECES
        )  # [BN, BD]
        grad_g = dot(grad_score, m, grad_g, PIECES, INTERPRETED)  # [BM, BD]
    grad_g *= scale  # after the product: half precision might not hold it
    if COSINE:
        grad_g *= tl.load(inverse_length_ptr + row, mask=in_rows, other=0.0)[:, None]
    element = (first_local + tl.arange(0, BM))[:, None] * D + column[None, :]  # [BM, BD]
    tl.store(attention_grad_g_ptr + element, grad_g, mask=in_rows[:, None] & in_columns[None, :])


@triton.jit(
    do_not_specialize=["num_rows", "num_anchors", "first_row", "last_row", "rows_per_split", "attention_blocks"]
)
def backward_anchors_kernel(
    g_pieces_ptr,
    grad_readout_ptr,
    attention_ptr,
    grad_score_ptr,
    partial_ptr,
    num_rows,
    num_anchors,
    first_row,
    last_row,
    rows_per_split,
    attention_blocks,
    attention_plane,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ATTENTION_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Writes what a split of rows `first_row` to `last_row` - 1 adds to the gradient of a block of anchors.

    The first half of the programs adds it through the values, the second through the scores: (2, splits, anchors, D).
    """
    first_anchor = tl.program_id(0) * BN
    split_number = tl.program_id(1).to(tl.int64)
    through_scores = tl.program_id(2)
    left_ptr, right_ptr = attention_ptr, grad_readout_ptr
    if through_scores == 1:
        left_ptr, right_ptr = grad_score_ptr, g_pieces_ptr
    anchor = first_anchor + tl.arange(0, BN)  # [BN]
    column = tl.arange(0, BD)  # [BD]
    in_columns = (column < D)[None, :]
    row_plane = num_rows.to(tl.int64) * D
    attention_stride, attention_plane = attention_blocks * ATTENTION_BLOCK, attention_plane.to(tl.int64)
    place = tl.arange(0, BM)[:, None].to(tl.int64) * attention_stride + tl.arange(0, BN)[None, :]  # [BM, BN]
    element = tl.arange(0, BM)[:, None] * D + column[None, :]  # [BM, BD]; both relative to the first row

    partial = (through_scores * tl.num_programs(1) + split_number) * num_anchors * D
    partial = partial_ptr + partial + anchor[:, None] * D + column[None, :]  # [BN, BD]
    in_block = (anchor < num_anchors)[:, None] & in_columns
    grad_m = tl.zeros([BN, BD], tl.float32)
    if first_row > 0:  # adds to the sums of earlier rows
        grad_m = tl.load(partial, mask=in_block, other=0.0)
    for first in tl.range(0, rows_per_split, BM, num_stages=STAGES):
        first_local = split_number * rows_per_split + first
        in_rows = (first_row + first_local + tl.arange(0, BM) < last_row)[:, None]
        left = load_pieces(
            left_ptr + first_local * attention_stride + first_anchor, place, in_rows, attention_plane, PIECES
        )  # [BM, BN]
        right = load_pieces(
            right_ptr + (first_row + first_local) * D, element, in_rows & in_columns, row_plane, PIECES
        )  # [BM, BD]
        grad_m = dot(left, right, grad_m, PIECES, INTERPRETED, TRANSPOSE_A=True)  # [BN, BD]
    tl.store(partial, grad_m, mask=in_block)


@triton.jit(do_not_specialize=["num_anchors", "num_splits"])
def anchor_totals_kernel(
    partial_ptr,
    unit_ptr,
    anchor_length_ptr,
    grad_anchors_ptr,
    num_anchors,
    num_splits,
    scale,
    D: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
    COSINE: tl.constexpr,
):
    """Writes the gradient of an anchor: the sum over all splits of the rows, in order."""
    anchor = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BD)  # [BD]
    in_columns = column < D
    element = anchor * D + column
    split_size = num_anchors.to(tl.int64) * D
    through_values = tl.zeros([BD], tl.float32)
    through_scores = tl.zeros([BD], tl.float32)
    for first in range(0, num_splits, UNROLL):
        for step in tl.static_range(UNROLL):  # unrolled, so that their loads are in flight at the same time
            here = in_columns & (first + step < num_splits)
            place = partial_ptr + (first + step) * split_size + element
            through_values += tl.load(place, mask=here, other=0.0)
            through_scores += tl.load(place + num_splits * split_size, mask=here, other=0.0)
    through_scores *= scale  # after the product: half precision might not hold it
    grad_anchor = through_values + through_scores
    if COSINE:
        # The length of an anchor does not change its cosines, and an anchor without a direction has none; but the
        # length does change the values.
        unit = tl.load(unit_ptr + element, mask=in_columns, other=0.0)
        across = through_scores - tl.sum(through_scores * unit) * unit
        across = tl.where(tl.sum(unit * unit) > 0.5, across, 0.0)
        grad_anchor = (through_values + across) / tl.load(anchor_length_ptr + anchor)
    tl.store(grad_anchors_ptr + element, grad_anchor.to(grad_anchors_ptr.dtype.element_ty), mask=in_columns)
