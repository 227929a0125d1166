"""Ablations: arms that differ in named settings, pre-trained on the same molecules with the same budget."""

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

from mmsa_dist.config.load import ConfigError, explain, is_used, load_config, read_yaml, to_yaml
from mmsa_dist.config.recorded import as_recorded, differences, in_words
from mmsa_dist.config.schema import Config
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.evaluate.protocols import Protocol
from mmsa_dist.evaluate.provenance import used_settings
from mmsa_dist.runtime.files import as_file_name, write_text_atomically
from mmsa_dist.runtime.run_folder import RunFolder

_RESERVED_NAMES = ("no-pre-training", "jobs", "splits")
"""Names that the results table or folder already uses."""
_ARM_SETTINGS = (
    *("data", "model", "loss", "train"),
    *("embed.view", "embed.conformers", "embed.pictures", "embed.reference_molecules"),  # of the exported model
)
"""Sections and keys of the configuration that an arm may set: those that shape its model."""
_PRE_TRAINING_SETTINGS = ("run.seed", "prepare.val_fraction", *_ARM_SETTINGS)
"""Those that pre-training uses; all arms share the first two."""
_WATCHING = frozenset(
    {
        *("data.workers", "train.save_every", "train.keep", "train.log_every", "train.lost_after_s"),
        *("train.valid_every", "train.valid_molecules", "train.valid_batch_size"),
    }
)
"""Those of them that leave the model the same."""


class _ArmsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cumulative: bool
    arms: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Arm:
    """One arm of an ablation: a named pre-training."""

    name: str
    settings: Mapping[str, Any]
    """Settings that differ from the shared ones, by key."""
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Run folder of the arm."""
        return RunFolder(Path(self.config.run.dir))

    @property
    def ranks(self) -> int | None:
        """Number of processes of the last start of the pre-training; None if not recorded."""
        path = self.folder.environment
        return json.loads(path.read_text()).get("ranks") if path.exists() else None

    @property
    def yaml(self) -> Path:
        """Configuration file of the pre-training."""
        return self.folder.root / "arm.yaml"


def read_arms(file: Path, out: Path, config: Path | None, settings: Sequence[str]) -> list[Arm]:
    """Reads the arms of an ablation and checks the configuration of each.

    Args:
        file: YAML with ``cumulative`` and ``arms``, a mapping of name to settings ``section.key: value``.
        out: folder; each arm gets a subfolder.
        config: configuration file that all arms share.
        settings: ``section.key=value`` strings that all arms share; the settings of an arm override them.

    Raises:
        ConfigError: the file does not have this form, or an arm's configuration is invalid.
    """
    try:
        given = _ArmsFile.model_validate(read_yaml(file))
    except ValidationError as error:
        faults = explain(error, _ArmsFile).replace("\n", "; ")
        raise ConfigError(f"{file} is not a file of arms like launch/ablation.yaml: {faults}") from error
    so_far: dict[str, Any] = {}
    arms: list[Arm] = []
    for name, own in given.arms.items():
        so_far = {**so_far, **own} if given.cumulative else own
        word = as_file_name(name)
        folder = out / word
        if not word or word in _RESERVED_NAMES or folder in [arm.folder.root for arm in arms]:
            raise ConfigError(
                f"{file}: the arm {name!r} needs a unique name of letters and digits, other than "
                f"{', '.join(_RESERVED_NAMES)}"
            )
        stray = [key for key in own if not is_used(key, _ARM_SETTINGS)]
        if stray:
            raise ConfigError(
                f"{file}, arm {name!r}: {stray[0]} is not a setting of an arm; give it on the command line. An arm may "
                f"set {', '.join(_ARM_SETTINGS)}"
            )
        words = [f"{key}={json.dumps(value)}" for key, value in so_far.items()]
        try:
            resolved = load_config(config, [*settings, *words, f"run.dir={json.dumps(str(folder))}"])
        except ConfigError as error:
            raise ConfigError(f"{file}, arm {name!r}: {error}") from error
        if resolved.train.stop_after:
            raise ConfigError(
                f"{file}, arm {name!r}: train.stop_after={resolved.train.stop_after} would stop before there is a "
                "model; leave it out"
            )
        arms.append(Arm(name, so_far, resolved))
    return arms


def used_by_ablation(protocol: Protocol) -> tuple[str, ...]:
    """Returns the sections and keys of the configuration that pre-training the arms and evaluating them use."""
    return tuple(dict.fromkeys((*_PRE_TRAINING_SETTINGS, *used_settings(protocol, bare=False))))


def pretrain_arms(arms: Sequence[Arm], ranks: int, say: Callable[[str], None]) -> dict[str, PretrainedModel]:
    """Pre-trains the arms one after the other and returns their models by name.

    An arm that has a model is not trained again; an interrupted one resumes from its newest checkpoint.

    Args:
        arms: arms to train.
        ranks: processes per arm; DeepSpeed's launcher starts more than one.
        say: called with a sentence on what is being done.

    Raises:
        ValueError: a pre-training failed, or a folder holds a different one.
    """
    for number, arm in enumerate(arms, 1):
        _refuse_another(arm)
        if arm.folder.model.exists():
            say(f"{number} of {len(arms)}: {arm.name} is already trained")
            continue
        say(f"{number} of {len(arms)}: {arm.name}")
        arm.folder.root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(arm.yaml, to_yaml(as_recorded(arm.config)))
        begun = arm.folder.checkpoints.exists()
        command = [*_launcher(ranks), "pretrain", "--config", str(arm.yaml), *(["--resume"] if begun else [])]
        if status := subprocess.run(command, env=_environment()).returncode:
            raise ValueError(f"the pre-training of {arm.name!r} ended with status {status}; see its output above")
        if not arm.folder.model.exists():  # a signal ends a run with a checkpoint and without an error
            raise ValueError(
                f"the pre-training of {arm.name!r} was stopped before its last step; repeat the command to continue"
            )
    models = {arm.name: PretrainedModel.load(arm.folder.model) for arm in arms}
    manifests = {name: model.training.get("data", {}).get("manifest") for name, model in models.items()}
    if len(set(manifests.values())) > 1:
        raise ValueError(
            f"the arms were trained on different molecules (digests of the manifests: {manifests}), because the shards "
            "were prepared again in between; remove the folders of the older arms"
        )
    return models


def _refuse_another(arm: Arm) -> None:
    """Checks that the folder of an arm is empty or holds the same pre-training, watched and saved in whatever way.

    Raises:
        ValueError: it holds another one.
    """
    if not arm.yaml.exists():
        return
    changed = differences(read_yaml(arm.yaml), as_recorded(arm.config).model_dump(mode="json"))
    others = {
        key: values for key, values in changed.items() if is_used(key, _PRE_TRAINING_SETTINGS) and key not in _WATCHING
    }
    if others:
        raise ValueError(
            f"{arm.folder.root} holds an arm {arm.name!r} with {in_words(others)}; choose another --out, or remove it"
        )


def budget(arms: Sequence[Arm]) -> Mapping[str, Any]:
    """Returns the training budget, which all arms must share.

    Raises:
        ValueError: the budgets differ, so the arms cannot be compared; or there are no shared shards.
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
            raise ValueError(f"the arm {name!r} has {given}, others {first}; give all arms the same")
    if not first["shards"]:
        raise ValueError("the arms must share their shards: set data.shards=FOLDER")
    return first


def described(arms: Sequence[Arm]) -> dict[str, Any]:
    """Returns the budget and the settings and number of ranks of each arm, for ``results.json``.

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
    """Names the accelerator to DeepSpeed, which otherwise searches for others, with log messages, before the CPU."""
    return {"DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu", **os.environ}
