import numpy as np
import pytest

from minidl.data import Loader
from minidl.errors import ConfigError


def test_order_is_the_documented_one() -> None:
    order = np.concatenate(list(Loader(count=100, batch_size=30, seed=7).batches(epoch=3)))
    assert order.dtype == np.int64
    assert np.array_equal(order, np.random.default_rng([7, 3]).permutation(100))


def test_seed_and_epoch_change_the_order() -> None:
    orders = {tuple(Loader(50, 10, seed).order(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_epochs_can_be_asked_for_in_any_order() -> None:
    loader = Loader(50, 8, 0)
    later = [batch.tolist() for batch in loader.batches(5)]
    list(loader.batches(0))
    assert [batch.tolist() for batch in loader.batches(5)] == later


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (10, 4), (10, 5), (10, 10), (5, 1), (1, 1), (2, 2), (7, 6)])
def test_batches(count, batch_size) -> None:
    loader = Loader(count, batch_size, seed=1)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    seen = np.concatenate(batches)
    assert len(seen) == loader.images
    assert len(set(seen.tolist())) == len(seen)
    alone = batch_size > 1 and count % batch_size == 1
    assert loader.images == count - alone
    assert set(seen.tolist()) <= set(range(count))


def test_a_short_batch_is_kept_and_a_single_image_is_not() -> None:
    assert [len(batch) for batch in Loader(11, 3, 0).batches(0)] == [3, 3, 3, 2]
    assert [len(batch) for batch in Loader(10, 3, 0).batches(0)] == [3, 3, 3]
    assert [len(batch) for batch in Loader(3, 1, 0).batches(0)] == [1, 1, 1]
    left_out = {(set(range(10)) - set(Loader(10, 3, 0).order(epoch).tolist())).pop() for epoch in range(20)}
    assert len(left_out) > 1


@pytest.mark.parametrize("first", range(6))
def test_resume_inside_an_epoch(first) -> None:
    loader = Loader(18, 4, seed=2)
    whole = [batch.tolist() for batch in loader.batches(1)]
    assert [batch.tolist() for batch in loader.batches(1, first)] == whole[first:]


@pytest.mark.parametrize("batch_size", [0, -1, 101])
def test_batch_size_that_does_not_fit(batch_size) -> None:
    with pytest.raises(ConfigError) as caught:
        Loader(100, batch_size, 0)
    assert str(caught.value) == f"batch size {batch_size} does not fit a data set of 100 images; expected 1 to 100"


def test_empty_set_and_negative_seed() -> None:
    with pytest.raises(ConfigError, match="a data set of 0 images gives no batch"):
        Loader(0, 1, 0)
    with pytest.raises(ConfigError, match="seed -1 is negative; expected 0 or more"):
        Loader(10, 1, -1)
    with pytest.raises(ConfigError, match="batch -1 of an epoch; expected 0 or more"):
        next(Loader(10, 1, 0).batches(0, first=-1))


@pytest.mark.parametrize(
    ("count", "size", "multiple"), [(100, 32, 16), (96, 32, 16), (50, 16, 8), (33, 32, 32), (7, 6, 3)]
)
def test_batches_are_whole_ghost_batches(count: int, size: int, multiple: int) -> None:
    loader = Loader(count, size, 3, multiple)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader)
    assert all(len(batch) % multiple == 0 and len(batch) for batch in batches)
    assert sum(map(len, batches)) == loader.images == count // multiple * multiple
    assert [len(batch) for batch in loader.batches(0, first=1)] == [len(batch) for batch in batches[1:]]


@pytest.mark.parametrize(
    ("count", "size", "multiple", "remedy"),
    [
        (100, 60, 16, "use 48 or 64"),
        (100, 8, 16, "use 16"),
        (60, 60, 16, "use 48"),
        (10, 8, 16, "too few images for any"),
    ],
)
def test_a_batch_that_is_no_multiple_is_refused(count: int, size: int, multiple: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"--batch-size {size} is not a multiple of .* 16; .*{remedy}"):
        Loader(count, size, 0, multiple)
