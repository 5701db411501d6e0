"""Graph: layers wired as a directed acyclic graph; its gradients against PyTorch, and what it refuses."""

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn


def diamond(device) -> nn.Graph:
    """Values that several layers read, the input among them; a sum of three; channels side by side."""
    return nn.Graph(
        {
            "stem.conv": (nn.Conv2d(2, 4, 3, padding=1, device=device), "input"),
            "stem.relu": (nn.ReLU(device=device), "stem.conv"),
            "left": (nn.Conv2d(4, 4, 1, device=device), "stem.relu"),
            "right": (nn.Conv2d(4, 4, 3, padding=1, device=device), "stem.relu"),
            "sum": (nn.Add(device=device), "left", "stem.relu", "right"),
            "joined": (nn.ConcatChannels(device=device), "sum", "input", "left"),
            "bn": (nn.BatchNorm2d(10, device=device), "joined"),
            "twice": (nn.Add(device=device), "bn", "bn"),
            "pool": (nn.GlobalAvgPool2d(device=device), "twice"),
            "pixel": (nn.OnePixel(device=device), "pool"),
            "last": (nn.Conv2d(10, 3, 1, device=device), "pixel"),
        }
    )


@pytest.fixture
def twin(torch):
    class Diamond(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Sequential()
            self.stem.add_module("conv", torch.nn.Conv2d(2, 4, 3, padding=1))
            self.left = torch.nn.Conv2d(4, 4, 1)
            self.right = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.bn = torch.nn.BatchNorm2d(10)
            self.last = torch.nn.Conv2d(10, 3, 1)

        def forward(self, x):
            stem = self.stem(x).relu()
            left = self.left(stem)
            joined = self.bn(torch.cat([left + stem + self.right(stem), x, left], dim=1))
            return self.last((joined + joined).mean((2, 3), keepdim=True))

    return Diamond()


def test_outputs_gradients_and_state_are_pytorchs(reference, oracle, passes, twin, rng) -> None:
    graph = diamond(reference)
    oracle.load(twin, graph)
    x, dy = rng.standard_normal((3, 5, 4, 2)), rng.standard_normal((3, 1, 1, 3))
    ours, theirs = passes(graph, x, dy), oracle.run(twin, x, dy)
    assert list(ours.state) == list(theirs.state)
    for mine, other in ((ours.y, theirs.y), (ours.dx, theirs.dx)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-13)
    for part in ("grads", "state"):
        for name, value in getattr(theirs, part).items():
            np.testing.assert_allclose(getattr(ours, part)[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_a_gradient_that_several_readers_share_is_not_changed(reference, rng) -> None:
    """Each input of a sum has the sum's own gradient; what another reader adds to it for one is not for all."""
    graph = nn.Graph(
        {
            "twice": (nn.Scale(2.0, device=reference), "input"),
            "relu": (nn.ReLU(device=reference), "input"),
            "thrice": (nn.Scale(3.0, device=reference), "relu"),
            "sum": (nn.Add(device=reference), "relu", "twice", "thrice"),
        }
    )
    x, dy = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    given = dy.copy()
    np.testing.assert_allclose(graph.forward(x), 2 * x + 4 * np.maximum(x, 0), rtol=1e-15)
    np.testing.assert_allclose(graph.backward(dy), (2 + 4 * (x > 0)) * given, rtol=1e-15)
    assert np.array_equal(dy, given)


def test_a_second_backward_needs_a_second_forward(cpu, normal) -> None:
    graph = diamond(cpu)
    y = graph.forward(normal(2, 5, 4, 2).astype(np.float32))
    graph.backward(np.ones_like(y))
    with pytest.raises(RuntimeError, match="there is no forward pass to go back through"):
        graph.backward(np.ones_like(y))


def test_a_gradient_of_the_input_that_a_layer_does_not_give_is_none(cpu) -> None:
    graph = diamond(cpu)
    graph.nodes["stem.conv"].layer.input_gradient = False
    y = graph.forward(np.ones((2, 5, 4, 2), np.float32))
    assert graph.backward(np.ones_like(y)) is None


def test_activations_are_dropped_when_their_last_reader_has_run(cpu) -> None:
    import weakref

    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append([reference() is not None for reference in alive])
            y = x + np.float32(1)
            alive.append(weakref.ref(y))
            return y

    alive: list = []
    graph = nn.Graph({"a": (Spy(), "input"), "b": (Spy(), "a"), "c": (Spy(), "b"), "d": (Spy(), "c")})
    with nn.inference():
        graph.forward(np.zeros(3, np.float32))
    assert seen == [[], [True], [False, True], [False, False, True]]


def test_it_moves_and_switches_as_a_whole(reference, normal) -> None:
    graph = diamond("cpu").to(reference).eval()
    assert all(module.backend is reference and not module.training for _, module in graph.named_modules())
    assert graph.forward(np.ones((2, 5, 4, 2))).dtype == np.float64


def test_its_words_show_the_wiring(cpu) -> None:
    assert "(joined): ConcatChannels() <- sum, input, left" in repr(diamond(cpu))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({}, "needs at least one layer"),
        ({"a": (nn.ReLU(),)}, "layer a has no input"),
        ({"a": (nn.ReLU(), "b"), "b": (nn.ReLU(), "input")}, "layer a has the input b, which is no earlier layer"),
        ({"a": (nn.ReLU(), "input"), "b": (nn.ReLU(), "input", "a")}, "layer b has 2 inputs, a ReLU has one"),
        ({"a": (nn.ReLU(), "input"), "b": (nn.ReLU(), "input")}, "nothing uses the output of a"),
        ({"input": (nn.ReLU(), "input")}, "'input' is the name of what the network is given"),
        ({"a": (nn.ReLU(), "input"), "a.b": (nn.ReLU(), "a")}, "a is a layer, so a.b cannot be inside it"),
        ({"a.b": (nn.ReLU(), "input"), "a": (nn.ReLU(), "a.b")}, "'a' cannot be a layer's name"),
        ({"forward": (nn.ReLU(), "input")}, "'forward' cannot be a layer's name"),
    ],
)
def test_a_wiring_that_cannot_be_is_refused(nodes, message) -> None:
    with pytest.raises(ValueError, match=message):
        nn.Graph(nodes)


def test_a_layer_stands_in_one_place() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match="layer b stands in two places"):
        nn.Graph({"a": (relu, "input"), "b": (relu, "a")})


def test_shapes_that_cannot_be_joined_are_refused() -> None:
    a, b = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ShapeError, match=r"Add: the inputs have shapes \(2, 3\) and \(2, 4\)"):
        nn.Add().join([a, b])
    with pytest.raises(ShapeError, match=r"ConcatChannels: the inputs have shapes \(2, 3\), \(4, 2\)"):
        nn.ConcatChannels().join([a, b.T.copy()])
