"""The guard: results in order, and what becomes of an item that hangs or crashes its process."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from mmsa_shards.guard import Guard, Lost


def double(x: int) -> int:
    return 2 * x


def misbehave(what: str) -> str:
    if what == "spin":
        while True:
            pass
    if what == "sleep":
        time.sleep(60)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise KeyError("as without a guard")
    if what == "print":
        os.write(1, b"noise on stdout, as C++ libraries make it\n")
    return what


@pytest.fixture
def guard():
    guard = Guard()
    yield guard
    guard.close()


def test_results_come_in_order(guard):
    assert list(guard.map(double, range(500), seconds=1)) == [2 * x for x in range(500)]
    assert list(guard.map(double, [], seconds=1)) == []


def test_an_item_that_ends_the_process_costs_only_itself(guard):
    results = list(guard.map(misbehave, ["a", "spin", "b", "segfault", "exit", "print", "sleep"], seconds=0.2))
    assert [r.reason if isinstance(r, Lost) else r for r in results] == [
        "a", "timeout", "b", "crash", "crash", "print", "timeout",
    ]  # fmt: skip
    assert "SIGSEGV" in results[3].message


def test_the_time_limit_holds(guard):
    list(guard.map(misbehave, ["warm"], seconds=1))
    started = time.process_time(), time.monotonic()
    assert list(guard.map(misbehave, ["spin"], seconds=0.3)) == [Lost("timeout", "took more than 0.3 s")]
    assert time.monotonic() - started[1] < 3.0


def test_an_error_is_raised_and_the_guard_goes_on(guard):
    with pytest.raises(KeyError, match="without a guard"):
        list(guard.map(misbehave, ["a", "raise", "b"], seconds=1))
    assert list(guard.map(misbehave, ["c"], seconds=1)) == ["c"]


def test_results_larger_than_a_pipe_pass(guard):
    big = ["x" * 1_000_000] * 4
    assert list(guard.map(misbehave, big, seconds=1)) == big
