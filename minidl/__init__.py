"""minidl: Batch Normalization from the kernel up.

A mini deep-learning framework: layers and optimizers in `minidl.nn` and `minidl.optim`, operations in `kernels`.
`python -m minidl train` trains a small convolutional network with batch normalization end to end.
"""

import kernels

if getattr(kernels, "BELONGS_TO", None) != "minidl":
    raise ImportError(
        f"another package named 'kernels' is installed ({kernels.__file__}) and hides minidl's own; "
        "run `python -m pip uninstall kernels`, or use minidl in a virtual environment of its own"
    )

from minidl.version import __version__

__all__ = ["__version__"]
