"""Networks by name: which there are, what is refused and what is suggested, what a seed decides."""

import hashlib
import re

import numpy as np
import pytest

from minidl import models, nn
from minidl.backends import get_backend
from minidl.errors import ConfigError
from minidl.models import family_of
from minidl.nn.init import manual_seed

IMAGE = (8, 8, 1)


def test_the_names() -> None:
    expected = (
        "small-cnn",
        *("plain-20", "plain-32", "plain-44", "plain-56"),
        *("resnet-18", "resnet-20", "resnet-32", "resnet-44", "resnet-56", "resnet-110"),
        *("preact-resnet-18", "preact-resnet-20", "preact-resnet-32"),
        *("preact-resnet-44", "preact-resnet-56", "preact-resnet-110"),
        "inception-small",
        *("mlp-3", "mlp-5", "mlp-10"),
    )
    assert expected == models.NAMES


@pytest.mark.parametrize("name", ["small-cnn", "plain-5", "resnet-8", "preact-resnet-8", "inception-small", "mlp-2"])
def test_one_of_each_family_gives_a_number_for_each_class(name: str) -> None:
    model = models.build(name, (6, 5, 2), 3)
    assert model.forward(np.ones((2, 6, 5, 2), np.float32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("plain-5", 5), ("plain-57", 57), ("resnet-18", 18), ("resnet-8", 8), ("preact-resnet-1202", 1202), ("mlp-2", 2)],
)
def test_depths_that_are_not_listed(name: str, depth: int) -> None:
    assert family_of(name)[1] == depth


@pytest.mark.parametrize(
    ("name", "near", "words"),
    [
        ("plain-4", "plain-5", "5 or more"),
        ("resnet-34", "resnet-32", "18, or 6 n + 2 with n of 1 or more"),
        ("resnet-2", "resnet-8", "18, or 6 n + 2 with n of 1 or more"),
        ("resnet-17", "resnet-18", "18, or 6 n + 2 with n of 1 or more"),
        ("preact-resnet-100", "preact-resnet-98", "18, or 6 n + 2 with n of 1 or more"),
        ("mlp-1", "mlp-2", "2 or more"),
    ],
)
def test_other_depths_are_refused_and_the_nearest_is_suggested(name: str, near: str, words: str) -> None:
    message = f"there is no model '{name}': its depth must be {words}; did you mean '{near}'?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        models.build(name, IMAGE, 10)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("small_cnn", "small-cnn"),
        ("smal-cnn", "small-cnn"),
        ("small-cnn-20", "small-cnn"),
        ("resnt-20", "resnet-20"),
        ("resnet20", "resnet-20"),
        ("resnet34", "resnet-32"),
        ("resnet", "resnet-18"),
        ("preact-resnet", "preact-resnet-18"),
        ("preactresnet-20", "preact-resnet-20"),
        ("inception", "inception-small"),
        ("MLP-3", None),
        ("mpl-3", "mlp-3"),
        ("mlp", "mlp-3"),
        ("vgg", None),
        ("", None),
    ],
)
def test_an_unknown_name_gets_the_known_ones_and_a_suggestion(name: str, near: str | None) -> None:
    with pytest.raises(ConfigError) as e:
        models.build(name, IMAGE, 10)
    known = "small-cnn, plain-N, resnet-N, preact-resnet-N, inception-small, mlp-N"
    hint = f"; did you mean '{near}'?" if near else ""
    message = f"there is no model '{name}' (known: {known}; see `python -m minidl models`){hint}"
    assert str(e.value) == message


@pytest.mark.parametrize("name", models.NAMES)
def test_images_that_are_too_small_are_refused(name: str) -> None:
    least = 4 if name == "small-cnn" else 1
    for height, width in ((least - 1, 8), (8, least - 1), (0, 0)):
        message = f"^{name} needs images of at least {least}x{least} pixels, got {height}x{width}$"
        with pytest.raises(ConfigError, match=message):
            models.build(name, (height, width, 1), 10)


@pytest.mark.parametrize("name", ["small-cnn", "plain-5", "resnet-8", "preact-resnet-8", "inception-small", "mlp-2"])
def test_the_smallest_images_pass(name: str) -> None:
    side = 4 if name == "small-cnn" else 1
    model = models.build(name, (side, side, 1), 2)
    x = np.arange(3 * side**2, dtype=np.float32).reshape(3, side, side, 1)
    assert np.isfinite(model.forward(x)).all()


def test_images_of_which_some_layer_makes_too_little_are_refused() -> None:
    """Two halvings make one pixel of 4x4, whose variance in a channel is none."""
    models.build("resnet-8", (5, 5, 1), 10, "instance")
    with pytest.raises(ConfigError, match="resnet-8 with --norm instance cannot train on images of 4x4x1: Instance"):
        models.build("resnet-8", (4, 4, 1), 10, "instance")


def test_the_seed_makes_the_weights() -> None:
    def state(seed: int) -> dict[str, np.ndarray]:
        manual_seed(seed)
        return models.build("small-cnn", IMAGE, 10).state_dict()

    assert all(np.array_equal(value, state(3)[name]) for name, value in state(3).items())
    assert not np.array_equal(state(3)["fc.weight"], state(4)["fc.weight"])


@pytest.mark.parametrize(
    ("name", "norm", "zero_gamma", "digest"),
    [
        ("small-cnn", "batch", False, "290c62025bbf32ae"),
        ("small-cnn", "batch-after", False, "290c62025bbf32ae"),
        ("resnet-20", "batch", False, "4678544645860a24"),
        ("resnet-20", "batch", True, "f23f12ee9ac01907"),
        ("resnet-20", "ghost:8", False, "4678544645860a24"),
        ("resnet-20", "noisy", False, "4678544645860a24"),
        ("resnet-20", "skipinit", False, "ebe53f7a54343d7f"),
    ],
)
def test_names_and_first_values_stay_what_runs_began_with(name: str, norm: str, zero_gamma: bool, digest: str) -> None:
    """Of seed 3, to the bit. A run says no more than model, normalization and seed of where it began."""
    manual_seed(3)
    image = IMAGE if name == "small-cnn" else (28, 28, 1)
    found = hashlib.sha256()
    for key, value in models.build(name, image, 10, norm, zero_gamma).state_dict().items():
        found.update(key.encode() + str(value.dtype).encode() + str(value.shape).encode() + value.tobytes())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet-8", "inception-small"])
def test_models_move_as_a_whole(name: str) -> None:
    model = models.build(name, IMAGE, 10).to("reference")
    assert all(module.backend is get_backend("reference") for _, module in model.named_modules())


def test_building_leaves_nothing_behind() -> None:
    """That a model was tried out on shapes shows in none of its layers."""
    for _, module in models.build("resnet-8", IMAGE, 10).named_modules():
        assert module.backend is get_backend("cpu")
        assert module._kept is None
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
