"""Layers: state and wiring, with PyTorch's names and signatures; arrays are channels last (NHWC).

`y = layer.forward(x)`, then `dx = layer.backward(dy)`; parameters carry `.value` and `.grad`.
"""

from minidl.nn.activation import Dropout, ReLU
from minidl.nn.batchnorm import BatchNorm1d, BatchNorm2d
from minidl.nn.containers import Concat, Residual, Sequential
from minidl.nn.folding import Folded, fold
from minidl.nn.freezing import freeze_batchnorm
from minidl.nn.fusion import fuse
from minidl.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, batch_multiple
from minidl.nn.graph import Add, ConcatChannels, Graph, OnePixel
from minidl.nn.group_norm import GroupNorm, InstanceNorm1d, InstanceNorm2d, LayerNorm
from minidl.nn.init import manual_seed
from minidl.nn.linear import Conv2d, Linear
from minidl.nn.loss import CrossEntropyLoss
from minidl.nn.module import Module, Parameter, inference
from minidl.nn.noise import NoisyBatchNorm1d, NoisyBatchNorm2d
from minidl.nn.padding import ConstantPad2d, ZeroPad2d
from minidl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from minidl.nn.scale import Scale
from minidl.nn.softmax import LogSoftmax, Softmax
from minidl.nn.statistics import reestimate_statistics

__all__ = [
    "Add",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Concat",
    "ConcatChannels",
    "ConstantPad2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Folded",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GlobalAvgPool2d",
    "Graph",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Module",
    "NoisyBatchNorm1d",
    "NoisyBatchNorm2d",
    "OnePixel",
    "Parameter",
    "ReLU",
    "Residual",
    "Scale",
    "Sequential",
    "Softmax",
    "ZeroPad2d",
    "batch_multiple",
    "fold",
    "freeze_batchnorm",
    "fuse",
    "inference",
    "manual_seed",
    "reestimate_statistics",
]
