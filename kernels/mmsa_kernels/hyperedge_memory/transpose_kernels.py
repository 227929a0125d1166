"""The Triton kernels that find the entries of every vertex: the pattern of the transposed operator, without a sort.

Few entries are read by every program, which picks those of its own vertices. Many are counted and placed with integer
atomics, in an order that changes from run to run, and each is then put where its number stands among those of its
vertex: the order that comes out is always that of the entries. Launches: ``transpose.py``.

Entries whose vertex has no gradient (col >= num_vertices) are left out. Sizes of blocks: BE entries, UNROLL of them
whose loads are in flight together. Comments give shapes.
"""

from __future__ import annotations

import triton
import triton.language as tl

SCANNED_VERTICES: tl.constexpr = tl.constexpr(4)
"""Of a program of `scan_kernel`: as many counts as one integer of 64 bits holds side by side, 16 bits each."""
_SHIFTED: tl.constexpr = tl.constexpr((1 << 16) + (1 << 32) + (1 << 48))
"""Times four counts: before each of them, the sum of those before it."""


# A new number of entries or vertices must not compile anew: it is another in every batch.
@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def scan_kernel(col_ptr, vertexptr_ptr, order_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """For four vertices where their entries begin, which is how many have a lesser vertex, and the entries.

    Fewer than 2^15, so that counts of the four go side by side through sums and scans.
    """
    first_vertex = tl.program_id(0) * SCANNED_VERTICES
    lesser = tl.zeros([BE], tl.int32)
    counts = tl.zeros([BE], tl.int64)
    for first in range(0, num_entries, BE):
        vertex = _vertices(col_ptr, first, num_entries, first_vertex, BE)  # [BE], from the first of the four on
        lesser += (vertex < 0).to(tl.int32)
        counts += _one_of_four(vertex)
    start = tl.sum(lesser)
    place = tl.sum(counts) * _SHIFTED  # of the next entry of each of the four, from `start` on
    local = tl.arange(0, SCANNED_VERTICES)
    # After the last vertex it is where the entries end.
    in_vertices = first_vertex + local <= num_vertices
    tl.store(vertexptr_ptr + first_vertex + local, start + _count_of(place, local).to(tl.int32), mask=in_vertices)
    for first in range(0, num_entries, BE):
        vertex = _vertices(col_ptr, first, num_entries, first_vertex, BE)
        one = _one_of_four(vertex)
        more = tl.sum(one)
        if more != 0:  # with a bank, in few blocks
            before = place + tl.cumsum(one) - one
            # Those of the last program that are of no vertex come after all others, where they mean nothing.
            tl.store(order_ptr + start + _count_of(before, vertex), first + tl.arange(0, BE), mask=one != 0)
            place += more


@triton.jit
def _vertices(col_ptr, first, num_entries, first_vertex, BE: tl.constexpr):
    """How far behind a vertex those of a block of entries come; beyond the entries very far."""
    entry = first + tl.arange(0, BE)  # [BE]
    col = tl.load(col_ptr + entry, mask=entry < num_entries, other=0x7FFFFFFF)
    return tl.minimum(col, 0x7FFFFFFF).to(tl.int32) - first_vertex


@triton.jit
def _one_of_four(vertex):
    """A one in the place of vertices 0 to 3, nothing for others."""
    in_four = (vertex >= 0) & (vertex < SCANNED_VERTICES)
    return tl.where(in_four, tl.full(vertex.shape, 1, tl.int64) << tl.where(in_four, 16 * vertex, 0), 0)


@triton.jit
def _count_of(counts, vertex):
    """The count in the place of a vertex."""
    return (counts >> (16 * (vertex & 3))) & 0xFFFF


@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def count_kernel(col_ptr, count_ptr, arrival_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """Counts the entries of each vertex v in place v + 1, and says of each the how manyth it was to arrive there."""
    entry = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    col = tl.load(col_ptr + entry, mask=entry < num_entries, other=-1).to(tl.int64)
    wanted = (col >= 0) & (col < num_vertices)
    one = tl.full([BE], 1, count_ptr.dtype.element_ty)
    arrival = tl.atomic_add(count_ptr + col + 1, one, mask=wanted, sem="relaxed")
    tl.store(arrival_ptr + entry, arrival, mask=wanted)


@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def place_kernel(col_ptr, vertexptr_ptr, arrival_ptr, placed_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """Places the entries of a vertex side by side, as they arrived."""
    entry = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    col = tl.load(col_ptr + entry, mask=entry < num_entries, other=-1).to(tl.int64)
    wanted = (col >= 0) & (col < num_vertices)
    start = tl.load(vertexptr_ptr + col, mask=wanted, other=0).to(tl.int64)
    arrival = tl.load(arrival_ptr + entry, mask=wanted, other=0)
    tl.store(placed_ptr + start + arrival, entry.to(placed_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["num_vertices"])
def rank_kernel(
    col_ptr, vertexptr_ptr, placed_ptr, order_ptr, num_vertices, BE: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """Puts every entry of a vertex where as many of its others lie before it as come before it."""
    slot = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    in_slots = slot < tl.load(vertexptr_ptr + num_vertices)
    entry = tl.load(placed_ptr + slot, mask=in_slots, other=0)
    vertex = tl.load(col_ptr + entry, mask=in_slots, other=0).to(tl.int64)
    start = tl.load(vertexptr_ptr + vertex, mask=in_slots, other=0).to(tl.int64)
    length = (tl.load(vertexptr_ptr + vertex + 1, mask=in_slots, other=0) - start).to(tl.int32)
    rank = tl.zeros([BE], tl.int32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):  # side by side, so that their loads are in flight together
            in_list = first + step < length
            other = tl.load(placed_ptr + start + (first + step), mask=in_list, other=0)
            rank += (in_list & (other < entry)).to(tl.int32)
    tl.store(order_ptr + start + rank, entry, mask=in_slots)
