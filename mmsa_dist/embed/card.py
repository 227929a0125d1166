"""The model card: what a new user has to know about a model, filled in from the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa_dist.config.schema import Model
from mmsa_dist.encoders import Encoder, encoder_class

_METRICS = {
    "valid/retrieval_at_1": "cross-modal retrieval@1 on held-out molecules",
    "valid/chance": "the same by chance",
    "memory/anchor_entropy": "entropy of anchor usage",
    "memory/dead_anchors": "anchors that nothing attends to",
    "bank/recall": "recall of the neighbour index against exact search",
    "train/loss": "training loss",
}

_TAGS = ["chemistry", "molecules", "molecular-representation", "self-supervised"]

_TEMPLATE = """\
# Molecular embeddings by MMSA

Vectors of small molecules, pre-trained without labels on {modalities} of the same molecules, with a hypergraph
over molecules and a memory of anchors (MMSA, Yin et al. 2025, doi 10.1109/TIP.2025.3570604; reimplemented, not
the authors' weights).

```python
from mmsa_dist.embed import Embedder

embedder = Embedder.from_pretrained("path/to/this/folder")
vectors = embedder.transform(["CCO", "c1ccccc1O"])  # (2, {width}) float32; a row per input row, NaN where invalid
```

| | |
|---|---|
| digest | `{digest}` |
| written by | mmsa-dist {mmsa_dist}, block schema {schema_version} |
| parameters | {parameters:,} |
| default view | {view}, {width} numbers |
| modalities | {modalities} |
| reference molecules | {reference_molecules:,} |
| largest molecule | {max_atoms} heavy atoms |
| standardization | {steps} |

## Training

{training}

## What was measured at the end of the training

{metrics}

## Limits

- Vectors depend on the standardized parent of a molecule, not on how it was drawn, unless molecules are taken as
  given (`standardize=False`); the table above says what is stripped or changed.
- Vectors of two models, or of two views, cannot be compared; the digest above tells models apart.
- The licence of the weights is {license}, and bounded by the terms of the data; the code is Apache-2.0.
"""


def model_card(about: Mapping[str, Any], model: Model, *, parameters: int) -> str:
    """Returns the card (Markdown with the hub's YAML header).

    Args:
        about: contents of the model's ``config.json``.
        model: its architecture.
        parameters: number of trained parameters.
    """
    from huggingface_hub import ModelCardData  # here, so that a model loads without the hub client

    inference = about["inference"]
    view, standardization = inference["view"], inference["standardization"]
    given = about["license"]
    metrics = {_METRICS[name]: about["metrics"][name] for name in _METRICS if name in about["metrics"]}
    header = ModelCardData(
        library_name="mmsa-dist", pipeline_tag="feature-extraction", tags=_TAGS, license=given
    ).to_yaml()
    text = _TEMPLATE.format(
        **{key: about[key] for key in ("digest", "mmsa_dist", "schema_version", "reference_molecules")},
        license="set by whoever trained and publishes them" if given is None else given,
        parameters=parameters,
        view=view,
        width=model.view_width(view),
        modalities=", ".join(_described(encoder_class(name)) for name in model.encoders),
        max_atoms=standardization["max_atoms"],
        steps=", ".join(f"{name}: {value}" for name, value in standardization.items() if name != "max_atoms"),
        training=_table(_flat(about["training"])),
        metrics=_table(metrics),
    )
    return f"---\n{header}\n---\n\n{text}"


def _described(encoder: type[Encoder]) -> str:
    words = {"graph": "2D graph", "coordinates": "3D geometry", "picture": "picture"}
    return f"{' and '.join(word for modality, word in words.items() if modality in encoder.reads)} ({encoder.__name__})"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        rows |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return rows


def _table(rows: Mapping[str, Any]) -> str:
    if not rows:
        return "Not recorded."
    lines = [f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
