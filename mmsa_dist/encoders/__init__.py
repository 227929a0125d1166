"""The encoders, one modality each; importing this package registers them by name."""

from mmsa_dist.encoders.base import (
    ENCODERS,
    AtomEncoder,
    Encoder,
    Modality,
    build_encoder,
    encoder_class,
    modalities_of,
    register,
)
from mmsa_dist.encoders.comenet import ComENet
from mmsa_dist.encoders.gin import GIN
from mmsa_dist.encoders.resnet import ResNet

__all__ = [
    "ENCODERS",
    "GIN",
    "AtomEncoder",
    "ComENet",
    "Encoder",
    "Modality",
    "ResNet",
    "build_encoder",
    "encoder_class",
    "modalities_of",
    "register",
]
