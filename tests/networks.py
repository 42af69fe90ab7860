"""Networks as slender as they come, for tests that train or differentiate many times."""

from torch import nn

from vidi.models.small_flownets import flownet_small


def flownet(num_classes: int = 2, width: int = 8) -> nn.Module:
    """All parts of the small FlowNet, ``width`` channels each."""
    return flownet_small(
        stem=width // 2,
        widths=(width,) * 3,
        depths=(1, 1, 1),
        matching=width,
        reach=2,
        near=1,
        mending8=(width,) * 4,
        mending4=(width,) * 2,
    )
