"""Dropout: the mask is a function of seed, call and place, and backward sees forward's."""

import numpy as np
import pytest

from minidl import nn
from minidl.nn.init import manual_seed


def dropout(p: float, backend, seed: int = 11) -> nn.Dropout:
    manual_seed(seed)
    return nn.Dropout(p, device=backend)


def ones(backend, *shape: int) -> np.ndarray:
    return np.ones(shape, backend.dtype)


def test_backward_has_forwards_mask_and_scale(backend, normal) -> None:
    layer = dropout(0.3, backend)
    x, dy = normal(5, 7, 3), normal(5, 7, 3)
    for _ in range(3):
        y, dx = layer.forward(x), layer.backward(dy)
        scale = backend.dtype.type(1 / 0.7)
        kept = y != 0
        assert np.array_equal(y, np.where(kept, x * scale, 0))
        assert np.array_equal(dx, np.where(kept, dy * scale, 0))
        assert 0 < kept.sum() < kept.size


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p(p: float, backend) -> None:
    kept = np.count_nonzero(dropout(p, backend).forward(ones(backend, 40_000)))
    # Binomial: five standard deviations happen once in a million, and the seed is fixed.
    assert abs(kept - 40_000 * (1 - p)) < 5 * np.sqrt(40_000 * p * (1 - p))


def test_p_0_and_evaluation_are_the_identity(backend, normal, same_bits) -> None:
    x, dy = normal(6, 5), normal(6, 5)
    for layer in (dropout(0.0, backend), dropout(0.5, backend).eval(), dropout(1.0, backend).eval()):
        assert same_bits(layer.forward(x), x)
        assert same_bits(layer.backward(dy), dy)
        assert layer.calls == 0  # no mask was drawn


def test_p_1_is_zero(backend, normal) -> None:
    layer = dropout(1.0, backend)
    x = normal(6, 5)
    x[0, 0] = np.nan
    assert not layer.forward(x).any()
    assert not layer.backward(x).any()


def test_each_call_and_each_layer_has_a_mask_of_its_own(backend) -> None:
    x = ones(backend, 1000)
    layer = dropout(0.5, backend)
    second = nn.Dropout(0.5, device=backend)  # of the same seed, the next layer
    masks = [layer.forward(x).copy(), layer.forward(x).copy(), second.forward(x).copy()]
    assert layer.calls == 2
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Independent halves agree in about half of the places: 500 ± 16.
        assert 400 < np.count_nonzero(masks[a] == masks[b]) < 600


def test_masks_are_a_function_of_the_seed_and_the_same_on_every_device(cpu, reference) -> None:
    def masks(seed: int, backend) -> np.ndarray:
        layer = dropout(0.4, backend, seed)
        return np.stack([layer.forward(ones(backend, 5, 41)) != 0 for _ in range(3)])

    first = masks(5, cpu)
    assert np.array_equal(first, masks(5, cpu))
    assert np.array_equal(first, masks(5, reference))
    assert not np.array_equal(first, masks(6, cpu))


def test_a_run_that_sets_calls_goes_on_where_the_other_stopped(backend) -> None:
    whole, rest = dropout(0.5, backend), dropout(0.5, backend)
    expected = [whole.forward(ones(backend, 64)).copy() for _ in range(4)]
    rest.calls = 2
    assert np.array_equal(rest.forward(ones(backend, 64)), expected[2])
    assert np.array_equal(rest.forward(ones(backend, 64)), expected[3])


def test_the_mask_depends_on_the_place_alone(cpu) -> None:
    """Not on how the work is cut into pieces: a long draw begins like a short one."""
    short = dropout(0.5, cpu).forward(ones(cpu, 1001)).copy()
    assert np.array_equal(dropout(0.5, cpu).forward(ones(cpu, 300_007))[:1001], short)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_must_be_a_probability(p: float) -> None:
    with pytest.raises(ValueError, match=f"Dropout: p is a probability, expected 0 to 1, got {p}"):
        nn.Dropout(p)
    assert repr(nn.Dropout(0.25)) == "Dropout(p=0.25)"
