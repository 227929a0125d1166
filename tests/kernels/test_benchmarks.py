"""The benchmarks of the kernels: what they count, check, keep and compile. What they time needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
BENCHMARKS = Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOPPER = 227 << 10  # bytes of shared memory for a program


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("script", ["bench_hyperedge_memory.py", "tune_hyperedge_memory.py"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_say_that_they_need_a_gpu(script):
    done = subprocess.run([sys.executable, str(BENCHMARKS / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr


def test_bytes_and_flops_by_hand(benchmark_module):
    cost = benchmark_module("cost")
    shape = cost.Shape("tiny", rows=2, entries_per_row=3, vertices=4, width=8, anchors=5)
    ahead, back = cost.forward(shape, size=2), cost.backward(shape, size=2)
    # 6 rows gathered, 5 anchors, g and the read-out of 2 rows, of 16 bytes each; 6 indices of 8 bytes and weights of
    # 4; 3 row pointers of 8 bytes; 2 log-sum-exps of 4.
    assert ahead.bytes == 16 * (6 + 5 + 2 * 2) + 12 * 6 + 8 * 3 + 4 * 2
    assert ahead.flops == 2 * 6 * 8 + 2 * (2 * 2 * 5 * 8)
    # Fresh are the 2 rows themselves, and a third of the other 4 entries.
    assert back.flops == 2 * 6 * 8 + 2 * 3 * 8 + 5 * (2 * 2 * 5 * 8)
    # 6 rows of x and 3 of the gradient of g gathered, anchors and their gradient; g, the read-out and the gradients of
    # both, and that of x, of 2 rows each; 6 indices, weights and their gradients; 3 pointers of rows and of vertices;
    # 2 log-sum-exps and their gradients.
    assert back.bytes == 16 * (6 + 3 + 2 * 5 + 4 * 2 + 2) + 16 * 6 + 8 * 3 + 8 * 3 + 8 * 2
    ceilings = cost.Ceilings(bytes_per_s=1e3, flops_per_s=1e6)
    assert ahead.floor_s(ceilings) == pytest.approx(ahead.bytes / 1e3)
    assert sum(cost.predicted_s(shape, 2, ceilings)) > (ahead + back).floor_s(ceilings)


def test_bytes_and_flops_of_training_by_hand(benchmark_module):
    cost = benchmark_module("cost")
    shape = cost.Shape("tiny", rows=2, entries_per_row=3, vertices=400, width=8, anchors=5).as_in_training()
    back = cost.backward(shape, size=4)
    assert shape.fresh_vertices == shape.entries == 6
    assert cost.forward(shape, size=4).bytes == 32 * (6 + 5 + 2 * 2) + 12 * 6 + 8 * 3 + 4 * 2
    # As above, but all 6 entries and vertices are fresh, and a number has 4 bytes.
    assert back.bytes == 32 * (6 + 6 + 2 * 5 + 4 * 2 + 6) + 16 * 6 + 8 * 3 + 8 * 7 + 8 * 2
    assert back.flops == 2 * 6 * 8 + 2 * 6 * 8 + 5 * (2 * 2 * 5 * 8)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_what_is_compared_computes_the_same(benchmark_module, dtype, similarity, fresh):
    bench, cost = benchmark_module("bench_hyperedge_memory"), benchmark_module("cost")
    shape = cost.Shape("tiny", rows=20, entries_per_row=3, vertices=50, width=32, anchors=18)
    problem = bench.Problem.draw(
        shape.as_in_training() if fresh else shape, bench.DTYPES[dtype], similarity, device=DEVICE
    )
    assert (problem.stale_VD is None) == fresh
    for operator in (bench.ours, bench.eager):
        assert bench.check(operator, problem) <= bench.TOLERANCE[bench.DTYPES[dtype]]
    if importlib.util.find_spec("torch_geometric"):
        assert bench.check(bench.pyg_and_sdpa, problem) <= bench.TOLERANCE[bench.DTYPES[dtype]]


@pytest.fixture
def untimed(benchmark_module, monkeypatch):
    """The benchmark with a clock that stands still."""
    bench = benchmark_module("bench_hyperedge_memory")

    def once(call, **options):
        call()
        return 1.0

    monkeypatch.setattr(bench.triton.testing, "do_bench", once)
    monkeypatch.setattr(bench.triton.testing, "do_bench_cudagraph", once)
    monkeypatch.setattr(bench, "_peak_bytes", lambda call: 0)
    monkeypatch.setattr(bench, "compare_atomic", lambda shape, problem: None)
    return bench


def run_tiny(bench, cost, implementations, names=("P", "L"), kept=None):
    shapes = [cost.Shape(name, rows=8, entries_per_row=2, vertices=10, width=16, anchors=4) for name in names]
    return bench.run(
        shapes,
        torch.float32,
        "cosine",
        cost.Ceilings(1e12, 1e14),
        implementations,
        lambda rows: kept is not None and kept.append([(row.shape, row.implementation) for row in rows]),
        device=DEVICE,
    )


def test_a_baseline_that_fails_stops_no_other(untimed, benchmark_module, capsys):
    def broken(problem):
        raise ValueError("no such kernel")

    def wrong(problem):
        g, readout, lse = untimed.eager(problem)
        return g, 2 * readout, lse

    kept = []
    rows = run_tiny(
        untimed,
        benchmark_module("cost"),
        {"ours": untimed.eager, "broken": broken, "wrong": wrong, "last": untimed.eager},
        kept=kept,
    )
    found = [("P", "ours"), ("P", "last"), ("L", "ours"), ("L", "last")]
    assert [(row.shape, row.implementation) for row in rows] == found
    # Kept after every row, and after every shape once more, for the graph's times come last.
    assert kept == [found[:1], found[:2], found[:2], found[:3], found[:4], found[:4]]
    assert [row.graph_both_ms for row in rows] == [1.0, 1.0, 1.0, 1.0]
    said = capsys.readouterr()
    assert said.err.count("broken: ValueError: no such kernel") == 2
    assert said.err.count("wrong: off by") == 2
    assert said.out.index("P  last") < said.out.index("P ours       in a CUDA graph") < said.out.index("L  ours")


def test_a_shape_on_which_ours_fails_stops_no_other(untimed, benchmark_module, capsys):
    def ours(problem):
        calls.append(problem)
        if len(calls) == 1:
            raise RuntimeError("misaligned address")
        return untimed.eager(problem)

    calls = []
    rows = run_tiny(untimed, benchmark_module("cost"), {"ours": ours, "eager": untimed.eager})
    assert [(row.shape, row.implementation) for row in rows] == [("L", "ours"), ("L", "eager")]
    assert "P: failed" in (said := capsys.readouterr().err)
    assert "misaligned address" in said


def test_what_no_graph_can_capture_keeps_its_other_times(untimed, benchmark_module, monkeypatch, capsys):
    def refuse(call, **options):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(untimed.triton.testing, "do_bench_cudagraph", refuse)
    rows = run_tiny(untimed, benchmark_module("cost"), {"ours": untimed.eager, "eager": untimed.eager}, names=["P"])
    assert [(row.both_ms, row.graph_forward_ms, row.graph_both_ms) for row in rows] == [(1.0, None, None)] * 2
    assert "not permitted when stream is capturing" in capsys.readouterr().err


def test_the_fastest_tile_of_each_kernel_is_kept(benchmark_module, monkeypatch):
    tune, cost = benchmark_module("tune_hyperedge_memory"), benchmark_module("cost")
    tiles = benchmark_module("mmsa_kernels.hyperedge_memory.tiles")
    shape = cost.Shape("tiny", rows=64, entries_per_row=2, vertices=10, width=64, anchors=64)
    problem = tune.Problem.draw(shape, torch.bfloat16, "dot", device=DEVICE)
    sizes = {"width": 64, "rows": 64, "anchors": 64, "dtype": torch.bfloat16}
    slow, fast = tiles.Tile(16, 32, 4, 1), tiles.Tile(32, 16, 4, 3)
    attend, backward = tune.launch.attend, tune.launch.backward

    def clock(call, **options):
        del tried[:]
        call()
        seen.append(list(tried))
        return 9.0 - sum(tile == fast for tile in tried)

    def look(inputs, results, tile):
        tried.append(tile)
        attend(inputs, results, tile)

    def look_back(inputs, results, output_grads, wanted, choose_tile):
        tried.extend(choose_tile(kernel, device=None, shared_bytes=None, **sizes) for kernel in tune.KERNELS[1:])
        return backward(inputs, results, output_grads, wanted, choose_tile)

    tried, seen = [], []
    monkeypatch.setattr(tune.launch, "attend", look)
    monkeypatch.setattr(tune.launch, "backward", look_back)
    monkeypatch.setattr(tune.triton.testing, "do_bench_cudagraph", clock)
    monkeypatch.setattr(tune.launch, "device_facts", lambda device: ("a device that nothing is known of", HOPPER))
    found = tune.tune(problem, shape, {kernel: [slow, fast] for kernel in tune.KERNELS})
    first = next(found)
    assert (first.key, first.fastest) == (tiles.tuned_key("forward", **sizes), tune.Trial(fast, 8.0))
    assert {trial.tile for trial in first.tried} >= {slow, fast}
    assert [len(tiles) for tiles in seen] == [1, 1, 1]  # the table's and the two candidates, and the forward alone
    assert {row.key: row.fastest.tile for row in found} == {
        tiles.tuned_key(kernel, **sizes): fast for kernel in tune.KERNELS[1:]
    }
    assert all(len(tiles) == 4 and tiles[0] == fast for tiles in seen[3:])


def test_a_tile_without_room_on_the_gpu_is_not_chosen(benchmark_module, monkeypatch, tmp_path):
    tune, cost = benchmark_module("tune_hyperedge_memory"), benchmark_module("cost")
    tiles = benchmark_module("mmsa_kernels.hyperedge_memory.tiles")
    shape = cost.Shape("tiny", rows=16, entries_per_row=2, vertices=10, width=16, anchors=16)
    problem = tune.Problem.draw(shape, torch.bfloat16, "dot", device=DEVICE)
    large, small = tiles.Tile(128, 128, 4, 3), tiles.Tile(16, 16, 4, 1)

    def refuse(inputs, results, tile):
        if tile == large:
            raise tune.triton.runtime.errors.OutOfResources(400_000, HOPPER, "shared memory")

    monkeypatch.setattr(tune.launch, "attend", refuse)
    monkeypatch.setattr(tune.triton.testing, "do_bench_cudagraph", lambda call, **options: 1.0)
    monkeypatch.setattr(tune.launch, "device_facts", lambda device: ("a device that nothing is known of", HOPPER))
    row = next(tune.tune(problem, shape, {kernel: [large, small] for kernel in tune.KERNELS}))
    assert row.fastest.tile != large
    assert tune.Trial(large, None) in row.tried
    file = tmp_path / "report.json"
    benchmark_module("report").write_report(file, {"device": "one"}, [row])
    written = json.loads(file.read_text())
    assert written["about"] == {"device": "one"}
    assert {"tile": dataclasses.asdict(large), "ms": None} in written["rows"][0]["tried"]


# In a process of its own, for Triton decides on import whether it compiles or interprets.
LAUNCHED_AND_COMPILED = """
import sys
sys.path[:0] = [{benchmarks!r}]
import triton
from compile_report import NO_TILE, TRANSPOSE, Case, DTYPES, compile_case, driver, _NoDevice
from cost import Shape
from problem import Problem, both_ways, ours
from mmsa_kernels.hyperedge_memory import launch, transpose
from mmsa_kernels.hyperedge_memory.tiles import attention_tile

def hook(*, fn, compile, **rest):
    names = fn.jit_function.arg_names
    facts = {{names[place[0]]: value for place, value in compile["constants"].items()}}
    facts.pop("INTERPRETED", None)  # as on the CPU, where the tensors of this launch lie
    facts |= {{name: compile[name] for name in ("num_warps", "num_stages")}}
    facts |= {{"type of " + name: kind for name, kind in compile["signature"].items()}}
    facts |= {{"known of " + names[place[0]]: str(known) for place, known in compile["configs"][0].items()}}
    asked[launches].setdefault(fn.name, []).append(facts.items())
    return launches  # and then goes no further

triton.knobs.runtime.jit_cache_hook = hook
driver.set_active(_NoDevice(90))
launch._LEAST_ROWS, launch._ATTENTION_AT_A_TIME = {rows_at_a_time}, 1
transpose.MOST_SCANNED = {most_scanned}
shape = Shape("tiny", rows=8, entries_per_row=2, vertices=10, width=16, anchors=4, fresh={fresh})
asked = {{True: {{}}, False: {{}}}}
launches = True
both_ways(ours, Problem.draw(shape, DTYPES["{dtype}"], "{similarity}", device="cpu"))
launches = False
for kernel in ("forward", "backward_scores", "backward_rows", "backward_anchors", *NO_TILE):
    tile = None if kernel in NO_TILE else attention_tile(
        kernel, width=16, rows=8, anchors=4, dtype=DTYPES["{dtype}"], device=None, shared_bytes=None
    )
    compile_case(
        Case(90, "{dtype}", kernel, 16, "{similarity}" == "cosine", tile, stale=not {fresh}, grad_lse=False)
    )
for kernel in TRANSPOSE:
    compile_case(Case(90, "{dtype}", kernel, 0, False, None))
assert len(asked[True]) == 8 + (1 if {most_scanned} else 3)
differ = [
    (kernel, [facts ^ ahead for ahead in asked[False][kernel]])  # what either has that the other has not
    for kernel, launched in asked[True].items()
    for facts in launched
    if facts not in asked[False][kernel]
]
assert not differ, differ
"""


@pytest.mark.parametrize(
    ("rows_at_a_time", "most_scanned"),
    [(8, 1 << 14), (3, 0)],
    ids=["all rows at a time", "some rows at a time, counted"],
)
@pytest.mark.parametrize(("dtype", "similarity", "fresh"), [("bf16", "dot", False), ("fp32", "cosine", True)])
def test_what_is_compiled_ahead_is_what_a_launch_looks_up(dtype, similarity, fresh, rows_at_a_time, most_scanned):
    code = LAUNCHED_AND_COMPILED.format(
        benchmarks=str(BENCHMARKS),
        dtype=dtype,
        similarity=similarity,
        fresh=fresh,
        rows_at_a_time=rows_at_a_time,
        most_scanned=most_scanned,
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_was_tuned_is_what_a_launch_asks_for(benchmark_module, monkeypatch):
    """Also where rows come some at a time."""
    tune, cost = benchmark_module("tune_hyperedge_memory"), benchmark_module("cost")
    tiles = benchmark_module("mmsa_kernels.hyperedge_memory.tiles")
    monkeypatch.setattr(tune.launch, "_LEAST_ROWS", 16)
    monkeypatch.setattr(tune.launch, "_ATTENTION_AT_A_TIME", 1)
    shape = cost.Shape("tiny", rows=80, entries_per_row=2, vertices=10, width=16, anchors=5)
    problem = tune.Problem.draw(shape, torch.bfloat16, "dot", device=DEVICE)
    triton_op = benchmark_module("mmsa_kernels.hyperedge_memory.triton_op")
    asked, choose = set(), triton_op.attention_tile

    def look(kernel, *, width, rows, anchors, dtype, **device):
        asked.add(tiles.tuned_key(kernel, width=width, rows=rows, anchors=anchors, dtype=dtype))
        return choose(kernel, width=width, rows=rows, anchors=anchors, dtype=dtype, **device)

    monkeypatch.setattr(triton_op, "attention_tile", look)
    benchmark_module("problem").both_ways(benchmark_module("problem").ours, problem)
    sizes = {"width": 16, "rows": 80, "anchors": 5, "dtype": torch.bfloat16}
    assert asked == {tiles.tuned_key(kernel, **sizes) for kernel in tune.KERNELS}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_tiles_of_the_tables_are_among_the_candidates(benchmark_module, dtype, fresh):
    tune, cost = benchmark_module("tune_hyperedge_memory"), benchmark_module("cost")
    for shape in cost.SHAPES.values():
        shape = shape.as_in_training() if fresh else shape
        for kernel in tune.KERNELS:
            sizes = {"width": shape.width, "rows": shape.rows, "anchors": shape.anchors, "dtype": tune.DTYPES[dtype]}
            chosen = tune.attention_tile(kernel, device=None, shared_bytes=HOPPER, **sizes)
            assert chosen in set(tune.candidates(kernel, shape, dtype)), (shape.name, kernel)


# Read from a file, for the processes that compile import it anew.
def test_every_file_of_measured_tiles_belongs_to_a_device_whose_tiles_are_compiled(benchmark_module):
    tiles = importlib.import_module("mmsa_kernels.hyperedge_memory.tiles")
    compiled = [device for devices in benchmark_module("compile_report").MEASURED.values() for device in devices]
    folder = Path(tiles.__file__).with_name("tuned")
    assert {file.name for file in folder.iterdir()} == {tiles.tuned_file(device) for device in compiled}


WORTH_TIMING = """
import sys
sys.path[:0] = [{benchmarks!r}]
import tune_hyperedge_memory as tune
from mmsa_kernels.hyperedge_memory.tiles import Tile

if __name__ == "__main__":
    small, spills, unfit = Tile(16, 16, 8, 1), Tile(128, 128, 4, 1), Tile(128, 128, 8, 3)
    tune.candidates = lambda kernel, shape, dtype: [small, spills, unfit] if kernel == "forward" else []
    good = tune.worth_timing(tune.SHAPES["P"].as_in_training(), "bf16", 90, 227 << 10)
    assert good == {{"forward": [small], "backward_scores": [], "backward_rows": [], "backward_anchors": []}}, good
    in_one_stage, spills = Tile(16, 32, 8, 1), Tile(32, 16, 8, 1)  # the bound of the first was once too low
    tune.candidates = lambda kernel, shape, dtype: [in_one_stage, spills] if kernel == "forward" else []
    good = tune.worth_timing(tune.SHAPES["P"].as_in_training(), "fp32", 90, 227 << 10)
    assert good["forward"] == [in_one_stage], good
"""


def test_candidates_that_spill_are_not_timed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORTH_TIMING.format(benchmarks=str(BENCHMARKS)))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 candidates, 1 without spills, 0 do not compile" in done.stdout
