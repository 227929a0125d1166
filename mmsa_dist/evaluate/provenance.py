"""How results were made: what a stranger has to know to make them again."""

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
"""Of a digest, where a person reads it."""


def used_settings(protocol: Protocol, *, bare: bool) -> tuple[str, ...]:
    """The keys of the configuration that an evaluation uses.

    Args:
        protocol: what is done with the models.
        bare: whether there is no model, so that the configuration says what network is judged.
    """
    from mmsa_dist.embed.pretrained import Inference

    config = load_config()
    own = tuple(_own_settings(protocol, config))
    if bare:
        return (*own, *_network(protocol, Inference.of(config)))
    # `embed.view` may be one of the encoders of the model, which are then named.
    return (*own, "model.encoders") if protocol == "probe" else own


def judged(
    protocol: Protocol, models: Mapping[str, PretrainedModel], config: Config, checkpoint: str | None = None
) -> dict[str, Any]:
    """What is judged, and how, for ``results.json``.

    Args:
        protocol: what is done with the models.
        models: by name, as `mmsa_dist.evaluate.protocols.methods_of` takes them.
        config: likewise.
        checkpoint: where the one model came from, as it was given.

    Returns:
        ``settings`` holds what all lines of the table share; ``networks`` the architecture of each model, or with none
        that of the configuration; ``settings_of_the_protocol`` the protocol's own value of each setting that is
        another here. A probe judges whatever network it is given: the architecture of a model departs from nothing.
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
    """Libraries, command line, git state, machine and device of this process."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = {"gpu": gpu, "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return environment() | {"device": device}


def in_words(about: Mapping[str, Any], tasks: Mapping[str, str]) -> list[str]:
    """What stands under a table: protocol, split, seeds, digests and the arms of an ablation.

    Args:
        about: as `judged` has it, with ``split`` and ``seeds``; what is not there is not said.
        tasks: digests of the data, by name.
    """
    how = [f"{key} {about[key]}" for key in ("protocol", "split") if key in about]
    if "seeds" in about:
        how.append(f"seeds {', '.join(map(str, about['seeds']))}")
    given = f" ({about['checkpoint']})" if about.get("checkpoint") else ""
    models = [f"{name} {digest[:_DIGITS]}{given}" for name, digest in about.get("models", {}).items()]
    data = [f"{name} {digest[:_DIGITS]}" for name, digest in tasks.items()]
    digests = [f"{what} {', '.join(of)}" for what, of in (("models", models), ("data", data)) if of]
    return [*(words for words in ("; ".join(how), "; ".join(digests)) if how and words), *_arms_in_words(about)]


def _arms_in_words(about: Mapping[str, Any]) -> Iterator[str]:
    if "budget" in about:
        yield f"every arm: {', '.join(code_span(f'{what}={of}') for what, of in about['budget'].items())}"
    for name, arm in about.get("arms", {}).items():
        settings = ", ".join(code_span(f"{key}={value}") for key, value in arm["settings"].items())
        ranks = "" if arm["ranks"] is None else f"; {arm['ranks']} rank{'s' if arm['ranks'] > 1 else ''}"
        yield f"arm {name}: {settings or 'what all arms share'}{ranks}"


def departures(about: Mapping[str, Any]) -> list[str]:
    """A sentence on the settings that are not the protocol's own, where there are any."""
    others = []
    for key, value in about.get("settings_of_the_protocol", {}).items():
        if key in about["settings"]:
            others.append(f"{key}={about['settings'][key]} and not {value}")
        else:  # models differ in it
            given = {name: network[key] for name, network in about["networks"].items() if network[key] != value}
            others += [f"{key}={theirs} ({name}) and not {value}" for name, theirs in given.items()]
    return [f"not the protocol's own settings: {', '.join(others)}"] if others else []


def _own_settings(protocol: Protocol, config: Config) -> dict[str, Any]:
    """The settings of the protocol itself, by key."""
    if protocol == "finetune":
        return dict(_flat("finetune", config.finetune))
    embed = config.embed
    return {
        "embed.view": embed.view,
        "embed.conformers": embed.conformers,
        "embed.pictures": embed.pictures,
        "embed.batch_size": embed.batch_size,
        "run.seed": config.run.seed,  # of the weights without pre-training
    }


def _network(protocol: Protocol, inference: Inference) -> dict[str, Any]:
    """The architecture that is judged and what molecules are to it, by the keys of the configuration."""
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
    """The name of the processor, where the machine tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
