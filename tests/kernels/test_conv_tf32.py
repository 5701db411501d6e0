"""Convolution in TF32, by each technique on tensor cores. Whole, small numbers make every sum exact, in TF32 too."""

import re

import numpy as np
import pytest
from convolutions import CALLS, Case, arguments, expected, name, products, whole
from emulated import launched, placed
from numpy.testing import assert_array_equal

from kernels.conv import conv2d_backward_input, conv2d_backward_weight, conv2d_forward
from kernels.errors import TechniqueError
from kernels.matmul import tensor_tiles, wgmma_tiles
from kernels.run_emulated import EmulatorRunner

TECHNIQUES = {"tensor_core": tensor_tiles, "wgmma": wgmma_tiles}


@pytest.fixture(params=TECHNIQUES)
def technique(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 1, 1, 4), (1, 1), 4),
        Case((0, 5, 5, 4), (3, 3), 8, padding=(1, 1)),  # no image
        Case((2, 5, 7, 4), (3, 3), 8, padding=(1, 1)),
        Case((1, 7, 6, 20), (1, 1), 12),
        Case((1, 7, 5, 12), (2, 3), 24, (3, 2), (1, 2)),  # phases with more taps than others
        Case((1, 5, 6, 8), (1, 1), 4, (2, 3)),  # and without any
        Case((1, 2, 3, 4), (5, 4), 8, (2, 3), (3, 2)),  # a kernel larger than the image
        Case((1, 4, 5, 64), (3, 3), 4, padding=(1, 1)),  # slices of taps
        Case((3, 13, 14, 4), (1, 1), 8, padding=(1, 0)),  # slices of pixels
    ],
    ids=name,
)
def test_products_of_whole_numbers_are_exact(rng, technique: str, case: Case) -> None:
    x, w, dy = (whole(rng, shape) for shape in (case.x, case.w, case.y))
    found = products(case, x, w, dy, technique=technique)
    for which, right in expected(case, x, w, dy).items():
        assert_array_equal(found[which], right, err_msg=which)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "case",
    [
        Case((1, 4, 5, 4), (3, 3), 8, padding=(1, 1)),
        Case((1, 5, 7, 8), (3, 2), 4, (2, 3), (2, 1)),
        Case((1, 3, 2, 4), (3, 3), 60, padding=(1, 1)),  # slices
    ],
    ids=name,
)
def test_what_is_not_finite_goes_where_the_definition_says(rng, technique: str, case: Case, value: float) -> None:
    """In every factor, at a border: with the padding's zeros, but not with a dy that does not exist."""
    for hostile in ("x", "w", "dy"):
        arrays = {"x": whole(rng, case.x), "w": whole(rng, case.w), "dy": whole(rng, case.y)}
        arrays[hostile].reshape(-1)[0 if hostile == "w" else -1] = value
        found = products(case, **arrays, technique=technique)
        for which, right in expected(case, **arrays).items():
            assert_array_equal(found[which], right, err_msg=f"{which} of {hostile}")


def test_factors_are_rounded_to_nearest_with_ties_away_from_zero(technique: str) -> None:
    unit = 2.0**-10  # of TF32, at 1
    given = [1 + unit / 2, 1 + unit / 2 - 2.0**-23, -1 - unit / 2, 1 + unit / 2 + unit]
    rounded = [1 + unit, 1, -1 - unit, 1 + 2 * unit]
    case = Case((1, 2, 2, 4), (1, 1), 4)
    x, w = placed(np.diag(given).reshape(case.x)), placed(np.eye(4).reshape(case.w))
    found = products(case, x, w, placed(np.diag(given).reshape(case.y)), technique=technique)
    for which in ("y", "dx"):
        assert_array_equal(np.diag(found[which].reshape(4, 4)), rounded)
    assert_array_equal(np.diag(found["dw"].reshape(4, 4)), np.square(rounded).astype(np.float32))
    weights = products(case, placed(np.eye(4).reshape(case.x)), placed(np.diag(given).reshape(case.w)),
                       placed(np.eye(4).reshape(case.y)), technique=technique)  # fmt: skip
    for which in ("y", "dx"):
        assert_array_equal(np.diag(weights[which].reshape(4, 4)), rounded)


# Images of 8x8, as in a late stage of a network, with a tile each way.
REPRESENTATIVE = Case((2, 8, 8, 32), (3, 3), 64, padding=(1, 1))


def test_memory_moves_what_is_asked_for_and_banks_do_not_conflict(technique: str) -> None:
    """At least 95 % of the bytes moved are asked for; no more than 5 % of the passes over the banks are conflicts."""
    tiles = TECHNIQUES[technique]
    case, run = REPRESENTATIVE, EmulatorRunner(checks=False, counts=True)
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    conv2d_forward(run, x, w, None, y, *case.window, technique=technique)
    conv2d_backward_input(run, y, w, x, *case.window, technique=technique)
    conv2d_backward_weight(run, x, y, w, *case.window, technique=technique)
    own = [
        one
        for one in run.launched
        if re.fullmatch(rf"conv2d_[a-z_]*(forward|input|weight)_{technique}", one.kernel.name)
    ]
    assert [one.kernel.arguments[0] for one in own] == [tiles.WIDE, tiles.NARROW, tiles.WIDE]
    for one in own:
        total = one.report.counts.total
        assert total.bytes_asked >= 0.95 * total.bytes_moved
        assert total.bank_conflicts <= 0.05 * total.shared_passes
        # A tile reads for each of its rows and columns what one element needs of x and w, once.
        tile = one.kernel.arguments[0]
        assert total.load_bytes <= 4 * total.flops["tf32"] / 2 * (1 / tile.rows + 1 / tile.columns)
        assert 1 <= total.flops["tf32"] / case.geometry.work(2) <= 1.4  # the last tile of dw is a part
        assert not total.flops["float64"]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case((1, 4, 4, 6), (3, 3), 8), "c_in 6 is no multiple of 4"),
        (Case((1, 4, 4, 8), (3, 3), 7), "c_out 7 is no multiple of 4"),
    ],
    ids=["c_in", "c_out"],
)
def test_channels_that_it_cannot_take(technique: str, case: Case, why: str) -> None:
    for host, arrays in zip(CALLS, arguments(case), strict=True):
        with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot .* '{technique}': {why}; implicit_gemm"):
            host(EmulatorRunner(), *arrays, *case.window, technique=technique)
        assert not any(kernel.endswith(technique) for kernel in launched(host, *arrays, *case.window, precision="tf32"))


def test_a_shorter_batch_runs_the_same_kernels(technique: str) -> None:
    case, kernels = Case((8, 16, 16, 16), (3, 3), 16, padding=(1, 1)), []
    for n in (8, 5):
        x, w, y = (placed(np.zeros(shape)) for shape in ((n, *case.x[1:]), case.w, (n, *case.y[1:])))
        names = launched(conv2d_forward, x, w, None, y, *case.window, technique=technique)
        names += launched(conv2d_backward_input, y, w, x, *case.window, technique=technique)
        kernels.append(names)
    assert kernels[0] == kernels[1]
