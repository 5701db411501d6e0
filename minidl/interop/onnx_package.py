"""The package onnx, imported where it is needed: minidl runs without it."""

from types import ModuleType

from minidl.errors import InteropError

# The operator set that is written, and the version of the file format that goes with it (ONNX 1.16, March 2024):
# the first in which GroupNormalization scales channels, as everybody does, and not groups.
OPSET, IR_VERSION = 21, 10


def require_onnx() -> ModuleType:
    """The package. Raises InteropError, with the remedy, where it is not installed."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        raise InteropError('ONNX files need the package onnx: pip install "onnx>=1.23"') from None
    return onnx
