"""A training step as a whole, minidl's and PyTorch's: forward, loss, backward, SGD with momentum, on one batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minidl import nn, optim
from minidl.backends import Array, Backend
from minidl.data import Loader
from minidl.lab.bench.networks import CLASSES, Network, counterpart
from minidl.lab.bench.operations.problem import Answers, Call, Input, normal
from minidl.lab.bench.peer import TorchPeer
from minidl.training.loss_scale import loss_scale_of
from minidl.training.step import HostCounts, Plan, difference

LR, MOMENTUM = 1e-3, 0.9
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda model: optim.SGD(model.parameters(), LR, MOMENTUM),
    "adam": lambda model: optim.Adam(model.parameters(), LR),
}
PLANNED = 512  # steps whose numbers lie on the device at a time
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


class OurStep:
    """As `minidl train` makes it: fused, without the gradient of the images, the optimizer's numbers on the device.

    Args:
        backend: minidl's device.
        network: Which.
        batch: What `batch_of` gave.
        optimizer: One of OPTIMIZERS.
        seed: Of the weights.
    """

    def __init__(
        self, backend: Backend, network: Network, batch: Mapping[str, Input], optimizer: str = "sgd", seed: int = 0
    ) -> None:
        nn.manual_seed(seed)
        self.backend, self.model = backend, network.build()
        self.model.to(backend)
        nn.fuse(self.model)
        first: Any = self.model[0]
        if isinstance(first, nn.Conv2d | nn.Linear):
            first.input_gradient = False
        self.criterion = nn.CrossEntropyLoss(device=backend)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self._x, self._targets = (backend.array(given.value, given.value.dtype) for given in batch.values())
        self._plan = Plan(backend, Loader(PLANNED, 1, 0))
        self._counts = HostCounts(self.model, self.optimizer, None)
        self._left = 0  # steps that are still in the plan
        self._loss_scale = loss_scale_of(backend)

    def run(self) -> Answers:
        """Make a step, launch by launch."""
        self._plan_ahead()
        return {"loss": self._step()}

    def capture(self) -> Call:
        """Make a step and record it as a CUDA graph; the call replays it."""
        self._plan_ahead()
        snapshots: list[list[int]] = []

        def step() -> None:
            self._step()
            snapshots.append(self._counts.now())

        graph: Any = self.backend.capture(step)
        made, recorded = snapshots
        each, replayed = difference(recorded, made), 0
        self._counts.add(difference(made, recorded))

        def run() -> Answers:
            nonlocal replayed
            if not self._left:  # which is where the host must know how many steps there were
                self._counts.add([replayed * count for count in each])
                replayed = 0
            self._plan_ahead()
            graph.replay()
            replayed += 1
            return {}

        return Call(run)

    def _plan_ahead(self) -> None:
        if not self._left:
            self._plan.write(0, 0, [LR] * PLANNED, self.optimizer, None)
            if self._loss_scale is not None:
                self._loss_scale.prepare(self.optimizer, self._plan.of_optimizer(self.optimizer))
            self._left = PLANNED
        self._left -= 1

    def _step(self) -> Array:
        self._plan.begin_step(1)
        self.optimizer.zero_grad()
        loss = self.criterion.forward(self.model.forward(self._x), self._targets)
        dlogits, numbers = self.criterion.backward(), self._plan.of_optimizer(self.optimizer)
        if self._loss_scale is not None:
            self._loss_scale.scale(dlogits)
        self.model.backward(dlogits)
        if self._loss_scale is not None:
            self._loss_scale.settle(self.model, numbers)
        self.optimizer.step(numbers)
        return loss


def our_step(
    backend: Backend, network: Network, batch: Mapping[str, Input], optimizer: str = "sgd", seed: int = 0
) -> Step:
    """Ours, launch by launch."""
    made = OurStep(backend, network, batch, optimizer, seed)
    return Step(Call(made.run), made.model.state_dict)


def our_captured_step(
    backend: Backend, network: Network, batch: Mapping[str, Input], optimizer: str = "sgd", seed: int = 0
) -> Step:
    """Ours as a CUDA graph; two steps are made already, of which the first finds what memory it needs."""
    made = OurStep(backend, network, batch, optimizer, seed)
    made.run()
    return Step(made.capture(), made.model.state_dict)


def their_step(peer: TorchPeer, variant: str, network: Network, batch: Mapping[str, Input], seed: int = 0) -> Step:
    """PyTorch's, from the same weights."""
    torch, last = peer.torch, variant in ("channels-last", "compile", "graph-channels-last")
    nn.manual_seed(seed)
    model = counterpart(torch, network.build()).to(peer.device)
    if last:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    scaled, graph = peer.precision == "fp16", variant.startswith("graph")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=scaled or None)
    scaler = torch.amp.GradScaler(peer.device, enabled=scaled)
    x, targets = (peer.tensor(given, last) for given in batch.values())

    def forward(x: Any, targets: Any) -> Any:
        with peer.autocast(graph):
            return torch.nn.functional.cross_entropy(model(x), targets)

    function = peer.compiled(forward) if variant == "compile" else forward

    def run() -> Answers:
        optimizer.zero_grad(set_to_none=True)
        loss = function(x, targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"loss": loss.detach()}

    def state() -> Mapping[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}

    if graph:
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
