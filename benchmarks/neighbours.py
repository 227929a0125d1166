"""Seconds and recall of neighbour search, against bare FAISS on the same vectors, threads and machine.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--rows 200000] [--queries 4096] [--repeats 3]

The queries are a sample of the rows, in one batch; each figure is the best of the repeats, which take turns. Before
anything is timed, the exact neighbours are compared with all distances in float64 for a few queries.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import faiss
import torch
from torch import Tensor

from mmsa_dist.structure.neighbours import IndexKind, NeighbourIndex, evenly_spaced


def embeddings(rows: int, width: int, seed: int = 0) -> Tensor:
    """Clusters of clusters in (-1, 1), float16; no real embeddings: their recall is measured in training."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(200, width, generator=generator)
    fine = coarse[torch.randint(200, (rows // 20 + 1,), generator=generator)]
    fine = fine + 0.5 * torch.randn(len(fine), width, generator=generator)
    x = fine[torch.randint(len(fine), (rows,), generator=generator)]
    return (x + 0.3 * torch.randn(rows, width, generator=generator)).mul_(0.5).tanh_().half()


def best_of(repeats: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of each work, the best of the repeats; they take turns, so that a busy moment hits all."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def check_exact(index: NeighbourIndex, rows_FC: Tensor, asked: Tensor, k: int) -> None:
    """The gate: what the exact index finds is nearest by definition."""
    few = asked[:: max(1, len(asked) // 16)]
    ids, _ = index.search(rows_FC[few], few, k)
    for query, found in zip(few.tolist(), ids.tolist(), strict=True):
        distance = (rows_FC.double() - rows_FC[query].double()).square_().sum(dim=1)
        distance[query] = torch.inf
        expected = distance.sort(stable=True).indices[:k].tolist()
        assert found == expected, f"row {query}: found {found}, expected {expected}"


def bare(kind: IndexKind, index: NeighbourIndex, rows_FC: Tensor) -> tuple[faiss.Index, float]:
    """The FAISS index of one's own hands, with the lists and probes of ours; seconds to build it."""
    x, width = rows_FC.float().numpy(), rows_FC.shape[1]
    start = time.perf_counter()
    if kind == "flat":
        plain = faiss.IndexFlatL2(width)
    else:
        lists = index._candidates.lists  # type: ignore[attr-defined]
        plain = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
        plain.train(x[evenly_spaced(len(x), lists * 39).numpy()])
        plain.nprobe = index._candidates.probes  # type: ignore[attr-defined]
    plain.add(x)
    return plain, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--kinds", nargs="+", choices=("flat", "ivf"), default=("flat", "ivf"))
    parser.add_argument("--recall-target", type=float, default=0.95)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: exact search alone, nothing to compare with")
    options = parser.parse_args()
    rows_FC = embeddings(options.rows, options.width)
    ids_F, asked = torch.arange(options.rows), evenly_spaced(options.rows, options.queries)
    print(
        f"{options.rows:,} x {options.width}, K = {options.k}, {len(asked):,} queries, best of {options.repeats}, "
        f"{faiss.omp_get_max_threads()} FAISS and {torch.get_num_threads()} torch threads"
    )
    if options.device != "cpu":
        rows_FC, ids_F, asked = (t.to(options.device) for t in (rows_FC, ids_F, asked))
        index = NeighbourIndex((ids_F, rows_FC), kind="flat")
        check_exact(index, rows_FC, asked, options.k)

        def search() -> None:
            index.search(rows_FC[asked], asked, options.k)
            torch.cuda.synchronize()

        (seconds,) = best_of(options.repeats, search)
        print(f"exact on {options.device}: {seconds:.3f} s, {seconds / len(asked) * options.rows:.1f} s for all rows")
        return

    query = rows_FC[asked].float().numpy()
    for kind in options.kinds:
        start = time.perf_counter()
        index = NeighbourIndex((ids_F, rows_FC), kind=kind, recall_target=options.recall_target, k=options.k)
        built = time.perf_counter() - start
        if index.exhaustive:
            check_exact(index, rows_FC, asked, options.k)
        plain, plain_built = bare(kind, index, rows_FC)
        ours, theirs = best_of(
            options.repeats,
            lambda index=index: index.search(rows_FC[asked], asked, options.k),
            lambda plain=plain: plain.search(query, options.k + 1),
        )
        probes = (
            ""
            if index.exhaustive
            else (
                f", {index._candidates.probes} of {index._candidates.lists} lists"  # type: ignore[attr-defined]
            )
        )
        print(
            f"{kind}{probes}: ours {ours:.3f} s, bare FAISS {theirs:.3f} s, ratio {ours / theirs:.3f}; recall "
            f"{index.recall(256, options.k):.4f}; built in {built:.1f} s (with tuning), bare {plain_built:.1f} s"
        )


if __name__ == "__main__":
    main()
