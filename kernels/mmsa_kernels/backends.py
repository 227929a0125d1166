"""Which implementation of the operators runs, and why the others do not.

The environment variable ``MMSA_KERNELS`` chooses one by name. If it is unset or empty, the fused kernels run on GPUs
that support them, and plain PyTorch everywhere else.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache

import torch

VARIABLE = "MMSA_KERNELS"
INTERPRETER_VARIABLE = "TRITON_INTERPRET"

_OLDEST_CAPABILITY = (8, 0)  # Ampere: bf16, and asynchronous copies to shared memory


@dataclass(frozen=True)
class Backend:
    """An implementation of the operators."""

    name: str
    devices: tuple[str, ...]
    """Types of device on which it runs here; empty where it cannot be used."""
    reason: str
    """Why it can be used, or why not."""

    @property
    def available(self) -> bool:
        """Whether it can be used at all."""
        return bool(self.devices)


def available_backends() -> tuple[Backend, ...]:
    """Returns all backends, the fastest first, with the devices that each can use here and the reason."""
    return (
        _triton_backend(_is_interpreting()),
        Backend("reference", ("cpu", "cuda", "mps", "xpu", "meta"), "plain PyTorch, on every device that torch has"),
    )


def choose_backend(device_type: str, beyond_triton: str) -> str:
    """Returns the name of the backend for a problem: the one in ``MMSA_KERNELS``, or the fastest that can solve it.

    Args:
        device_type: the type of the tensors' device, such as ``cuda``.
        beyond_triton: why the fused kernels cannot solve the problem; empty where they can.

    Raises:
        ValueError: ``MMSA_KERNELS`` names no backend.
        RuntimeError: ``MMSA_KERNELS`` names a backend that cannot be used here, or not for this problem.
    """
    triton, reference = available_backends()
    name = os.environ.get(VARIABLE, "")
    if not name:  # the interpreter is for tests, and runs on request only
        fused = device_type == "cuda" and device_type in triton.devices and not beyond_triton
        return triton.name if fused else reference.name
    if name not in (triton.name, reference.name):
        raise ValueError(
            f"{VARIABLE}={name}: no such backend; expected one of {triton.name}, {reference.name}, or unset"
        )
    if name == triton.name:
        if not triton.available:
            raise RuntimeError(f"{VARIABLE}={name}: {triton.reason}; unset it or choose {reference.name}")
        if device_type not in triton.devices:
            raise RuntimeError(
                f"{VARIABLE}={name}: got tensors on {device_type}, expected {' or '.join(triton.devices)}; move them, "
                f"unset it or choose {reference.name}"
            )
        if beyond_triton:
            raise RuntimeError(f"{VARIABLE}={name}: {beyond_triton}; unset it or choose {reference.name}")
    return name


# This is what torch.compiler.assume_constant_result does, but that would import the whole compiler. A compiled graph
# keeps the backend that was chosen while it was traced.
choose_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_interpreting() -> bool:
    return os.environ.get(INTERPRETER_VARIABLE, "") == "1"


@cache
def _triton_backend(is_interpreting: bool) -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend("triton", (), "the package triton is not installed: pip install 'mmsa-dist[gpu]'")
    if is_interpreting:
        return Backend("triton", ("cpu",), f"fused kernels, slowly interpreted on CPU because {INTERPRETER_VARIABLE}=1")
    if not torch.cuda.is_available():
        return Backend(
            "triton", (), f"torch sees no CUDA GPU; {INTERPRETER_VARIABLE}=1 interprets the kernels on CPU, for tests"
        )
    capability = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    if capability < _OLDEST_CAPABILITY:
        needed = ".".join(map(str, _OLDEST_CAPABILITY))
        return Backend("triton", (), f"{name} has compute capability {capability[0]}.{capability[1]}, below {needed}")
    return Backend("triton", ("cuda",), f"fused kernels, compiled for {name}")
