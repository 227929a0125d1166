"""Operators that `torch.compile` calls and does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[_Function], _Function]:
    """Makes a function of tensors, for every kind of device, the operator ``torch.ops.<namespace>.<name>``.

    As `torch.library.custom_op`, but for the checks around it, which import PyTorch's compiler at the first call: 0.8 s
    before the first vector. The function must neither change nor return what it is given, and one that is given no
    derivative needs `refuse_derivative`.

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
    """Makes a backward pass through an operator an error: PyTorch would go on with a warning, and be wrong."""

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(f"{name} has no derivative: gradients of gradients are not to be had (create_graph=True)")

    torch.library.register_autograd(name, backward)
