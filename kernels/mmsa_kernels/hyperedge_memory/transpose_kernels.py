"""The Triton kernels that find the entries of every vertex: the pattern of the transposed operator, without a sort.

If there are few entries, every program reads all of them and picks those of its own vertices. If there are many, they
are counted and placed with integer atomics, in an order that changes from run to run, and then the entries of each
vertex are sorted by their index: the result is the same in every run. Launches: ``transpose.py``.

Entries whose vertex has no gradient (col >= num_vertices) are left out. Block sizes: BE entries, of which UNROLL are
loaded at the same time. Comments give shapes.
"""

from __future__ import annotations

import triton
import triton.language as tl

SCANNED_VERTICES: tl.constexpr = tl.constexpr(4)
"""Vertices of a program of `scan_kernel`: their counts, 16 bits each, share one integer of 64 bits."""
_SHIFTED: tl.constexpr = tl.constexpr((1 << 16) + (1 << 32) + (1 << 48))
"""Four counts times this: for each of the four, the sum of the counts before it."""


# The numbers of entries and vertices differ in every batch, and must not cause a recompilation.
@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def scan_kernel(col_ptr, vertexptr_ptr, order_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """Writes, for four vertices, where their entries begin (how many entries have a smaller vertex) and the entries.

    There are fewer than 2^15 entries, so that the four counts go through sums and scans in one integer.
    """
    first_vertex = tl.program_id(0) * SCANNED_VERTICES
    lesser = tl.zeros([BE], tl.int32)
    counts = tl.zeros([BE], tl.int64)
    for first in range(0, num_entries, BE):
        vertex = _vertices(col_ptr, first, num_entries, first_vertex, BE)  # [BE], relative to the first of the four
        lesser += (vertex < 0).to(tl.int32)
        counts += _one_of_four(vertex)
    start = tl.sum(lesser)
    place = tl.sum(counts) * _SHIFTED  # where the next entry of each of the four goes, relative to `start`
    local = tl.arange(0, SCANNED_VERTICES)
    # The pointer after the last vertex is where the entries end.
    in_vertices = first_vertex + local <= num_vertices
    tl.store(vertexptr_ptr + first_vertex + local, start + _count_of(place, local).to(tl.int32), mask=in_vertices)
    for first in range(0, num_entries, BE):
        vertex = _vertices(col_ptr, first, num_entries, first_vertex, BE)
        one = _one_of_four(vertex)
        more = tl.sum(one)
        if more != 0:  # with a bank, few blocks have any
            before = place + tl.cumsum(one) - one
            # The last program also places entries beyond the last vertex, after all others, where nothing reads them.
            tl.store(order_ptr + start + _count_of(before, vertex), first + tl.arange(0, BE), mask=one != 0)
            place += more


@triton.jit
def _vertices(col_ptr, first, num_entries, first_vertex, BE: tl.constexpr):
    """Returns the vertices of a block of entries minus `first_vertex`; a very large number beyond the last entry."""
    entry = first + tl.arange(0, BE)  # [BE]
    col = tl.load(col_ptr + entry, mask=entry < num_entries, other=0x7FFFFFFF)
    return tl.minimum(col, 0x7FFFFFFF).to(tl.int32) - first_vertex


@triton.jit
def _one_of_four(vertex):
    """Returns a one in the 16 bits of vertices 0 to 3, and zero for others."""
    in_four = (vertex >= 0) & (vertex < SCANNED_VERTICES)
    return tl.where(in_four, tl.full(vertex.shape, 1, tl.int64) << tl.where(in_four, 16 * vertex, 0), 0)


@triton.jit
def _count_of(counts, vertex):
    """Returns the count in the 16 bits of a vertex."""
    return (counts >> (16 * (vertex & 3))) & 0xFFFF


@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def count_kernel(col_ptr, count_ptr, arrival_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """Counts the entries of each vertex v in place v + 1, and records the arrival index of each entry."""
    entry = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    col = tl.load(col_ptr + entry, mask=entry < num_entries, other=-1).to(tl.int64)
    wanted = (col >= 0) & (col < num_vertices)
    one = tl.full([BE], 1, count_ptr.dtype.element_ty)
    arrival = tl.atomic_add(count_ptr + col + 1, one, mask=wanted, sem="relaxed")
    tl.store(arrival_ptr + entry, arrival, mask=wanted)


@triton.jit(do_not_specialize=["num_entries", "num_vertices"])
def place_kernel(col_ptr, vertexptr_ptr, arrival_ptr, placed_ptr, num_entries, num_vertices, BE: tl.constexpr):
    """Places the entries of each vertex side by side, in the order of their arrival."""
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
    """Sorts the entries of each vertex by their original index."""
    slot = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    in_slots = slot < tl.load(vertexptr_ptr + num_vertices)
    entry = tl.load(placed_ptr + slot, mask=in_slots, other=0)
    vertex = tl.load(col_ptr + entry, mask=in_slots, other=0).to(tl.int64)
    start = tl.load(vertexptr_ptr + vertex, mask=in_slots, other=0).to(tl.int64)
    length = (tl.load(vertexptr_ptr + vertex + 1, mask=in_slots, other=0) - start).to(tl.int32)
    rank = tl.zeros([BE], tl.int32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):  # unrolled, so that their loads are in flight at the same time
            in_list = first + step < length
            other = tl.load(placed_ptr + start + (first + step), mask=in_list, other=0)
            rank += (in_list & (other < entry)).to(tl.int32)
    tl.store(order_ptr + start + rank, entry, mask=in_slots)
