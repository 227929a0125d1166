"""The protocols: which methods are compared in the table of a model.

`finetune` is the field's protocol (Hu et al. 2020, arXiv 1905.12265): it tunes all weights of the 2D encoder. `probe`
fits simple models to frozen vectors. Both always include fingerprints, the mean, and the same architecture without
pre-training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch

from mmsa_dist.config.schema import Config, Embed
from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.pretrained import Inference, PretrainedModel
from mmsa_dist.evaluate.finetune import ENCODER, finetune_method
from mmsa_dist.evaluate.methods import Method
from mmsa_dist.evaluate.simple_models import TREES, constant, forest, linear, nearest, rbf, tanimoto
from mmsa_dist.evaluate.vectors import embedded, fingerprints, nothing
from mmsa_dist.model import MMSAModel
from mmsa_shards.from_smiles import versions

Protocol = Literal["probe", "finetune"]

BASELINES = (
    Method("ECFP4", "random forest", fingerprints, forest, seeded=True, identity=f"{TREES} trees"),
    Method("none", "constant", nothing, constant, seeded=False, identity=""),
)
"""Baselines in every table."""

_UNTRAINED = "no pre-training"
_VECTOR_MODELS = {"linear": linear, "RBF kernel": rbf, "k-NN": nearest}
_FINGERPRINT_MODELS = {"linear": linear, "Tanimoto kernel": tanimoto, "k-NN": nearest}


def methods_of(
    protocol: Protocol, models: Mapping[str, PretrainedModel], config: Config, embed: Mapping[str, Embed] | None = None
) -> tuple[Method, ...]:
    """Returns the rows of the table.

    Args:
        protocol: protocol of the evaluation.
        models: models to evaluate, by name; without any, only the baselines, with the architecture of `config`.
        config: options of vectors (``embed``) and of fine-tuning (``finetune``), and the seed of untrained weights.
        embed: options of the vectors of models, by name, that differ from those of `config`. The row without
            pre-training has the architecture and the options of the first model.

    Raises:
        ValueError: a model lacks what the protocol needs.
    """
    lines = _probe(models, config, embed or {}) if protocol == "probe" else _finetune(models, config)
    return (*lines, *BASELINES)


def _probe(models: Mapping[str, PretrainedModel], config: Config, embed: Mapping[str, Embed]) -> list[Method]:
    first = next(iter(models), _UNTRAINED)
    inference = models[first].inference if models else Inference.of(config)
    methods = []
    for name, model in {**models, _UNTRAINED: untrained(inference, config.run.seed)}.items():
        own = embed.get(first if name == _UNTRAINED else name, config.embed)
        options: dict[str, Any] = {
            "view": own.view,
            "conformers": own.conformers,
            # As given, salts and charges included, like fingerprints and fine-tuning; but molecules that are too large
            # or have unsupported atoms (*) are still rejected.
            "standardize": False,
            "batch_size": config.embed.batch_size,
            "pictures": own.pictures,
        }
        embedder = Embedder(model, **options)
        make, identity = partial(embedded, embedder), f"{embedder.digest} {options} {versions()}"
        for kind, fit in _VECTOR_MODELS.items():
            line = f"MMSA, {name} ({embedder.view_})"
            methods.append(Method(line, kind, make, fit, seeded=False, identity=identity))
    return [
        *methods,
        *(
            Method("ECFP4", kind, fingerprints, fit, seeded=False, identity="")
            for kind, fit in _FINGERPRINT_MODELS.items()
        ),
    ]


def untrained(inference: Inference, seed: int) -> PretrainedModel:
    """Returns the same architecture with randomly initialized weights and no reference rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainedModel(MMSAModel(inference.model), inference)


def _finetune(models: Mapping[str, PretrainedModel], config: Config) -> list[Method]:
    methods = []
    for name, model in models.items():
        if ENCODER not in model.inference.model.encoders:
            raise ValueError(
                f"the model {name!r} has no encoder {ENCODER!r}, the one that is fine-tuned; it has "
                f"{', '.join(model.inference.model.encoders)}: evaluate its vectors with --protocol probe"
            )
        weights = {key: t.detach().cpu() for key, t in model.model.encoder(ENCODER).state_dict().items()}
        architecture = model.inference.model.encoder_options(ENCODER)
        methods.append(finetune_method(f"{ENCODER.upper()}, {name}", architecture, weights, config.finetune))
    first = next(iter(models.values()), None)
    architecture = (first.inference.model if first else config.model).encoder_options(ENCODER)
    return [*methods, finetune_method(f"{ENCODER.upper()}, {_UNTRAINED}", architecture, None, config.finetune)]
