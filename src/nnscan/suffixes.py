"""Suffixes: the part of a network behind a layer, run alone on changed maps of that layer.

The network is traced into a graph and cut:

    x -> incoming -> [layer] -> output -> [chain] -> maps -> [reader] -> entry -> [tail] -> scores

The *chain* is what follows the layer channel by channel (normalisation, activation, pooling): behind it a change of one
channel is still a change of that channel alone, and often none at all. The *reader* is the convolution or linear map
that alone reads the maps, if there is one. It is linear: when channels change, its output changes by what it makes of
their difference, so that the largest operation behind a layer is not run again for channels that stayed as they were.
Results are those of the whole network up to rounding, of the size that the unchanged values have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node, symbolic_trace
from torch.fx.proxy import TraceError

from nnscan.models import capture, device_of, logits

log = logging.getLogger(__name__)

PASS_BYTES = 8 * 2**20
"""Size of the entry values of one pass through the tail: enough to fill two cores, little enough for their caches."""

_PROBES = 7  # samples that, with one more, show whether the parts together are the network

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),  # nothing in evaluation mode
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_CHANNELWISE_CALLS = frozenset(
    (
        *(torch.relu, nn.functional.relu, nn.functional.dropout, "relu", "relu_"),
        *(nn.functional.max_pool2d, nn.functional.avg_pool2d),
        *(nn.functional.adaptive_max_pool2d, nn.functional.adaptive_avg_pool2d),
    )
)


@dataclass(frozen=True)
class Kept:
    """What a suffix needs of some samples.

    Attributes:
        maps: The layer's output behind the chain, (n, C, ...).
        entry: What enters the tail, (n, ...): the reader's output, or the maps themselves.
        others: What the tail needs besides, such as shortcuts past the layer; tensors by sample are (n, ...).
        scores: Class scores of the unchanged network, (n, classes).
    """

    maps: Tensor
    entry: Tensor
    others: tuple[Any, ...]
    scores: Tensor


@dataclass(frozen=True)
class Change:
    """Channels that are replaced for some samples.

    Attributes:
        samples: Which of the kept samples, (P,).
        channels: Which channels, (c,), at least one.
        maps: Their new values behind the chain, (P, c, ...), or (1, c, ...) for the same in each sample.
    """

    samples: Tensor
    channels: Tensor
    maps: Tensor


class Suffix:
    """The part of a network behind a layer. The network must be in evaluation mode whenever it is used.

    Attributes:
        layer: The layer itself: output = layer(incoming).
        chain: maps = chain(output); output may be changed in place.
        flat: Whether the layer's output is (N, C), without further axes.
    """

    def __init__(self, graph: GraphModule, start: Node, flat: bool) -> None:
        """Cut a traced network at a call of a layer."""
        self.flat = flat
        path = _chain(graph, start)
        reading = _reading(graph, path[-1], flat)
        first = [*path, *reading][-1]
        nodes = [node for node in graph.graph.nodes if node.op != "output"]
        (output,) = graph.graph.find_nodes(op="output")
        varying = _reached(nodes, {node for node in nodes if node.op == "placeholder"})
        behind = _reached(nodes, {start})
        constant = [node for node in nodes if node not in varying]
        before = [node for node in nodes if node not in behind]
        rest = [*(node for node in nodes if node in behind - {*path, *reading}), output]
        needed = dict.fromkeys(source for node in rest for source in node.all_input_nodes)
        others = [node for node in needed if node in varying and node not in rest and node is not first]
        self.layer = graph.get_submodule(str(start.target))
        self.chain: Callable[[Tensor], Tensor] = _part(graph, [start], path[1:], path[-1])
        self._before = _part(graph, [], before, (*start.all_input_nodes, *others))
        self._reader = graph.get_submodule(str(reading[-1].target)) if reading else None
        self._read: Callable[[Tensor], Tensor] = _part(graph, [path[-1]], reading, first)
        self._tail = _part(graph, [first, *others], [*constant, *rest], None)

    def before(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the layer's input for samples x (n, C, H, W), and what else the part behind it needs of them."""
        incoming, *others = self._before(x.clone())  # a network may change its input in place
        return incoming, tuple(others)

    def keep(self, incoming: Tensor, others: tuple[Any, ...]) -> Kept:
        """Return what is needed to change these samples' maps, from the result of `before`."""
        maps = self.chain(self.layer(incoming))
        entry = self._read(maps)
        everyone = torch.arange(len(maps), device=maps.device)
        return Kept(maps, entry, others, self._scores(others, everyone, len(maps), entry.clone()))

    def scores(self, kept: Kept, changes: Iterable[Change]) -> Tensor:
        """Return the class scores (sum of P, classes) of the changed samples, one change after the other."""
        changes = list(changes)
        entry = torch.cat([self._changed(kept, change) for change in changes])
        return self._scores(kept.others, torch.cat([change.samples for change in changes]), len(kept.maps), entry)

    def passes(self, kept: Kept, affected: Tensor) -> Iterator[Tensor]:
        """Yield the indices (P, axes) of what is true in a mask, in order, as many as make a pass at a time."""
        indices, size = affected.nonzero(), max(1, PASS_BYTES // kept.entry[0].nbytes)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

    def _changed(self, kept: Kept, change: Change) -> Tensor:
        """Return what enters the tail."""
        entry = kept.entry[change.samples]
        if self._reader is None:
            entry[:, change.channels] = change.maps
            return entry
        difference = change.maps - kept.maps[change.samples[:, None], change.channels]
        weight: Tensor = self._reader.weight  # type: ignore[assignment]
        by_channel = weight.reshape(len(weight), kept.maps.shape[1], -1, *weight.shape[2:])
        read = {"weight": by_channel[:, change.channels].flatten(1, 2)}
        if self._reader.bias is not None:
            read["bias"] = torch.zeros_like(self._reader.bias)  # type: ignore[arg-type]
        flat = difference.flatten(1) if isinstance(self._reader, nn.Linear) else difference
        return entry.add_(functional_call(self._reader, read, (flat,)))

    def _scores(self, others: tuple[Any, ...], samples: Tensor, count: int, entry: Tensor) -> Tensor:
        """Run the tail, which may change its arguments in place: they are copies."""
        chosen = [
            value[samples] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
            for value in others
        ]
        return logits(self._tail(entry, *chosen))


@contextmanager
def zeroed(layer: nn.Module, channels: Sequence[int]) -> Iterator[None]:
    """Zero channels of a layer's output inside the block; the hook is removed afterwards."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, list(channels)] = 0
        return output

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def find_suffix(model: nn.Module, layer: str, x: Tensor) -> Suffix | None:
    """Return the part of a network behind a layer; None, with a line in the log, where it cannot be run alone.

    That is so where the network cannot be traced, calls the layer not exactly once, or does not treat each sample on
    its own: a few samples must have the same scores in another order and number.

    Args:
        model: The network, in evaluation mode.
        layer: The name of a module whose output is (N, C, ...).
        x: Inputs (N, C, H, W).
    """
    try:
        graph = symbolic_trace(model)
    except (TraceError, TypeError, ValueError, RuntimeError) as error:
        log.info("the part behind %s cannot be run alone: the network cannot be traced (%s)", layer, error)
        return None
    calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1 or len(calls[0].all_input_nodes) != 1:
        log.info("the part behind %s cannot be run alone: it is called %d times", layer, len(calls))
        return None
    with torch.no_grad():
        probes = torch.cat([x[:_PROBES], x[:1] / 2]).to(device_of(model))  # all samples may be alike
        with capture(model, [layer]) as outputs:
            model(probes.clone())
        suffix = Suffix(graph, calls[0], outputs[layer].ndim == 2)
        try:
            faithful = _is_faithful(suffix, model, probes, torch.zeros_like(outputs[layer][:1]))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            log.info("the part behind %s cannot be run alone: %s", layer, error)
            return None
    if not faithful:
        log.info("the part behind %s cannot be run alone: the network does not treat each sample on its own", layer)
    return suffix if faithful else None


def _is_faithful(suffix: Suffix, model: nn.Module, probes: Tensor, zeros: Tensor) -> bool:
    """Return whether the suffix says what the network says, also of every other channel zeroed, in another order."""
    intact = logits(model(probes.clone()))
    with zeroed(suffix.layer, range(0, zeros.shape[1], 2)):
        expected = logits(model(probes.clone()))
    order = torch.arange(len(probes) + 1, device=probes.device).flip(0) % len(probes)
    channels = torch.arange(0, zeros.shape[1], 2, device=probes.device)
    kept = suffix.keep(*suffix.before(probes))
    found = suffix.scores(kept, [Change(order, channels, suffix.chain(zeros)[:, channels])])
    rounding = torch.finfo(intact.dtype).eps ** 0.5 * float(torch.maximum(intact.abs(), expected.abs()).max())
    return all(
        ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=rounding)
        for ours, theirs in ((kept.scores, intact), (found, expected[order]))
    )


def _reached(nodes: Sequence[Node], sources: set[Node]) -> set[Node]:
    """Return the sources and all nodes that depend on them."""
    found = set(sources)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _part(graph: GraphModule, given: Sequence[Node], nodes: Sequence[Node], result: Any) -> Any:
    """Return a module of some nodes in their order; it takes the given ones' values and returns the result's.

    The network's own modules are used, not copies. Without a result the nodes hold the network's output.
    """
    part = Graph()
    copies = {node: part.placeholder(node.name) for node in given}
    chosen = set(nodes)
    for node in (node for node in graph.graph.nodes if node in chosen):
        copies[node] = part.node_copy(node, copies.__getitem__)
    if result is not None:
        part.output(tuple(map(copies.__getitem__, result)) if isinstance(result, tuple) else copies[result])
    return GraphModule(graph, part)


def _follower(node: Node) -> Node | None:
    """Return the only consumer of a node's value, if it reads nothing else."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None


def _chain(graph: GraphModule, start: Node) -> list[Node]:
    """Return the layer's node and those that follow it channel by channel."""
    path = [start]
    while (node := _follower(path[-1])) is not None and _is_channelwise(graph, node):
        path.append(node)
    return path


def _is_channelwise(graph: GraphModule, node: Node) -> bool:
    if node.op != "call_module":
        return node.target in _CHANNELWISE_CALLS and not node.kwargs.get("return_indices")
    module = graph.get_submodule(str(node.target))
    if isinstance(module, _NORMALISATIONS):
        return module.running_mean is not None  # without, it looks at the whole batch
    return isinstance(module, _CHANNELWISE) and not getattr(module, "return_indices", False)


def _reading(graph: GraphModule, maps: Node, flat: bool) -> list[Node]:
    """Return the nodes of the reader: a convolution, or a linear map of flat maps; none where there is no reader."""
    node = _follower(maps)
    flattening: list[Node] = []
    if node is not None and _is_flattening(graph, node):
        flattening = [node]
        node = _follower(node)
    if node is None or node.op != "call_module":
        return []
    module = graph.get_submodule(str(node.target))
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own:  # it is computed from others, which a slice of it would not fit
        return []
    if isinstance(module, _CONVOLUTIONS):
        return [node] if not flattening and module.groups == 1 else []
    return [*flattening, node] if isinstance(module, nn.Linear) and (flattening or flat) else []


def _is_flattening(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    return node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs
