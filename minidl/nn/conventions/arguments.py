"""Arguments of a batch normalization layer, from other frameworks' conventions to ours and back."""

import math
from decimal import Decimal
from numbers import Real
from typing import Any

from minidl.nn.conventions.table import CONVENTIONS, Convention, convention, known


def from_convention(name: str, **arguments: Any) -> dict[str, Any]:
    """Arguments for BatchNorm1d and BatchNorm2d that mean what `arguments` mean in a framework.

    Args:
        name: "pytorch", "keras", "flax", "chainer", "onnx", "cudnn" or "minidl".
        arguments: By the framework's own names; those not given have its defaults (cuDNN has none).

    Returns:
        eps, momentum and affine. What the layer does in another way all the same, `differences` says.

    Raises:
        TypeError: What should be a number is none.
        ValueError: There is no such framework or argument; a number is none that it can be; or gamma is to be there
            without beta, or beta without gamma.
    """
    c, given = convention(name), dict(arguments)
    new = _momentum(name, c, given)
    eps = _eps(f"{name}: {c.eps}", given.pop(c.eps, c.default_eps))
    gamma, beta = (bool(given.get(switch, True)) for switch in c.switches)
    if gamma != beta:
        there, gone = c.switches if gamma else c.switches[::-1]
        raise ValueError(
            f"{name}: {there} without {gone}: our layer has gamma and beta or neither; ask for both, and let "
            f"{'beta stay 0' if gamma else 'gamma stay 1'} by {'bias' if gamma else 'weight'}.trainable = False"
        )
    found = {"eps": eps, "momentum": new, "affine": gamma}
    if c.tracking_switch and c.tracking_switch in given:
        found["track_running_stats"] = bool(given.pop(c.tracking_switch))
    names = [*c.switches, c.momentum, c.eps, c.tracking_switch]
    for argument in given:
        if argument not in c.switches:
            raise ValueError(
                f"{name}: '{argument}' is no argument of {c.layer} that is converted "
                f"{known(argument, dict.fromkeys(filter(None, names)))}"
            )
    return found


def to_convention(
    name: str,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
) -> dict[str, Any]:
    """The framework's arguments that mean what ours mean: the inverse of `from_convention`.

    Raises:
        TypeError: What should be a number is none.
        ValueError: There is no such framework; a number is none that it can be; or the framework has no cumulative mean
            (momentum=None), or always has running statistics.
    """
    c = convention(name)
    found: dict[str, Any] = {c.eps: _eps(f"{name}: eps", eps)}
    if momentum is not None:
        new = _weight(f"{name}: momentum", momentum)
        found[c.momentum] = new if c.weighs == "new" else _complement(new)
    elif c.cumulative is not None:
        found[c.cumulative[0]] = c.cumulative[1]
    else:
        raise ValueError(
            f"{name}: {c.layer} has no cumulative mean (momentum=None); give it {c.momentum} = 1 - 1/k in step k"
        )
    if not track_running_stats:
        if not c.tracking_switch:
            raise ValueError(f"{name}: {c.layer} always has running statistics; there is no track_running_stats=False")
        found[c.tracking_switch] = False
    return found | {switch: bool(affine) for switch in c.switches if switch}


def differences(name: str) -> list[str]:
    """What our layer does in another way than a framework's, whatever its arguments; a sentence each."""
    c, ours = convention(name), CONVENTIONS["minidl"]
    found = []
    if c.unbiased != ours.unbiased:
        found.append(
            f"{c.title} keeps the biased running variance, ours is n / (n - 1) times that, for batches of n values of "
            "each channel; running_variance converts"
        )
    if c.one_value != ours.one_value:
        found.append(f"{c.title} trains on one value of each channel, ours refuses: one value has no variance")
    if c.first == "replaced":
        found.append(
            f"{c.title} wants factor 1 in the first call, as its running statistics hold anything before; ours begin "
            "with 0 and 1, and the first batch has the same factor as all others"
        )
    if c.axis != ours.axis:
        found.append(f"{c.title} has channels on axis {c.axis}, ours on the last")
    return found


def _momentum(name: str, c: Convention, given: dict[str, Any]) -> float | None:
    """The weight of the new value; None for the cumulative mean. It is taken out of `given`."""
    if c.cumulative is not None:
        switch, value = c.cumulative
        if switch in given and given[switch] == value:
            del given[switch]
            given.pop(c.momentum, None)
            return None
        if switch != c.momentum and switch in given:
            del given[switch]  # Chainer's finetune=False
    weight = _weight(f"{name}: {c.momentum}", given.pop(c.momentum, c.default_momentum))
    return weight if c.weighs == "new" else _complement(weight)


def _complement(weight: float) -> float:
    """1 - weight in decimals: 0.01 for 0.99, and back."""
    return float(1 - Decimal(repr(weight)))


def _weight(what: str, value: Any) -> float:
    number = _real(what, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{what} must be from 0 to 1, got {value}")
    return number


def _eps(what: str, value: Any) -> float:
    number = _real(what, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{what} must be greater than 0, got {value}")
    return number


def _real(what: str, value: Any) -> float:
    if value is None:
        raise ValueError(f"{what} must be given; it has no default")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number, got {value!r}")
    return float(value)
