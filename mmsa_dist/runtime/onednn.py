"""Matrix products by oneDNN where that is faster: in float32 on CPUs.

PyTorch multiplies float32 matrices with MKL, which leaves half of the vector units of AMD processors idle;
oneDNN, which PyTorch ships for its convolutions, does not. On one core of an AMD EPYC with AVX-512, at the
sizes of our encoders: 100 GFLOP/s with MKL, 220 with oneDNN, with the same rounding.

The products are registered as operators, which `torch.compile` does not trace.

N rows, R rows after padding, D width of the input, O width of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmsa_dist.runtime.operators import operator, refuse_derivative

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None, *, relu: bool = False) -> Tensor:
    """Returns x Wᵀ + b, (N, out), as `torch.nn.functional.linear`, with oneDNN where that is faster.

    Args:
        x_ND: (N, in).
        weight_OD: (out, in).
        bias_O: (out,), or None.
        relu: whether negative results are set to 0, in place.
    """
    if _by_onednn(x_ND, weight_OD):
        result: Tensor = torch.ops.mmsa_dist.linear(x_ND, weight_OD, bias_O, relu)
        return result
    plain = functional.linear(x_ND, weight_OD, bias_O)
    return plain.relu() if relu else plain


def rows_of_product(rows: int, device: torch.device) -> int:
    """Returns the smallest number of rows, at least `rows`, for which `linear` needs no padding."""
    return rows + -rows % _row_multiple(rows) if _HAS_ONEDNN and device.type == "cpu" else rows


def _by_onednn(x_ND: Tensor, weight_OD: Tensor) -> bool:
    """Returns whether oneDNN is available and both are float32 matrices on a CPU, not empty, without autocast."""
    return (
        _HAS_ONEDNN
        and x_ND.device.type == "cpu"
        and x_ND.dtype == weight_OD.dtype == torch.float32
        and x_ND.dim() == 2
        and len(x_ND) > 0
        and not torch.is_autocast_enabled("cpu")
    )


@operator("mmsa_dist::linear")
def _linear(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None, relu: bool) -> Tensor:
    result_NO = _product(_padded(x_ND), weight_OD, bias_O)[: len(x_ND)]
    return result_NO.relu_() if relu else result_NO  # oneDNN's own ReLU turns NaN into 0


@torch.library.register_fake("mmsa_dist::linear")
def _(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None, relu: bool) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], weight_OD.shape[0])


@operator("mmsa_dist::linear_weight_gradient")
def _weight_gradient(grad_NO: Tensor, x_ND: Tensor) -> Tensor:
    whole = len(x_ND) - len(x_ND) % _row_multiple(len(x_ND))  # the rest is added separately: padding would copy both
    grad_OD = _product(grad_NO[:whole].T, x_ND[:whole].T)
    return grad_OD.addmm_(grad_NO[whole:].T, x_ND[whole:])


@torch.library.register_fake("mmsa_dist::linear_weight_gradient")
def _(grad_NO: Tensor, x_ND: Tensor) -> Tensor:
    return x_ND.new_empty(grad_NO.shape[1], x_ND.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    x_ND, weight_OD, _, ctx.relu = inputs
    ctx.save_for_backward(x_ND, weight_OD, output if ctx.relu else None)


def _backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x_ND, weight_OD, output_NO = ctx.saved_tensors
    if ctx.relu:
        grad_NO = torch.ops.aten.threshold_backward(grad_NO, output_NO, 0)
    for_x, for_weight, for_bias, _ = ctx.needs_input_grad
    return (
        torch.ops.mmsa_dist.linear(grad_NO, weight_OD.T, None, False) if for_x else None,
        torch.ops.mmsa_dist.linear_weight_gradient(grad_NO, x_ND) if for_weight else None,
        grad_NO.sum(dim=0) if for_bias else None,
        None,
    )


torch.library.register_autograd("mmsa_dist::linear", _backward, setup_context=_setup_context)
refuse_derivative("mmsa_dist::linear_weight_gradient")


def _padded(x_ND: Tensor) -> Tensor:
    """Pads with rows of zeros to one of 16 sizes between two powers of two.

    oneDNN and its wrapper in PyTorch cache compiled code and buffers for every number of rows, which differs from
    batch to batch: without padding, the two ranks of the quickstart grew by 1.3 GB each.
    """
    rows = len(x_ND)
    more = -rows % _row_multiple(rows)
    if more == 0:
        return x_ND
    padded_RD = x_ND.new_empty(rows + more, x_ND.shape[1])  # not functional.pad, which writes everything twice
    padded_RD[:rows], padded_RD[rows:] = x_ND, 0
    return padded_RD


def _row_multiple(rows: int) -> int:
    """Returns a sixteenth of the largest power of two up to `rows`, at least 1."""
    return 1 << max(rows.bit_length() - 5, 0)


def _product(x_RD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns x Wᵀ + b; the operator is the one that PyTorch's own compiler emits for a linear layer on CPUs."""
    return torch.ops.mkldnn._linear_pointwise(x_RD, weight_OD, bias_O, "none", [], "")
