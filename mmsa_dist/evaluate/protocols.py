"""The protocols: which methods stand in the table of a model.

`finetune` is the field's (Hu et al. 2020, arXiv 1905.12265): the 2D encoder with all its weights tuned. `probe` leaves
the vectors as they are and asks simple models what is in them. Fingerprints, the mean, and the same architecture
without any pre-training always stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.pretrained import Inference, PretrainedModel
from mmsa_dist.evaluate.finetune import ENCODER, finetune_method
from mmsa_dist.evaluate.methods import Method
from mmsa_dist.evaluate.simple_models import TREES, constant, forest, linear, nearest, rbf, tanimoto
from mmsa_dist.evaluate.vectors import embedded, fingerprints, nothing
from mmsa_dist.model import MMSAModel

Protocol = Literal["probe", "finetune"]

BASELINES = (
    Method("ECFP4", "random forest", fingerprints, forest, seeded=True, identity=f"{TREES} trees"),
    Method("none", "constant", nothing, constant, seeded=False, identity=""),
)
"""What stands beside everything."""

_BARE = "no pre-training"
_OF_VECTORS = {"linear": linear, "RBF kernel": rbf, "k-NN": nearest}
_OF_FINGERPRINTS = {"linear": linear, "Tanimoto kernel": tanimoto, "k-NN": nearest}


def methods_of(
    protocol: Protocol, models: Mapping[str, PretrainedModel], config: Config, views: Mapping[str, str] | None = None
) -> tuple[Method, ...]:
    """The lines of the table.

    Args:
        protocol: what is done with the models.
        models: are judged, each under its name; with none there are only the baselines, of the architecture of
            `config`.
        config: how vectors are made (``embed``), how is tuned (``finetune``), and the seed of untrained weights.
        views: of models whose vectors are others than `config` says. The line without pre-training has the
            architecture and the view of the first model.

    Raises:
        ValueError: a model has not what the protocol needs.
    """
    lines = _probe(models, config, views or {}) if protocol == "probe" else _finetune(models, config)
    return (*lines, *BASELINES)


def _probe(models: Mapping[str, PretrainedModel], config: Config, views: Mapping[str, str]) -> list[Method]:
    first = next(iter(models), _BARE)
    inference = models[first].inference if models else Inference.of(config)
    methods = []
    for name, model in {**models, _BARE: _untrained(inference, config.run.seed)}.items():
        options: dict[str, Any] = {
            "view": views.get(first if name == _BARE else name, config.embed.view),
            "conformers": config.embed.conformers,
            # As fingerprints and fine-tuning see them, salts and charges included; but still none that the model has
            # no word for (*) or that are too large.
            "standardize": False,
            "batch_size": config.embed.batch_size,
            # Named only where it is not the default: jobs of before are known by what they were named.
            **({} if config.embed.pictures else {"pictures": False}),
        }
        embedder = Embedder(model, **options)
        make, identity = partial(embedded, embedder), f"{embedder.digest} {options}"
        for kind, fit in _OF_VECTORS.items():
            line = f"MMSA, {name} ({embedder.view_})"
            methods.append(Method(line, kind, make, fit, seeded=False, identity=identity))
    return [
        *methods,
        *(
            Method("ECFP4", kind, fingerprints, fit, seeded=False, identity="")
            for kind, fit in _OF_FINGERPRINTS.items()
        ),
    ]


def _untrained(inference: Inference, seed: int) -> PretrainedModel:
    """The same architecture with its weights as they are drawn, and no reference rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainedModel(MMSAModel(inference.model), inference)


def _finetune(models: Mapping[str, PretrainedModel], config: Config) -> list[Method]:
    methods = []
    for name, model in models.items():
        if ENCODER not in model.inference.model.encoders:
            raise ValueError(
                f"the model {name!r} has no encoder {ENCODER!r}, which is what is fine-tuned; it has "
                f"{', '.join(model.inference.model.encoders)}: judge its vectors with --protocol probe"
            )
        weights = {key: t.detach().cpu() for key, t in model.model.encoder(ENCODER).state_dict().items()}
        architecture = model.inference.model.encoder_options(ENCODER)
        methods.append(finetune_method(f"{ENCODER.upper()}, {name}", architecture, weights, config.finetune))
    first = next(iter(models.values()), None)
    architecture = (first.inference.model if first else config.model).encoder_options(ENCODER)
    return [*methods, finetune_method(f"{ENCODER.upper()}, {_BARE}", architecture, None, config.finetune)]
