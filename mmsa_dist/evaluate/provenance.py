"""Provenance of results: what is needed to reproduce them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.evaluate.markdown import code_span
from mmsa_dist.runtime.run_folder import environment

if TYPE_CHECKING:
    from mmsa_dist.embed.pretrained import Inference, PretrainedModel
    from mmsa_dist.evaluate.protocols import Protocol

_DIGITS = 12
"""Digits shown of a digest."""


def used_settings(protocol: Protocol, *, bare: bool) -> tuple[str, ...]:
    """Returns the configuration keys that an evaluation uses.

    Args:
        protocol: protocol of the evaluation.
        bare: whether there is no model, so that the configuration defines the network.
    """
    from mmsa_dist.embed.pretrained import Inference

    config = load_config()
    own = tuple(_own_settings(protocol, config))
    if bare:
        return (*own, *_network(protocol, Inference.of(config)))
    # `embed.view` may be an encoder of the model, which `model.encoders` then names.
    return (*own, "model.encoders") if protocol == "probe" else own


def judged(
    protocol: Protocol, models: Mapping[str, PretrainedModel], config: Config, checkpoint: str | None = None
) -> dict[str, Any]:
    """Returns what is evaluated and how, for ``results.json``.

    Args:
        protocol: protocol of the evaluation.
        models: by name, as in `mmsa_dist.evaluate.protocols.methods_of`.
        config: likewise.
        checkpoint: source of the single model, as given.

    Returns:
        ``settings`` holds what all rows of the table share; ``networks`` the architecture of each model, or that of
        the configuration if there is none; ``settings_of_the_protocol`` the protocol's value of each setting that
        differs here. A probe prescribes no architecture, so that of a model never differs.
    """
    from mmsa_dist.embed.pretrained import Inference

    own, published = _own_settings(protocol, config), _own_settings(protocol, load_config())
    given = {name: model.inference for name, model in models.items()} or {"no pre-training": Inference.of(config)}
    networks = {name: _network(protocol, inference) for name, inference in given.items()}
    first, *others = networks.values()
    shared = {key: value for key, value in first.items() if all(value == other.get(key) for other in others)}
    if protocol == "finetune" or not models:
        published |= _network(protocol, Inference.of(load_config()))
    return {
        "protocol": protocol,
        "checkpoint": checkpoint,
        "models": {name: model.digest for name, model in models.items()},
        "settings": own | shared,
        "networks": networks,
        "settings_of_the_protocol": {
            key: value
            for key, value in published.items()
            if any((own | network)[key] != value for network in networks.values())
        },
    }


def surroundings() -> dict[str, Any]:
    """Returns libraries, command line, git state, machine and device of this process."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = {"gpu": gpu, "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return environment() | {"device": device}


def in_words(about: Mapping[str, Any], tasks: Mapping[str, str], splits: Mapping[str, str]) -> list[str]:
    """Returns the lines under a table: protocol, split, seeds, digests and the arms of an ablation.

    Args:
        about: result of `judged` with ``split`` and ``seeds``; missing keys are left out.
        tasks: digests of the data, by task name.
        splits: digests of the splits, by task and what tells its splits apart.
    """
    how = [f"{key} {about[key]}" for key in ("protocol", "split") if key in about]
    if "seeds" in about:
        how.append(f"seeds {', '.join(map(str, about['seeds']))}")
    given = f" ({about['checkpoint']})" if about.get("checkpoint") else ""
    models = [f"{name} {digest[:_DIGITS]}{given}" for name, digest in about.get("models", {}).items()]
    data, cut = ([f"{name} {digest[:_DIGITS]}" for name, digest in of.items()] for of in (tasks, splits))
    digests = [f"{what} {', '.join(of)}" for what, of in (("models", models), ("data", data), ("splits", cut)) if of]
    return [*(words for words in ("; ".join(how), "; ".join(digests)) if how and words), *_arms_in_words(about)]


def _arms_in_words(about: Mapping[str, Any]) -> Iterator[str]:
    if "budget" in about:
        yield f"every arm: {', '.join(code_span(f'{what}={of}') for what, of in about['budget'].items())}"
    for name, arm in about.get("arms", {}).items():
        settings = ", ".join(code_span(f"{key}={value}") for key, value in arm["settings"].items())
        ranks = "" if arm["ranks"] is None else f"; {arm['ranks']} rank{'s' if arm['ranks'] > 1 else ''}"
        yield f"arm {name}: {settings or 'shared settings only'}{ranks}"


def departures(about: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on the settings that differ from the protocol's, if any."""
    others = []
    for key, value in about.get("settings_of_the_protocol", {}).items():
        if key in about["settings"]:
            others.append(f"{key}={about['settings'][key]} instead of {value}")
        else:  # models differ in it
            given = {name: network[key] for name, network in about["networks"].items() if network[key] != value}
            others += [f"{key}={theirs} ({name}) instead of {value}" for name, theirs in given.items()]
    return [f"settings that differ from the protocol: {', '.join(others)}"] if others else []


def _own_settings(protocol: Protocol, config: Config) -> dict[str, Any]:
    """Returns the settings of the protocol itself, by key."""
    if protocol == "finetune":
        return dict(_flat("finetune", config.finetune))
    embed = config.embed
    return {
        "embed.view": embed.view,
        "embed.conformers": embed.conformers,
        "embed.pictures": embed.pictures,
        "embed.batch_size": embed.batch_size,
        "run.seed": config.run.seed,  # of the untrained weights
    }


def _network(protocol: Protocol, inference: Inference) -> dict[str, Any]:
    """Returns the architecture and its handling of molecules, by configuration key."""
    from mmsa_dist.evaluate.finetune import ENCODER, taken_of

    if protocol == "finetune":
        options = taken_of(inference.model.encoder_options(ENCODER))
        return {f"model.{ENCODER}.{name}": value for name, value in options.items()}
    return {
        **dict(_flat("model", inference.model)),
        "data.picture_size": inference.picture_size,
        "prepare.max_atoms": inference.standardization.max_atoms,
        "prepare.seed": inference.conformer_seed,
        "prepare.conformer_timeout_s": inference.conformer_timeout_s,
    }


def _flat(name: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    for key, value in section.model_dump(mode="json").items():
        part = getattr(section, key)
        if isinstance(part, BaseModel):
            yield from _flat(f"{name}.{key}", part)
        else:
            yield f"{name}.{key}", value


def _processor() -> str:
    """Returns the name of the processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
