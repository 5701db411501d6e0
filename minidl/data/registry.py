"""From a data set's name to its images, and what else there is to train on."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidl.data import catalogue, cifar, idx, npz
from minidl.data.catalogue import KNOWN
from minidl.data.dataset import Dataset, check_counts
from minidl.data.digits import FILE, read_digits
from minidl.data.files import expanded
from minidl.data.search import Place, belongs_elsewhere, existing_folder, find
from minidl.errors import DataError

AS_PUBLISHED = "as published"
DIFFERS = "differs from the published file"
NO_CHECKSUM = "no published checksum is known"


@dataclass(frozen=True)
class Availability:
    """A known set as `data list` shows it. Counts, shape and size are of the files found, None where there are none.

    Attributes:
        name: what `load` calls it.
        title: for people.
        found: whether all its files are there.
        where: their folder, or "" if not found.
        train_count: training images, from the header of the file.
        test_count: test images, likewise.
        image_shape: (h, w, c).
        classes: how many.
        bytes: of all its files together, as they lie on the disk.
        licence: of the data, as far as its authors state one.
        origin: address where it is described.
        problem: one line about why it cannot be used and what to do, or "".
    """

    name: str
    title: str
    found: bool
    where: str
    train_count: int | None
    test_count: int | None
    image_shape: tuple[int, int, int] | None
    classes: int
    bytes: int | None
    licence: str
    origin: str
    problem: str


@dataclass(frozen=True)
class FileCheck:
    """One file of a set: its path, what it holds, the SHA-256 of its (unpacked) contents and what that says."""

    file: str
    part: str
    sha256: str
    verdict: str


@dataclass(frozen=True)
class Check:
    """The outcome of reading a whole data set."""

    dataset: Dataset
    files: tuple[FileCheck, ...]

    @property
    def differs(self) -> bool:
        """Whether any file differs from the published one."""
        return any(file.verdict == DIFFERS for file in self.files)


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """The data set `name`: "digits", "fashion-mnist", "mnist", "cifar10" or the path of an .npz file (see npz.py).

    Args:
        name: what to load.
        data_dir: the folder searched first for a set that does not come with minidl.

    Raises:
        DataError: the name is unknown, or its files are missing, damaged or not what they should be.
    """
    if is_npz(name):
        return npz.read_npz(expanded(name))
    return check(name, data_dir).dataset


def check(name: str, data_dir: str | Path | None = None) -> Check:
    """Load the set and compare each of its files with the published one, where its checksum is known.

    Raises:
        DataError: as `load`. A file that is sound but differs from the published one is no error.
    """
    if is_npz(name):
        path = expanded(name)
        dataset = npz.read_npz(path)
        return Check(dataset, (FileCheck(str(path), "all arrays", npz.sha256(path), NO_CHECKSUM),))
    _require_known(name)
    if name == "digits":
        dataset = read_digits()
        same = dataset.fingerprint == catalogue.DIGITS_FINGERPRINT
        verdict = AS_PUBLISHED if same else DIFFERS
        return Check(dataset, (FileCheck(dataset.source, "all arrays", dataset.fingerprint, verdict),))
    place = find(name, data_dir)
    return _read_cifar(place) if name == "cifar10" else _read_idx(name, place)


def available(data_dir: str | Path | None = None) -> list[Availability]:
    """What there is of each known set. Only headers and one small file of labels a set are read, not the images.

    Raises:
        DataError: `data_dir` is not a folder. A set with a fault is listed with its `problem`.
    """
    if data_dir is not None:
        existing_folder(data_dir)
    return [_availability(name, data_dir) for name in KNOWN]


def _availability(name: str, data_dir: str | Path | None) -> Availability:
    known = KNOWN[name]
    found, where, problem = False, "", ""
    counts: tuple[int, int] | tuple[None, None] = (None, None)
    shape, size = None, None
    try:
        if name == "digits":
            dataset = read_digits()
            found, where, size = True, dataset.source, FILE.stat().st_size
            counts, shape = (len(dataset.train_images), len(dataset.test_images)), dataset.image_shape
        else:
            paths = find(name, data_dir).paths
            found, where = True, str(next(iter(paths.values())).parent)
            size = sum(path.stat().st_size for path in paths.values())
            counts, shape = _contents(paths)
    except DataError as error:
        problem = str(error)
    return Availability(
        name=name,
        title=known.title,
        found=found,
        where=where,
        train_count=counts[0],
        test_count=counts[1],
        image_shape=shape,
        classes=len(known.class_names),
        bytes=size,
        licence=known.licence,
        origin=known.origin,
        problem=problem,
    )


def _contents(paths: dict[str, Path]) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """How many training and test images the files promise, and their shape."""
    if "training images" in paths:
        train = idx.read_sizes(paths["training images"], 3)
        test = idx.read_sizes(paths["test images"], 3)
        return (train[0], test[0]), (train[1], train[2], 1)
    counts = {part: cifar.records(path) for part, path in paths.items()}
    test_count = counts.pop("test images")
    return (sum(counts.values()), test_count), (cifar.SIDE, cifar.SIDE, 3)


def is_npz(name: str) -> bool:
    """Whether `load` takes the name for the path of an npz file."""
    return Path(name).suffix.lower() == ".npz"


def _require_known(name: str) -> None:
    """Raise a DataError that suggests the nearest name unless `name` is known."""
    if name in KNOWN:
        return
    names = ", ".join(KNOWN)
    if name and Path(name).is_dir():
        raise DataError(f"{name!r} is a folder; expected one of {names}, with the folder as --data-dir")
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), KNOWN, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise DataError(f"unknown data set {name!r}; expected one of {names}, or the path of an .npz file{hint}")


def _read_idx(name: str, place: Place) -> Check:
    class_names = KNOWN[name].class_names
    arrays: dict[str, NDArray[Any]] = {}
    files = []
    for part, path in place.paths.items():
        read = idx.read_images(path) if part.endswith("images") else idx.read_labels(path, len(class_names))
        arrays[part], sha256 = read
        stranger = belongs_elsewhere(name, part, path, sha256)
        if stranger:
            raise DataError(stranger)
        verdict = AS_PUBLISHED if catalogue.PUBLISHED[name, part] == sha256 else DIFFERS
        files.append(FileCheck(str(path), part, sha256, verdict))
    for half in ("training", "test"):
        images, labels = f"{half} images", f"{half} labels"
        check_counts(str(place.paths[images]), len(arrays[images]), str(place.paths[labels]), len(arrays[labels]))
    dataset = Dataset.from_arrays(
        name,
        arrays["training images"],
        arrays["training labels"],
        arrays["test images"],
        arrays["test labels"],
        class_names,
        str(place.folder),
        known=True,
    )
    return Check(dataset, tuple(files))


def _read_cifar(place: Place) -> Check:
    parts, files = [], []
    for part, path in place.paths.items():
        images, labels, sha256 = cifar.read_batch(path)
        parts.append((images, labels))
        verdict = NO_CHECKSUM if len(images) == cifar.RECORDS_IN_FILE else DIFFERS
        files.append(FileCheck(str(path), part, sha256, verdict))
    train_images = np.concatenate([images for images, _ in parts[:-1]])
    train_labels = np.concatenate([labels for _, labels in parts[:-1]])
    names = KNOWN["cifar10"].class_names
    folder = str(place.folder)
    dataset = Dataset.from_arrays("cifar10", train_images, train_labels, *parts[-1], names, folder, known=True)
    return Check(dataset, tuple(files))
