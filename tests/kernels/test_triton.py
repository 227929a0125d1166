"""The Triton kernels against the reference in float64: on a GPU compiled, elsewhere interpreted on small odd shapes."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmsa_kernels import hyperedge_memory_attention
from mmsa_kernels.hyperedge_memory.reference import hyperedge_memory_attention_reference

pytest.importorskip("triton", reason="triton is not installed")
from mmsa_kernels.hyperedge_memory import anchor_sums, launch, triton_op
from mmsa_kernels.hyperedge_memory.tiles import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIMILARITIES = ["dot", "cosine"]
OUTPUTS = ("g", "readout", "lse")
GRADIENTS = ("x", "weight", "anchors")
# Of ‖got − expected‖ / ‖expected‖, by dtype: the rounding of what enters and leaves a product. The table stands in
# kernels/README.md.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setenv("MMSA_KERNELS", "triton")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Fills every tensor that is made without content with NaN, so that nothing can stay unwritten."""

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))


def problem(
    sizes=(3, 0, 1, 5, 40, 2, 7, 0, 1),
    fresh=13,
    stale: int | None = 11,
    width=19,
    anchors=37,
    dtype=torch.float32,
    index_dtype=torch.int64,
    seed=0,
) -> dict[str, Tensor | None]:
    """Rows of any length with unsorted and repeated columns.

    As between neighbours, what a row gathers points one way, with weights as of a random walk: where g is next to
    nothing by cancellation, the direction of it, and all that follows, is rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    entries, vertices = sum(sizes), fresh + (stale or 0)
    weight = torch.rand(entries, **draw) * 2 / torch.tensor([n for n in sizes for _ in range(n)])
    inputs = {
        "x_ND": (1 + torch.randn(fresh, width, **draw)).to(dtype),
        "rowptr": torch.tensor([0, *sizes]).cumsum(0).to(index_dtype),
        "col": torch.randint(0, max(vertices, 1), (entries,), generator=generator).to(index_dtype),
        "weight": weight.to(dtype),
        "anchors_SD": torch.randn(anchors, width, **draw).to(dtype),
        "stale_VD": None if stale is None else (1 + torch.randn(stale, width, **draw)).to(dtype),
    }
    return {name: tensor if tensor is None else tensor.to(DEVICE) for name, tensor in inputs.items()}


def scale_for(similarity: str, width: int) -> float:
    """Attention that is neither flat nor all on one anchor, so that no gradient is drowned."""
    return 5.0 if similarity == "cosine" else width**-0.5


def both(inputs, similarity, scale=None, dtype=None, used=OUTPUTS, wanted=GRADIENTS):
    """Runs the kernels, and the reference in float64, forward and backward.

    Returns:
        Two dictionaries from the name of a result to it.
    """
    scale = scale or scale_for(similarity, inputs["x_ND"].shape[1])
    generator = torch.Generator().manual_seed(7)
    got, expected = {}, {}
    upstream: dict[str, Tensor] = {}
    for results, precision in ((got, None), (expected, torch.float64)):
        case = {
            name: t.to(precision) if precision and t is not None and t.is_floating_point() else t
            for name, t in inputs.items()
        }
        names = {"x": "x_ND", "weight": "weight", "anchors": "anchors_SD"}
        leaves = {short: case[names[short]].detach().clone().requires_grad_() for short in wanted}
        case |= {names[short]: leaf for short, leaf in leaves.items()}
        if precision:
            outputs = hyperedge_memory_attention_reference(**case, scale=scale, similarity=similarity)
        else:
            outputs = hyperedge_memory_attention(**case, scale=scale, similarity=similarity)
        results |= dict(zip(OUTPUTS, outputs, strict=True))
        for name in used:
            if name not in upstream:
                upstream[name] = torch.randn(results[name].shape, generator=generator).to(results[name])
        sizes_dweight = precision is not None and "weight" in wanted
        gradients = torch.autograd.grad(
            [results[name] for name in used],
            [*leaves.values(), *([outputs[0]] if sizes_dweight else [])],
            [upstream[name].to(results[name].dtype) for name in used],
        )
        results |= {f"d{short}": gradient for short, gradient in zip(leaves, gradients, strict=False)}
        if sizes_dweight:
            # Of the products of numbers that dweight = <dg, x> adds up: it cannot be more exact than they are.
            x = case["x_ND"] if case["stale_VD"] is None else torch.cat([case["x_ND"], case["stale_VD"]])
            row = torch.repeat_interleave(inputs["rowptr"].diff())
            results["size of dweight"] = (gradients[-1].norm(dim=1)[row] * x.norm(dim=1)[inputs["col"]]).norm()
    return got, expected


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, result in got.items():
        assert result.shape == expected[name].shape, name
        error = (result.double() - expected[name]).norm()
        size = expected.get(f"size of {name}", expected[name].norm())
        assert error <= tolerance * size, f"{name}: off by {float(error / size):.1e}, allowed {tolerance:.1e}"


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"width": 16, "anchors": 1},
        {"width": 3, "stale": None},
        {"width": 33, "anchors": 130, "index_dtype": torch.int32},
        {"width": 130, "anchors": 17, "sizes": (2,) * 70},
        {"width": 300, "anchors": 35, "sizes": (5, 1)},
        {"fresh": 0, "width": 24},
        {"sizes": (300, 0, 3), "width": 20},
    ],
    ids=["odd", "one anchor", "no stale", "int32", "two blocks", "padded", "nothing fresh", "a long row"],
)
def test_every_output_and_gradient(similarity, dtype, shape):
    if dtype == torch.float32:
        shape = shape | {"width": min(shape.get("width", 19), 250)}
    got, expected = both(problem(dtype=dtype, **shape), similarity)
    assert got["g"].dtype == got["readout"].dtype == got["dx"].dtype == dtype
    assert got["lse"].dtype == torch.float32
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_half_precision_loses_digits_where_the_attention_is_sharp(scale):
    """ĝ and m̂ are rounded to bfloat16 before their product, which shifts a score by its scale times 2^-9."""
    inputs = problem(dtype=torch.bfloat16, sizes=(3,) * 64, anchors=16, width=32)
    assert_close(*both(inputs, "cosine", scale=scale), 1e-3 * scale)


@pytest.mark.gpu
def test_float32_is_as_exact_over_many_anchors_as_over_few():
    """Matrix units cut off what does not fit into the sum that they add to; the interpreter does not."""
    assert_close(*both(problem(width=16, anchors=8192, sizes=(5, 1)), "cosine"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    "used", [used for n in (1, 2) for used in itertools.combinations(OUTPUTS, n)], ids=lambda used: "+".join(used)
)
def test_gradients_through_some_outputs(similarity, used):
    wanted = ("x", "weight") if used == ("g",) else GRADIENTS  # g does not know the anchors
    assert_close(*both(problem(), similarity, used=used, wanted=wanted), TOLERANCE[torch.float32])


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("anchors",), ("x", "anchors")], ids="+".join)
def test_only_the_gradients_that_are_wanted(wanted, monkeypatch):
    asked = []
    backward = launch.backward

    def look(inputs, results, output_grads, wanted, choose_tile):
        asked.append(wanted)
        return backward(inputs, results, output_grads, wanted, choose_tile)

    monkeypatch.setattr(launch, "backward", look)
    assert_close(*both(problem(), "cosine", used=("readout", "lse"), wanted=wanted), TOLERANCE[torch.float32])
    assert asked == [tuple(name in wanted for name in GRADIENTS)]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_stale_table_is_the_end_of_x_without_gradient(similarity):
    inputs = problem(fresh=5, stale=8)
    whole = inputs | {"x_ND": torch.cat([inputs["x_ND"], inputs["stale_VD"]]), "stale_VD": None}
    split_got, _ = both(inputs, similarity)
    whole_got, _ = both(whole, similarity)
    assert split_got["dx"].shape == (5, 19)
    for name in split_got:
        assert torch.equal(split_got[name], whole_got[name][:5] if name == "dx" else whole_got[name]), name


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("sizes", [(), (0, 0)], ids=["no rows", "no entries"])
def test_nothing_to_gather(similarity, sizes):
    got, expected = both(problem(sizes=sizes), similarity)
    assert_close(got, expected, TOLERANCE[torch.float32])
    assert got["dx"].eq(0).all()


def test_rows_and_anchors_without_a_direction():
    inputs = problem(anchors=5)
    inputs["x_ND"].zero_()
    inputs["stale_VD"].zero_()
    inputs["anchors_SD"][2] = 0
    got, expected = both(inputs, "cosine")
    assert got["dx"].isfinite().all()
    torch.testing.assert_close(got["lse"], torch.full_like(got["lse"], math.log(5)))
    for name in ("readout", "danchors", "dweight"):
        torch.testing.assert_close(got[name].double(), expected[name], rtol=1e-5, atol=1e-6)


def test_an_anchor_without_a_direction():
    inputs = problem(anchors=5)
    inputs["anchors_SD"][2] = 0
    assert_close(*both(inputs, "cosine"), TOLERANCE[torch.float32])


def test_a_sharp_attention_in_half_precision():
    """Of the gradient of a score times the scale, beyond the range of float16, nothing enters a product."""
    inputs = problem(dtype=torch.float16)
    for name in ("x_ND", "stale_VD"):
        inputs[name] *= 100
    inputs["x_ND"].requires_grad_()
    _, readout, _ = hyperedge_memory_attention(**inputs, scale=50.0, similarity="cosine")
    wide = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in inputs.items()}
    wide["x_ND"] = inputs["x_ND"].detach().double().requires_grad_()
    _, expected, _ = hyperedge_memory_attention_reference(**wide, scale=50.0, similarity="cosine")
    upstream = 3e3 * torch.randn(readout.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE).half()
    (got,) = torch.autograd.grad(readout, inputs["x_ND"], upstream)
    (want,) = torch.autograd.grad(expected, wide["x_ND"], upstream.double())
    assert want.abs().max() < 6e4
    assert (got.double() - want).norm() <= 5 * TOLERANCE[torch.float16] * want.norm()


def test_short_rows_in_half_precision():
    """Their cosines are as good as those of long ones, and 1/|g| beyond the range of float16 stays out of products."""
    inputs = problem(dtype=torch.float16, width=16)
    for name in ("x_ND", "stale_VD"):
        inputs[name] = (inputs[name] * 1e-2).half()
    inputs["weight"] = (inputs["weight"] * 1e-3).half()
    got, expected = both(inputs, "cosine", used=("readout", "lse"), wanted=("anchors",))
    # g itself is rounded to float16 on the way out, where it is subnormal; what follows from it is not.
    for name in ("readout", "lse", "danchors"):
        assert (got[name].double() - expected[name]).norm() <= TOLERANCE[torch.float16] * expected[name].norm(), name


def test_the_bank_may_move_on_where_weights_want_no_gradient():
    inputs = problem()
    inputs["x_ND"].requires_grad_()
    _, readout, _ = hyperedge_memory_attention(**inputs, scale=2.0, similarity="cosine")
    (expected,) = torch.autograd.grad(readout.sum(), inputs["x_ND"], retain_graph=True)
    inputs["stale_VD"].zero_()
    (got,) = torch.autograd.grad(readout.sum(), inputs["x_ND"])
    assert torch.equal(got, expected)


def test_huge_scores_do_not_overflow():
    inputs = problem()
    inputs["x_ND"] *= 1e15
    inputs["stale_VD"] *= 1e15
    got, _ = both(inputs, "dot", scale=1e15)
    best = (got["g"] @ inputs["anchors_SD"].T).argmax(1)
    filled = inputs["rowptr"].diff() > 0
    torch.testing.assert_close(got["readout"][filled], inputs["anchors_SD"][best[filled]])
    for result in got.values():
        assert not result.isnan().any()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("broken", ["x_ND", "anchors_SD"])
def test_nan_does_not_turn_into_numbers(similarity, broken):
    inputs = problem()
    inputs["col"][0] = 0
    inputs[broken][0, 0] = math.nan
    for results in both(inputs, similarity, scale=5.0):
        assert results["readout"][0].isnan().all()
        assert results["lse"][0].isnan()
        assert results["dx"].isnan().any()
        assert results["danchors"].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_inputs_and_gradients_with_gaps(dtype):
    inputs = problem(dtype=dtype)
    rows, width = inputs["rowptr"].numel() - 1, inputs["x_ND"].shape[1]
    upstream = [torch.randn(width, rows, device=DEVICE).to(dtype).T for _ in range(2)]
    upstream.append(torch.randn(rows, 2, device=DEVICE)[:, 0])

    def run(case: dict[str, Tensor | None], upstream: list[Tensor]) -> list[Tensor]:
        leaves = [case[name].detach().requires_grad_() for name in ("x_ND", "weight", "anchors_SD")]
        case = case | dict(zip(("x_ND", "weight", "anchors_SD"), leaves, strict=True))
        results = hyperedge_memory_attention(**case, scale=5.0, similarity="cosine")
        return [*results, *torch.autograd.grad(results, leaves, upstream)]

    expected = run(inputs, [gradient.contiguous() for gradient in upstream])
    apart = {
        name: tensor if tensor is None else torch.stack([tensor, tensor], dim=-1)[..., 0]
        for name, tensor in inputs.items()
    }
    wide = inputs | {"x_ND": torch.cat([inputs["x_ND"]] * 2, dim=1)[:, :width]}  # only rows are apart
    assert not wide["x_ND"].is_contiguous()
    for case in (inputs, apart, wide):
        assert all(torch.equal(a, b) for a, b in zip(run(case, upstream), expected, strict=True))


def test_numbers_beyond_2_to_the_31():
    width = 256
    vertices = 2**31 // width + 3
    x = torch.empty(vertices, width, dtype=torch.float16, device=DEVICE)  # pages that nobody writes take no memory
    col = torch.tensor([vertices - 1, 0, vertices - 2], device=DEVICE)
    rows = torch.randn(3, width, dtype=torch.float16, device=DEVICE)
    x[col] = rows
    inputs = problem(sizes=(2, 1), width=width, dtype=torch.float16) | {"x_ND": x, "col": col, "stale_VD": None}
    inputs["rowptr"] = inputs["rowptr"].to(torch.int32)
    got = hyperedge_memory_attention(**inputs, scale=0.1)
    near = inputs | {"x_ND": rows, "col": torch.arange(3, device=DEVICE)}
    expected = hyperedge_memory_attention(**near, scale=0.1)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("rows_at_a_time", [16, 1 << 14])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_run_gives_the_same_bits(similarity, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(launch, "_LEAST_ROWS", rows_at_a_time)
    monkeypatch.setattr(launch, "_ATTENTION_AT_A_TIME", 1)
    inputs = problem(sizes=(17,) * 40, width=33, anchors=70)
    first, _ = both(inputs, similarity)
    again, _ = both(inputs, similarity)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks of 16 rows and 16 anchors for every kernel, of which a small problem already has several."""
    monkeypatch.setattr(triton_op, "attention_tile", lambda kernel, **_: Tile(16, 16, 4, 1))


@pytest.mark.parametrize("split_anchors", [1, 512, 1 << 14])
def test_splits_of_the_rows_add_up(small_tiles, monkeypatch, split_anchors):
    """The gradient of the anchors, whose rows are split among programs, does not depend on how many there are."""
    monkeypatch.setattr(anchor_sums, "_SPLIT_ANCHORS", split_anchors)
    assert_close(*both(problem(sizes=(2,) * 130, anchors=50), "cosine"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("rows_at_a_time", "attention_at_a_time", "most_rows"),
    [(1, 1, 1), (16, 1, 16), (33, 1, 33), (1, 33 * 128, 33), (36, 1, 35)],
)
def test_the_backward_goes_over_some_rows_at_a_time(
    small_tiles, monkeypatch, similarity, rows_at_a_time, attention_at_a_time, most_rows
):
    """However few they are, and where the last are fewer, every gradient is the same."""
    monkeypatch.setattr(launch, "_LEAST_ROWS", rows_at_a_time)
    monkeypatch.setattr(launch, "_ATTENTION_AT_A_TIME", attention_at_a_time)
    room = []
    attention = launch.Attention
    monkeypatch.setattr(launch, "Attention", lambda rows, *rest: room.append(rows) or attention(rows, *rest))
    inputs = problem(sizes=(3, 0, 1, 5, 2, 7, 0) * 5, anchors=50)
    assert_close(*both(inputs, similarity), TOLERANCE[torch.float32])
    assert room == [most_rows]


def test_mixed_dtypes():
    """x in half precision, weights and anchors in float32, as in training: gradients come in each one's dtype."""
    inputs = problem(dtype=torch.bfloat16)
    inputs["weight"], inputs["anchors_SD"] = inputs["weight"].float(), inputs["anchors_SD"].float()
    got, expected = both(inputs, "cosine")
    assert (got["dx"].dtype, got["dweight"].dtype, got["danchors"].dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert_close(got, expected, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_operators_keep_the_rules_of_torch_library(similarity, monkeypatch):
    monkeypatch.undo()  # its checks fill tensors of their own
    inputs = problem(sizes=(2, 3), width=8, anchors=3)
    leaves = [inputs[name].requires_grad_() for name in ("x_ND", "weight", "anchors_SD")]
    arguments = (leaves[0], inputs["rowptr"], inputs["col"], *leaves[1:], 1.0, similarity, inputs["stale_VD"])
    operators = torch.ops.mmsa_kernels
    torch.library.opcheck(operators.hyperedge_memory_attention.default, arguments)
    *tensors, scale, similarity, stale_VD = [
        argument.detach() if isinstance(argument, Tensor) else argument for argument in arguments
    ]
    results = operators.hyperedge_memory_attention(*tensors, scale, similarity, stale_VD)
    saved = (*tensors, stale_VD, *results, scale, similarity)
    for wanted in ([True, True, True], [False, True, False]):
        arguments = (None, torch.ones_like(results[1]), None, wanted, *saved)
        torch.library.opcheck(operators.hyperedge_memory_attention_backward.default, arguments)


# In a process of its own, where no other test has imported the compiler.
ONE_CALL = """
import sys, torch
from mmsa_kernels import hyperedge_memory_attention
x, anchors, weight = (torch.ones(*shape, device="{device}", requires_grad=True) for shape in ((3, 16), (2, 16), (2,)))
rowptr, col = torch.tensor([0, 2], device="{device}"), torch.tensor([0, 2], device="{device}")
_, readout, _ = hyperedge_memory_attention(x, rowptr, col, weight, anchors, scale=1.0)
readout.sum().backward()
print("triton" in sys.modules, "torch._dynamo" in sys.modules)
"""


def test_a_call_does_not_import_the_compiler():
    done = subprocess.run([sys.executable, "-c", ONE_CALL.format(device=DEVICE)], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr


def compute(inputs: dict[str, Tensor], scale: float = 2.0) -> Tensor:
    g, readout, lse = hyperedge_memory_attention(**inputs, scale=scale, similarity="cosine")
    return (g * readout.sin()).sum() + lse.cos().sum()


def gradients(function, inputs) -> list[Tensor]:
    leaves = [inputs[name].detach().requires_grad_() for name in ("x_ND", "weight", "anchors_SD")]
    result = function(inputs | dict(zip(("x_ND", "weight", "anchors_SD"), leaves, strict=True)))
    return [result, *torch.autograd.grad(result, leaves)]


def test_under_compile_and_checkpointing():
    inputs = problem()
    expected = gradients(compute, inputs)
    warmer = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 1.5, 2.0):  # a temperature that changes is no break in the graph
        got = warmer(inputs, scale)
        torch.testing.assert_close(got, compute(inputs, scale))
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for function in (compiled, lambda inputs: checkpoint(compute, inputs, use_reentrant=False)):
        for got, want in zip(gradients(function, inputs), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_a_second_derivative_is_refused():
    inputs = problem()
    inputs["x_ND"].requires_grad_()
    (gradient,) = torch.autograd.grad(compute(inputs), inputs["x_ND"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; set MMSA_KERNELS=reference"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"width": 513, "dtype": torch.float16},
            r"MMSA_KERNELS=triton: its kernels are written for D <= 512 in torch.float16, and here it is 513; unset it",
        ),
        ({"dtype": torch.float64}, r"MMSA_KERNELS=triton: its kernels take no torch.float64; unset it"),
    ],
)
def test_what_the_kernels_cannot_take(change, message, monkeypatch):
    inputs = problem(**change)
    with pytest.raises(RuntimeError, match=message):
        hyperedge_memory_attention(**inputs, scale=1.0)
    monkeypatch.delenv("MMSA_KERNELS")
    g, _, _ = hyperedge_memory_attention(**inputs, scale=1.0)
    assert g.isfinite().all()
