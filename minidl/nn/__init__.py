"""Layers: state and wiring, with PyTorch's names and signatures; arrays are channels last (NHWC).

`y = layer.forward(x)`, then `dx = layer.backward(dy)`; parameters carry `.value` and `.grad`.
"""

from minidl.nn.activation import Dropout, ReLU
from minidl.nn.batchnorm import BatchNorm1d, BatchNorm2d
from minidl.nn.containers import Concat, Residual, Sequential
from minidl.nn.fusion import fuse
from minidl.nn.init import manual_seed
from minidl.nn.linear import Conv2d, Linear
from minidl.nn.loss import CrossEntropyLoss
from minidl.nn.module import Module, Parameter, inference
from minidl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

__all__ = [
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "fuse",
    "inference",
    "manual_seed",
]
