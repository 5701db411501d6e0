"""A training step as a whole, minidl's and PyTorch's: forward, loss, backward, SGD with momentum, on one batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minidl import nn, optim
from minidl.backends import Backend
from minidl.lab.bench.networks import CLASSES, Network, counterpart
from minidl.lab.bench.operations.problem import Answers, Call, Input, normal
from minidl.lab.bench.peer import TorchPeer

LR, MOMENTUM = 1e-3, 0.9
CHECKED = 3  # steps whose losses and weights are compared before anything is timed


class Step(NamedTuple):
    """A side's step: `call` makes one and answers the loss; `state` has weights and statistics by PyTorch's names."""

    call: Call
    state: Callable[[], Mapping[str, np.ndarray]]


def batch_of(network: Network, images: int, seed: int = 0) -> dict[str, Input]:
    """Images and targets."""
    rng = np.random.default_rng(seed)
    return {
        "x": Input(normal(rng, (images, *network.image_shape)), "activation"),
        "targets": Input(rng.integers(0, CLASSES, images).astype(np.int64)),
    }


def our_step(backend: Backend, network: Network, batch: Mapping[str, Input], seed: int = 0) -> Step:
    """As `minidl train` makes it: fused, without the gradient of the images."""
    nn.manual_seed(seed)
    model = network.build()
    model.to(backend)
    nn.fuse(model)
    first: Any = model[0]
    if isinstance(first, nn.Conv2d | nn.Linear):
        first.input_gradient = False
    criterion = nn.CrossEntropyLoss(device=backend)
    optimizer = optim.SGD(model.parameters(), LR, MOMENTUM)
    x, targets = (backend.array(given.value, given.value.dtype) for given in batch.values())

    def run() -> Answers:
        optimizer.zero_grad()
        loss = criterion.forward(model.forward(x), targets)
        model.backward(criterion.backward())
        optimizer.step()
        return {"loss": loss}

    return Step(Call(run), model.state_dict)


def captured(backend: Any, step: Step) -> Step:
    """Our step as a CUDA graph."""
    graph = backend.capture(step.call.run)

    def run() -> Answers:
        graph.replay()
        return {}

    return Step(Call(run), step.state)


def their_step(peer: TorchPeer, variant: str, network: Network, batch: Mapping[str, Input], seed: int = 0) -> Step:
    """PyTorch's, from the same weights."""
    torch, last = peer.torch, variant in ("channels-last", "compile", "graph-channels-last")
    nn.manual_seed(seed)
    model = counterpart(torch, network.build()).to(peer.device)
    if last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    x, targets = (peer.tensor(given, last) for given in batch.values())

    def forward(x: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), targets)

    function = peer.compiled(forward) if variant == "compile" else forward

    def run() -> Answers:
        optimizer.zero_grad(set_to_none=True)
        loss = function(x, targets)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    def state() -> Mapping[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}

    if variant.startswith("graph"):
        return Step(Call(_replayed(torch, run)), state)
    return Step(Call(run), state)


def _replayed(torch: Any, run: Callable[[], Answers]) -> Callable[[], Answers]:
    """As PyTorch's documentation does it: warmed up on a stream aside, then captured; steps made so are real ones."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(CHECKED):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = run()

    def replay() -> Answers:
        graph.replay()
        return answers

    return replay
