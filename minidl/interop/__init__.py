"""Models to and from the files that other frameworks read: PyTorch's state dicts as safetensors, and ONNX."""

from minidl.interop.onnx_export import export_onnx
from minidl.interop.onnx_import import import_onnx
from minidl.interop.torch_state import load_torch, save_torch

__all__ = ["export_onnx", "import_onnx", "load_torch", "save_torch"]
