"""An ablation: arms that differ in named settings, each pre-trained on the same molecules with the same budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmsa_dist.config.load import ConfigError, explain, load_config, read_yaml, to_yaml
from mmsa_dist.config.schema import Config
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.evaluate.protocols import Protocol
from mmsa_dist.evaluate.provenance import used_settings
from mmsa_dist.runtime.files import as_file_name, write_text_atomically
from mmsa_dist.runtime.run_folder import RunFolder

_TAKEN = ("no-pre-training", "jobs", "splits")
"""Names that the table or the folder of the results have already."""
_NOT_OF_AN_ARM = ("finetune", "run")
"""Sections of the configuration."""
_OF_PRE_TRAINING = (
    *("run.seed", "data", "model", "loss", "train", "prepare.val_fraction"),
    *("embed.view", "embed.conformers", "embed.pictures", "embed.reference_molecules"),  # of the exported model
)
"""Sections and keys of the configuration that a pre-training uses."""


class _Arms(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cumulative: bool
    arms: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Arm:
    """A pre-training of an ablation."""

    name: str
    settings: Mapping[str, Any]
    """What sets it apart from what all arms share, by key."""
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Of its run."""
        return RunFolder(Path(self.config.run.dir))

    @property
    def ranks(self) -> int | None:
        """Processes that pre-trained it; None where that was not written down."""
        return int(self._ranks.read_text()) if self._ranks.exists() else None

    @property
    def _ranks(self) -> Path:
        return self.folder.root / "ranks.txt"

    def begin(self, text: str, ranks: int) -> Path:
        """Writes down, before the pre-training, its configuration `text` and its `ranks`; returns the configuration."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.yaml, text)
        write_text_atomically(self._ranks, f"{ranks}\n")
        return self.yaml

    @property
    def yaml(self) -> Path:
        """The configuration that it is pre-trained with."""
        return self.folder.root / "arm.yaml"


def read_arms(file: Path, out: Path, config: Path | None, settings: Sequence[str]) -> list[Arm]:
    """Reads the arms of an ablation and checks the configuration of each.

    Args:
        file: YAML with ``cumulative`` and ``arms``, a mapping of name to settings ``section.key: value``.
        out: folder in which each arm gets one of its own.
        config: file that all arms share.
        settings: words ``section.key=value`` that all arms share; the settings of an arm override them.

    Raises:
        ConfigError: the file is not of this form, or an arm's configuration cannot be used.
    """
    try:
        given = _Arms.model_validate(read_yaml(file))
    except ValidationError as error:
        faults = explain(error, _Arms).replace("\n", "; ")
        raise ConfigError(f"{file} is no file of arms as launch/ablation.yaml is one: {faults}") from error
    so_far: dict[str, Any] = {}
    arms: list[Arm] = []
    for name, own in given.arms.items():
        so_far = {**so_far, **own} if given.cumulative else own
        word = as_file_name(name)
        folder = out / word
        if not word or word in _TAKEN or folder in [arm.folder.root for arm in arms]:
            raise ConfigError(
                f"{file}: the arm {name!r} needs a name of its own in letters and digits, and none of "
                f"{', '.join(_TAKEN)}"
            )
        stray = [key for key in own if key.split(".")[0] in _NOT_OF_AN_ARM]
        if stray:
            raise ConfigError(
                f"{file}, arm {name!r}: {stray[0]} is no matter of pre-training; say it on the command line"
            )
        words = [f"{key}={json.dumps(value)}" for key, value in so_far.items()]
        try:
            resolved = load_config(config, [*settings, *words, f"run.dir={json.dumps(str(folder))}"])
        except ConfigError as error:
            raise ConfigError(f"{file}, arm {name!r}: {error}") from error
        arms.append(Arm(name, so_far, resolved))
    return arms


def used_by_ablation(protocol: Protocol) -> tuple[str, ...]:
    """The sections and keys of the configuration that pre-training the arms and judging them by `protocol` use."""
    return tuple(dict.fromkeys((*_OF_PRE_TRAINING, *used_settings(protocol, bare=False))))


def pretrain_arms(arms: Sequence[Arm], ranks: int, say: Callable[[str], None]) -> dict[str, PretrainedModel]:
    """Pre-trains each arm, one after the other, and returns their models by name.

    An arm that has its model is not trained again; one that was stopped goes on from its newest checkpoint.

    Args:
        arms: what to train.
        ranks: processes for each; more than one are started by DeepSpeed's launcher.
        say: is told in a sentence what is being done.

    Raises:
        ValueError: a pre-training failed, or a folder holds another one.
    """
    for number, arm in enumerate(arms, 1):
        # The settings of fine-tuning are no part of an arm: another number of epochs is not another pre-training.
        wanted = to_yaml(arm.config.model_copy(update={"finetune": load_config().finetune}))
        if arm.yaml.exists() and arm.yaml.read_text() != wanted:
            raise ValueError(
                f"{arm.folder.root} holds an arm {arm.name!r} with other settings; take another --out, or remove it"
            )
        if arm.folder.model.exists():
            say(f"{number} of {len(arms)}: {arm.name} is trained")
            continue
        say(f"{number} of {len(arms)}: {arm.name}")
        path = arm.begin(wanted, ranks)
        begun = arm.folder.checkpoints.exists()
        command = [*_launcher(ranks), "pretrain", "--config", str(path), *(["--resume"] if begun else [])]
        if status := subprocess.run(command, env=_environment()).returncode:
            raise ValueError(f"the pre-training of {arm.name!r} ended with status {status}; its words stand above")
    models = {arm.name: PretrainedModel.load(arm.folder.model) for arm in arms}
    manifests = {name: model.training.get("data", {}).get("manifest") for name, model in models.items()}
    if len(set(manifests.values())) > 1:
        raise ValueError(
            f"the arms were trained on different molecules (digests of the manifests: {manifests}), because the shards "
            "were prepared anew in between; remove the folders of the older arms"
        )
    return models


def budget(arms: Sequence[Arm]) -> Mapping[str, Any]:
    """What each arm is given, and that it is the same.

    Raises:
        ValueError: arms differ in it, so that they cannot be compared.
    """
    budgets = {
        arm.name: {
            "shards": arm.config.shards_dir if arm.config.data.shards else "",
            "steps": arm.config.train.steps,
            "batch_size": arm.config.data.batch_size,
            "seed": arm.config.run.seed,
        }
        for arm in arms
    }
    first = next(iter(budgets.values()))
    for name, given in budgets.items():
        if given != first:
            raise ValueError(f"the arm {name!r} is given {given}, others {first}; give all arms the same")
    if not first["shards"]:
        raise ValueError("the arms share their shards: say data.shards=FOLDER")
    return first


def described(arms: Sequence[Arm]) -> dict[str, Any]:
    """The budget, and of each arm its settings and its number of ranks, for ``results.json``.

    Raises:
        ValueError: as `budget`.
    """
    return {"budget": budget(arms), "arms": {arm.name: {"settings": arm.settings, "ranks": arm.ranks} for arm in arms}}


def _launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable, "-m", "mmsa_dist"]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*launcher, "--num_accelerators", str(ranks), "--no_local_rank", "--module", "mmsa_dist"]


def _environment() -> dict[str, str]:
    """DeepSpeed looks for other accelerators before it takes the CPU, and says so; here it is told."""
    return {"DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu", **os.environ}
