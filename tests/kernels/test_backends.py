"""Which implementation is chosen, and what is said where one cannot be."""

from __future__ import annotations

import pytest

from mmsa_kernels import available_backends, backends
from mmsa_kernels.backends import Backend, choose_backend

COMPILED = Backend("triton", ("cuda",), "fused kernels, compiled for a GPU")
MISSING = Backend("triton", (), "torch sees no CUDA GPU")


@pytest.fixture
def with_triton(monkeypatch):
    """A function that says what there is of triton, and whether it interprets."""
    monkeypatch.delenv("MMSA_KERNELS", raising=False)

    def say(backend: Backend, *, interpreting: bool = False) -> None:
        monkeypatch.setattr(backends, "_triton_backend", lambda _: backend)
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreting else "0")

    return say


def test_backends_say_what_is_there_and_why():
    by_name = {backend.name: backend for backend in available_backends()}
    assert list(by_name) == ["triton", "reference"]
    assert by_name["reference"].available
    assert all(backend.reason for backend in by_name.values())


def test_triton_on_cuda_and_the_reference_elsewhere(with_triton):
    with_triton(COMPILED)
    assert choose_backend("cuda", "") == "triton"
    assert choose_backend("cpu", "") == "reference"
    assert choose_backend("cuda", "its kernels take no torch.float64") == "reference"
    with_triton(MISSING)
    assert choose_backend("cuda", "") == "reference"


def test_the_interpreter_is_taken_only_when_it_is_asked_for(with_triton, monkeypatch):
    with_triton(Backend("triton", ("cpu",), "interpreted"), interpreting=True)
    assert choose_backend("cpu", "") == "reference"
    monkeypatch.setenv("MMSA_KERNELS", "triton")
    assert choose_backend("cpu", "") == "triton"


def test_the_variable_chooses(with_triton, monkeypatch):
    with_triton(COMPILED)
    monkeypatch.setenv("MMSA_KERNELS", "reference")
    assert choose_backend("cuda", "") == "reference"


@pytest.mark.parametrize(
    ("name", "backend", "device", "beyond", "error", "message"),
    [
        ("cuda", COMPILED, "cuda", "", ValueError, "MMSA_KERNELS=cuda: no such backend; expected one of triton, refe"),
        ("triton", MISSING, "cpu", "", RuntimeError, "sees no CUDA GPU; unset it or choose reference"),
        ("triton", COMPILED, "cpu", "", RuntimeError, "got tensors on cpu, expected cuda; move them, unset it or cho"),
        ("triton", COMPILED, "cuda", "D is 900", RuntimeError, "MMSA_KERNELS=triton: D is 900; unset it or choose"),
    ],
)
def test_a_choice_that_cannot_be(with_triton, monkeypatch, name, backend, device, beyond, error, message):
    with_triton(backend)
    monkeypatch.setenv("MMSA_KERNELS", name)
    with pytest.raises(error, match=message):
        choose_backend(device, beyond)
