"""Which implementation of the operators runs, and why the others do not.

The environment variable ``MMSA_KERNELS`` chooses one by name; unset or empty, the fastest available one runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLE = "MMSA_KERNELS"


@dataclass(frozen=True)
class Backend:
    """An implementation of the operators."""

    name: str
    available: bool
    reason: str
    """Why it can be used, or why not."""


def available_backends() -> tuple[Backend, ...]:
    """Returns all backends that have a name, fastest first, each with whether it can be used and why."""
    return (
        Backend("triton", False, "the fused Triton kernels are not part of this version of mmsa_kernels"),
        Backend("reference", True, "plain PyTorch, on every device that torch has"),
    )


def chosen_backend() -> str:
    """Returns the name of the backend that runs: that of ``MMSA_KERNELS``, or the fastest available one.

    Raises:
        ValueError: ``MMSA_KERNELS`` names no backend.
        RuntimeError: ``MMSA_KERNELS`` names a backend that cannot be used here.
    """
    backends = {backend.name: backend for backend in available_backends()}
    name = os.environ.get(VARIABLE, "")
    if not name:
        return next(backend.name for backend in backends.values() if backend.available)
    if name not in backends:
        raise ValueError(f"{VARIABLE}={name}: no such backend; expected one of {', '.join(backends)}, or unset")
    if not backends[name].available:
        usable = ", ".join(backend.name for backend in backends.values() if backend.available)
        raise RuntimeError(f"{VARIABLE}={name}: {backends[name].reason}; unset it or choose {usable}")
    return name
