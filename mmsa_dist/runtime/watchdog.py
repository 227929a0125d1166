"""Ends a process whose peers are gone, so that a lost rank is an error within a minute and not a hang for ever.

A collective waits for every rank; with gloo it was seen to wait on past its own timeout when a link went silent. So
every rank tells rank 0 every few seconds that it lives, over a connection of its own and from a thread of its own,
and rank 0 answers. Who is not heard of within the limit is lost, and whoever notices ends its process: a thread that
waits in a collective cannot be ended otherwise. A process that lives but does not come on (a deadlock, a dead file
system) is noticed by the time since its last step.

Time is what a process could have run: ranks that are stopped together, by Ctrl-Z or a machine that sleeps, lose no one.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

import torch.distributed as dist

from mmsa_dist.runtime.distributed import is_distributed, rank, world_size

EXIT_STATUS = 75
"""Of a process that the watchdog ends: EX_TEMPFAIL of sysexits.h, "try again later"."""

_PATIENCE_S = 1800.0  # for what is slow by its nature: the first steps, rebuilding an index, validating, exporting
_SLOW_STEPS = 3  # the first ones compile, fill caches and wait for loader processes
_TIMES_THE_LONGEST_STEP = 10
_LONGEST_GAP = 5  # times the time between two looks: on a busy machine they come late


class Watchdog:
    """Watches the ranks of the process group from its making (collective) to the end of its `with` block.

    Args:
        limit_s: seconds without a sign of life of a rank after which it is lost. A step may take this long, or ten
            times the longest step so far if that is longer.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._pause_s = min(5.0, limit_s / 6)
        self._look_s = min(1.0, limit_s / 10)
        self._awake_s, self._looked = 0.0, time.monotonic()
        self._came_on = self._last_round = self._awake_s
        self._steps = 0
        self._longest_s = 0.0
        self._slow_phase = ""
        self._reason: str | None = None
        self._stopping = threading.Event()
        threads = [threading.Thread(target=self._guard, name="watchdog", daemon=True)]
        if is_distributed():
            self._store = _store_of_rank_0(timedelta(seconds=limit_s))
            self._store.set(_key(rank()), f"0 {socket.gethostname()}")
            dist.barrier()  # from here on every key is there
            threads.append(threading.Thread(target=self._tell_and_hear, name="heartbeat", daemon=True))
        self._threads = threads
        for thread in threads:
            thread.start()

    def step_done(self) -> None:
        """Says that this rank came on by one step."""
        now = self._awake_s
        self._steps += 1
        if self._steps > _SLOW_STEPS:
            self._longest_s = max(self._longest_s, now - self._came_on)
        self._came_on = now

    @contextmanager
    def slow(self, phase: str) -> Iterator[None]:
        """Says that `phase` may take half an hour; a rank that is lost meanwhile is noticed all the same."""
        self._came_on, self._slow_phase = self._awake_s, phase
        try:
            yield
        finally:
            self._came_on, self._slow_phase = self._awake_s, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the watch; the other ranks do not take this one for lost."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=self._pause_s)

    def _tell_and_hear(self) -> None:
        """Beats in the store of rank 0 until stopped; what does not come through is for `_guard` to notice."""
        heard = dict.fromkeys(range(world_size() if rank() == 0 else 1), ("", self._awake_s))
        beat = 0
        try:
            while not self._stopping.wait(self._pause_s):
                beat += 1
                self._store.set(_key(rank()), f"{beat} {socket.gethostname()}")
                self._listen(heard)
                self._last_round = self._awake_s
            self._store.set(_key(rank()), "left")
        except Exception:  # rank 0 has left or is lost; the guard knows which by the time that passes
            return

    def _listen(self, heard: dict[int, tuple[str, float]]) -> None:
        now = self._awake_s
        for number, (before, since) in heard.items():
            beat = self._store.get(_key(number)).decode()
            if beat != before:
                heard[number] = (beat, now)
            elif beat != "left" and now - since > self._limit_s:
                host, silence_s = beat.split()[-1], now - since
                self._store.set("lost", f"rank {number} on {host} gave no sign of life for {silence_s:.0f} s")
        if self._store.check(["lost"]):
            self._reason = self._store.get("lost").decode()

    def _guard(self) -> None:
        """Ends the process when there is a reason to; never waits for anything but time."""
        while not self._stopping.wait(self._look_s):
            now = self._time_awake()
            reason, unheard_s = self._reason, now - self._last_round
            if reason is None and is_distributed() and unheard_s > self._limit_s:
                reason = f"rank 0 at {os.environ['MASTER_ADDR']} could not be reached for {unheard_s:.0f} s"
            if reason is None and now - self._came_on > self._allowed_s():
                where = f"in {self._slow_phase}" if self._slow_phase else f"after step {self._steps} of this start"
                reason = f"rank {rank()} has not come on for {now - self._came_on:.0f} s {where}"
            if reason is not None and not self._stopping.is_set():
                self._end(reason)

    def _time_awake(self) -> float:
        """Seconds since the making in which this process could run; a longer gap between two looks was none."""
        looked = time.monotonic()
        self._awake_s += min(looked - self._looked, _LONGEST_GAP * self._look_s)
        self._looked = looked
        return self._awake_s

    def _allowed_s(self) -> float:
        if self._slow_phase or self._steps < _SLOW_STEPS:
            return max(_PATIENCE_S, self._limit_s)
        return max(self._limit_s, _TIMES_THE_LONGEST_STEP * self._longest_s)

    def _end(self, reason: str) -> None:
        sys.stderr.write(
            f"mmsa: {reason}; this rank ({rank()} on {socket.gethostname()}) ends, for without all ranks no step can "
            "be done. Start the same command with --resume; it goes on from the newest checkpoint. Where it waited:\n"
        )
        main = threading.main_thread().ident
        if main is not None:
            traceback.print_stack(sys._current_frames().get(main), file=sys.stderr)
        sys.stderr.flush()
        if is_distributed() and rank() == 0:
            time.sleep(2 * self._pause_s)  # the others hear the reason before the store is gone
        os._exit(EXIT_STATUS)


def _store_of_rank_0(timeout: timedelta) -> dist.TCPStore:
    """A connection of our own to a store in the process of rank 0 (collective)."""
    address: list[int] = [0]
    store = None
    host = os.environ["MASTER_ADDR"]
    if rank() == 0:
        store = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        address = [store.port]
    dist.broadcast_object_list(address, src=0)
    return store or dist.TCPStore(host, address[0], is_master=False, timeout=timeout, wait_for_workers=False)


def _key(number: int) -> str:
    return f"beat/{number}"
