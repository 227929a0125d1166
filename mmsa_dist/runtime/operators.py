"""Operators that `torch.compile` calls and does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[_Function], _Function]:
    """Makes a function of tensors, for every kind of device, the operator ``torch.ops.<namespace>.<name>``.

    What `torch.library.custom_op` does, but for the checks around it, which import PyTorch's compiler at the first
    call: 0.9 s before the first vector. The function must neither change nor return what it is given.

    Args:
        name: ``namespace::name``; `torch.library.register_fake` and `torch.library.register_autograd` take it too.
    """

    def register(function: _Function) -> _Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", function)
        return function

    return register
