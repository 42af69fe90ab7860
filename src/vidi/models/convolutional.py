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
import copy
import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vidi.errors import InputError

TOLERANCE = 1e-4
"""Largest difference from the classifier, as a share of the largest score, that is rounding."""

CELLS = 256
"""Windows of feature maps that are laid out at a time, since they overlap and so take space."""

SUPPORTED = (
    "What can be converted: convolutions, then pooling or flattening, then linear layers, one "
    "after the other in forward()."
)

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
            f"{_name(net)} does not say what size of images it was trained on. Say it: "
            "convolutionalize(net, image_size=224)."
        )
    own = _copied(net, lambda tensor: tensor).eval()
    graph, shapes, larger = _traced(own, size)
    cut = _cut(own, graph, shapes, larger)
    features = _part(own, graph, None, cut)
    c, h, w = shapes[cut][1:]
    head = _converted(own, graph, shapes, cut)
    if head is None:
        if cut.op == "placeholder":
            raise InputError(
                f"In {_name(net)} no feature map was found between the image and the scores. "
                + SUPPORTED
            )
        head = Windows(_part(own, graph, cut, None), (h, w), flat=False)
    stride = _stride(features, size, (c, h, w), net)
    out = Convolutional(features, head, image_size=size, stride=stride, feature_window=(h, w))
    out.eval()
    try:
        _check(net, out, _part(own, graph, cut, None))
    except RuntimeError as error:
        raise InputError(
            f"{_name(net)} was taken apart, and its parts fail: {str(error).splitlines()[0]} "
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


def _copied(net: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """The network's modules anew, with ``replace`` of each parameter and buffer in them."""
    memo: dict[int, Any] = {}
    for tensor in (*net.parameters(), *net.buffers()):
        memo[id(tensor)] = replace(tensor)
    return copy.deepcopy(net, memo)


def _on_meta(net: nn.Module) -> nn.Module:
    """The network without contents: it has shapes, and runs in no time."""

    def empty(tensor: Tensor) -> Tensor:
        lent = torch.empty_like(tensor, device="meta")
        return nn.Parameter(lent, False) if isinstance(tensor, nn.Parameter) else lent

    return _copied(net, empty)


def _quick(net: nn.Module, size: int) -> nn.Module:
    """The network on the meta device, or itself where it looks at values, which are not there."""
    shadow = _on_meta(net)
    try:
        with torch.no_grad():
            shadow(_image(shadow, size, size, "meta"))
    except Exception:  # any operation may be the one
        return net
    return shadow


def _image(net: nn.Module, height: int, width: int, device: Any = None) -> Tensor:
    like = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), None)
    where = device or ("cpu" if like is None else like.device)
    dtype = torch.float32 if like is None else like.dtype
    made = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return made.to(where, dtype)


Shapes = dict[fx.Node, tuple[int, ...]]


def _traced(net: nn.Module, size: int) -> tuple[fx.Graph, Shapes, Shapes]:
    """The network's graph, and the shapes of its nodes for one image of ``size`` and of twice it.

    Where the network refuses the larger image, the nodes before that have shapes there.
    """
    shadow = _quick(net, size)
    leaves = _maps(shadow, size)
    # Further arguments of forward() keep their defaults.
    others = list(inspect.signature(net.forward).parameters.values())[1:]
    given = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        graph = _Tracer(leaves, shadow, size).trace(shadow, given or None)
    except Exception as error:  # whatever the user's forward() raises for a symbol
        raise InputError(
            f"The forward() of {_name(net)} could not be followed: {str(error).splitlines()[0]} "
            f"{SUPPORTED}"
        ) from error
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)  # of the training size; others are asked for now
    graph.eliminate_dead_code(_is_end)
    for node in [n for n in graph.nodes if n.op == "placeholder"][1:]:
        graph.erase_node(node)
    shapes = _run(shadow, graph, size)
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node) or len(shapes.get(output, ())) != 2:
        found = list(shapes.get(output, ())) if isinstance(output, fx.Node) else "several outputs"
        raise InputError(
            f"{_name(net)} should give one score per class, [1, K], for one image of {size} × "
            f"{size} pixels; it gives {found}. Only a classifier can be converted."
        )
    _ask_near(graph, shapes)
    return graph, shapes, _run(shadow, graph, 2 * size)


def _ask_near(graph: fx.Graph, shapes: Shapes) -> None:
    """Lets each operation that needs the batch size ask its own input for it.

    Networks often ask the image at the start, and then it seems to flow past all that follows.
    """
    seen = _from_image(graph)
    for node in list(graph.nodes):
        asked = node.args[0] if node.args else None
        if not isinstance(asked, fx.Node) or node.args[1:] != (0,):
            continue
        by_shape = node.target is operator.getitem and asked.target is getattr
        if not by_shape and node.target != "size":
            continue
        for user in list(node.users):
            source = user.args[0]
            if isinstance(source, fx.Node) and source in shapes and source in seen:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.call_method("size", (source, 0)))
    graph.eliminate_dead_code(_is_end)


def _is_end(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


class _Tracer(fx.Tracer):
    """Follows forward(); questions about sizes are answered for the training size."""

    def __init__(self, leaves: set[str], shadow: nn.Module, size: int) -> None:
        super().__init__()
        self.leaves = leaves
        self.shadow = shadow
        self.image = _image(shadow, size, size, _device(shadow))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(
            m, module_qualified_name
        )

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self._value(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        items: Any = obj
        return iter([items[i] for i in range(len(self._value(obj.node)))])

    @torch.no_grad()
    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.image
        if node.op == "get_attr":
            return _attribute(self.shadow, str(node.target))
        args = fx.node.map_arg(node.args, self._value)
        kwargs = fx.node.map_arg(node.kwargs, self._value)
        if node.op == "call_module":
            return self.shadow.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _maps(shadow: nn.Module, size: int) -> set[str]:
    """The modules that need no look inside: they make maps that grow with the image."""
    found: list[dict[str, list[tuple[int, ...]]]] = []
    for side in (size, 2 * size):
        seen: dict[str, list[tuple[int, ...]]] = {}

        def note(name: str, output: Any, seen: dict[str, list[tuple[int, ...]]] = seen) -> None:
            seen.setdefault(name, []).append(
                tuple(output.shape) if isinstance(output, Tensor) else ()
            )

        handles = [
            module.register_forward_hook(lambda m, i, o, name=name, note=note: note(name, o))
            for name, module in shadow.named_modules()
        ]
        try:
            with torch.no_grad():
                shadow(_image(shadow, side, side, _device(shadow)))
        except Exception:  # a head for one size alone; what came before it was seen
            if side == size:
                raise
        finally:
            for handle in handles:
                handle.remove()
        found.append(seen)
    small, large = found
    return {
        name
        for name, shapes in small.items()
        if name
        and len(large.get(name, [])) == len(shapes)
        and all(_grows(a, b) for a, b in zip(shapes, large[name], strict=True))
    }


def _grows(small: tuple[int, ...], large: tuple[int, ...] | None) -> bool:
    """Whether these are feature maps that are larger for a larger image."""
    return len(small) == 4 and large is not None and len(large) == 4 and max(
        b - a for a, b in zip(small, large, strict=True)
    ) > 0  # fmt: skip


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.shapes: Shapes = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.shapes[n] = tuple(out.shape)
        return out


@torch.no_grad()
def _run(shadow: nn.Module, graph: fx.Graph, size: int) -> Shapes:
    run = _Shapes(fx.GraphModule(shadow, graph))
    with contextlib.suppress(Exception):  # a head for one size alone
        run.run(_image(shadow, size, size, _device(shadow)))
    # Its own copy of the graph has other nodes, in the same order.
    own = dict(zip(run.graph.nodes, graph.nodes, strict=True))
    return {own[node]: shape for node, shape in run.shapes.items()}


def _from_image(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on the image."""
    nodes = list(graph.nodes)
    found = {nodes[0]}
    for node in nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _cut(own: nn.Module, graph: fx.Graph, shapes: Shapes, larger: Shapes) -> fx.Node:
    """The last feature map, [1, C, h, w], through which all flows from image to scores."""
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    best: fx.Node = nodes[0]
    reach = 0
    seen = _from_image(graph)
    for i, node in enumerate(nodes):
        if node not in seen:
            continue
        # Nothing from before this node is used behind it.
        small, large = shapes.get(node, ()), larger.get(node, ())
        is_map = len(small) == len(large) == 4 and small[0] == large[0] == 1
        grows = is_map and small[2] < large[2] and small[3] < large[3]
        if reach <= i and grows and not _is_whole(own, node, shapes):
            best = node
        reach = max(reach, *(place[user] for user in node.users), i)
    return best


def _part(
    own: nn.Module, graph: fx.Graph, first: fx.Node | None, last: fx.Node | None
) -> nn.Module:
    """What the network does from the image (or behind ``first``) to ``last`` (or the scores)."""
    nodes = list(graph.nodes)
    if first is None and last is nodes[0]:
        return nn.Identity()
    new = fx.Graph()
    start = nodes.index(first) if first is not None else 0
    end = nodes.index(last) if last is not None else len(nodes) - 2
    copies: dict[fx.Node, fx.Node] = {nodes[start]: new.placeholder("x")}
    for i, node in enumerate(nodes[: end + 1]):
        if node in copies or (i < start and node.op != "get_attr"):
            continue
        copies[node] = new.node_copy(node, copies.__getitem__)
    final = nodes[-1].args[0] if last is None else last
    assert isinstance(final, fx.Node)
    new.output(copies[final])
    new.eliminate_dead_code(_is_end)
    calls = [node for node in new.nodes if node.op not in ("placeholder", "output")]
    if len(calls) == 1 and calls[0].op == "call_module" and len(calls[0].args) == 1:
        return own.get_submodule(str(calls[0].target))
    return fx.GraphModule(own, new, class_name="Part")


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
        rest = Windows(_part(own, graph, node, None), (1, 1), flat=len(shapes[node]) == 2)
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
    if isinstance(module, nn.AvgPool2d) and _covers(module, before):
        return "average"
    whole = isinstance(module, nn.AdaptiveMaxPool2d) or node.target is F.adaptive_max_pool2d
    if whole or (isinstance(module, nn.MaxPool2d) and _covers(module, before)):
        return "largest"
    return None


def _is_whole(own: nn.Module, node: fx.Node, shapes: Shapes) -> bool:
    """Whether this is a pool as large as the map, which older networks have for a global one."""
    module = own.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and _covers(
        module, shapes[node.all_input_nodes[0]]
    )


def _covers(module: nn.AvgPool2d | nn.MaxPool2d, before: tuple[int, ...]) -> bool:
    kernel, padding = module.kernel_size, module.padding
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return tuple(kernel) == before[2:] and padding in (0, (0, 0))


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
    shadow = _quick(features, size)
    sizes: dict[int, tuple[int, ...]] = {}

    def fits(more: int, cells: int) -> bool:
        if more not in sizes:
            map_ = shadow(_image(shadow, size + more, size + more, _device(shadow)))
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
            f"The layers of {_name(net)} before its head cannot take images larger than {size} "
            f"pixels: {error}. {SUPPORTED}"
        ) from error
    raise InputError(
        f"The feature maps of {_name(net)} do not grow evenly with the image: {shape[1]} × "
        f"{shape[2]} at {size} pixels, and {sizes[far][0]} × {sizes[far][1]} at {size + far}. Then "
        "its cells have no place in the image."
    )


@torch.no_grad()
def _check(net: nn.Module, dense: Convolutional, tail: nn.Module) -> None:
    """Raises InputError unless the new network does what the old one does."""
    size, (h, w) = dense.window, dense.feature_window
    with _evaluating(net), torch.backends.cudnn.flags(allow_tf32=False):
        image = _image(net, size, size)
        pairs = [(dense(image)[:, :, 0, 0], _logits(net(image)))]
        maps = dense.features(_image(net, size + dense.stride, size + dense.stride))
        grid = dense.head(maps.clone())  # a head may begin with an operation in place
        pairs += [
            (grid[:, :, 1, j], tail(maps[:, :, 1 : 1 + h, j : j + w].clone())) for j in (0, 1)
        ]
    for got, wanted in pairs:
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not off <= max(TOLERANCE, 64 * torch.finfo(got.dtype).eps):
            raise InputError(
                f"{_name(net)} was taken apart wrongly: on a random image its scores differ by "
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


def _device(net: nn.Module) -> torch.device:
    return next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def _attribute(net: nn.Module, path: str) -> Any:
    value: Any = net
    for word in path.split("."):
        value = getattr(value, word)
    return value


def _name(net: nn.Module) -> str:
    return type(net).__name__
