"""Retries of failed requests to a server, with backoff."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from mmsa_shards.download_sources import Interrupted

T = TypeVar("T")

_LONGEST_ASKED_WAIT_S = 300.0  # limit on what a server requests with Retry-After


@dataclass(frozen=True)
class Patience:
    """Number of tries and waiting times, which double, with jitter so that clients do not retry all at once."""

    tries: int = 7
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def call(
        self,
        function: Callable[[], T],
        *,
        halt: threading.Event | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> T:
        """Calls a function, retrying while it raises `Interrupted`; after the last try that error is raised.

        Args:
            function: function that may fail.
            halt: stops waiting and retrying when set.
            tell: called with the failure and the time of the next try.
        """
        halt = halt or threading.Event()
        backoff = tenacity.wait_exponential_jitter(self.first_wait_s, self.longest_wait_s, jitter=self.first_wait_s / 2)

        def wait(state: tenacity.RetryCallState) -> float:
            asked = min(getattr(_failure(state), "wait_s", 0.0), _LONGEST_ASKED_WAIT_S)
            return max(asked, backoff(state))

        def before_sleep(state: tenacity.RetryCallState) -> None:
            if tell:
                tell(f"{_failure(state)}; again in {state.upcoming_sleep:.0f} s")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Interrupted) and not halt.is_set()),
            stop=tenacity.stop_after_attempt(self.tries),
            wait=wait,
            sleep=tenacity.sleep_using_event(halt),
            before_sleep=before_sleep,
            reraise=True,
        )
        return retrying(function)


def _failure(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
