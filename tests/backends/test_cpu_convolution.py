"""Convolution on the CPU: exact on whole numbers, whatever the geometry and however it is cut and shared out."""

import functools
from typing import Any

import numpy as np
import pytest
from cpu_convolutions import (
    CUTS,
    Answers,
    Array,
    Arrays,
    Case,
    Cut,
    Surrounded,
    arrays,
    chained,
    chained_references,
    cut_into,
    ordinary,
    plain,
    plain_references,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.backends.cpu import CpuBackend, batchnorm_loops
from minidl.backends.cpu.blocks import WIDTH
from minidl.backends.cpu.convolution_plan import (
    COLUMN,
    COLUMNS,
    KH,
    KW,
    LEFT,
    LINES,
    R_FIRST,
    R_STEP,
    ROW,
    S_FIRST,
    S_STEP,
    TOP,
    WEIGHTS,
    Plan,
)
from minidl.backends.cpu.convolution_windows import pack_weights

CASES = {
    "3x3": Case((3, 9, 8, 17), (3, 3), 33, padding=(1, 1)),
    "3x3 with stride 2": Case((2, 9, 12, 5), (3, 3), 40, (2, 2), (1, 1)),
    "1x1": Case((5, 6, 7, 16), (1, 1), 32),
    "1x1 with stride 2, phases without taps": Case((2, 7, 6, 8), (1, 1), 70, (2, 2)),
    "1x1 with stride 3 and padding, no tap meets the image": Case((2, 1, 1, 6), (1, 1), 5, (3, 3), (1, 1)),
    "7x7 with stride 2": Case((2, 15, 14, 3), (7, 7), 20, (2, 2), (3, 3)),
    "5x1": Case((2, 11, 4, 6), (5, 1), 9, (3, 1), (2, 0)),
    "padding beyond the kernel": Case((2, 4, 3, 7), (2, 3), 18, padding=(4, 5)),
    "an image smaller than the kernel": Case((2, 1, 2, 9), (5, 7), 3, padding=(2, 3)),
    "stride beyond the kernel": Case((1, 13, 11, 10), (2, 1), 4, (5, 4), (1, 0)),
    "a line that no window covers": Case((2, 7, 8, 6), (2, 2), 5, (3, 3)),
    "a column that no window covers": Case((2, 8, 7, 6), (2, 2), 5, (3, 3)),
    "one of everything": Case((1, 1, 1, 1), (1, 1), 1),
    "no images": Case((0, 5, 4, 6), (3, 2), 7, padding=(1, 0)),
    "a wide line": Case((2, 2, 300, 5), (2, 3), 6, padding=(0, 1)),
    "many images": Case((70, 3, 4, 6), (3, 3), 8, padding=(1, 1)),
    "many channels": Case((1, 4, 4, 70), (3, 3), 130, padding=(1, 1)),
    "few channels": Case((2, 6, 5, 2), (3, 3), 65, (1, 2), (1, 1)),
}


def agree(got: Answers, wanted: Answers) -> None:
    """Exactly; but statistics of y to what CHUNK float32 sums cost, and what is divided to a few roundings."""
    chunk = batchnorm_loops.CHUNK * 2.0**-24
    largest = np.abs(wanted["y"]).max(initial=0)
    tolerances = {
        "mean": {"rtol": 0, "atol": chunk * largest},
        "var": {"rtol": chunk * batchnorm_loops.CHUNK / batchnorm_loops.HEAD, "atol": 0},  # about a shift that is far
        "mean_g": {"rtol": 2.0**-23, "atol": 0},
        "slope": {"rtol": 2.0**-22, "atol": 0},
    }
    assert {*wanted} - {*got} <= {"mean"}
    for name, right in wanted.items():
        found = np.float64(got["shift"]) + got["delta"] if name == "mean" else got[name]
        if name in tolerances:
            np.testing.assert_allclose(found, right, **tolerances[name], err_msg=name)
        else:
            np.testing.assert_array_equal(found, right, err_msg=name)


def check(case: Case, seed: int) -> None:
    """All operations, on whole numbers."""
    rng = np.random.default_rng(seed)
    for relu in (True, False):
        arrays_of_case = arrays(case, rng, relu=relu)
        agree(plain(Surrounded(drains=relu), case, arrays_of_case), plain_references(case, arrays_of_case))
        for first in (False, True):
            wanted = chained_references(case, arrays_of_case, first)
            agree(chained(Surrounded(drains=relu), case, arrays_of_case, first), wanted)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_are_convolved_exactly(name: str, cut: str) -> None:
    with cut_into(CUTS[cut]):
        check(CASES[name], seed=1)


@st.composite
def geometries(draw: Any) -> Case:
    sizes, kernel, stride, padding = [], [], [], []
    for _ in range(2):
        taps, pad = draw(st.integers(1, 7)), draw(st.integers(0, 8))
        kernel.append(taps)
        padding.append(pad)
        stride.append(draw(st.integers(1, 5)))
        sizes.append(draw(st.integers(max(1, taps - 2 * pad), max(1, taps - 2 * pad) + 11)))
    channels = st.one_of(st.integers(1, 70), st.sampled_from([1, 4, 5, 8, 16, 17, 32, 64, 65]))
    x = draw(st.integers(0, 4)), *sizes, draw(channels)
    return Case(x, tuple(kernel), draw(channels), tuple(stride), tuple(padding))


cuts = st.builds(
    Cut,
    TILE_BYTES=st.sampled_from([1, 1 << 12, 1 << 14, 1 << 18]),
    PIECES=st.sampled_from([1, 3, 32]),
    WEIGHT_BYTES=st.sampled_from([1, 1 << 19]),
    CHUNK=st.sampled_from([1, 13, 128]),
    SHARES=st.sampled_from([1, 3, 16]),
    SHARED_BYTES=st.sampled_from([1, 1 << 22]),
    SHARE_PIXELS=st.sampled_from([1, 9, 256]),
)
drawn = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@drawn
@given(case=geometries(), cut=cuts, seed=st.integers(0, 99))
def test_any_geometry_is_convolved_exactly(case: Case, cut: Cut, seed: int) -> None:
    with cut_into(cut):
        check(case, seed)


@functools.cache
def cpu(threads: int) -> CpuBackend:
    return CpuBackend(threads)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_bits_do_not_depend_on_the_number_of_threads(name: str, cut: str) -> None:
    case, rng = CASES[name], np.random.default_rng(2)
    given_arrays = arrays(case, rng, ordinary)

    def answers(threads: int) -> Answers:
        found = {f"plain {name}": array for name, array in plain(cpu(threads), case, given_arrays).items()}
        for first in (False, True):
            answers = chained(cpu(threads), case, given_arrays, first)
            found |= {f"chained {first} {name}": array for name, array in answers.items()}
        return found

    with cut_into(CUTS[cut]):
        alone = answers(1)
        for threads in (2, 3, 5):
            for name, array in answers(threads).items():
                assert array.tobytes() == alone[name].tobytes(), f"{name} with {threads} threads"


class Noting(CpuBackend):
    """Notes which sums go through memory again."""

    def __init__(self) -> None:
        super().__init__(threads=2)
        self.noted: list[str] = []

    def batchnorm_statistics(self, *arguments: Any) -> None:
        self.noted.append("statistics")
        super().batchnorm_statistics(*arguments)

    def sum_gradients(self, *arguments: Any) -> None:
        self.noted.append("gradients")
        super().sum_gradients(*arguments)


@pytest.mark.parametrize(("cut", "noted"), [("splits", ["statistics", "gradients"]), ("images", [])])
def test_sums_of_a_tile_that_threads_share_wait_for_all_of_it(cut: str, noted: list[str]) -> None:
    """Else what another thread has yet to write would be summed; who is first is chance."""
    case, backend = CASES["many channels"], Noting()
    with cut_into(CUTS[cut]):
        assert {plan.splits > 1 for plan in case.plans} == {bool(noted)}
        chained(backend, case, arrays(case, np.random.default_rng(7)))
    assert backend.noted == noted


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_summed_over_tiles_does_not_depend_on_them(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(3)
    given_arrays = arrays(case, rng, ordinary)
    usual = plain(cpu(1), case, given_arrays) | {"g": chained(cpu(1), case, given_arrays)["dx"]}
    for cut in CUTS.values():
        with cut_into(cut):
            other = plain(cpu(1), case, given_arrays) | {"g": chained(cpu(1), case, given_arrays)["dx"]}
        for name in ("y", "dx", "g"):
            assert other[name].tobytes() == usual[name].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "w", "dy", "bias"])
@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("many images", "a wide line", "many channels", "no images")]
)
def test_what_is_not_a_number_goes_where_the_references_let_it(name: str, where: str, value: float) -> None:
    """Through the padding's zeros as well: infinity times 0 is NaN."""
    case, rng = CASES[name], np.random.default_rng(4)
    given_arrays = arrays(case, rng)
    array: Array = getattr(given_arrays, where)
    for place in {0, array.size // 2, array.size - 1}:
        before = array.flat[place]
        array.flat[place] = value
        agree(plain(Surrounded(), case, given_arrays), plain_references(case, given_arrays))
        if where == "w":
            with np.errstate(invalid="ignore", over="ignore"):
                wanted = chained_references(case, given_arrays)
            got = chained(Surrounded(), case, given_arrays)
            for output in ("y", "dx"):
                np.testing.assert_array_equal(got[output], wanted[output])
        array.flat[place] = before


@drawn
@given(case=geometries(), cut=cuts, seed=st.integers(0, 99), data=st.data())
def test_several_that_are_no_numbers_go_where_the_references_let_them(
    case: Case, cut: Cut, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    given_arrays = arrays(case, rng)
    for _ in range(data.draw(st.integers(1, 3))):
        array = getattr(given_arrays, data.draw(st.sampled_from(["x", "w", "dy", "bias"])))
        if array.size:
            array.flat[rng.integers(array.size)] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    with cut_into(cut):
        agree(plain(Surrounded(), case, given_arrays), plain_references(case, given_arrays))


def rows_of_tiles(plan: Plan) -> list[Array]:
    """By tile, the numbers of the rows of the result that it works out: phase by phase, as the loops do."""
    n, h, w, _ = plan.target
    number = np.arange(n * h * w).reshape(n, h, w)
    found = []
    for image in range(0, n, plan.together):
        for line in range(0, plan.height, plan.tile):
            lines = min(plan.tile, plan.height - line)
            rows = []
            for phase in plan.phases:
                high = min(line + lines, phase[LINES])
                down = phase[ROW] + np.arange(line, high) * plan.apart[0]
                across = phase[COLUMN] + np.arange(phase[COLUMNS]) * plan.apart[1]
                rows.append(number[image : image + plan.together][:, down][:, :, across].ravel())
            found.append(np.sort(np.concatenate(rows)))
    return found


@pytest.mark.parametrize("cut", CUTS)
def test_tiles_and_chunks_cover_each_row_once(cut: str) -> None:
    for case in CASES.values():
        with cut_into(CUTS[cut]):
            for plan in case.plans:
                n, h, w, _ = plan.target
                tiles = rows_of_tiles(plan)
                assert len(tiles) == plan.tiles
                np.testing.assert_array_equal(np.sort(np.concatenate([*tiles, []])), np.arange(n * h * w))
                starts, firsts = plan.chunks
                assert (np.diff(starts) > 0).all()
                assert (np.diff(starts) <= CUTS[cut].CHUNK).all()
                assert (len(firsts), firsts[-1], starts[-1]) == (plan.tiles + 1, len(starts) - 1, n * h * w)
                for t, tile in enumerate(tiles):
                    np.testing.assert_array_equal(np.arange(starts[firsts[t]], starts[firsts[t + 1]]), tile)
                assert 1 <= plan.splits <= max(1, -(-plan.target[3] // WIDTH))


@drawn
@given(case=geometries())
def test_phases_meet_every_tap_of_every_element_once(case: Case) -> None:
    """Counted from the definition: which (output, tap) an element of x takes part in, and where dy's line is."""
    for axis in (0, 1):
        size, taps, stride, pad = case.x[axis + 1], case.kernel[axis], case.stride[axis], case.padding[axis]
        met = set()
        place, many, first, count, tap, step = (
            (ROW, LINES, TOP, KH, R_FIRST, R_STEP) if axis == 0 else (COLUMN, COLUMNS, LEFT, KW, S_FIRST, S_STEP)
        )
        _, plan = case.plans
        for phase in np.unique(plan.phases[:, [place, many, first, count, tap, step]], axis=0):
            for i in range(phase[1]):
                u = phase[0] + i * stride
                assert u < size
                for k in range(phase[3]):
                    met.add((u, phase[2] + i + k, phase[4] + k * phase[5]))
        wanted = {
            (u, (u + pad - r) // stride, r) for u in range(size) for r in range(taps) if (u + pad - r) % stride == 0
        }
        assert met == wanted


@pytest.mark.parametrize("name", CASES)
def test_weights_are_packed_as_they_are_read(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(5)
    w = arrays(case, rng, ordinary).w
    for plan, turned in zip(case.plans, (False, True), strict=True):
        inputs, outputs = plan.source[3], plan.target[3]
        blocks = -(-outputs // WIDTH)
        packed = np.full(plan.weights, np.nan, np.float32)
        middle = len(plan.phases) * blocks // 2  # threads take ranges
        for first, last in ((0, middle), (middle, len(plan.phases) * blocks)):
            pack_weights(first, last, w, turned, plan.phases, packed)
        wanted = []
        for phase in plan.phases:
            rows = phase[R_FIRST] + np.arange(phase[KH]) * phase[R_STEP]
            columns = phase[S_FIRST] + np.arange(phase[KW]) * phase[S_STEP]
            taps = w[rows][:, columns] if phase[KH] * phase[KW] else w[:0, :0]
            taps = np.swapaxes(taps, 2, 3) if turned else taps
            full = np.zeros((*taps.shape[:3], blocks * WIDTH), np.float32)
            full[..., :outputs] = taps
            assert phase[WEIGHTS] == sum(map(len, wanted))
            by_block = full.reshape(-1, inputs, blocks, WIDTH).transpose(2, 0, 1, 3)
            wanted.append(by_block.ravel())
        np.testing.assert_array_equal(packed, np.concatenate(wanted))


def test_arrays_of_a_case_are_as_said() -> None:
    """Else the tests above would prove nothing."""
    case = CASES["3x3 with stride 2"]
    made: Arrays = arrays(case, np.random.default_rng(6))
    for array in (made.x, made.w, made.dy, made.before.beta, made.pending.sums.slope):
        assert array.dtype == np.float32
        assert (array == np.rint(array)).all()
        assert len(np.unique(array)) > 2
    answers = chained_references(case, made)
    assert 0.2 < (answers["dx"] == 0).mean() < 0.8  # ReLU stops a part
    assert max(np.abs(answers[name]).max() for name in ("y", "dx", "dw", "dgamma")) < 2**22
