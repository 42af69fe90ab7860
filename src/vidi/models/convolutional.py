"""A classifier made fully convolutional: its scores at every place of an image of any size.

A fully connected layer looks at feature maps of one size; as a convolution with a kernel of that
size it does the same at every place (Sermanet et al. 2014, OverFeat, section 3.5; Long et al. 2015,
section 3.1). So the layers before the head run once over the whole image, and neighbouring places
share their work.

How a network is taken apart: ``torch.fx`` follows one forward pass of it; the last feature map
through which everything flows is where it is cut. What lies behind is the head. Its pooling and
its linear layers become a pooling and convolutions; a part that is neither runs as it is, once for
each place.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vidi.errors import InputError
from vidi.models.tracing import (
    SUPPORTED,
    Shapes,
    copied,
    covers,
    cut_of,
    device_of,
    follow,
    name_of,
    part,
    quick,
    random_image,
)

TOLERANCE = 1e-4
"""Largest difference from the classifier, as a share of the largest score, that is rounding."""

CELLS = 256
"""Windows of feature maps that are laid out at a time, since they overlap and so take space."""


_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity,
)  # fmt: skip
_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, F.gelu: nn.GELU, F.silu: nn.SiLU,
    torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
}  # fmt: skip
_FLATTEN = (torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "squeeze", "view")


class Convolutional(nn.Module):
    """Input [N, 3, H, W], each side at least ``window``; output [N, K, h, w], a grid of scores.

    Cell (i, j) holds the scores of the window of ``window`` pixels whose upper left corner lies at
    pixel (i, j) · ``stride``, so its centre lies at ``offset`` + (i, j) · ``stride``. A network
    with padding may give one cell more in a row, whose window reaches over the image's edge.
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        *,
        image_size: int,
        stride: int,
        feature_window: tuple[int, int],
    ) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.image_size = image_size
        self.window = image_size
        """Pixels of a side of what one cell sees (with padding, a little of what is around it)."""
        self.stride = stride
        """Pixels from one cell to the next."""
        self.offset = image_size / 2
        """Pixels from the image's edge to the centre of the first cell."""
        self.feature_window = feature_window
        """Height and width of the window of feature maps that the head sees."""

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.window:
            raise InputError(
                f"The image has {x.shape[3]} × {x.shape[2]} pixels; this network looks at windows "
                f"of {self.window} × {self.window}. Enlarge the image."
            )
        scores: Tensor = self.head(self.features(x))
        return scores


class LinearAtWindows(nn.Conv2d):
    """A linear layer as the convolution that it is, without stride and padding.

    On a CPU it runs as matrix products, which take the weights as they lie: a convolution would
    rearrange them at each call, and a fully connected layer has a hundred million.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        h, w = self.weight.shape[2:]
        weight = self.weight.flatten(1)
        n, _, height, width = x.shape
        height, width = height - h + 1, width - w + 1
        if (h, w) == (1, 1):
            return F.linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
        some = max(1, CELLS // width)
        rows = []
        for top in range(0, height, some):
            count = min(some, height - top)
            windows = F.unfold(x[:, :, top : top + count + h - 1], (h, w)).transpose(1, 2)
            rows.append(F.linear(windows, weight, self.bias).view(n, count, width, -1))
        return torch.cat(rows, 1).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """A head as it is, run on every window of ``size`` (h, w): [N, C, H, W] to [N, K, h', w'].

    ``flat``: the head takes [N, C] instead of [N, C, 1, 1]; then ``size`` is (1, 1).
    """

    def __init__(self, head: nn.Module, size: tuple[int, int], *, flat: bool) -> None:
        super().__init__()
        assert not flat or size == (1, 1)
        self.head = head
        self.size = size
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.size
        rows = []
        for top in range(x.shape[2] - h + 1):  # row by row: windows overlap, and take h·w the space
            windows = x[:, :, top : top + h].unfold(3, w, 1).permute(0, 3, 1, 2, 4)
            n, columns = windows.shape[:2]
            one = windows.reshape(n * columns, -1, h, w).contiguous()
            scores = self.head(one.flatten(1) if self.flat else one)
            rows.append(scores.reshape(n, columns, -1))
        return torch.stack(rows, 1).permute(0, 3, 1, 2)


def convolutionalize(net: nn.Module, *, image_size: int | None = None) -> Convolutional:
    """The trained classifier ``net`` as a network of any image size that gives a grid of scores.

    ``image_size``: the side in pixels of the square images that it was trained on; its attribute
    ``image_size`` unless told. On such an image the one cell equals the classifier's output. On a
    larger one each cell equals the head, applied to the window of feature maps under it. It equals
    the classifier applied to the window of the *image* under it where there is no padding, and
    nearly so where there is: :func:`sliding_agreement` says how nearly.

    The result predicts (it is in evaluation mode, without auxiliary heads); dropout is kept in it,
    and acts after ``.train()``. ``net`` is not changed. Weights and running statistics are shared
    with it, not copied, so to train the one without the other, take a ``copy.deepcopy``. Only an
    adaptive pooling that is no identity at ``image_size`` is folded into the weights behind it,
    which are then new.

    Raises :class:`InputError` where the network cannot be taken apart so; what comes out was
    compared with ``net`` on random images.
    """
    size = image_size if image_size is not None else getattr(net, "image_size", None)
    if not isinstance(size, int) or size < 1:
        raise InputError(
            f"{name_of(net)} does not say what size of images it was trained on. Say it: "
            "convolutionalize(net, image_size=224)."
        )
    own = copied(net, lambda tensor: tensor).eval()
    graph, shapes, larger = follow(own, size)
    cut = cut_of(own, graph, shapes, larger)
    features = part(own, graph, None, cut)
    c, h, w = shapes[cut][1:]
    head = _converted(own, graph, shapes, cut)
    if head is None:
        if cut.op == "placeholder":
            raise InputError(
                f"In {name_of(net)} no feature map was found between the image and the scores. "
                + SUPPORTED
            )
        head = Windows(part(own, graph, cut, None), (h, w), flat=False)
    stride = _stride(features, size, (c, h, w), net)
    out = Convolutional(features, head, image_size=size, stride=stride, feature_window=(h, w))
    out.eval()
    try:
        _check(net, out, part(own, graph, cut, None))
    except RuntimeError as error:
        raise InputError(
            f"{name_of(net)} was taken apart, and its parts fail: {str(error).splitlines()[0]} "
            + SUPPORTED
        ) from error
    return out


class Agreement(NamedTuple):
    """How nearly a convolutionalized network does what sliding the classifier does."""

    largest: float
    """The largest difference of a score, as a share of the largest score."""
    rms: float
    """The root mean square of the differences, as a share of the scores' deviation."""
    same_class: float
    """The share of cells whose likeliest class is the same."""


@torch.no_grad()
def sliding_agreement(
    net: nn.Module, image: Tensor, *, image_size: int | None = None, batch_size: int = 16
) -> Agreement:
    """Compares ``convolutionalize(net)`` with sliding ``net`` over ``image``, [N, 3, H, W]."""
    dense = convolutionalize(net, image_size=image_size)
    slid = slide(net, image, dense.window, dense.stride, batch_size=batch_size)
    # With padding there may be one cell more, whose window reaches beyond the image.
    grid = dense(image)[:, :, : slid.shape[2], : slid.shape[3]]
    difference = (grid - slid).double()
    spread = float(slid.double().std(correction=0))
    rms = float(difference.square().mean().sqrt())
    return Agreement(
        largest=float(difference.abs().max() / slid.abs().max().clamp_min(1e-30)),
        rms=rms / max(spread, 1e-30),
        same_class=float((grid.argmax(1) == slid.argmax(1)).double().mean()),
    )


@torch.no_grad()
def slide(
    net: nn.Module, image: Tensor, window: int, stride: int, *, batch_size: int = 16
) -> Tensor:
    """The classifier on every window of the image, ``stride`` pixels apart: [N, K, h, w].

    ``image``: [N, 3, H, W], at least one window. Crops go through ``net`` in batches.
    """
    views = image.unfold(2, window, stride).unfold(3, window, stride)
    n, c, h, w = views.shape[:4]
    crops = views.permute(0, 2, 3, 1, 4, 5).reshape(-1, c, window, window)
    with _evaluating(net):
        scores = torch.cat([_logits(net(part)) for part in torch.split(crops, batch_size)])
    return scores.view(n, h, w, -1).permute(0, 3, 1, 2)


class _Head:
    """The head as it is being converted, with what is known of the tensor so far."""

    def __init__(self, c: int, h: int, w: int) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.c = c
        self.window: tuple[int, int] | None = (h, w)
        """The size of the map at the training size; None once each place has one vector."""
        self.rows, self.columns = torch.eye(h), torch.eye(w)
        """[h', h] and [w', w]: the average pooling that waits for the next weights."""

    @property
    def pooled(self) -> bool:
        return not all(
            torch.equal(table, torch.eye(table.shape[1])) for table in (self.rows, self.columns)
        )

    def add(self, node: fx.Node, layer: nn.Module) -> None:
        self.layers[
            str(node.target if node.op == "call_module" else node.name).replace(".", "_")
        ] = layer


def _converted(own: nn.Module, graph: fx.Graph, shapes: Shapes, cut: fx.Node) -> nn.Module | None:
    """The head as layers for maps; None where its beginning cannot be one."""
    c, h, w = shapes[cut][1:]
    head = _Head(c, h, w)
    final = next(n for n in graph.nodes if n.op == "output").args[0]
    node = cut
    while node is not final:
        after = [user for user in node.users if user in shapes]
        inputs = [n for n in after[0].all_input_nodes if n in shapes] if len(after) == 1 else []
        if len(inputs) == 1 and _step(head, own, after[0], shapes[node], shapes[after[0]]):
            node = after[0]
            continue
        if head.window is not None:
            return None
        rest = Windows(part(own, graph, node, None), (1, 1), flat=len(shapes[node]) == 2)
        head.layers["each"] = rest
        break
    if head.window is not None:
        return None
    return nn.Sequential(OrderedDict(head.layers))


def _step(
    head: _Head, own: nn.Module, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]
) -> bool:
    """Adds one operation of the network to the head; False if it is none that can be."""
    module = own.get_submodule(str(node.target)) if node.op == "call_module" else None
    at_vectors = head.window is None
    if isinstance(module, nn.Dropout) or node.target is F.dropout:
        given: Any = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        head.add(node, nn.Dropout(module.p if isinstance(module, nn.Dropout) else given))
    elif isinstance(module, nn.Flatten) or (module is None and node.target in _FLATTEN):
        return after == (1, math.prod(before[1:]))
    elif (pool := _pooling(node, module, before, after)) is not None and not at_vectors:
        return _pool(head, node, pool, after)
    elif isinstance(module, nn.Linear) and len(before) == 2:
        head.add(node, _as_convolution(head, module))
        head.window = None
        head.rows = head.columns = torch.eye(1)
    elif isinstance(module, _POINTWISE) and not head.pooled:
        if not isinstance(module, nn.Identity):
            head.add(node, module)
    elif node.target in _FUNCTIONS and not head.pooled:
        head.add(node, _FUNCTIONS[node.target]())
    elif isinstance(module, nn.BatchNorm1d) and at_vectors and len(before) == 2:
        head.add(node, _as_maps_norm(module))
    elif isinstance(module, nn.Conv2d) and at_vectors:
        if module.kernel_size != (1, 1) or module.padding not in ((0, 0), 0):
            return False
        head.add(node, module)
    else:
        return False
    return True


def _pooling(
    node: fx.Node, module: nn.Module | None, before: tuple[int, ...], after: tuple[int, ...]
) -> str | None:
    """'average' or 'largest' where the operation pools maps so that this can be done anywhere."""
    if len(before) != 4 or before[1] != after[1]:
        return None
    if isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        return "average"
    if node.target in (torch.mean, "mean"):
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if isinstance(dims, tuple | list) and {int(d) % 4 for d in dims} == {2, 3}:
            return "average"
        return None
    if after[2:] != (1, 1):
        return None
    if isinstance(module, nn.AvgPool2d) and covers(module, before):
        return "average"
    whole = isinstance(module, nn.AdaptiveMaxPool2d) or node.target is F.adaptive_max_pool2d
    if whole or (isinstance(module, nn.MaxPool2d) and covers(module, before)):
        return "largest"
    return None


def _pool(head: _Head, node: fx.Node, how: str, after: tuple[int, ...]) -> bool:
    assert head.window is not None
    h, w = head.window
    out = after[2:] if len(after) == 4 else (1, 1)
    if how == "largest" or out == (1, 1):
        if head.pooled:
            return False
        kind = nn.MaxPool2d if how == "largest" else nn.AvgPool2d
        if (h, w) != (1, 1):
            head.add(node, kind((h, w), stride=1))
        head.window = None
        return True
    head.rows = _averages(head.rows.shape[0], out[0]) @ head.rows
    head.columns = _averages(head.columns.shape[0], out[1]) @ head.columns
    return True


def _averages(inputs: int, outputs: int) -> Tensor:
    """float32 [outputs, inputs]: adaptive average pooling along one side, as a matrix."""
    table = torch.zeros(outputs, inputs)
    for o in range(outputs):
        first, last = o * inputs // outputs, -(-(o + 1) * inputs // outputs)
        table[o, first:last] = 1 / (last - first)
    return table


@torch.no_grad()
def _as_convolution(head: _Head, linear: nn.Linear) -> LinearAtWindows:
    """The linear layer as a convolution: its weights seen in another shape, or with the average
    pooling that waits before it multiplied into them."""
    k = linear.out_features
    h, w = (1, 1) if head.window is None else head.window
    c = linear.in_features // (head.rows.shape[0] * head.columns.shape[0])
    if head.window is None:
        c = linear.in_features
        weight = linear.weight.detach().view(k, c, 1, 1)
    elif head.pooled:
        weight = linear.weight.detach().view(k, c, head.rows.shape[0], head.columns.shape[0])
        rows, columns = head.rows.to(weight), head.columns.to(weight)
        weight = torch.einsum("kcij,ih,jw->kchw", weight, rows, columns).contiguous()
    else:
        weight = linear.weight.detach().view(k, c, h, w)
    with torch.device("meta"):
        layer = LinearAtWindows(c, k, (h, w), bias=linear.bias is not None)
    layer.weight = nn.Parameter(weight, linear.weight.requires_grad)
    layer.bias = linear.bias
    return layer


def _as_maps_norm(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """The same statistics and scales, for maps."""
    with torch.device("meta"):
        out = nn.BatchNorm2d(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
    out.weight, out.bias = norm.weight, norm.bias
    out.running_mean, out.running_var = norm.running_mean, norm.running_var
    out.num_batches_tracked = norm.num_batches_tracked
    return out


def _stride(features: nn.Module, size: int, shape: tuple[int, int, int], net: nn.Module) -> int:
    """Pixels of the image per cell, from how the maps grow with it."""
    shadow = quick(features, size)
    sizes: dict[int, tuple[int, ...]] = {}

    def fits(more: int, cells: int) -> bool:
        if more not in sizes:
            map_ = shadow(random_image(shadow, size + more, size + more, device_of(shadow)))
            sizes[more] = tuple(map_.shape[2:])
        return sizes[more] == (shape[1] + cells, shape[2] + cells)

    far = 960
    try:
        with torch.no_grad():
            fits(far, 0)
            grown = max(1, sizes[far][0] - shape[1])
            near = range(far // (grown + 1) + 1, far // max(1, grown - 1) + 1)
            for stride in sorted(near, key=lambda s: far % s != 0):
                # Maps are rounded to whole cells, which hides an error until it adds up to one.
                last = grown if far % stride == 0 else stride
                if all(fits(n * stride, n) for n in (1, 2, 3, last)):
                    return stride
    except Exception as error:  # any operation may be the one
        raise InputError(
            f"The layers of {name_of(net)} before its head cannot take images larger than {size} "
            f"pixels: {error}. {SUPPORTED}"
        ) from error
    raise InputError(
        f"The feature maps of {name_of(net)} do not grow evenly with the image: {shape[1]} × "
        f"{shape[2]} at {size} pixels, and {sizes[far][0]} × {sizes[far][1]} at {size + far}. Then "
        "its cells have no place in the image."
    )


@torch.no_grad()
def _check(net: nn.Module, dense: Convolutional, tail: nn.Module) -> None:
    """Raises InputError unless the new network does what the old one does."""
    size, (h, w) = dense.window, dense.feature_window
    with _evaluating(net), torch.backends.cudnn.flags(allow_tf32=False):
        image = random_image(net, size, size)
        pairs = [(dense(image)[:, :, 0, 0], _logits(net(image)))]
        maps = dense.features(random_image(net, size + dense.stride, size + dense.stride))
        grid = dense.head(maps.clone())  # a head may begin with an operation in place
        pairs += [
            (grid[:, :, 1, j], tail(maps[:, :, 1 : 1 + h, j : j + w].clone())) for j in (0, 1)
        ]
    for got, wanted in pairs:
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not off <= max(TOLERANCE, 64 * torch.finfo(got.dtype).eps):
            raise InputError(
                f"{name_of(net)} was taken apart wrongly: on a random image its scores differ by "
                f"{off:.1%} of the largest from those of the network itself. {SUPPORTED}"
            )


def _logits(output: Any) -> Tensor:
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is restored."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
