"""The operator on Triton as PyTorch knows it: two operators of torch.library, forward and backward.

They are opaque to ``torch.compile`` and to activation checkpointing, which see shapes alone. They are registered by
`torch.library.define` and `impl`, not by `torch.library.custom_op`, whose checks import PyTorch's compiler at the first
call (0.7 s) and take the host 10 µs for each forward and backward; tests make these checks once. This module imports
triton, so it is imported only where that backend runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory import launch
from mmsa_kernels.hyperedge_memory.arguments import Inputs, OutputGrads
from mmsa_kernels.hyperedge_memory.launch import InputGrads, Results, Wanted
from mmsa_kernels.hyperedge_memory.tiles import attention_tile

_FORWARD, _BACKWARD = "mmsa_kernels::hyperedge_memory_attention", "mmsa_kernels::hyperedge_memory_attention_backward"

torch.library.define(
    _FORWARD,
    "(Tensor x, Tensor rowptr, Tensor col, Tensor weight, Tensor anchors, float scale, str similarity, Tensor? stale)"
    " -> (Tensor g, Tensor readout, Tensor lse, Tensor inverse_length, Tensor g_pieces)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    _BACKWARD,
    "(Tensor? grad_g, Tensor grad_readout, Tensor? grad_lse, bool[3] wanted,"
    " Tensor x, Tensor rowptr, Tensor col, Tensor weight, Tensor anchors, Tensor? stale,"
    " Tensor g, Tensor readout, Tensor lse, Tensor inverse_length, Tensor g_pieces, float scale, str similarity)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_anchors)",
    tags=torch.Tag.pt2_compliant_tag,
)


class Saved(NamedTuple):
    """What a call leaves to its backward, in the order in which the backward operator takes it."""

    x_ND: Tensor
    rowptr: Tensor
    col: Tensor
    weight: Tensor
    anchors_SD: Tensor
    stale_VD: Tensor | None
    g_BD: Tensor
    readout_BD: Tensor
    lse_B: Tensor
    inverse_length_B: Tensor
    g_PBD: Tensor
    scale: float
    similarity: str

    def inputs(self) -> Inputs:
        """Returns the inputs of the call."""
        return Inputs(
            self.x_ND,
            self.rowptr,
            self.col,
            self.weight,
            self.anchors_SD,
            self.scale,
            self.similarity,
            self.stale_VD,
        )

    def results(self) -> Results:
        """Returns what its forward wrote."""
        return Results(self.g_BD, self.readout_BD, self.lse_B, self.inverse_length_B, self.g_PBD)


def hyperedge_memory_attention_triton(
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of `mmsa_kernels.hyperedge_memory_attention` without its argument checks.

    Besides the results it holds the direction of g for cosine, and g or its direction in three half planes for float32.
    Its backward takes another B·D numbers and 12 bytes an entry; and for as many rows as it handles at once the
    attention, the gradient of the scores and, in float32, the gradient of g.
    """
    g_BD, readout_BD, lse_B, _, _ = torch.ops.mmsa_kernels.hyperedge_memory_attention.default(
        x_ND, rowptr, col, weight, anchors_SD, scale, similarity, stale_VD
    )
    return g_BD, readout_BD, lse_B


@torch.library.impl(_FORWARD, "default")
def _forward(*inputs: Any) -> Results:
    return launch.forward(Inputs(*inputs), attention_tile)


@torch.library.register_fake(_FORWARD)
def _forward_shapes(x_ND: Tensor, rowptr: Tensor, *others: Any) -> Results:
    _, _, _, _, similarity, _ = others
    return launch.empty_results(x_ND, rowptr, cosine=similarity == "cosine")


@torch.library.impl(_BACKWARD, "default")
def _backward(
    grad_g_BD: Tensor | None, grad_readout_BD: Tensor, grad_lse_B: Tensor | None, wanted: list[bool], *saved: Any
) -> InputGrads:
    call = Saved(*saved)
    output_grads = OutputGrads(grad_g_BD, grad_readout_BD, grad_lse_B)
    return launch.backward(call.inputs(), call.results(), output_grads, Wanted(*wanted), attention_tile)


@torch.library.register_fake(_BACKWARD)
def _backward_shapes(
    grad_g_BD: Tensor | None, grad_readout_BD: Tensor, grad_lse_B: Tensor | None, wanted: list[bool], *saved: Any
) -> InputGrads:
    call = Saved(*saved)
    return launch.empty_gradients(call.x_ND, call.weight, call.anchors_SD, Wanted(*wanted))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_ND, rowptr, col, weight, anchors_SD, scale, similarity, stale_VD = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    # Only the gradient of the weights reads the stale table again, which may have changed by then.
    stale_VD = stale_VD if ctx.needs_input_grad[3] else None
    ctx.save_for_backward(x_ND, rowptr, col, weight, anchors_SD, stale_VD, *output)
    ctx.scale, ctx.similarity = scale, similarity


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = Saved._make((*ctx.saved_tensors, ctx.scale, ctx.similarity))
    grad_g_BD, grad_readout_BD, grad_lse_B, _, _ = grads
    if grad_readout_BD is None:
        grad_readout_BD = torch.zeros_like(saved.readout_BD)
    wanted = [ctx.needs_input_grad[number] for number in (0, 3, 4)]
    gradients = torch.ops.mmsa_kernels.hyperedge_memory_attention_backward.default(
        grad_g_BD, grad_readout_BD, grad_lse_B, wanted, *saved
    )
    grad_x, grad_weight, grad_anchors = (
        gradient if is_wanted else None for gradient, is_wanted in zip(gradients, wanted, strict=True)
    )
    return grad_x, None, None, grad_weight, grad_anchors, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "hyperedge_memory_attention: its Triton backend has no second derivative; set MMSA_KERNELS=reference, which "
        "can be differentiated any number of times"
    )


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd(_BACKWARD, _no_second_derivative)
