"""Registration of operators that `torch.compile` does not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[_Function], _Function]:
    """Registers a function of tensors, for all devices, as the operator ``torch.ops.<namespace>.<name>``.

    Like `torch.library.custom_op` without its checks, which import PyTorch's compiler at the first call: 0.8 s before
    the first vector. The function must neither change nor return its inputs, and needs `refuse_derivative` if it has no
    derivative.

    Args:
        name: ``namespace::name``; `torch.library.register_fake` and `torch.library.register_autograd` take it too.
    """

    def register(function: _Function) -> _Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", function)
        return function

    return register


def refuse_derivative(name: str) -> None:
    """Makes a backward pass through an operator an error; PyTorch would only warn and give wrong gradients."""

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"{name} has no derivative: gradients of gradients (create_graph=True) are not supported")

    torch.library.register_autograd(name, backward)
