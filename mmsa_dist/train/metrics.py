"""The log of a run: `metrics.jsonl`, TensorBoard, and a progress bar or lines on the console."""

from __future__ import annotations

import json
import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from mmsa_dist.runtime.files import write_text_atomically
from mmsa_dist.runtime.run_folder import RunFolder

_ON_CONSOLE = {
    "train/loss": "loss {:.3f}",
    "valid/retrieval_at_1": "retrieval@1 {:.3f}",
    "molecules_per_s": "{:.0f} molecules/s",
    "data_wait_s": "waits {:.2f} s",
}


class MetricsLog:
    """Writes the scalars of rank 0; does nothing on other ranks.

    Values that are not finite become null in ``metrics.jsonl``, which stays valid JSON.

    Args:
        folder: folder of the run.
        steps: number of the step at which this start of the run ends.
        start: number of steps done before; lines of later steps are removed from ``metrics.jsonl``.
        active: whether this is rank 0.
    """

    def __init__(self, folder: RunFolder, *, steps: int, start: int, active: bool) -> None:
        self._active = active
        if not active:
            return
        self._drop_lines_after(folder, start)
        self._lines = folder.metrics.open("a", buffering=1)
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=start)
        self._console = Console(stderr=True, soft_wrap=True)
        self._shown: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("[bold]pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("pretrain", total=steps, completed=start, figures="")

    def __enter__(self) -> Self:
        if self._active:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._progress.stop()
            self._lines.close()
            self._board.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records the scalars of a step by name."""
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._shown.update({name: value for name, value in scalars.items() if name in _ON_CONSOLE})
        figures = " · ".join(
            form.format(self._shown[name]) for name, form in _ON_CONSOLE.items() if name in self._shown
        )
        self._progress.update(self._task, figures=figures)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._progress.tasks[0].total:.0f} · {figures} · {self._left()}")

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        if self._active:
            self._progress.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Prints one line on the console."""
        if self._active:
            self._console.print(text, highlight=False)

    def _left(self) -> str:
        left = self._progress.tasks[0].time_remaining
        return "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left"

    @staticmethod
    def _drop_lines_after(folder: RunFolder, start: int) -> None:
        """Removes the lines of steps that a resumed run repeats, and a last line that a kill has truncated."""
        if not folder.metrics.exists():
            return
        whole = [line for line in folder.metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text_atomically(folder.metrics, "".join(line for line in whole if json.loads(line)["step"] <= start))
