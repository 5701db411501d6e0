"""Learning-rate schedules: the learning rate of a step is a function of the step's number and of nothing else.

So a resumed run needs no schedule state: it goes on at the step it had reached. A run has `steps` optimizer steps,
numbered from 0; past the last one a schedule keeps its final value. The formulas are those of torch.optim.lr_scheduler:
CosineAnnealingLR, OneCycleLR, StepLR, MultiStepLR, and LinearLR for the warm-up.
"""

import difflib
import math
from collections.abc import Callable, Sequence

from minidl.errors import ConfigError

Schedule = Callable[[int], float]  # step, from 0 -> learning rate

NAMES = ("constant", "cosine", "one-cycle", "step")


def constant(lr: float) -> Schedule:
    """The learning rate `lr` throughout."""
    _check_lr(lr)
    return lambda _step: lr


def cosine(lr: float, steps: int, minimum: float = 0.0) -> Schedule:
    """Half a cosine from `lr` at step 0 to `minimum` at step `steps`.

    minimum + (lr - minimum) * (1 + cos(pi * t / steps)) / 2; Loshchilov and Hutter, "SGDR", 2017, equation 5.
    """
    _check_lr(lr)
    _check_steps(steps)

    def rate(step: int) -> float:
        return _cosine_between(lr, minimum, min(step, steps) / steps)

    return rate


def one_cycle(
    lr: float, steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Up from lr / div_factor to `lr`, then down to lr / div_factor / final_div_factor, both as half a cosine.

    The peak is at step pct_start * steps - 1, the end at step steps - 1; momentum is left alone (PyTorch's
    cycle_momentum=False). Smith and Topin, "Super-Convergence", 2018.
    """
    _check_lr(lr)
    _check_steps(steps)
    if not 0 <= pct_start <= 1:
        raise ConfigError(f"one_cycle: pct_start must be from 0 to 1, not {pct_start}")
    if not (0 < div_factor < math.inf and 0 < final_div_factor < math.inf):
        raise ConfigError(f"one_cycle: the divisors must be finite and above 0, not {div_factor}, {final_div_factor}")
    first = lr / div_factor
    final = first / final_div_factor
    peak, end = pct_start * steps - 1, steps - 1

    def rate(step: int) -> float:
        step = min(step, end)
        if step < peak:
            return _cosine_between(first, lr, step / peak)
        if end == peak:
            return lr
        return _cosine_between(lr, final, (step - peak) / (end - peak))

    return rate


def step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` after every `step_size` steps."""
    _check_lr(lr)
    if step_size < 1:
        raise ConfigError(f"step: step_size must be at least 1, not {step_size}")
    return lambda step: lr * gamma ** (step // step_size)


def multi_step(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` once from each step in `milestones` on."""
    _check_lr(lr)
    return lambda step: lr * gamma ** sum(step >= milestone for milestone in milestones)


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """A linear rise over `steps` steps to where `schedule` starts, then `schedule` from its own step 0 on.

    Step t of the rise has (t + 1) / (steps + 1) of schedule(0), so that neither the first step nor the last is wasted:
    PyTorch's LinearLR(start_factor=1 / (steps + 1), total_iters=steps) in a SequentialLR.
    """
    if steps < 0:
        raise ConfigError(f"warm_up: steps must be at least 0, not {steps}")
    peak = schedule(0)

    def rate(step: int) -> float:
        return peak * (step + 1) / (steps + 1) if step < steps else schedule(step - steps)

    return rate


def by_name(name: str, lr: float, steps: int, rise: int | None = None, minimum: float = 0.0) -> Schedule:
    """The schedule that `--schedule NAME` means, for a run of `steps` steps whose largest learning rate is `lr`.

    Args:
        name: `constant`; `cosine`, a warm-up over the first 5 % of the steps, then half a cosine to 0; `one-cycle`;
            or `step`, a tenth of the learning rate from half of the steps on, and a hundredth from three quarters on.
        lr: Finite, above 0.
        steps: At least 1.
        rise: Steps of warm-up, fewer than `steps`, in the place of the schedule's own; of `one-cycle`, up to its peak.
            The others still end, or change, at the same steps.
        minimum: Where `cosine` ends, at most `lr`; the others have none.

    Raises:
        ConfigError: An argument is out of its range, or there is no such schedule.
    """
    _check_lr(lr)
    _check_steps(steps)
    if rise is not None and not 0 <= rise < steps:
        raise ConfigError(f"a warm-up of {rise} steps does not fit a run of {steps}; expected 0 to {steps - 1}")
    if minimum and name in NAMES and name != "cosine":
        raise ConfigError(f"--min-lr is where the cosine schedule ends; leave it out with --schedule {name}")
    if not 0 <= minimum <= lr:
        raise ConfigError(f"--min-lr must be from 0 to --lr, which is {lr}, not {minimum}")
    if name == "constant":
        return warm_up(constant(lr), rise) if rise else constant(lr)
    if name == "cosine":
        rise = steps // 20 if rise is None else rise
        return warm_up(cosine(lr, steps - rise, minimum), rise)
    if name == "one-cycle":
        return one_cycle(lr, steps) if rise is None else one_cycle(lr, steps, pct_start=max(rise, 1) / steps)
    if name == "step":
        rise = rise or 0
        drops = [math.ceil(steps / 2) - rise, math.ceil(3 * steps / 4) - rise]
        if rise and drops[0] <= 0:
            raise ConfigError(
                f"--warmup of {rise} steps does not fit --schedule step, which falls after {rise + drops[0]} of "
                f"{steps}; make it shorter"
            )
        return warm_up(multi_step(lr, drops), rise) if rise else multi_step(lr, drops)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"--schedule must be one of {', '.join(NAMES)}, not {name!r}{hint}")


def _cosine_between(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _check_lr(lr: float) -> None:
    if not 0 < lr < math.inf:
        raise ConfigError(f"a schedule's learning rate must be finite and above 0, not {lr}")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"a schedule needs at least 1 step, not {steps}")
