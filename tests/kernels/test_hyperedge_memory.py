"""The operator against its formula written as loops, its gradients, its edge cases and its refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mmsa_kernels import anchor_scores, hyperedge_memory_attention, transpose_csr

SIMILARITIES = ["dot", "cosine"]
# One table of tolerances: relative and absolute, by dtype, against the float64 result of the same inputs.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}


def problem(num_vertices=9, sizes=(3, 0, 1, 5), width=7, anchors=5, dtype=torch.float64, seed=0) -> dict[str, Tensor]:
    """Rows of any length, unsorted and repeated columns."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return {
        "x_ND": torch.randn(num_vertices, width, **draw).to(dtype),
        "rowptr": torch.tensor([0, *sizes]).cumsum(0),
        "col": torch.randint(0, max(num_vertices, 1), (sum(sizes),), generator=generator),
        "weight": torch.rand(sum(sizes), **draw).to(dtype),
        "anchors_SD": torch.randn(anchors, width, **draw).to(dtype),
    }


def by_loops(x_ND, rowptr, col, weight, anchors_SD, scale, similarity):
    """The formula, one number at a time."""
    g, readout, lse = [], [], []
    for i in range(rowptr.numel() - 1):
        g_i = torch.zeros(x_ND.shape[1], dtype=torch.float64)
        for e in range(int(rowptr[i]), int(rowptr[i + 1])):
            g_i = g_i + weight[e].double() * x_ND[col[e]].double()
        scores = []
        for m in anchors_SD.double():
            dot = (g_i * m).sum()
            length = float(g_i.norm() * m.norm())
            scores.append(scale * (dot if similarity == "dot" else dot / length if length > 0 else 0 * dot))
        z = torch.stack(scores)
        g.append(g_i)
        lse.append(z.exp().sum().log())
        readout.append(sum(torch.exp(z[s] - lse[-1]) * m for s, m in enumerate(anchors_SD.double())))
    return torch.stack(g), torch.stack(readout), torch.stack(lse)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_equals_the_formula(similarity, dtype, index_dtype):
    inputs = problem(dtype=dtype)
    inputs |= {name: inputs[name].to(index_dtype) for name in ("rowptr", "col")}
    expected = by_loops(**inputs, scale=2.5, similarity=similarity)
    g, readout, lse = hyperedge_memory_attention(**inputs, scale=2.5, similarity=similarity)
    assert g.dtype == readout.dtype == dtype
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    for got, want in zip((g, readout, lse), expected, strict=True):
        torch.testing.assert_close(got.double(), want, **TOLERANCE[dtype])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_through_every_output(similarity):
    inputs = problem()
    for name in ("x_ND", "weight", "anchors_SD"):
        inputs[name].requires_grad_()

    def function(x_ND, weight, anchors_SD):
        return hyperedge_memory_attention(
            x_ND, inputs["rowptr"], inputs["col"], weight, anchors_SD, 1.5, similarity=similarity
        )

    if similarity == "cosine":  # the empty row has no direction, so finite differences have nothing to say there
        inputs["rowptr"] = torch.tensor([0, 3, 4, 9])
    assert torch.autograd.gradcheck(function, (inputs["x_ND"], inputs["weight"], inputs["anchors_SD"]))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_backward_formula_of_the_readme(similarity):
    """The closed form that a fused backward will compute is the gradient that autograd finds."""
    inputs, scale = problem(sizes=(3, 2, 1, 5)), 1.5
    leaves = [inputs[name].requires_grad_() for name in ("x_ND", "weight", "anchors_SD")]
    outputs = hyperedge_memory_attention(**inputs, scale=scale, similarity=similarity)
    grads = [torch.randn_like(output) for output in outputs]
    expected = torch.autograd.grad(outputs, leaves, grads)

    with torch.no_grad():
        (g, readout, lse), (dg, dr, dl) = outputs, grads
        x, weight, m, rowptr, col = (inputs[n] for n in ("x_ND", "weight", "anchors_SD", "rowptr", "col"))
        p = (anchor_scores(g, m, scale, similarity) - lse[:, None]).exp()
        ds = p * (dr @ m.T - (dr * readout).sum(1, keepdim=True) + dl[:, None])
        if similarity == "dot":
            dg = dg + scale * ds @ m
            dm = p.T @ dr + scale * ds.T @ g
        else:
            lg, lm = g.norm(dim=1, keepdim=True), m.norm(dim=1, keepdim=True)
            ug, um = g / lg, m / lm
            a, b = ds @ um, ds.T @ ug
            dg = dg + scale / lg * (a - (a * ug).sum(1, keepdim=True) * ug)
            dm = p.T @ dr + scale / lm * (b - (b * um).sum(1, keepdim=True) * um)
        row = torch.repeat_interleave(rowptr.diff())
        dweight = (dg[row] * x[col]).sum(1)
        ptr_t, row_t, order = transpose_csr(rowptr, col, x.shape[0])
        dx = torch.segment_reduce(weight[order][:, None] * dg[row_t], "sum", offsets=ptr_t, axis=0, initial=0)
    for got, want in zip((dx, dweight, dm), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_an_empty_row_reads_the_mean_of_the_anchors(similarity):
    inputs = problem(sizes=(2, 0))
    inputs["x_ND"].requires_grad_()
    g, readout, lse = hyperedge_memory_attention(**inputs, scale=3.0, similarity=similarity)
    assert g[1].eq(0).all()
    torch.testing.assert_close(readout[1], inputs["anchors_SD"].mean(0))
    assert float(lse[1].detach()) == pytest.approx(math.log(5))
    (g.sum() + readout.sum() + lse.sum()).backward()
    assert inputs["x_ND"].grad.isfinite().all()


def test_the_cosine_of_zero_rows_and_zero_anchors_is_zero_with_finite_gradients():
    inputs = problem()
    inputs["x_ND"].zero_().requires_grad_()
    inputs["anchors_SD"][2] = 0
    inputs["anchors_SD"].requires_grad_()
    _, readout, lse = hyperedge_memory_attention(**inputs, scale=10.0, similarity="cosine")
    torch.testing.assert_close(lse, torch.full((4,), math.log(5), dtype=torch.float64))
    (readout.sum() + lse.sum()).backward()
    assert inputs["x_ND"].grad.eq(0).all()
    assert inputs["anchors_SD"].grad.isfinite().all()


def test_readout_is_a_sum_over_anchors_not_a_mean():
    inputs = problem(sizes=(2,), anchors=128)
    inputs["anchors_SD"] = inputs["anchors_SD"][:1].expand(128, -1)
    _, readout, _ = hyperedge_memory_attention(**inputs, scale=1.0)
    torch.testing.assert_close(readout[0], inputs["anchors_SD"][0])


def test_huge_scores_do_not_overflow():
    inputs = problem(dtype=torch.float32)
    inputs["x_ND"] = inputs["x_ND"] * 1e15
    g, readout, lse = hyperedge_memory_attention(**inputs, scale=1e15)
    assert g.isfinite().all()
    assert lse.isfinite().all()
    best = (g @ inputs["anchors_SD"].T).argmax(1)
    torch.testing.assert_close(readout[[0, 2, 3]], inputs["anchors_SD"][best[[0, 2, 3]]])


@pytest.mark.parametrize(
    "sizes",
    [
        {"sizes": ()},
        {"sizes": (0, 0), "num_vertices": 0},
        {"anchors": 1},
        {"width": 1},
        {"sizes": (100_000,)},
    ],
    ids=["B=0", "N=0", "S=1", "D=1", "degree 100k"],
)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_extreme_sizes(sizes, similarity):
    inputs = problem(**sizes, dtype=torch.float32)
    rows, width = inputs["rowptr"].numel() - 1, inputs["x_ND"].shape[1]
    g, readout, lse = hyperedge_memory_attention(**inputs, scale=1.0, similarity=similarity)
    assert (g.shape, readout.shape, lse.shape) == ((rows, width), (rows, width), (rows,))
    assert readout.isfinite().all()


def test_non_contiguous_inputs():
    inputs = problem()
    expected = hyperedge_memory_attention(**inputs, scale=1.0)
    strided = {name: torch.stack([t, t], dim=-1)[..., 0] for name, t in inputs.items()}
    assert not any(t.is_contiguous() for t in strided.values())
    for got, want in zip(hyperedge_memory_attention(**strided, scale=1.0), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(("fresh", "stale"), [(4, 5), (0, 9), (9, 0)])
def test_a_stale_table_is_the_end_of_x_without_gradient(dtype, fresh, stale):
    inputs = problem(dtype=dtype)
    expected = hyperedge_memory_attention(**inputs, scale=0.7)
    split = inputs | {"x_ND": inputs["x_ND"][:fresh].requires_grad_(), "stale_VD": inputs["x_ND"][fresh:].clone()}
    got = hyperedge_memory_attention(**split, scale=0.7)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    whole = inputs["x_ND"].clone().requires_grad_()
    (want,) = torch.autograd.grad(hyperedge_memory_attention(**inputs | {"x_ND": whole}, scale=0.7)[1].sum(), whole)
    (gradient,) = torch.autograd.grad(got[1].sum(), split["x_ND"])
    torch.testing.assert_close(gradient, want[:fresh])


def test_what_no_entry_names_does_not_matter():
    inputs = problem(num_vertices=4) | {"stale_VD": torch.ones(9, 7, dtype=torch.float64)}
    inputs["col"] = torch.randint(1, 12, (9,), generator=torch.Generator().manual_seed(0))
    inputs["x_ND"][0] = math.inf
    inputs["stale_VD"][8] = math.nan
    assert all(output.isfinite().all() for output in hyperedge_memory_attention(**inputs, scale=1.0))


def test_autocast_does_not_lower_the_precision():
    inputs = problem(dtype=torch.float32)
    expected = hyperedge_memory_attention(**inputs, scale=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = hyperedge_memory_attention(**inputs, scale=1.0)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_ten_runs_give_the_same_bits():
    def run():
        inputs = problem(num_vertices=50, sizes=(17,) * 64, width=33, dtype=torch.float32)
        leaves = [inputs[name].requires_grad_() for name in ("x_ND", "weight", "anchors_SD")]
        outputs = hyperedge_memory_attention(**inputs, scale=1.0, similarity="cosine")
        return [*outputs, *torch.autograd.grad([output.sum() for output in outputs], leaves)]

    first = run()
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_ND": torch.zeros(9)}, ValueError, r"x_ND: got shape \(9,\), expected \(N, D\)"),
        (
            {"x_ND": torch.zeros(9, 7, dtype=torch.int64)},
            TypeError,
            "x_ND: got torch.int64, expected a floating",
        ),
        ({"rowptr": torch.tensor([], dtype=torch.int64)}, ValueError, r"rowptr: got shape \(0,\)"),
        (
            {"rowptr": torch.tensor([0.0, 9.0])},
            TypeError,
            "rowptr: got torch.float32, expected torch.int32 or",
        ),
        (
            {"rowptr": torch.tensor([0, 8])},
            ValueError,
            "rowptr: got values from 0 to 8, expected .* 0 to the 9",
        ),
        ({"rowptr": torch.tensor([0, 5, 4, 9])}, ValueError, "rowptr: .* never falling"),
        ({"col": torch.full((9,), 9)}, ValueError, "col: got values from 9 to 9, expected 0 to 8"),
        ({"col": torch.full((9,), -1)}, ValueError, "col: got values from -1 to -1, expected 0 to 8"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: got shape \(3,\), expected \(9,\) like col"),
        ({"anchors_SD": torch.ones(5, 6)}, ValueError, r"anchors_SD: got shape \(5, 6\), expected \(S, 7\)"),
        ({"anchors_SD": torch.ones(0, 7)}, ValueError, "S >= 1"),
        (
            {"weight": torch.ones(9, device="meta")},
            ValueError,
            "weight: got device meta, expected cpu like x_ND",
        ),
        (
            {"stale_VD": torch.zeros(3, 6, dtype=torch.float64)},
            ValueError,
            r"stale_VD: got shape \(3, 6\), expected \(V, 7\)",
        ),
        (
            {"stale_VD": torch.zeros(3, 7)},
            TypeError,
            "stale_VD: got torch.float32, expected torch.float64 like x_ND",
        ),
        ({"scale": 0.0}, ValueError, "scale: got 0.0, expected a finite number above 0"),
        ({"scale": math.nan}, ValueError, "scale: got nan"),
        ({"similarity": "l2"}, ValueError, "similarity: got 'l2', expected 'dot' or 'cosine'"),
    ],
)
def test_errors_name_argument_got_and_expected(change, error, message):
    with pytest.raises(error, match=message):
        hyperedge_memory_attention(**({"scale": 1.0} | problem() | change))


def test_import_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import mmsa_kernels; "
        "print({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "{'mmsa_kernels'}"
