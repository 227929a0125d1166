"""Seconds and recall of neighbour search, against bare FAISS on the same vectors, threads and machine.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--rows 200000] [--queries 4096] [--repeats 3] [--json FILE]

The queries are a sample of the rows, in one batch; each figure is the best of the repeats, which take turns. Before
anything is timed, the exact neighbours are compared with all distances in float64 for a few queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import faiss
import torch
from shared.figures import Figure, parser, publish
from torch import Tensor

from mmsa_dist.structure.neighbours import IndexKind, InvertedLists, NeighbourIndex, evenly_spaced

MOST = 1.15  # of bare FAISS's time


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


def bare(index: NeighbourIndex, rows_FC: Tensor) -> tuple[faiss.Index, float]:
    """Returns FAISS's own index with the lists and probes of ours, and the seconds to build it."""
    x, width = rows_FC.float().numpy(), rows_FC.shape[1]
    start = time.perf_counter()
    if isinstance(index.candidates, InvertedLists):
        lists = index.candidates.lists
        plain: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
        plain.train(x[evenly_spaced(len(x), lists * 39).numpy()])
        plain.nprobe = index.candidates.probes
    else:
        plain = faiss.IndexFlatL2(width)
    plain.add(x)
    return plain, time.perf_counter() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--k", type=int, default=16)
    options.add_argument("--queries", type=int, default=4096)
    options.add_argument("--kinds", nargs="+", choices=("flat", "ivf"), default=("flat", "ivf"))
    options.add_argument("--recall-target", type=float, default=0.95)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--device", default="cpu", help="cpu, or cuda: exact search alone, nothing to compare with")
    arguments = options.parse_args()
    rows_FC, k, repeats = embeddings(arguments.rows, arguments.width), arguments.k, arguments.repeats
    ids_F, asked = torch.arange(arguments.rows), evenly_spaced(arguments.rows, arguments.queries)
    figures: list[Figure] = []
    if arguments.device == "cpu":
        for kind in arguments.kinds:
            figures += beside_faiss(kind, (ids_F, rows_FC), asked, k, arguments.recall_target, repeats)
    else:
        snapshot = ids_F.to(arguments.device), rows_FC.to(arguments.device)
        figures += on_gpu(snapshot, asked.to(arguments.device), k, repeats)
    title = (
        f"{arguments.rows:,} x {arguments.width}, K = {k}, {len(asked):,} queries on {arguments.device}, best of "
        f"{repeats}, FAISS {faiss.__version__} in {faiss.omp_get_max_threads()} threads"
    )
    publish(title, figures, arguments.json, libraries=("torch",))


def beside_faiss(
    kind: IndexKind, snapshot: tuple[Tensor, Tensor], asked: Tensor, k: int, recall_target: float, repeats: int
) -> list[Figure]:
    rows_FC = snapshot[1]
    start = time.perf_counter()
    index = NeighbourIndex(snapshot, kind=kind, recall_target=recall_target, k=k)
    built = time.perf_counter() - start
    name: str = kind
    if isinstance(index.candidates, InvertedLists):
        name = f"{kind}, {index.candidates.probes} of {index.candidates.lists} lists"
    else:
        check_exact(index, rows_FC, asked, k)
    plain, plain_built = bare(index, rows_FC)
    query = rows_FC[asked].float().numpy()
    ours, theirs = best_of(repeats, lambda: index.search(rows_FC[asked], asked, k), lambda: plain.search(query, k + 1))
    return [
        Figure(f"{name}: all queries", ours, "s", baseline=f"bare FAISS {theirs:.3f} s"),
        Figure(f"{name}: time against bare FAISS", ours / theirs, "x", most=MOST),
        Figure(f"{name}: recall", index.recall(256, k)),
        Figure(f"{name}: building, with tuning", built, "s", baseline=f"bare FAISS {plain_built:.1f} s"),
    ]


def on_gpu(snapshot: tuple[Tensor, Tensor], asked: Tensor, k: int, repeats: int) -> list[Figure]:
    rows_FC = snapshot[1]
    index = NeighbourIndex(snapshot, kind="flat")
    check_exact(index, rows_FC, asked, k)

    def search() -> None:
        index.search(rows_FC[asked], asked, k)
        torch.cuda.synchronize()

    (seconds,) = best_of(repeats, search)
    return [
        Figure("flat: all queries", seconds, "s"),
        Figure("flat: all rows at this rate", seconds / len(asked) * len(rows_FC), "s"),
    ]


if __name__ == "__main__":
    main()
