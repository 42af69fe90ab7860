"""FlowNet: the motion between two frames, from one pass of a convolutional network.

Dosovitskiy et al. 2015. FlowNetS sees both frames as one image of six channels and finds out by
itself how to compare them. FlowNetC takes each frame through the same three layers, compares their
features at 441 displacements (:mod:`vidi.ops.correlation`), and goes on from there. Both come down
to 1/64 and back to 1/4 (section 3, figures 2 and 3): at each of five resolutions flow is predicted,
doubled in size by a transposed convolution, and goes into the next finer one beside features of
that resolution from the way down. From 1/4 on it is interpolated bilinearly; the paper's
variational refinement is not here.

Inside, flow is divided by 20, as the authors' networks have it: it is then of about the size of
features. Sides that are no multiple of 64 are continued on the right and below, and what belongs to
that is cut off again. Layers have the names of the most used implementation in PyTorch, and its
counts of parameters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidi.ops.correlation import correlation

SOURCE = (
    "Dosovitskiy et al. 2015, FlowNet: Learning optical flow with convolutional networks (ICCV)"
)
SCALE = 20.0
"""Pixels of flow per unit of a prediction."""
SLOPE = 0.1


class Outputs(NamedTuple):
    """Flow in pixels / 20, [N, 2, h, w] each, from 1/4 (finest) to 1/64 of the padded image."""

    flow2: Tensor
    flow3: Tensor
    flow4: Tensor
    flow5: Tensor
    flow6: Tensor


class FlowNet(nn.Module):
    """Two images [N, 3, H, W] of any size; flow in pixels, [N, 2, H, W]; :class:`Outputs` in
    training.

    ``correlated``: FlowNetC. ``batch_norm``: after each convolution but those that predict, which
    the paper has not; without it, training from scratch takes long.
    """

    task = "flow"
    source = SOURCE
    image_size = 384
    divisor = 64
    scales = (4, 8, 16, 32, 64)
    """Pixels per cell of each prediction, in each direction."""

    def __init__(self, correlated: bool, batch_norm: bool) -> None:
        super().__init__()
        self.correlated = correlated

        def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not batch_norm)
            norm = (nn.BatchNorm2d(outputs),) if batch_norm else ()
            return nn.Sequential(layer, *norm, nn.LeakyReLU(SLOPE, inplace=True))

        self.conv1 = conv(3 if correlated else 6, 64, 7, 2)
        self.conv2 = conv(64, 128, 5, 2)
        self.conv3 = conv(128, 256, 5, 2)
        if correlated:
            self.conv_redir = conv(256, 32, 1)
        self.conv3_1 = conv(441 + 32 if correlated else 256, 256)
        self.conv4 = conv(256, 512, 3, 2)
        self.conv4_1 = conv(512, 512)
        self.conv5 = conv(512, 512, 3, 2)
        self.conv5_1 = conv(512, 512)
        self.conv6 = conv(512, 1024, 3, 2)
        self.conv6_1 = conv(1024, 1024)

        # What goes into a prediction: features from the way down, features from below, their flow.
        self.deconv5 = _doubled(1024, 512)
        self.deconv4 = _doubled(512 + 512 + 2, 256)
        self.deconv3 = _doubled(512 + 256 + 2, 128)
        self.deconv2 = _doubled(256 + 128 + 2, 64)
        self.predict_flow6 = _prediction(1024)
        self.predict_flow5 = _prediction(512 + 512 + 2)
        self.predict_flow4 = _prediction(512 + 256 + 2)
        self.predict_flow3 = _prediction(256 + 128 + 2)
        self.predict_flow2 = _prediction(128 + 64 + 2)
        self.upsampled_flow6_to_5 = _doubled_flow(correlated)
        self.upsampled_flow5_to_4 = _doubled_flow(correlated)
        self.upsampled_flow4_to_3 = _doubled_flow(correlated)
        self.upsampled_flow3_to_2 = _doubled_flow(correlated)
        _initialise(self)

    def forward(self, image: Tensor, image2: Tensor) -> Tensor | Outputs:
        size = image.shape[2:]
        image, image2 = (padded(x, self.divisor) for x in (image, image2))
        if self.correlated:
            # Through the same layers, one after the other in a batch.
            both = self.conv2(self.conv1(torch.cat((image, image2))))
            c2 = both[: image.shape[0]]
            c3, other = halves(self.conv3(both))
            alike = F.leaky_relu(correlation(c3, other), SLOPE)
            c3 = self.conv3_1(torch.cat((self.conv_redir(c3), alike), 1))
        else:
            c2 = self.conv2(self.conv1(torch.cat((image, image2), 1)))
            c3 = self.conv3_1(self.conv3(c2))
        c4 = self.conv4_1(self.conv4(c3))
        c5 = self.conv5_1(self.conv5(c4))
        c6 = self.conv6_1(self.conv6(c5))

        flow6 = self.predict_flow6(c6)
        d5 = torch.cat((c5, self.deconv5(c6), self.upsampled_flow6_to_5(flow6)), 1)
        flow5 = self.predict_flow5(d5)
        d4 = torch.cat((c4, self.deconv4(d5), self.upsampled_flow5_to_4(flow5)), 1)
        flow4 = self.predict_flow4(d4)
        d3 = torch.cat((c3, self.deconv3(d4), self.upsampled_flow4_to_3(flow4)), 1)
        flow3 = self.predict_flow3(d3)
        d2 = torch.cat((c2, self.deconv2(d3), self.upsampled_flow3_to_2(flow3)), 1)
        flow2 = self.predict_flow2(d2)
        if self.training:
            return Outputs(flow2, flow3, flow4, flow5, flow6)
        return full_size(flow2, self.scales[0], size)


def halves(both: Tensor) -> tuple[Tensor, Tensor]:
    """What was joined to [2N, …], apart again."""
    if torch.compiler.is_exporting():  # where N may be unknown, and so the number of chunks
        n = both.shape[0] // 2
        return both[:n], both[n:]
    first, second = both.chunk(2)
    return first, second


def padded(image: Tensor, divisor: int) -> Tensor:
    """The image [N, C, H, W], continued on the right and below to multiples of ``divisor``."""
    # Written so that, where sides are unknown, what comes is seen to be a multiple.
    bottom, right = ((n + divisor - 1) // divisor * divisor - n for n in image.shape[2:])
    more = (0, right, 0, bottom)
    # While a graph is drawn, sides may be unknown: then it is for all of them.
    if torch.compiler.is_exporting() or any(more):
        return F.pad(image, more, mode="replicate")
    return image


def full_size(flow: Tensor, scale: int, size: torch.Size) -> Tensor:
    """Flow in pixels, fp32 [N, 2, H, W] of that ``size``, from a prediction of the padded image
    whose cells are squares of ``scale`` pixels."""
    wide = F.interpolate(flow.float(), scale_factor=scale, mode="bilinear", align_corners=False)
    return SCALE * wide[:, :, : size[0], : size[1]]


def _prediction(inputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, 2, 3, padding=1)


def _doubled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(SLOPE, inplace=True)
    )


def _doubled_flow(bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=bias)


def _initialise(network: nn.Module) -> None:
    """He et al. 2015 (section 2.2) for leaky rectifiers, and no biases. Of a transposed convolution
    with stride 2 each output has a quarter of the kernel's weights."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            seen = module.kernel_size[0] * module.kernel_size[1] * module.in_channels
            if isinstance(module, nn.ConvTranspose2d):
                seen //= module.stride[0] * module.stride[1]
            nn.init.normal_(module.weight, std=math.sqrt(2 / (1 + SLOPE**2) / seen))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def flownet_s(*, batch_norm: bool = False) -> FlowNet:
    """FlowNetS, 38,676,506 parameters: both frames as one image."""
    return FlowNet(False, batch_norm)


def flownet_c(*, batch_norm: bool = False) -> FlowNet:
    """FlowNetC, 39,175,298 parameters: two towers and a correlation."""
    return FlowNet(True, batch_norm)
