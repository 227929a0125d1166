"""The picture encoder: ResNet-18 (He et al. 2016, arXiv 1512.03385) over a 2D depiction.

B molecules, P of which have a picture, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import Encoder, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]: what published ResNet weights were trained with."""


@register("resnet")
class ResNet18(Encoder):
    """ResNet-18 up to its average pooling, for uint8 pictures of any size from 32 px.

    Parameters and buffers have the names and shapes of torchvision's ``resnet18``: its weights load strictly
    once ``fc.weight`` and ``fc.bias``, which this encoder does not have, are dropped. Pictures are normalised
    on the device with ImageNet's mean and standard deviation, and everything runs channels-last. The weights
    themselves stay in torch's own order: DeepSpeed sends them to the other ranks as bytes, which it cannot do
    with permuted strides.
    """

    mean_3: Tensor
    std_3: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.width = 512
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        self.register_buffer("mean_3", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_3", 255 * torch.tensor(IMAGENET_STD), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, 512); zero for molecules without a picture, which enter no batch statistics either."""
        present_B = self.present(batch)
        pictures_P3HW = None if batch.picture_B3HW is None else batch.picture_B3HW[present_B]
        if pictures_P3HW is None or len(pictures_P3HW) == 0:
            # Depends on every parameter, so that this rank joins in the reduction of their gradients.
            nothing = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return nothing + self.mean_3.new_zeros(len(batch), self.width)
        features_PD = self.encode_pictures(pictures_P3HW)
        features_BD = features_PD.new_zeros(len(batch), self.width)
        return features_BD.index_put((present_B,), features_PD)

    def encode_pictures(self, picture_P3HW: Tensor) -> Tensor:
        """Returns (P, 512) for (P, 3, H, W) uint8 RGB."""
        x = picture_P3HW.to(self.mean_3.dtype, memory_format=torch.channels_last)
        x = (x - self.mean_3[:, None, None]) / self.std_3[:, None, None]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))

    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have a picture."""
        return batch.has_picture_B


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(x + f(x)), the shortcut a 1x1 convolution where shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x_PCHW: Tensor) -> Tensor:
        """Returns (P, channels, H / stride, W / stride)."""
        shortcut = x_PCHW if self.downsample is None else self.downsample(x_PCHW)
        x = self.relu(self.bn1(self.conv1(x_PCHW)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, stride=1))
