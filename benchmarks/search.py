"""A query of `mmsa search` among many vectors, beside FAISS's exact search, in one run and in turns.

    python benchmarks/search.py                      # 1,000,000 vectors of 256 numbers in overlapping clusters
    python benchmarks/search.py --vectors 200000 --json search.json

Correctness gate: the recall of the 10 nearest, on queries on which the index was not tuned. One thread, wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from mmsa_dist.embed.vector_index import VectorIndex

MOST_MS = 20.0
LEAST_RECALL = 0.95
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument(
        "--spread", type=float, default=1.0, help="of a cluster, its centre being 1 (1.0); hard above 1"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(0)
    unit = clusters(random, arguments.vectors + arguments.queries, arguments.width, arguments.spread)
    unit, queries = unit[: -arguments.queries], unit[-arguments.queries :]
    with tempfile.TemporaryDirectory() as folder:
        build_s, _ = timed(lambda: VectorIndex.kept(folder, unit, "benchmark"))
        load_s, index = timed(lambda: VectorIndex.kept(folder, unit, "benchmark"))
    assert index.about is not None, "so few vectors are searched exactly; ask for more"
    exact = VectorIndex.exact(unit)
    ours, theirs, found = [], [], []
    for query in queries[:, None]:
        seconds, (_, truth) = timed(lambda query=query: exact.search(query, K))
        theirs.append(seconds)
        seconds, (_, rows) = timed(lambda query=query: index.search(query, K))
        ours.append(seconds)
        found.append(len(np.intersect1d(rows, truth)) / K)
    figures = {
        "vectors": len(unit),
        "lists": index.about.lists,
        "probes": index.about.probes,
        "recall": float(np.mean(found)),
        "query_ms": 1e3 * statistics.median(ours),
        "slowest_query_ms": 1e3 * max(ours),
        "exact_ms": 1e3 * statistics.median(theirs),
        "build_s": build_s,
        "load_s": load_s,
    }
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def clusters(random: np.random.Generator, n: int, width: int, spread: float) -> np.ndarray:
    centres = random.standard_normal((max(n // 500, 1), width), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), n)]
    for start in range(0, n, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        part += spread * random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def timed(call: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def show(figures: dict[str, float]) -> None:
    table = Table(title=f"{figures['vectors']:,} vectors, one thread", title_justify="left")
    for name in ("", "measured", "asked", "FAISS exact"):
        table.add_column(name, justify="right" if name else "left")
    ratio = figures["exact_ms"] / figures["query_ms"]
    table.add_row(
        "a query, median",
        f"{figures['query_ms']:.2f} ms",
        f"{MOST_MS:.0f} ms",
        f"{figures['exact_ms']:.1f} ms, {ratio:.0f}x",
    )
    table.add_row("a query, slowest", f"{figures['slowest_query_ms']:.2f} ms", "", "")
    table.add_row("recall@10", f"{figures['recall']:.3f}", f"{LEAST_RECALL}", "1")
    table.add_row("lists, probes", f"{figures['lists']:,}, {figures['probes']:,}", "", "")
    table.add_row("building, once", f"{figures['build_s']:.1f} s", "", "")
    table.add_row("loading", f"{figures['load_s']:.2f} s", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
