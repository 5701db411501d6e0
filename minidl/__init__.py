"""minidl: Batch Normalization from the kernel up.

A mini deep-learning framework: layers and optimizers in `minidl.nn` and `minidl.optim`, operations in `kernels`.
`python -m minidl train` trains a small convolutional network with batch normalization end to end.
"""

import kernels

if getattr(kernels, "BELONGS_TO", None) != "minidl":
    if getattr(kernels, "__file__", None) is None:  # no package but a folder that Python takes for one
        folder = ", ".join(dict.fromkeys(kernels.__path__))
        raise ImportError(
            f"the folder {folder} is taken for the package 'kernels' and hides minidl's own; "
            "rename it, or put the folder that holds minidl and its kernels first on PYTHONPATH"
        )
    raise ImportError(
        f"another package named 'kernels' is installed ({kernels.__file__}) and hides minidl's own; "
        "run `python -m pip uninstall kernels`, or use minidl in a virtual environment of its own"
    )

from minidl.version import __version__

__all__ = ["__version__"]
