"""Batch normalization's errors against float64, minidl's beside PyTorch's, on inputs from the ordinary to the hostile.

    y       forward in training, with gamma and beta
    var     the variance that the running estimate has after that one step
    dx      backward

An error is the largest of a channel as a share of the largest number of that channel in the definition's answer, and of
the channels the worst; where those numbers are 0 or denormal, it is the largest error itself.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl import nn
from minidl.backends import Backend, get_backend
from minidl.lab.bench.operations.problem import Input
from minidl.lab.bench.peer import TorchPeer
from minidl.lab.inputs import FAMILIES

SHAPE = (32, 16, 16, 8)
SMALL = 4  # images, to try it
# NaN and infinity have no error; "ordinary" is not hostile, but shows what there is to lose.
FAMILIES_OF_NUMBERS = tuple(name for name in FAMILIES if name not in ("nan", "inf", "minus-inf-and-inf"))
OUTPUTS = ("y", "var", "dx")
Row = dict[str, Any]


def batchnorm_accuracy(backend: Backend, peer: TorchPeer | None, images: int = SHAPE[0], seed: int = 0) -> list[Row]:
    """A row a family of inputs: {kind, family, shape, errors: {output: {side: error}}, smaller}.

    `smaller` says whether no error of minidl's is larger than PyTorch's, of either layout. An error that is infinite or
    NaN is None.
    """
    rows = []
    shape = (images, *SHAPE[1:])
    reference = get_backend("reference")
    for family in FAMILIES_OF_NUMBERS:
        rng = np.random.default_rng(seed)
        given = {
            "x": FAMILIES[family](rng, shape),
            "dy": rng.standard_normal(shape, dtype=np.float32),
            "gamma": rng.uniform(0.5, 1.5, shape[-1]).astype(np.float32),
            "beta": rng.uniform(-0.5, 0.5, shape[-1]).astype(np.float32),
        }
        right = _ours(reference, given)
        rows_of_x = given["x"].astype(np.float64).reshape(-1, shape[-1])
        right["var"] = rows_of_x.var(axis=0, ddof=1)  # a running estimate that starts at 1 rounds to that size
        sides = {"ours": _ours(backend, given)}
        if peer is not None:
            with peer.running():
                sides |= {name: _theirs(peer, name, given) for name in ("eager", "channels-last")}
        errors = {
            output: {side: _error(answers[output], right[output]) for side, answers in sides.items()}
            for output in OUTPUTS
        }
        smaller = all(
            of["ours"] is not None and all(error is None or of["ours"] <= error for error in of.values())
            for of in errors.values()
        )
        rows.append({"kind": "accuracy", "family": family, "shape": list(shape), "errors": errors, "smaller": smaller})
    return rows


def _ours(backend: Backend, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    layer = nn.BatchNorm2d(given["x"].shape[-1], momentum=1.0, device=backend)
    assert layer.weight is not None
    assert layer.bias is not None
    layer.weight.load(given["gamma"])
    layer.bias.load(given["beta"])
    with np.errstate(all="ignore"):
        y = layer.forward(backend.array(given["x"]))
        dx = layer.backward(backend.array(given["dy"]))
    return {"y": backend.numpy(y), "var": backend.numpy(layer.running_var), "dx": backend.numpy(dx)}


def _theirs(peer: TorchPeer, variant: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    torch, last = peer.torch, variant == "channels-last"
    layer = torch.nn.BatchNorm2d(given["x"].shape[-1], momentum=1.0).to(peer.device)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(given["gamma"]))
        layer.bias.copy_(torch.from_numpy(given["beta"]))
    x = peer.tensor(Input(given["x"], "activation"), last).requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, peer.tensor(Input(given["dy"], "activation"), last))
    return {
        "y": peer.host(y, "activation"),
        "var": peer.host(layer.running_var, "plain"),
        "dx": peer.host(dx, "activation"),
    }


def _error(got: np.ndarray, right: np.ndarray) -> float | None:
    channels = right.shape[-1]
    with np.errstate(all="ignore"):
        worst = np.abs(got.astype(np.float64) - right).reshape(-1, channels).max(axis=0)
        largest = np.abs(right).reshape(-1, channels).max(axis=0)
        counts = largest > np.finfo(np.float32).tiny
        error = float(np.where(counts, worst / np.where(counts, largest, 1), worst).max())
    return error if np.isfinite(error) else None
