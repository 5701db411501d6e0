"""What is known of the data sets that have a name: their files, where those usually lie, licence and checksums."""

from dataclasses import dataclass
from pathlib import Path

from minidl.data import cifar, digits

# The four IDX files, by what they hold; MNIST and Fashion-MNIST use the same names.
IDX_FILES = {
    "training images": "train-images-idx3-ubyte",
    "training labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
CIFAR_FILES = {f"training images, part {number}": name for number, name in enumerate(cifar.TRAIN_FILES, 1)}
CIFAR_FILES["test images"] = cifar.TEST_FILES[0]


@dataclass(frozen=True)
class KnownSet:
    """A data set with a name of its own.

    Attributes:
        title: for people.
        files: file name of each part; empty for the set inside the package.
        zipped: whether each file may also be gzipped, with .gz after its name.
        folders: where the files lie within a folder of data sets, most likely first; the folder itself comes last.
        class_names: one a class.
        licence: as far as the authors state one.
        origin: where it is described.
        remedy: how to get the files.
    """

    title: str
    files: dict[str, str]
    zipped: bool
    folders: tuple[str, ...]
    class_names: tuple[str, ...]
    licence: str
    origin: str
    remedy: str


KNOWN = {
    "digits": KnownSet(
        title="UCI handwritten digits",
        files={},
        zipped=False,
        folders=(),
        class_names=digits.CLASS_NAMES,
        licence="CC BY 4.0",
        origin="https://doi.org/10.24432/C50P49",
        remedy="reinstall minidl",
    ),
    "fashion-mnist": KnownSet(
        title="Fashion-MNIST",
        files=IDX_FILES,
        zipped=True,
        folders=("fashion-mnist", "FashionMNIST/raw", "fashion"),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        licence="MIT",
        origin="https://github.com/zalandoresearch/fashion-mnist",
        remedy="on Debian and Ubuntu `apt install dataset-fashion-mnist`, elsewhere download its four files from "
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": KnownSet(
        title="MNIST",
        files=IDX_FILES,
        zipped=True,
        folders=("mnist", "MNIST/raw"),
        class_names=tuple("0123456789"),
        licence="not stated by its authors",
        origin="http://yann.lecun.com/exdb/mnist/",
        remedy="download its four files (train-images-idx3-ubyte.gz and so on)",
    ),
    "cifar10": KnownSet(
        title="CIFAR-10",
        files=CIFAR_FILES,
        zipped=False,
        folders=("cifar-10-batches-bin", "cifar10"),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        licence="not stated by its authors",
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        remedy="download and unpack cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
}

# Places outside of --data-dir and MINIDL_DATA: where a system's own package puts the files.
SYSTEM_FOLDERS = {"fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),)}

# SHA-256 of the published files, unpacked.
PUBLISHED = {
    ("mnist", "training images"): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ("mnist", "training labels"): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ("mnist", "test images"): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ("mnist", "test labels"): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ("fashion-mnist", "training images"): "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ("fashion-mnist", "training labels"): "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ("fashion-mnist", "test images"): "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ("fashion-mnist", "test labels"): "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# The fingerprint of the digits and their split: of the arrays, as the bytes of the file depend on zlib.
DIGITS_FINGERPRINT = "75f3d8906ea411c7d4ff9f67901351641a5778c7841e139085157e5ec79403ff"


def published_as(sha256: str) -> tuple[str, str] | None:
    """(set, part) of the published file with this checksum, if there is one."""
    return next((key for key, published in PUBLISHED.items() if published == sha256), None)
