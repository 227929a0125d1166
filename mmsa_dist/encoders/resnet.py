"""The picture encoder: a ResNet (He et al. 2016, arXiv 1512.03385) over a 2D depiction.

B molecules, P of which have a picture, C channels, H x W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import Encoder, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as published ResNet weights were trained."""


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_GROUPS = 32
_NormMaker = Callable[[int], nn.Module]


@register("resnet")
class ResNet(Encoder):
    """ResNet-18 or ResNet-34 up to its average pooling, for uint8 pictures of any size from 32 px.

    At 32 px the last stage has one pixel, and batch norm cannot train on a batch with a single picture.

    Parameters and buffers have the names and shapes of torchvision's ``resnet18`` and ``resnet34`` (with 64
    channels and batch norm): their weights load strictly once ``fc.weight`` and ``fc.bias``, which this encoder
    does not have, are dropped. Pictures are normalized on the device with ImageNet's mean and standard deviation,
    and activations are channels-last. The weights stay in torch's default layout, because DeepSpeed broadcasts
    them as bytes, which it cannot do with permuted strides.
    """

    reads = frozenset({"picture"})
    mean_3: Tensor
    std_3: Tensor

    def __init__(
        self, layers: Literal[18, 34] = 18, channels: int = 64, norm: Literal["batch", "group"] = "batch"
    ) -> None:
        """Builds the encoder.

        Args:
            layers: 18 or 34, as in the names of the published networks.
            channels: of the first stage; each of the other three doubles them, and `width` is that of the last.
            norm: ``batch``, over the pictures of this rank's batch; ``group``, over 32 groups of the channels of one
                picture (Wu and He 2018, arXiv 1803.08494), so that a vector does not depend on the rest of the
                batch, even in training.

        Raises:
            ValueError: there is no such network, or `channels` cannot be grouped.
        """
        super().__init__()
        if layers not in _BLOCKS:
            raise ValueError(f"model.resnet.layers is {layers}; choose one of {sorted(_BLOCKS)}")
        if norm == "group" and channels % _GROUPS:
            raise ValueError(f"model.resnet.channels={channels} must be a multiple of {_GROUPS} with norm=group")
        normed: _NormMaker = nn.BatchNorm2d if norm == "batch" else _group_norm
        self.width = 8 * channels
        self.conv1 = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = normed(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        first, second, third, fourth = _BLOCKS[layers]
        self.layer1 = _stage(channels, channels, first, stride=1, norm=normed)
        self.layer2 = _stage(channels, 2 * channels, second, stride=2, norm=normed)
        self.layer3 = _stage(2 * channels, 4 * channels, third, stride=2, norm=normed)
        self.layer4 = _stage(4 * channels, 8 * channels, fourth, stride=2, norm=normed)
        self.register_buffer("mean_3", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_3", 255 * torch.tensor(IMAGENET_STD), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, width); zero for molecules without a picture, which do not enter batch statistics."""
        present_B = self.present(batch)
        pictures_P3HW = None if batch.picture_B3HW is None else batch.picture_B3HW[present_B]
        if pictures_P3HW is None or len(pictures_P3HW) == 0:
            return self._zeros().expand(len(batch), -1)
        features_PD = self.encode_pictures(pictures_P3HW)
        features_BD = features_PD.new_zeros(len(batch), self.width)
        return features_BD.index_put((present_B,), features_PD)

    def encode_pictures(self, picture_P3HW: Tensor) -> Tensor:
        """Returns (P, width) for (P, 3, H, W) uint8 RGB."""
        x = picture_P3HW.to(self.mean_3.dtype, memory_format=torch.channels_last)
        x = (x - self.mean_3[:, None, None]) / self.std_3[:, None, None]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self.block(block, x)
        return x.mean(dim=(2, 3))

    def _zeros(self) -> Tensor:
        """Returns (1, width) zeros that depend on every parameter, through every module.

        A rank without pictures thus takes part in the collectives: the reduction of gradients and, at ZeRO 3, the
        gathering of each module's parameters. Running statistics do not change.
        """
        training = [(module, module.training) for module in self.modules()]
        self.eval()
        white_13HW = self.mean_3.new_full((1, 3, 32, 32), 255).to(torch.uint8)
        zeros_1D = self.encode_pictures(white_13HW) * 0.0
        for module, mode in training:  # norms may have been frozen one by one
            module.training = mode
        return zeros_1D

    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have a picture."""
        return batch.has_picture_B


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(x + f(x)); the shortcut is a 1x1 convolution if shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: _NormMaker) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False),
                norm(channels),
            )

    def forward(self, x_PCHW: Tensor) -> Tensor:
        """Returns (P, channels, H / stride, W / stride)."""
        shortcut = x_PCHW if self.downsample is None else self.downsample(x_PCHW)
        x = self.relu(self.bn1(self.conv1(x_PCHW)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int, norm: _NormMaker) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, norm)
    return nn.Sequential(first, *(BasicBlock(channels, channels, stride=1, norm=norm) for _ in range(blocks - 1)))


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)
