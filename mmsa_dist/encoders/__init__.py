"""The encoders, one modality each; importing this package registers them by name."""

from mmsa_dist.encoders.base import ENCODERS, Encoder, build_encoder, register
from mmsa_dist.encoders.comenet import ComENet
from mmsa_dist.encoders.gin import GIN
from mmsa_dist.encoders.resnet import ResNet

__all__ = ["ENCODERS", "GIN", "ComENet", "Encoder", "ResNet", "build_encoder", "register"]
