"""What is made of timings."""

import time

import numpy as np
import pytest

from minidl.backends.cpu.threads import Workers
from minidl.lab.bench.clocks import RESTS, WARM_UPS, CpuClock, Spread, interleave, ratios, spread
from minidl.lab.bench.operations import Call


def test_spread_is_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratios_are_of_neighbours_and_above_1_where_ours_is_faster() -> None:
    # The machine became 10 times slower on the way; neighbours do not mind.
    assert ratios([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == Spread(2.0, 2.0, 3.0)


def test_sides_run_by_turns_after_a_warm_up() -> None:
    ran: list[str] = []
    calls = {name: Call(lambda name=name: ran.append(name) or {}) for name in ("ours", "eager")}

    def time_one(call: Call) -> float:
        call.run()
        return float(len(ran))

    samples = interleave(time_one, calls, 3)
    assert ran[: 2 * WARM_UPS] == ["ours"] * WARM_UPS + ["eager"] * WARM_UPS
    assert ran[2 * WARM_UPS :] == ["ours", "eager"] * 3
    assert samples == {"ours": [7.0, 9.0, 11.0], "eager": [8.0, 10.0, 12.0]}


def test_the_cpus_clock_leaves_preparation_out_and_sweeps_before_each_run() -> None:
    clock = CpuClock(Workers(1))
    seen = []

    def look() -> dict[str, object]:
        seen.append(int(clock._sweep[0]))
        return {}

    def prepare() -> None:
        np.ones(1 << 22).sum()

    with clock.running():
        quick = [clock.time(Call(look, prepare)) for _ in range(5)]
        assert np.diff(seen).tolist() == [1] * 4
        slow = clock.time(Call(lambda: {"sum": np.ones(1 << 22).sum()}))
    assert min(quick) < 1e-3 < slow  # preparing takes as long as what is slow
    assert clock._sweep.nbytes >= 64 << 20


@pytest.mark.parametrize(
    ("busy", "rests"),
    [([0, 0], 2), ([1, 1, 1, 0, 0], 5), ([1, 0, 1, 0, 0], 5), ([1] * 1000, RESTS)],  # the last one never sleeps
)
def test_the_cpus_clock_waits_until_other_threads_are_asleep(
    monkeypatch: pytest.MonkeyPatch, busy: list[int], rests: int
) -> None:
    clock, slept, worked = CpuClock(Workers(1)), [], [0.0]

    def sleep(seconds: float) -> None:
        worked[0] += busy[len(slept)] * seconds
        slept.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "process_time", lambda: worked[0])
    for run in (lambda call: clock.time(call), lambda call: clock.time_steps(call, 3)):
        slept.clear()
        swept = int(clock._sweep[0])
        run(Call(dict))
        assert len(slept) == rests
        assert clock._sweep[0] == swept + 1


def test_rates_are_positive() -> None:
    rates = CpuClock(Workers(1)).rates("fp32")
    assert rates.copy > 1e8
    assert rates.matrix > 1e9
    assert "float32" in rates.matrix_of


@pytest.mark.parametrize("threads", [1, 2])
def test_garbage_is_collected_again_afterwards(threads) -> None:
    import gc

    with CpuClock(Workers(threads)).running():
        assert not gc.isenabled()
    assert gc.isenabled()
