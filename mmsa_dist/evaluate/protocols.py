"""The protocols: which methods stand in the table of a model.

`finetune` is the field's (Hu et al. 2020, arXiv 1905.12265): the 2D encoder with all its weights tuned. `probe` leaves
the vectors as they are and asks simple models what is in them. Fingerprints, the mean, and the same architecture
without any pre-training always stand beside.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.pretrained import Inference, PretrainedModel
from mmsa_dist.evaluate.finetune import ENCODER, finetune_method
from mmsa_dist.evaluate.methods import Method
from mmsa_dist.evaluate.simple_models import TREES, constant, forest, linear, nearest
from mmsa_dist.evaluate.vectors import embedded, fingerprints, nothing
from mmsa_dist.model import MMSAModel

Protocol = Literal["probe", "finetune"]

BASELINES = (
    Method("ECFP4", "random forest", fingerprints, forest, seeded=True, identity=f"{TREES} trees"),
    Method("none", "constant", nothing, constant, seeded=False, identity=""),
)
"""What stands beside everything."""


def methods_of(protocol: Protocol, model: PretrainedModel | None, config: Config) -> tuple[Method, ...]:
    """The lines of the table.

    Args:
        protocol: what is done with the model.
        model: is judged; None for the baselines alone, of the architecture of `config`.
        config: how vectors are made (``embed``), how is tuned (``finetune``), and the seed of untrained weights.

    Raises:
        ValueError: the model has not what the protocol needs.
    """
    return (*(_probe if protocol == "probe" else _finetune)(model, config), *BASELINES)


def _probe(model: PretrainedModel | None, config: Config) -> tuple[Method, ...]:
    untrained = _untrained(model, config)
    options: dict[str, Any] = {
        "view": model.inference.view if model else config.embed.view,
        "conformers": config.embed.conformers,
        "batch_size": config.embed.batch_size,
    }
    seen = [(f"MMSA ({options['view']})", Embedder(model, **options))] if model else []
    seen.append((f"untrained ({options['view']})", Embedder(untrained, **options)))
    methods = []
    for name, embedder in seen:
        make = partial(embedded, embedder)
        for kind, fit in (("linear", linear), ("k-NN", nearest)):
            methods.append(Method(name, kind, make, fit, seeded=False, identity=f"{embedder.digest} {options}"))
    for kind, fit in (("linear", linear), ("k-NN", nearest)):
        methods.append(Method("ECFP4", kind, fingerprints, fit, seeded=False, identity=""))
    return tuple(methods)


def _untrained(model: PretrainedModel | None, config: Config) -> PretrainedModel:
    """The same architecture with its weights as they are drawn, and no reference rows."""
    inference = model.inference if model else Inference.of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return PretrainedModel(MMSAModel(inference.model), inference)


def _finetune(model: PretrainedModel | None, config: Config) -> tuple[Method, ...]:
    architecture = (model.inference.model if model else config.model).encoder_options(ENCODER)
    bare = finetune_method("GIN, no pre-training", architecture, None, config.finetune)
    if model is None:
        return (bare,)
    if ENCODER not in model.inference.model.encoders:
        raise ValueError(
            f"this model has no encoder {ENCODER!r}, which is what is fine-tuned; it has "
            f"{', '.join(model.inference.model.encoders)}: judge its vectors with --protocol probe"
        )
    weights = {name: t.detach().cpu() for name, t in model.model.encoder(ENCODER).state_dict().items()}
    return (finetune_method("GIN, pre-trained", architecture, weights, config.finetune), bare)
