"""Ends a process that has lost a peer, so that a lost rank is an error within a minute and not an endless hang.

A collective waits for every rank; gloo was seen to wait past its own timeout when a link went silent. So every rank
sends a heartbeat to rank 0 every few seconds, over a separate connection and from a separate thread, and rank 0
answers. A rank without a heartbeat within the limit is lost, and each rank that notices ends its own process: a thread
that waits in a collective cannot be stopped otherwise. A process that is alive but makes no progress (a deadlock, a
dead file system) is detected by the time since its last step.

Only time in which a process could run counts: ranks suspended together, by Ctrl-Z or a sleeping machine, lose no rank.
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

_SLOW_LIMIT_S = 1800.0  # for slow phases: the first steps, rebuilding an index, validating, exporting
_SLOW_STEPS = 3  # the first ones compile, fill caches and wait for loader processes
_STEP_LIMIT = 10  # times the longest step so far
_GAP_LIMIT = 5  # intervals between two checks: on a busy machine they are late


class Watchdog:
    """Watches the ranks of the process group from its construction (collective) to the end of its `with` block.

    Args:
        limit_s: seconds without a heartbeat of a rank after which it is lost. A step may take this long, or ten
            times the longest step so far if that is longer.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._beat_interval_s = min(5.0, limit_s / 6)
        self._check_interval_s = min(1.0, limit_s / 10)
        self._awake_s, self._last_check = 0.0, time.monotonic()
        self._last_progress = self._last_exchange = self._awake_s
        self._steps = 0
        self._longest_s = 0.0
        self._slow_phase = ""
        self._reason: str | None = None
        self._stopping = threading.Event()
        threads = [threading.Thread(target=self._guard, name="watchdog", daemon=True)]
        if is_distributed():
            self._store = _store_of_rank_0(timedelta(seconds=limit_s))
            self._store.set(_key(rank()), f"0 {socket.gethostname()}")
            dist.barrier()  # from here on every key exists
            threads.append(threading.Thread(target=self._exchange_heartbeats, name="heartbeat", daemon=True))
        self._threads = threads
        for thread in threads:
            thread.start()

    def step_done(self) -> None:
        """Records that this rank completed a step."""
        now = self._awake_s
        self._steps += 1
        if self._steps > _SLOW_STEPS:
            self._longest_s = max(self._longest_s, now - self._last_progress)
        self._last_progress = now

    def going_on(self) -> None:
        """Records that this rank has not stopped, during work that may take any time."""
        self._last_progress = self._awake_s

    @contextmanager
    def slow(self, phase: str) -> Iterator[None]:
        """Allows `phase` half an hour; a rank lost meanwhile is still detected."""
        self._last_progress, self._slow_phase = self._awake_s, phase
        try:
            yield
        finally:
            self._last_progress, self._slow_phase = self._awake_s, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Stops watching; the other ranks do not consider this one lost."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=self._beat_interval_s)

    def _exchange_heartbeats(self) -> None:
        """Exchanges heartbeats in the store of rank 0 until stopped; `_guard` detects failures."""
        latest = dict.fromkeys(range(world_size() if rank() == 0 else 1), ("", self._awake_s))
        beat = 0
        try:
            while not self._stopping.wait(self._beat_interval_s):
                beat += 1
                self._store.set(_key(rank()), f"{beat} {socket.gethostname()}")
                self._check_heartbeats(latest)
                self._last_exchange = self._awake_s
            self._store.set(_key(rank()), "left")
        except (
            RuntimeError
        ):  # the store of rank 0 is gone, because that has left or is lost; `_guard` finds out by the time that passes
            return

    def _check_heartbeats(self, latest: dict[int, tuple[str, float]]) -> None:
        now = self._awake_s
        for number, (before, since) in latest.items():
            beat = self._store.get(_key(number)).decode()
            if beat != before:
                latest[number] = (beat, now)
            elif beat != "left" and now - since > self._limit_s:
                host, silence_s = beat.split()[-1], now - since
                self._store.set("lost", f"rank {number} on {host} sent no heartbeat for {silence_s:.0f} s")
        if self._store.check(["lost"]):
            self._reason = self._store.get("lost").decode()

    def _guard(self) -> None:
        """Ends the process when there is a reason to; never waits for another rank."""
        while not self._stopping.wait(self._check_interval_s):
            now = self._time_awake()
            reason, silence_s = self._reason, now - self._last_exchange
            if reason is None and is_distributed() and silence_s > self._limit_s:
                reason = f"rank 0 at {os.environ['MASTER_ADDR']} could not be reached for {silence_s:.0f} s"
            if reason is None and now - self._last_progress > self._allowed_s():
                where = f"in {self._slow_phase}" if self._slow_phase else f"after step {self._steps} of this start"
                reason = f"rank {rank()} has made no progress for {now - self._last_progress:.0f} s {where}"
            if reason is not None and not self._stopping.is_set():
                self._end(reason)

    def _time_awake(self) -> float:
        """Returns the seconds since construction in which this process could run; of a long gap, only a part counts."""
        now = time.monotonic()
        self._awake_s += min(now - self._last_check, _GAP_LIMIT * self._check_interval_s)
        self._last_check = now
        return self._awake_s

    def _allowed_s(self) -> float:
        if self._slow_phase or self._steps < _SLOW_STEPS:
            return max(_SLOW_LIMIT_S, self._limit_s)
        return max(self._limit_s, _STEP_LIMIT * self._longest_s)

    def _end(self, reason: str) -> None:
        sys.stderr.write(
            f"mmsa: {reason}; this rank ({rank()} on {socket.gethostname()}) exits, because a step needs all ranks. "
            "Start the same command with --resume to continue from the newest checkpoint. It was waiting here:\n"
        )
        main = threading.main_thread().ident
        if main is not None:
            traceback.print_stack(sys._current_frames().get(main), file=sys.stderr)
        sys.stderr.flush()
        if is_distributed() and rank() == 0:
            time.sleep(2 * self._beat_interval_s)  # the others read the reason before the store is gone
        os._exit(EXIT_STATUS)


def _store_of_rank_0(timeout: timedelta) -> dist.TCPStore:
    """Connects to a separate store in the process of rank 0 (collective)."""
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
