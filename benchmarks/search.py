"""A query of `mmsa search` among many vectors, beside FAISS's exact search, in one run and in turns.

    python benchmarks/search.py                      # 1,000,000 vectors of 256 numbers in overlapping clusters
    python benchmarks/search.py --vectors 200000 --json search.json

Correctness gate: the recall of the 10 nearest, on queries on which the index was not tuned. One thread, wall time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import faiss
import numpy as np
from shared.figures import Figure, parser, publish

from mmsa_dist.embed.vector_index import VectorIndex

MOST_MS = 20.0
LEAST_RECALL = 0.95
K = 10
T = TypeVar("T")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--vectors", type=int, default=1_000_000)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--queries", type=int, default=100)
    options.add_argument(
        "--spread", type=float, default=1.0, help="of a cluster, its centre being 1 (1.0); hard above 1"
    )
    arguments = options.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(0)
    unit = clusters(random, arguments.vectors + arguments.queries, arguments.width, arguments.spread)
    unit, queries = unit[: -arguments.queries], unit[-arguments.queries :]
    with tempfile.TemporaryDirectory() as folder:
        build_s, _ = timed(partial(VectorIndex.kept, folder, unit, "benchmark"))
        load_s, index = timed(partial(VectorIndex.kept, folder, unit, "benchmark"))
    assert index.about is not None, "so few vectors are searched exactly; ask for more"
    exhaustive = VectorIndex.exact(unit)
    ours, theirs, found = [], [], []
    for query in queries[:, None]:
        seconds, (_, truth) = timed(partial(exhaustive.search, query, K))
        theirs.append(seconds)
        seconds, (_, rows) = timed(partial(index.search, query, K))
        ours.append(seconds)
        found.append(len(np.intersect1d(rows, truth)) / K)
    query_ms, exact_ms = 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs)
    exact = f"FAISS exact {exact_ms:.1f} ms, {exact_ms / query_ms:.0f}x"
    figures = [
        Figure("a query, median", query_ms, "ms", most=MOST_MS, baseline=exact),
        Figure("a query, slowest", 1e3 * max(ours), "ms"),
        Figure("exact search, median", exact_ms, "ms"),
        Figure("recall@10", float(np.mean(found)), least=LEAST_RECALL, baseline="FAISS exact 1"),
        Figure("lists", index.about.lists),
        Figure("probes", index.about.probes),
        Figure("building, once", build_s, "s"),
        Figure("loading", load_s, "s"),
    ]
    title = f"{len(unit):,} x {arguments.width} vectors, one thread, FAISS {faiss.__version__}"
    publish(title, figures, arguments.json, libraries=("numpy",))


def clusters(random: np.random.Generator, n: int, width: int, spread: float) -> np.ndarray:
    centres = random.standard_normal((max(n // 500, 1), width), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), n)]
    for start in range(0, n, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        part += spread * random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def timed(call: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
