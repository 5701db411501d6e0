"""The lines of a network: layers of which each reads nothing but the one before, and is read by nothing else.

They are what a rewrite may change: between two of them no value is seen from outside.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from minidl.nn.containers import Concat, Residual, Sequential
from minidl.nn.graph import INPUT, Graph
from minidl.nn.module import Module

Link = tuple[str, Module]


class Line(NamedTuple):
    """Layers one after another.

    Attributes:
        links: Each layer with its path in the network. Residual, Concat and Graph are one layer here; what is in them
            makes lines of its own.
        before: What the first layer reads, in words: "it comes after ...".
        after: What reads the last one: "the block's sum follows".
    """

    links: list[Link]
    before: str
    after: str


def lines(model: Module) -> Iterator[Line]:
    """All lines of `model`. Layers inside containers of other kinds than minidl's are in none of them."""
    yield from _line([("", model)], "the network's input", "the network's output follows")


def without(model: Module, paths: Collection[str]) -> Module:
    """`model` without the layers at `paths`; what they were given goes to who read them.

    It is changed in place, but for each Graph in it, which is made anew.
    """
    graphs = [(path, module) for path, module in model.named_modules() if type(module) is Graph]
    in_graphs = {join(path, name) for path, graph in graphs for name in graph.nodes} & set(paths)
    layers = dict(model.named_modules())
    for path in paths:
        if path not in in_graphs:
            holder, _, name = path.rpartition(".")
            delattr(layers[holder], name)
    made: dict[Module, Graph] = {}
    for path, graph in reversed(graphs if in_graphs else []):  # the inner ones first
        made[graph] = _graph_without(graph, {name for name in graph.nodes if join(path, name) in in_graphs}, made)
        holder, _, name = path.rpartition(".")
        if path:
            setattr(layers[holder], name, made[graph])
        else:
            model = made[graph]
    return model


def join(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name


def _line(parts: Iterable[Link], before: str, after: str) -> Iterator[Line]:
    links = [link for path, part in parts for link in _opened(part, path)]
    yield Line(links, before, after)
    for path, layer in links:
        yield from _inside(layer, path)


def _opened(module: Module, path: str) -> Iterator[Link]:
    if type(module) is Sequential:
        for name, child in module.chain():
            yield from _opened(child, join(path, name))
    else:
        yield path, module


def _inside(layer: Module, path: str) -> Iterator[Line]:
    # Exactly these: a subclass may wire its layers in another way.
    if type(layer) is Residual:
        before, after = "the block's input, which the way around reads, too", "the block's sum follows"
        yield from _line([(join(path, name), child) for name, child in layer.chain()], before, after)
        if layer.downsample is not None:
            yield from _line([(join(path, "downsample"), layer.downsample)], before, after)
        if layer.activation is not None:
            activation = join(path, "activation"), layer.activation
            yield from _line([activation], "the block's sum", "the block's end follows")
    elif type(layer) is Concat:
        for name, branch in layer.children():
            yield from _line([(join(path, name), branch)], "the input of all branches", "the concatenation follows")
    elif type(layer) is Graph:
        yield from _of_graph(layer, path)


def _of_graph(graph: Graph, path: str) -> Iterator[Line]:
    readers = Counter(source for node in graph.nodes.values() for source in node.inputs)
    runs: dict[str, list[str]] = {}  # by the name of the last layer
    for name, node in graph.nodes.items():
        source = node.inputs[0]
        goes_on = len(node.inputs) == 1 and source in runs and readers[source] == 1
        runs[name] = [*(runs.pop(source) if goes_on else []), name]
    for last, run in runs.items():
        source = graph.nodes[run[0]].inputs[0]
        before = "the graph's input" if source == INPUT else f"the output of {source}"
        before += f" ({readers[source]} layers read it)" if readers[source] > 1 else ""
        after = "the graph's output follows" if last == graph.output else f"{readers[last]} layers follow"
        if readers[last] == 1:
            after = "a layer of several inputs follows"
        yield from _line([(join(path, name), graph.nodes[name].layer) for name in run], before, after)


def _graph_without(graph: Graph, gone: Collection[str], made: dict[Module, Graph]) -> Graph:
    def source(name: str) -> str:
        return source(graph.nodes[name].inputs[0]) if name in gone else name

    return Graph(
        {
            name: (made.get(layer, layer), *map(source, inputs))
            for name, (layer, inputs) in graph.nodes.items()
            if name not in gone
        }
    )
