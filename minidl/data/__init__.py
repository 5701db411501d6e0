"""Data sets: reading them, the order of a run, augmentation.

`load` gives a `Dataset` by name or from an npz file, `available` lists the known ones, `check` compares the files with
the published ones. `Loader` says which images come in which batch, `Augmentation` what may happen to them. README.md in
this folder describes the data set that comes with minidl and where others are looked for.
"""

from minidl.data.augmentation import NO_AUGMENTATION, Augmentation
from minidl.data.dataset import Dataset
from minidl.data.loader import Loader
from minidl.data.registry import Availability, Check, FileCheck, available, check, load

__all__ = [
    "NO_AUGMENTATION",
    "Augmentation",
    "Availability",
    "Check",
    "Dataset",
    "FileCheck",
    "Loader",
    "available",
    "check",
    "load",
]
