"""Where the files of a known data set lie.

A set is looked for in the folder given, then in the one that MINIDL_DATA names, then where a system package installs
it. In each of these, the set's usual subfolders come first (catalogue.py lists them), then the folder itself. The first
place that has any of the set's files is taken, unless they are provably another set's: MNIST and Fashion-MNIST use the
same file names.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from minidl.data import catalogue, cifar, idx
from minidl.data.catalogue import KNOWN
from minidl.data.files import expanded, is_file
from minidl.errors import DataError

ENVIRONMENT = "MINIDL_DATA"


@dataclass(frozen=True)
class Place:
    """Where a known set was found: its folder and the path of each part."""

    folder: Path
    paths: dict[str, Path]


def find(name: str, data_dir: str | Path | None = None) -> Place:
    """Where the files of a known set lie; none is read beyond what tells MNIST and Fashion-MNIST apart.

    Raises:
        DataError: they are nowhere (the message lists the places searched and says how to get them), or incomplete.
    """
    known = KNOWN[name]
    places = _places(name, data_dir)
    passed_over = []
    for folder in places:
        paths = {part: _path(folder / file, known.zipped) for part, file in known.files.items()}
        found = {part: path for part, path in paths.items() if path is not None}
        if not found:
            if name == "cifar10" and cifar.python_version(folder):
                passed_over.append(f"{folder}: the pickled python version, never opened; {cifar.BINARY_VERSION}")
            continue
        missing = [known.files[part] for part, path in paths.items() if path is None]
        if missing:
            raise DataError(
                f"{name}: {folder} has only part of the files; copy there what is missing: {', '.join(missing)}"
                f"{' (with or without .gz)' if known.zipped else ''}"
            )
        stranger = _other_set(name, found)
        if stranger:
            passed_over.append(stranger)
            continue
        return Place(folder, found)
    if passed_over:
        raise DataError(passed_over[0])
    searched = f"not found in {', '.join(map(str, places))}" if places else "no folder to look in"
    root = os.environ.get(ENVIRONMENT)
    if root and not expanded(root).is_dir():
        searched += f" ({ENVIRONMENT} names no folder)"
    raise DataError(f"{name}: {searched}; {known.remedy}, then name their folder by --data-dir or {ENVIRONMENT}")


def _places(name: str, data_dir: str | Path | None) -> list[Path]:
    """The folders to look in, in order."""
    roots = []
    if data_dir is not None:
        roots.append(existing_folder(data_dir))
    if os.environ.get(ENVIRONMENT):
        roots.append(expanded(os.environ[ENVIRONMENT]))
    roots.extend(catalogue.SYSTEM_FOLDERS.get(name, ()))
    places = [root / folder for root in roots for folder in (*KNOWN[name].folders, "")]
    return list(dict.fromkeys(places))


def existing_folder(data_dir: str | Path) -> Path:
    """`data_dir` with ~ expanded. Raises DataError unless it is a folder."""
    folder = expanded(data_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --data-dir names the folder that holds the data sets")
    return folder


def _path(path: Path, zipped: bool) -> Path | None:
    """The file, under its own name or with .gz after it."""
    if is_file(path):
        return path
    packed = path.with_name(path.name + ".gz")
    return packed if zipped and is_file(packed) else None


def _other_set(name: str, paths: dict[str, Path]) -> str | None:
    """What to say where the files are another set's, by the smallest of them: the test labels."""
    if name == "cifar10":
        return None
    path = paths["test labels"]
    try:
        _, sha256 = idx.read_labels(path, classes=256)
    except DataError:
        return None  # reading the set will say what is wrong with the file
    return belongs_elsewhere(name, "test labels", path, sha256)


def belongs_elsewhere(name: str, part: str, path: Path, sha256: str) -> str | None:
    """What to say of a file that is published as another part or another set."""
    owner = catalogue.published_as(sha256)
    if owner is None or owner == (name, part):
        return None
    return f"{path}: expected the {part} of {name}, but these are the {owner[1]} of {owner[0]}; {KNOWN[name].remedy}"
