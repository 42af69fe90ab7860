"""Following a network's forward pass, and where it can be cut in two.

``torch.fx`` records the operations as a graph. Modules whose maps grow with the image are not
looked into, so what they do inside need not be understood; questions about sizes in the rest are
answered for the training size.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from vidi.errors import InputError

SUPPORTED = (
    "What can be converted: convolutions, then pooling or flattening, then linear layers, one "
    "after the other in forward()."
)

Shapes = dict[fx.Node, tuple[int, ...]]


def follow(net: nn.Module, size: int) -> tuple[fx.Graph, Shapes, Shapes]:
    """The network's graph, and the shapes of its nodes for one image of ``size`` and of twice it.

    Where the network refuses the larger image, the nodes before that have shapes there.
    """
    shadow = quick(net, size)
    leaves = _maps(shadow, size)
    # Further arguments of forward() keep their defaults.
    others = list(inspect.signature(net.forward).parameters.values())[1:]
    given = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        graph = _Tracer(leaves, shadow, size).trace(shadow, given or None)
    except Exception as error:  # whatever the user's forward() raises for a symbol
        raise InputError(
            f"The forward() of {name_of(net)} could not be followed: {str(error).splitlines()[0]} "
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
            f"{name_of(net)} should give one score per class, [1, K], for one image of {size} × "
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
        self.image = random_image(shadow, size, size, device_of(shadow))

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
                shadow(random_image(shadow, side, side, device_of(shadow)))
        except InputError:
            if side == size:
                raise
        except Exception as error:  # a head for one size alone; what came before it was seen
            if side == size:
                raise InputError(
                    f"{name_of(shadow)} cannot take an image of {size} × {size} pixels: "
                    f"{str(error).splitlines()[0]}. Give image_size the size it was trained on."
                ) from error
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
        run.run(random_image(shadow, size, size, device_of(shadow)))
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


def cut_of(own: nn.Module, graph: fx.Graph, shapes: Shapes, larger: Shapes) -> fx.Node:
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


def part(own: nn.Module, graph: fx.Graph, first: fx.Node | None, last: fx.Node | None) -> nn.Module:
    """What the network does from the image (or behind ``first``) to ``last`` (or the scores)."""
    nodes = list(graph.nodes)
    if first is None and last is nodes[0]:
        return nn.Identity()
    new = fx.Graph()
    start = nodes.index(first) if first is not None else 0
    end = nodes.index(last) if last is not None else len(nodes) - 2
    seen = _from_image(graph)
    copies: dict[fx.Node, fx.Node] = {nodes[start]: new.placeholder("x")}
    for i, node in enumerate(nodes[: end + 1]):
        if node in copies or (i < start and node in seen):
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


def _is_whole(own: nn.Module, node: fx.Node, shapes: Shapes) -> bool:
    """Whether this is a pool as large as the map, which older networks have for a global one."""
    module = own.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and covers(
        module, shapes[node.all_input_nodes[0]]
    )


def covers(module: nn.AvgPool2d | nn.MaxPool2d, before: tuple[int, ...]) -> bool:
    kernel, padding = module.kernel_size, module.padding
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return tuple(kernel) == before[2:] and padding in (0, (0, 0))


def copied(net: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
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

    return copied(net, empty)


def quick(net: nn.Module, size: int) -> nn.Module:
    """The network on the meta device, or itself where it looks at values, which are not there."""
    shadow = _on_meta(net)
    try:
        with torch.no_grad():
            shadow(random_image(shadow, size, size, "meta"))
    except Exception:  # any operation may be the one
        return net
    return shadow


def random_image(net: nn.Module, height: int, width: int, device: Any = None) -> Tensor:
    like = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), None)
    where = device or ("cpu" if like is None else like.device)
    dtype = torch.float32 if like is None else like.dtype
    made = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return made.to(where, dtype)


def device_of(net: nn.Module) -> torch.device:
    return next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def _attribute(net: nn.Module, path: str) -> Any:
    value: Any = net
    for word in path.split("."):
        value = getattr(value, word)
    return value


def name_of(net: nn.Module) -> str:
    return type(net).__name__
