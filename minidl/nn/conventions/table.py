"""The table of conventions: what frameworks mean by batch normalization."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple


class Names(NamedTuple):
    """What a framework calls the parts of the state; `batches` is "" where it counts none."""

    gamma: str
    beta: str
    mean: str
    var: str
    batches: str = ""


@dataclass(frozen=True)
class Convention:
    """How a framework means batch normalization.

    Attributes:
        title: The framework, for people.
        layer: What its batch normalization is called.
        momentum: The argument that weighs running statistics.
        weighs: Which value it is the weight of.
        default_momentum: None where it must be given.
        cumulative: The argument and its value that give the cumulative mean of all batches; None where there is none.
        eps: The argument that is added to the variance, inside the square root.
        default_eps: None where it must be given.
        unbiased: Whether the running variance is. (The one that normalizes is biased in all of them.)
        switches: The arguments that say whether there is a gamma and a beta; "" where there always are.
        one_value: What training on one value for each channel does: an error, y = beta, or y = beta and a running
            variance of NaN.
        axis: Where channels are, unless told otherwise.
        frozen: How a layer is made to normalize by its running statistics while others train.
        half: In what half-precision inputs are summed.
        names: Of the state.
        tracking_switch: The argument that does without running statistics; "" where there is none.
        first: What the running mean and variance are before the first batch: 0 and 1; inputs of the operator; or
            anything, so that the first batch must replace them, by a factor of 1.
        shape: Of a vector of c values in the state; -1 stands for c.
        run: The package by which the tests run the framework itself; "" where they run its formula.
        source: Where all this stands.
    """

    title: str
    layer: str
    momentum: str
    weighs: Literal["new", "old"]
    default_momentum: float | None
    cumulative: tuple[str, Any] | None
    eps: str
    default_eps: float | None
    unbiased: bool
    switches: tuple[str, str]
    one_value: Literal["error", "beta", "nan"]
    axis: int
    frozen: str
    half: str
    names: Names
    source: str
    tracking_switch: str = ""
    first: Literal["0, 1", "inputs", "replaced"] = "0, 1"
    shape: tuple[int, ...] = (-1,)
    run: str = ""


_PYTORCH = Convention(
    title="PyTorch",
    layer="torch.nn.BatchNorm2d",
    momentum="momentum",
    weighs="new",
    default_momentum=0.1,
    cumulative=("momentum", None),
    eps="eps",
    default_eps=1e-5,
    unbiased=True,
    switches=("affine", "affine"),
    one_value="error",
    axis=1,
    frozen="eval() of the layer; requires_grad = False alone does not",
    half="float32",
    names=Names("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    source="torch.nn.BatchNorm2d, torch.nn.functional.batch_norm",
    tracking_switch="track_running_stats",
    run="torch",
)

CONVENTIONS = {
    "minidl": replace(
        _PYTORCH,
        title="minidl",
        layer="minidl.nn.BatchNorm2d",
        axis=-1,
        frozen="freeze_statistics() of the layer, or eval()",
        half="refused: activations are float32",
        source="minidl/nn/batchnorm.py",
        run="minidl",
    ),
    "pytorch": _PYTORCH,
    "keras": Convention(
        title="Keras",
        layer="keras.layers.BatchNormalization",
        momentum="momentum",
        weighs="old",
        default_momentum=0.99,
        cumulative=None,
        eps="epsilon",
        default_eps=1e-3,
        unbiased=False,
        switches=("scale", "center"),
        one_value="beta",
        axis=-1,
        frozen="trainable = False",
        half="float32",
        names=Names("gamma", "beta", "moving_mean", "moving_variance"),
        source="Keras 3, keras/src/layers/normalization/batch_normalization.py",
    ),
    "flax": Convention(
        title="Flax",
        layer="flax.linen.BatchNorm",
        momentum="momentum",
        weighs="old",
        default_momentum=0.99,
        cumulative=None,
        eps="epsilon",
        default_eps=1e-5,
        unbiased=False,
        switches=("use_scale", "use_bias"),
        one_value="beta",
        axis=-1,
        frozen="use_running_average=True",
        half="float32",
        names=Names("scale", "bias", "mean", "var"),
        source="flax/linen/normalization.py",
    ),
    "chainer": Convention(
        title="Chainer",
        layer="chainer.links.BatchNormalization",
        momentum="decay",
        weighs="old",
        default_momentum=0.9,
        cumulative=("finetune", True),
        eps="eps",
        default_eps=2e-5,
        unbiased=True,
        switches=("use_gamma", "use_beta"),
        one_value="beta",
        axis=1,
        frozen='using_config("train", False) around the call',
        half="not looked up",
        names=Names("gamma", "beta", "avg_mean", "avg_var", "N"),
        source="chainer/functions/normalization/batch_normalization.py and chainer/links/normalization/",
    ),
    "onnx": Convention(
        title="ONNX",
        layer="BatchNormalization",
        momentum="momentum",
        weighs="old",
        default_momentum=0.9,
        cumulative=None,
        eps="epsilon",
        default_eps=1e-5,
        unbiased=False,
        switches=("", ""),
        one_value="beta",
        axis=1,
        frozen="training_mode=0",
        half="float32",
        names=Names("scale", "B", "input_mean", "input_var"),
        source="the operator's specification, opset 15; onnx.reference",
        first="inputs",
        run="onnx",
    ),
    "cudnn": Convention(
        title="cuDNN",
        layer="cudnnBatchNormalizationForwardTraining",
        momentum="exponentialAverageFactor",
        weighs="new",
        default_momentum=None,
        cumulative=("exponentialAverageFactor", "1/(1+n)"),
        eps="epsilon",
        default_eps=None,
        unbiased=True,
        switches=("", ""),
        one_value="nan",
        axis=1,
        frozen="cudnnBatchNormalizationForwardInference",
        half="float32",
        names=Names("bnScale", "bnBias", "resultRunningMean", "resultRunningVariance"),
        source="comments in cudnn.h; the unbiased variance and its NaN were observed in apache/mxnet issue 21111",
        first="replaced",
        shape=(1, -1, 1, 1),
    ),
}


def convention(name: str) -> Convention:
    """The convention of a framework. Raises ValueError, suggesting the nearest, if there is none of that name."""
    if name not in CONVENTIONS:
        raise ValueError(f"conventions: there is no framework '{name}' {known(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def known(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: which there are, and the nearest of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"(known: {', '.join(names)})" + (f"; did you mean '{near[0]}'?" if near else "")
