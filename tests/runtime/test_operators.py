"""Our operators of torch.library: they keep its rules, and leave PyTorch's compiler alone until it is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import mmsa_dist.encoders.edge_convolution
import mmsa_dist.encoders.sparse_sum
import mmsa_dist.runtime.onednn  # noqa: F401

# Three atoms in a row: edges 1→0, 0→1, 2→1, 1→2, each with two features.
SENDER, PTR = torch.tensor([1, 0, 2, 1]), torch.tensor([0, 1, 3, 4])


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


ARGUMENTS: dict[str, tuple[Tensor | bool, ...]] = {
    "linear": (numbers(19, 4), numbers(3, 4), numbers(3), False),
    "linear, relu": (numbers(19, 4), numbers(3, 4), numbers(3), True),
    "linear_weight_gradient": (numbers(19, 3).detach(), numbers(19, 4).detach()),
    "sparse_sum": (numbers(3, 4), SENDER, PTR, SENDER, PTR),
    "edge_convolution": (numbers(3, 4), numbers(2, 4), numbers(4, 2), numbers(2, 4).detach(), SENDER, PTR),
    "edge_convolution_gradients": (
        *(numbers(*shape).detach() for shape in ((3, 4), (3, 4), (4, 2), (2, 4))),
        SENDER,
        PTR,
    ),
}


def operator(name: str) -> Any:
    return getattr(torch.ops.mmsa_dist, name.split(",")[0])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_operators_keep_the_rules_of_torch_library(name: str) -> None:
    torch.library.opcheck(operator(name).default, ARGUMENTS[name])


@pytest.mark.parametrize("name", ["linear", "linear, relu", "edge_convolution"])
def test_gradients_of_gradients_are_refused(name: str) -> None:
    arguments = ARGUMENTS[name]
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    out = operator(name)(*arguments)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"mmsa_dist::{operator(name).__name__}_\w+ has no derivative"):
        torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


def test_all_of_our_operators_are_among_them() -> None:
    ours = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("mmsa_dist::")}
    assert ours == {f"mmsa_dist::{operator(name).__name__}" for name in ARGUMENTS}


def test_calling_one_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from mmsa_dist.runtime.onednn import linear
x = torch.ones(2, 2, requires_grad=True)
linear(x, x, None).sum().backward()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
