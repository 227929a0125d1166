"""How the kernels cut their work, and that what is shipped compiles for Hopper without a register in slow memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsa_kernels.hyperedge_memory import tiles
from mmsa_kernels.hyperedge_memory.arguments import gather_constants
from mmsa_kernels.hyperedge_memory.tiles import (
    LARGEST_WIDTHS,
    Tile,
    attention_tile,
    padded_width,
    table_tiles,
    tuned_file,
    tuned_key,
    tuned_to_json,
)

BENCHMARKS = Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"
KERNELS = ("forward", "backward_scores", "backward_rows", "backward_anchors")
HOPPER, AMPERE = 227 << 10, 163 << 10  # bytes of shared memory for a program
DTYPES = st.sampled_from(list(LARGEST_WIDTHS))


def choose(kernel, rows, anchors=1024, width=256, dtype=torch.bfloat16, device=None, shared_bytes=HOPPER) -> Tile:
    return attention_tile(
        kernel, width=width, rows=rows, anchors=anchors, dtype=dtype, device=device, shared_bytes=shared_bytes
    )


@given(
    kernel=st.sampled_from(KERNELS),
    rows=st.integers(0, 1 << 20),
    anchors=st.integers(1, 1 << 14),
    dtype=DTYPES,
    shared_bytes=st.sampled_from([AMPERE, HOPPER, None]),
    data=st.data(),
)
def test_there_is_a_tile_for_every_problem(kernel, rows, anchors, dtype, shared_bytes, data):
    width = data.draw(st.integers(1, LARGEST_WIDTHS[dtype]))
    tile = choose(kernel, rows, anchors, width, dtype, shared_bytes=shared_bytes)
    assert tile in table_tiles(kernel, width, dtype)
    for size in (tile.rows, tile.anchors):
        assert size >= 16
        assert size & (size - 1) == 0
    assert tiles.most_shared_bytes(kernel, width, tile, dtype) <= (shared_bytes or HOPPER)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("dtype", list(LARGEST_WIDTHS))
def test_more_stages_take_more_shared_memory(kernel, width, dtype):
    one, three = (tiles.most_shared_bytes(kernel, width, Tile(16, 16, 8, stages), dtype) for stages in (1, 3))
    assert one < three


def test_few_rows_are_cut_smaller():
    assert choose("forward", 65_536).rows == 128
    assert choose("forward", 1_024).rows == 16
    assert choose("backward_anchors", 1_024, anchors=64).anchors == 64


def test_less_shared_memory_takes_smaller_tiles():
    assert choose("forward", 65_536).rows == 128
    assert choose("forward", 65_536, shared_bytes=AMPERE).rows < 128


@given(width=st.integers(1, 512), dtype=DTYPES)
def test_gathered_rows_are_a_power_of_two_and_fill_the_threads(width, dtype):
    constants = gather_constants(width, dtype)
    rows = constants["GM"]
    assert rows & (rows - 1) == 0
    assert constants["num_warps"] == 1
    assert rows * padded_width(width) * dtype.itemsize >= 32 * 16


@pytest.mark.parametrize(("width", "padded"), [(1, 16), (16, 16), (17, 32), (256, 256), (300, 512)])
def test_widths_are_padded_to_powers_of_two(width, padded):
    assert padded_width(width) == padded


def test_what_was_measured_on_a_device_goes_first(tmp_path, monkeypatch):
    sizes = {"width": 250, "rows": 60_000, "anchors": 1_000, "dtype": torch.bfloat16}
    key = tuned_key("forward", **sizes)
    assert key == "forward D=256 B=65536 S=1024 bfloat16"
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / tuned_file("NVIDIA H200")).write_text(tuned_to_json({key: Tile(32, 32, 8, 1)}))
    monkeypatch.setattr(tiles.resources, "files", lambda package: tmp_path)
    tiles.tuned_tiles.cache_clear()
    attention_tile.cache_clear()
    assert attention_tile("forward", device="NVIDIA H200", shared_bytes=HOPPER, **sizes) == Tile(32, 32, 8, 1)
    assert attention_tile("forward", device="NVIDIA A100", shared_bytes=HOPPER, **sizes).rows == 128
    assert choose("backward_rows", 60_000, device="NVIDIA H200").rows == 128
    tiles.tuned_tiles.cache_clear()
    attention_tile.cache_clear()


@pytest.mark.parametrize("device", ["NVIDIA H200"])
def test_the_tiles_that_were_measured_on_a_device_fit_it(device):
    given = [(*found, dtype) for dtype in LARGEST_WIDTHS for found in tiles.measured_tiles(device, dtype)]
    assert given
    assert len(given) == len(tiles.tuned_tiles(device))
    for kernel, width, tile, dtype in given:
        assert kernel in KERNELS
        assert padded_width(width) == width
        assert tiles.most_shared_bytes(kernel, width, tile, dtype) <= HOPPER


def compile_report(*words: str, to: Path) -> list[dict]:
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "compile_report.py"), *words, "--json", str(to)],
        env={name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONPATH")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(to.read_text())["rows"]


def assert_good_for_hopper(reports: list[dict]) -> None:
    assert reports
    for report in reports:
        kernel, tile = report["case"]["kernel"], report["case"]["tile"]
        assert report["spill_bytes"] == 0, report
        assert not report["wgmma_serialized"], report
        assert report["pipelined"] == (tile is not None and tile["stages"] > 1), report
        # Short rows have less than that, the float32 of a warp too; and all that backward_rows reads goes to shared
        # memory past the registers.
        if report["case"]["width"] >= (128 if kernel == "anchor_totals" else 64) and kernel != "backward_rows":
            assert report["widest_load"] == 16, report
        assert (tile is None) == (kernel not in KERNELS), report
        if tile and tile["anchors" if kernel == "backward_anchors" else "rows"] >= 16 * tile["warps"]:
            assert report["wgmma"], report


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_of_the_papers_size_spill_nothing(tmp_path, dtype):
    assert_good_for_hopper(compile_report("--arch", "90", "--dtype", dtype, "--width", "256", to=tmp_path / "r.json"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_no_kernel_spills(tmp_path, dtype):
    assert_good_for_hopper(compile_report("--arch", "90", "--dtype", dtype, to=tmp_path / "r.json"))
