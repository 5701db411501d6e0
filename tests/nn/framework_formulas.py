"""Batch normalization as six frameworks do it: PyTorch and ONNX themselves, the others by their written formulas.

Each is a class with `train` and `evaluate`; x and y are (n, h, w, c) float64 here, and in the order of axes that the
framework wants inside. `state` is by the framework's names, `arguments` by its own, with its defaults.

The formulas are what the named source says, line by line and in float64; those frameworks are not run.
"""

from typing import Any

import numpy as np
import pytest

Array = np.ndarray
State = dict[str, Array]


def first(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def last(y: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(y, 1, -1))


class PyTorch:
    """torch.nn.BatchNorm2d, run."""

    def fresh(self, channels: int) -> State:
        torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')
        state = torch.nn.BatchNorm2d(channels).double().state_dict()
        return {name: value.numpy() for name, value in state.items()}

    def mean_of_half(self, x: Array) -> Array:
        """With float32 parameters, as under autocast."""
        torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')
        layer = torch.nn.BatchNorm2d(x.shape[-1], momentum=1.0)
        assert layer(torch.from_numpy(first(x))).dtype == torch.float16
        return layer.running_mean.numpy()

    def _layer(self, state: State, arguments: dict[str, Any]) -> tuple[Any, Any]:
        torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')
        layer = torch.nn.BatchNorm2d(len(state["running_mean"]), **arguments).double()
        layer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        return torch, layer

    def train(self, x: Array, state: State, **arguments: Any) -> tuple[Array, State]:
        torch, layer = self._layer(state, arguments)
        y = layer(torch.from_numpy(first(x)))
        return last(y.detach().numpy()), {name: value.numpy() for name, value in layer.state_dict().items()}

    def evaluate(self, x: Array, state: State, **arguments: Any) -> Array:
        torch, layer = self._layer(state, arguments)
        return last(layer.eval()(torch.from_numpy(first(x))).detach().numpy())


class Onnx:
    """The operator BatchNormalization, opset 15, run by onnx.reference."""

    def mean_of_half(self, x: Array) -> Array:
        """As the specification has it: "uses float". (onnx.reference does for the mean; its variance overflows.)"""
        onnx = pytest.importorskip("onnx", reason='onnx is not installed: pip install -e ".[onnx]"')
        words = onnx.defs.get_schema("BatchNormalization", 15).doc
        assert "The computation of ReduceMean and ReduceVar uses float to avoid overflow for float16 inputs." in words
        state = {"scale": 1.0, "B": 0.0, "input_mean": 0.0, "input_var": 1.0}
        half = {name: np.full(x.shape[-1], value, np.float16) for name, value in state.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            return self._run(x, half, 3, onnx.TensorProto.FLOAT16, training_mode=1, momentum=0.0)[1]

    def _run(
        self,
        x: Array,
        state: State,
        outputs: int,
        kind: int = 11,
        **attributes: Any,  # 11: DOUBLE
    ) -> list[Array]:
        onnx = pytest.importorskip("onnx", reason='onnx is not installed: pip install -e ".[onnx]"')
        reference = pytest.importorskip("onnx.reference")
        names = ["X", "scale", "B", "input_mean", "input_var"]
        results = ["Y", "running_mean", "running_var"][:outputs]
        node = onnx.helper.make_node("BatchNormalization", names, results, **attributes)
        graph = onnx.helper.make_graph(
            [node],
            "norm",
            [onnx.helper.make_tensor_value_info(name, kind, None) for name in names],
            [onnx.helper.make_tensor_value_info(name, kind, None) for name in results],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
        return reference.ReferenceEvaluator(model).run(None, {"X": first(x), **state})

    def train(self, x: Array, state: State, **arguments: Any) -> tuple[Array, State]:
        y, mean, var = self._run(x, state, 3, training_mode=1, **arguments)
        return last(y), state | {"input_mean": mean, "input_var": var}

    def evaluate(self, x: Array, state: State, **arguments: Any) -> Array:
        return last(self._run(x, state, 1, training_mode=0, **arguments)[0])


class Keras:
    """Keras 3, keras/src/layers/normalization/batch_normalization.py: call, _moments."""

    def fresh(self, channels: int) -> State:
        """The initializers of __init__."""
        zeros, ones = np.zeros(channels), np.ones(channels)
        return {"gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones}

    def mean_of_half(self, x: Array) -> Array:
        """ "BN is prone to overflowing for float16/bfloat16 inputs": cast to float32 first."""
        return x.astype(np.float32).mean((0, 1, 2))

    def train(self, x: Array, state: State, momentum: float = 0.99, epsilon: float = 1e-3) -> tuple[Array, State]:
        axes = (0, 1, 2)  # all but axis -1
        mean, variance = x.mean(axes), x.var(axes)  # ops.moments
        moved = {
            "moving_mean": state["moving_mean"] * momentum + mean * (1.0 - momentum),
            "moving_variance": state["moving_variance"] * momentum + variance * (1.0 - momentum),
        }
        return self._normalize(x, mean, variance, state, epsilon), state | moved

    def evaluate(self, x: Array, state: State, epsilon: float = 1e-3) -> Array:
        """Also in training where the layer is not trainable: `if training and self.trainable` chooses."""
        return self._normalize(x, state["moving_mean"], state["moving_variance"], state, epsilon)

    def _normalize(self, x: Array, mean: Array, variance: Array, state: State, epsilon: float) -> Array:
        """ops.batch_normalization: gamma * (batch - mean) / sqrt(var + epsilon) + beta."""
        return state["gamma"] * (x - mean) / np.sqrt(variance + epsilon) + state["beta"]


class Flax:
    """flax/linen/normalization.py: BatchNorm.__call__, _compute_stats (use_fast_variance=True), _normalize."""

    def fresh(self, channels: int) -> State:
        """scale_init and bias_init; the variables of batch_stats."""
        zeros, ones = np.zeros(channels), np.ones(channels)
        return {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}

    def mean_of_half(self, x: Array) -> Array:
        """_compute_stats: force_float32_reductions promotes x to at least float32."""
        return x.astype(np.float32).mean((0, 1, 2))

    def train(self, x: Array, state: State, momentum: float = 0.99, epsilon: float = 1e-5) -> tuple[Array, State]:
        axes = (0, 1, 2)  # all but axis -1
        mu, mu2 = x.mean(axes), (x * x).mean(axes)
        var = np.maximum(0.0, mu2 - mu * mu)
        moved = {
            "mean": momentum * state["mean"] + (1 - momentum) * mu,
            "var": momentum * state["var"] + (1 - momentum) * var,
        }
        return self._normalize(x, mu, var, state, epsilon), state | moved

    def evaluate(self, x: Array, state: State, epsilon: float = 1e-5) -> Array:
        """use_running_average=True."""
        return self._normalize(x, state["mean"], state["var"], state, epsilon)

    def _normalize(self, x: Array, mean: Array, var: Array, state: State, epsilon: float) -> Array:
        mul = 1 / np.sqrt(var + epsilon) * state["scale"]
        return (x - mean) * mul + state["bias"]


class Chainer:
    """chainer/functions/normalization/batch_normalization.py (generic path), chainer/links/normalization/."""

    def fresh(self, channels: int) -> State:
        """initial_gamma and the others of the link; the variance is 1 from version 5 on."""
        zeros, ones = np.zeros(channels), np.ones(channels)
        return {"gamma": ones, "beta": zeros, "avg_mean": zeros, "avg_var": ones, "N": np.array(0)}

    def train(
        self, x: Array, state: State, decay: float = 0.9, eps: float = 2e-5, finetune: bool = False
    ) -> tuple[Array, State]:
        state = dict(state)
        if finetune:
            state["N"] = state["N"] + 1
            decay = 1.0 - 1.0 / state["N"]
        rows = first(x)
        axis = (0, 2, 3)  # _compute_axis: all but axis 1
        mean, var = rows.mean(axis), rows.var(axis)
        m = x.size // state["gamma"].size
        adjust = m / max(m - 1.0, 1.0)
        y = self._normalize(rows, mean, var, state, eps)
        state["avg_mean"] = state["avg_mean"] * decay + (1 - decay) * mean
        state["avg_var"] = state["avg_var"] * decay + (1 - decay) * adjust * var
        return last(y), state

    def evaluate(self, x: Array, state: State, eps: float = 2e-5) -> Array:
        """fixed_batch_normalization, as under using_config("train", False)."""
        return last(self._normalize(first(x), state["avg_mean"], state["avg_var"], state, eps))

    def _normalize(self, x: Array, mean: Array, var: Array, state: State, eps: float) -> Array:
        gamma, beta, mean, var = (v[:, None, None] for v in (state["gamma"], state["beta"], mean, var))
        return gamma * ((x - mean) * np.reciprocal(np.sqrt(var + eps))) + beta


class Cudnn:
    """cudnn.h: the comments at cudnnBatchNormalizationForwardTraining and ...Inference, in spatial mode.

    "runningMean = newMean*factor + runningMean*(1-factor)", the variance likewise; factor "1/(1+n)" is the cumulative
    mean. That the variance there is unbiased, and NaN for one value, is observed: apache/mxnet issue 21111.
    """

    calls = 0

    def fresh(self, channels: int) -> State:
        """Nobody initializes the running statistics: here, some numbers."""
        shape = (1, channels, 1, 1)
        running = {"resultRunningMean": np.full(shape, 1e3), "resultRunningVariance": np.full(shape, 1e3)}
        return {"bnScale": np.ones(shape), "bnBias": np.zeros(shape), **running}

    def mean_of_half(self, x: Array) -> Array:
        """Of the statistics: "type = (typeOf(x) == double) ? double : float"."""
        return x.astype(np.float32).mean((0, 1, 2))

    def train(
        self,
        x: Array,
        state: State,
        *,
        exponentialAverageFactor: float | str,  # noqa: N803
        epsilon: float,
    ) -> tuple[Array, State]:
        factor = 1 / (1 + self.calls) if exponentialAverageFactor == "1/(1+n)" else float(exponentialAverageFactor)
        self.calls += 1
        rows = first(x)
        axes, n = (0, 2, 3), x.size // x.shape[-1]
        mean, variance = rows.mean(axes, keepdims=True), rows.var(axes, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            unbiased = variance * (np.float64(n) / np.float64(n - 1))
        moved = {
            "resultRunningMean": mean * factor + state["resultRunningMean"] * (1 - factor),
            "resultRunningVariance": unbiased * factor + state["resultRunningVariance"] * (1 - factor),
        }
        return self._normalize(rows, mean, variance, state, epsilon), state | moved

    def evaluate(self, x: Array, state: State, *, epsilon: float) -> Array:
        """cudnnBatchNormalizationForwardInference, whose estimatedMean and estimatedVariance are those two."""
        mean, variance = state["resultRunningMean"], state["resultRunningVariance"]
        return self._normalize(first(x), mean, variance, state, epsilon)

    def _normalize(self, x: Array, mean: Array, variance: Array, state: State, epsilon: float) -> Array:
        """y = bnScale * (x - mean) / sqrt(epsilon + variance) + bnBias."""
        return last(state["bnScale"] * (x - mean) / np.sqrt(epsilon + variance) + state["bnBias"])


FORMULAS: dict[str, type[Any]] = {
    "pytorch": PyTorch,
    "keras": Keras,
    "flax": Flax,
    "chainer": Chainer,
    "onnx": Onnx,
    "cudnn": Cudnn,
}
