"""Learning-rate schedules against PyTorch's, and at their edges."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from minidl import schedule
from minidl.errors import ConfigError
from minidl.schedule import Schedule, by_name, constant, cosine, multi_step, one_cycle, step, warm_up

STEPS = [1, 2, 3, 4, 7, 10, 100, 1003]


def torch_rates(make: Callable[[Any, Any], Any], lr: float, steps: int) -> list[float]:
    """The learning rates of `steps` steps of a scheduler that `make(torch.optim.lr_scheduler, optimizer)` returns."""
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    torch = pytest.importorskip("torch", reason=reason)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


def assert_close(ours: Schedule, theirs: list[float], scale: float) -> None:
    """1e-12 relative; near the end of a cosine, where PyTorch's recursion loses digits, relative to the peak."""
    for t, expected in enumerate(theirs):
        assert ours(t) == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale), f"step {t}"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("minimum", [0.0, 0.003])
def test_cosine_is_that_of_pytorch(steps: int, minimum: float) -> None:
    expected = torch_rates(lambda s, o: s.CosineAnnealingLR(o, steps, eta_min=minimum), 0.3, steps + 1)
    assert_close(cosine(0.3, steps, minimum), expected, 0.3)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("pct_start", "div", "final_div"), [(0.3, 25.0, 1e4), (0.45, 10.0, 100.0), (0.0, 25.0, 1e4)])
def test_one_cycle_is_that_of_pytorch(steps: int, pct_start: float, div: float, final_div: float) -> None:
    expected = torch_rates(
        lambda s, o: s.OneCycleLR(
            o, 0.7, steps, pct_start=pct_start, div_factor=div, final_div_factor=final_div, cycle_momentum=False
        ),
        0.7,
        steps,
    )
    rate = one_cycle(0.7, steps, pct_start, div, final_div)
    assert [rate(t) for t in range(steps)] == pytest.approx(expected, rel=1e-12, abs=0)


def test_one_cycle_by_default_is_pytorch_by_default() -> None:
    expected = torch_rates(lambda s, o: s.OneCycleLR(o, 0.1, 50, cycle_momentum=False), 0.1, 50)
    assert [by_name("one-cycle", 0.1, 50)(t) for t in range(50)] == pytest.approx(expected, rel=1e-12, abs=0)


def test_one_cycle_where_pytorch_divides_by_zero() -> None:
    assert one_cycle(1.0, 2, pct_start=0.5)(0) == 1.0  # the rise has no steps: the peak is the first one
    assert one_cycle(1.0, 4, pct_start=1.0)(3) == 1.0  # the fall has none
    assert one_cycle(1.0, 1, pct_start=1.0)(0) == 1.0


@pytest.mark.parametrize(("size", "gamma"), [(1, 0.9), (3, 0.1), (40, 0.5)])
def test_step_is_that_of_pytorch(size: int, gamma: float) -> None:
    expected = torch_rates(lambda s, o: s.StepLR(o, size, gamma), 0.2, 50)
    assert [step(0.2, size, gamma)(t) for t in range(50)] == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("milestones", [[], [1], [5, 9], [9, 5], [3, 3, 40], [60]])
def test_multi_step_is_that_of_pytorch(milestones: list[int]) -> None:
    expected = torch_rates(lambda s, o: s.MultiStepLR(o, milestones, 0.1), 0.2, 50)
    assert [multi_step(0.2, milestones)(t) for t in range(50)] == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("rise", [1, 5, 20])
def test_warm_up_is_linear_then_the_schedule_from_its_start(rise: int) -> None:
    def make(s: Any, optimizer: Any) -> Any:
        linear = s.LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise)
        return s.SequentialLR(optimizer, [linear, s.CosineAnnealingLR(optimizer, 30)], milestones=[rise])

    assert_close(warm_up(cosine(0.3, 30), rise), torch_rates(make, 0.3, rise + 31), 0.3)


def test_warm_up_wastes_no_step() -> None:
    rate = warm_up(constant(1.0), 4)
    assert [rate(t) for t in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert warm_up(constant(1.0), 0)(0) == 1.0


# By name


def test_names_are_those_that_by_name_knows() -> None:
    for name in schedule.NAMES:
        assert by_name(name, 0.1, 10)(3) > 0


def test_constant_by_name() -> None:
    assert {by_name("constant", 0.1, 10)(t) for t in range(20)} == {0.1}


def test_cosine_by_name_warms_up_over_a_twentieth() -> None:
    rate = by_name("cosine", 1.0, 200)
    assert [rate(t) for t in range(11)] == pytest.approx([(t + 1) / 11 for t in range(11)])
    assert rate(105) == pytest.approx(0.5)
    assert rate(199) < 1e-4
    assert rate(200) == 0.0
    assert [by_name("cosine", 1.0, 19)(t) for t in (0, 1)] == [cosine(1.0, 19)(t) for t in (0, 1)]  # too short for one


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [0]), (2, [0, 1]), (3, [0, 0, 1]), (4, [0, 0, 1, 2]), (8, [0, 0, 0, 0, 1, 1, 2, 2]), (5, [0, 0, 0, 1, 2])],
)
def test_step_by_name_falls_at_half_and_three_quarters(steps: int, expected: list[int]) -> None:
    rate = by_name("step", 1.0, steps)
    assert [rate(t) for t in range(steps)] == pytest.approx([0.1**n for n in expected])


@pytest.mark.parametrize("name", schedule.NAMES)
@pytest.mark.parametrize("steps", STEPS)
def test_every_rate_is_finite_above_zero_and_at_most_the_largest(name: str, steps: int) -> None:
    rate = by_name(name, 0.3, steps)
    rates = [rate(t) for t in range(steps)]
    assert all(0 < r <= 0.3 for r in rates)
    if steps >= 100:
        assert max(rates) == pytest.approx(0.3, rel=1e-2)


@pytest.mark.parametrize("name", schedule.NAMES)
def test_past_the_end_the_last_value_holds(name: str) -> None:
    rate = by_name(name, 0.3, 40)
    assert {rate(t) for t in (40, 41, 80, 10**9)} == {rate(40)}
    assert rate(40) <= rate(39)


@pytest.mark.parametrize("name", schedule.NAMES)
def test_a_rate_depends_on_the_step_alone(name: str) -> None:
    rate, again = by_name(name, 0.3, 60), by_name(name, 0.3, 60)
    forward = [rate(t) for t in range(60)]
    assert [again(t) for t in reversed(range(60))] == forward[::-1]


@pytest.mark.parametrize("name", schedule.NAMES)
@pytest.mark.parametrize("rise", [0, 1, 7, 19])
def test_a_warm_up_takes_the_place_of_the_schedules_own(name: str, rise: int) -> None:
    rate = by_name(name, 0.3, 40, rise)
    rates = [rate(t) for t in range(40)]
    # What comes after step 20 is a drop already; one-cycle reaches its peak with the last step of the rise.
    peak = {"one-cycle": max(rise - 1, 0), "cosine": rise, "constant": rise, "step": rise}[name]
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    if name == "step":
        assert rates[-1] == pytest.approx(0.003)
        assert [t for t in range(rise + 1, 40) if rates[t] != rates[t - 1]] == [t for t in (20, 30) if t > rise]
    else:
        assert max(rates) == pytest.approx(0.3)


def test_without_a_rise_the_schedules_are_what_they_were() -> None:
    assert [by_name("cosine", 0.3, 40)(t) for t in range(41)] == [warm_up(cosine(0.3, 38), 2)(t) for t in range(41)]
    assert [by_name("one-cycle", 0.3, 40)(t) for t in range(41)] == [one_cycle(0.3, 40)(t) for t in range(41)]


def test_the_cosine_ends_at_its_minimum() -> None:
    rate = by_name("cosine", 0.3, 40, minimum=0.01)
    assert rate(40) == rate(99) == 0.01
    assert rate(39) > 0.01
    assert by_name("cosine", 0.3, 40, 5, 0.3)(17) == 0.3


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_name("cosine", 0.1, 0), "needs at least 1 step, not 0"),
        (lambda: by_name("constant", 0.1, -3), "needs at least 1 step, not -3"),
        (lambda: by_name("cosin", 0.1, 5), r"must be one of constant, .*, not 'cosin'; did you mean 'cosine'\?"),
        (lambda: by_name("zzz", 0.1, 5), r"not 'zzz'$"),
        (lambda: by_name("cosine", 0.1, 5, 5), "a warm-up of 5 steps does not fit a run of 5; expected 0 to 4"),
        (lambda: by_name("constant", 0.1, 5, -1), "a warm-up of -1 steps does not fit"),
        (lambda: by_name("cosine", 0.1, 5, minimum=0.2), "--min-lr must be from 0 to --lr, which is 0.1, not 0.2"),
        (lambda: by_name("cosine", 0.1, 5, minimum=-0.2), "--min-lr must be from 0 to --lr, which is 0.1, not -0.2"),
        (lambda: by_name("step", 0.1, 5, minimum=0.01), "leave it out with --schedule step"),
        (lambda: by_name("step", math.nan, 5), "must be finite and above 0, not nan"),
        (lambda: constant(0.0), "must be finite and above 0, not 0.0"),
        (lambda: cosine(math.inf, 5), "must be finite and above 0, not inf"),
        (lambda: cosine(0.1, 0), "needs at least 1 step"),
        (lambda: one_cycle(0.1, 0), "needs at least 1 step"),
        (lambda: one_cycle(0.1, 5, pct_start=1.1), "pct_start must be from 0 to 1, not 1.1"),
        (lambda: one_cycle(0.1, 5, div_factor=0), "divisors must be finite and above 0, not 0"),
        (lambda: one_cycle(0.1, 5, final_div_factor=math.nan), "divisors must be finite"),
        (lambda: step(0.1, 0), "step_size must be at least 1, not 0"),
        (lambda: warm_up(constant(0.1), -1), "steps must be at least 0, not -1"),
    ],
)
def test_arguments_that_make_no_schedule(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("rise", [0, 1, 7])
@pytest.mark.parametrize("name", schedule.NAMES)
def test_every_schedule_reaches_its_learning_rate(name: str, rise: int) -> None:
    rates = [schedule.by_name(name, 0.1, 40, rise)(step) for step in range(40)]
    assert max(rates) == pytest.approx(0.1)


def test_a_warm_up_past_the_first_fall_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit --schedule step, which falls after 20 of 40"):
        schedule.by_name("step", 0.1, 40, 25)
