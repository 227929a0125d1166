"""The form in which all benchmarks of the kernels write their figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_report(file: Path, about: dict[str, Any], rows: Sequence[Any]) -> None:
    """Writes ``{"about": …, "rows": […]}`` as JSON.

    Args:
        file: to write; what it held before is gone.
        about: what all rows share: the device, versions and options.
        rows: dataclasses, one for each line of the printed table; None stands for a figure that there is not.
    """
    report = {"about": about, "rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
