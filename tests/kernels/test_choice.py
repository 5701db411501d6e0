"""Which technique is taken: the first that can, or the one asked for by name, or an error that says why it cannot."""

import contextlib
import re
from typing import Any

import numpy as np
import pytest
from emulated import Recorder, blank

from kernels.activation import relu_forward
from kernels.batch_statistics import BatchStatistics
from kernels.channel_order import channels_first
from kernels.channels import concat, split
from kernels.choice import choose, vectors
from kernels.errors import TechniqueError
from kernels.gradient_norm import clip_by_norm
from kernels.group_norm import group_norm_apply, group_norm_statistics
from kernels.noise import noise_forward
from kernels.pooling import avg_pool2d_forward, global_avg_pool2d_forward, max_pool2d_backward
from kernels.run_dry import DryRunner

QUICK = "quick", True, "few rows"
NARROW = "narrow", False, lambda: "5 rows, more than 4"
PLAIN = "plain", True, ""


def heard(host: Any, *arguments: Any, **options: Any) -> list[tuple[str, str]]:
    run = DryRunner()
    host(run, *arguments, **options)
    return [(chosen.technique, chosen.why) for chosen in run.chosen]


def test_the_first_that_can_is_taken() -> None:
    assert choose(Recorder(), "sum", None, (QUICK, PLAIN)) == "quick"
    assert choose(Recorder(), "sum", None, (NARROW, PLAIN)) == "plain"
    assert choose(Recorder(), "sum", "plain", (QUICK, PLAIN)) == "plain"


def test_one_by_name_that_cannot_is_refused_with_the_reason_and_those_that_can() -> None:
    with pytest.raises(TechniqueError) as caught:
        choose(Recorder(), "sum", "narrow", (NARROW, QUICK, PLAIN))
    assert str(caught.value) == (
        "sum cannot be computed by technique 'narrow': 5 rows, more than 4; quick or plain can take it"
    )
    assert (caught.value.operation, caught.value.technique) == ("sum", "narrow")
    assert isinstance(caught.value, ValueError)


def test_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^sum has no technique 'tiled'; its techniques are quick, plain$"):
        choose(Recorder(), "sum", "tiled", (QUICK, PLAIN))
    with pytest.raises(ValueError, match=r"^sum: no technique can take these arrays \(narrow: 5 rows, more than 4\)$"):
        choose(Recorder(), "sum", None, (NARROW,))


def test_whoever_listens_hears_what_was_taken_and_why() -> None:
    run, x = DryRunner(), blank((5, 3))
    choose(run, "sum", None, (QUICK, PLAIN), x=x, bias=None)
    choose(run, "sum", None, (NARROW, PLAIN), x=x)
    choose(run, "sum", None, (NARROW, QUICK), x=x)
    choose(run, "sum", "plain", (NARROW, PLAIN), x=x)
    shapes = {"x": (5, 3)}
    assert run.chosen == [
        ("sum", "quick", "few rows", shapes),
        ("sum", "plain", "5 rows, more than 4", shapes),
        ("sum", "quick", "5 rows, more than 4; few rows", shapes),
        ("sum", "plain", "asked for by name", shapes),
    ]


def test_nothing_is_put_into_words_while_nobody_listens() -> None:
    def words() -> str:
        raise AssertionError

    assert choose(Recorder(), "sum", None, (("quick", False, words), ("plain", True, words))) == "plain"
    assert choose(Recorder(), "sum", "plain", (("quick", True, words), ("plain", True, words))) == "plain"


@pytest.mark.parametrize(
    ("numbers", "offsets", "why"),
    [
        ({"channels": 17}, {}, "17 channels are no multiple of 4"),
        ({"channels": 1}, {}, "1 channel is no multiple of 4"),
        ({"channels": 8, "channels of a group": 2}, {}, "2 channels of a group are no multiple of 4"),
        ({"channels": 8}, {"x": 1}, "x starts at no multiple of 16 bytes"),
        ({}, {"x": 1, "y": 3}, "x and y start at no multiple of 16 bytes"),
        ({"channels": 6}, {"y": 2}, "6 channels are no multiple of 4; y starts at no multiple of 16 bytes"),
    ],
)
def test_vectors_are_refused_by_the_number_and_the_array(numbers, offsets, why: str) -> None:
    arrays = {name: blank((8,), offsets.get(name, 0)) for name in ("x", "y")}
    run = DryRunner()
    assert not vectors(Recorder(), "add", None, numbers, **arrays)
    assert not vectors(run, "add", None, numbers, **arrays)
    assert run.chosen[-1][1:3] == ("scalar", why)
    with pytest.raises(TechniqueError, match=re.escape(f"'vector': {why}; scalar can take it")):
        vectors(Recorder(), "add", "vector", numbers, **arrays)
    assert not vectors(Recorder(), "add", "scalar", numbers, **arrays)


def test_vectors_of_16_bits_have_eight_elements() -> None:
    x = blank((8,))
    assert vectors(Recorder(), "add", None, {"channels": 16}, 8, x=x)
    assert vectors(Recorder(), "add", None, {"channels": 12}, 4, x=x)
    assert not vectors(Recorder(), "add", None, {"channels": 12}, 8, x=x)
    with pytest.raises(TechniqueError, match="'vector': 12 channels are no multiple of 8; scalar can take it"):
        vectors(Recorder(), "add", "vector", {"channels": 12}, 8, x=x)


def test_vectors_are_taken_where_everything_allows_them() -> None:
    x, run = blank((3, 8)), DryRunner()
    assert vectors(Recorder(), "add", None, {"channels": 8}, x=x, gamma=None)
    assert vectors(run, "add", "vector", {"channels": 8}, x=x, gamma=None)
    assert vectors(run, "add", None, {"channels": 8, "channels of a group": 4}, x=x, parts=[x, x])
    assert not vectors(run, "add", "scalar", {}, x=x)
    assert [chosen.why for chosen in run.chosen] == [
        "asked for by name",
        "8 channels, 4 channels of a group, all arrays aligned to 16 bytes",
        "asked for by name",
    ]
    assert run.chosen[1].shapes == {"x": (3, 8), "parts": [(3, 8), (3, 8)]}
    with pytest.raises(ValueError, match="add has no technique 'tiled'; its techniques are vector, scalar"):
        vectors(run, "add", "tiled", {}, x=x)


def test_of_a_list_the_arrays_are_named_by_number() -> None:
    values = [blank((8,), offset) for offset in (0, 1, 0, 2, 3, 1, 1)]
    message = "values[1], values[3], values[4] and 2 more arrays start at no multiple of 16 bytes"
    with pytest.raises(TechniqueError, match=re.escape(message)):
        vectors(Recorder(), "sgd", "vector", {}, values=values)
    with pytest.raises(TechniqueError, match=r"values\[1\] starts at"):
        vectors(Recorder(), "sgd", "vector", {}, values=values[:3])
    assert vectors(Recorder(), "sgd", None, {}, values=[], grads=[values[0]])


POOL = (2, 2), (2, 2), (0, 0)


@pytest.mark.parametrize(
    ("host", "arguments", "why"),
    [
        (relu_forward, (blank((5,)), blank((5,), 1)), "y starts at no multiple of 16 bytes"),
        (
            avg_pool2d_forward,
            (blank((0, 4, 4, 6)), blank((0, 2, 2, 6)), *POOL, True),
            "6 channels are no multiple of 4",
        ),
        (
            max_pool2d_backward,
            (blank((1, 2, 2, 8)), blank((1, 2, 2, 8), 1, np.int32), blank((1, 4, 4, 8)), *POOL),
            "index starts at no multiple of 16 bytes",
        ),
        (concat, ([blank((5, 4)), blank((5, 3)), blank((5, 1))], blank((5, 8))), "3 channels of parts[1] are no"),
        (split, (blank((5, 8), 1), [blank((5, 8))]), "whole from channel 0 starts at no multiple of 16 bytes"),
        (
            noise_forward,
            (blank((3, 6)), blank((3, 6)), 0.1, 1.1, 0.1, 0, 0, blank((), dtype=np.uint32)),
            "6 channels are no multiple of 4",
        ),
        (clip_by_norm, ([blank((5,)), blank((5,), 1)], blank(()), 1.0), "arrays[1] starts at no multiple of 16 bytes"),
    ],
)
def test_a_host_function_refuses_before_it_launches_anything(host, arguments, why: str) -> None:
    run = DryRunner()
    with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot be computed .*{re.escape(why)}"):
        host(run, *arguments, technique="vector")
    assert not run.launched
    host(run, *arguments)
    assert "scalar" in {chosen.technique for chosen in run.chosen}


def test_group_norm_names_what_its_way_through_the_rows_needs() -> None:
    def tables(n: int, groups: int, offset: int = 0) -> BatchStatistics:
        return BatchStatistics(*(blank((n, groups), offset) for _ in range(4)))

    few, many = blank((5, 4, 12)), blank((5, 300, 12))
    for x, reason in ((few, "3 channels of a group are no multiple of 4"), (many, "")):
        with pytest.raises(TechniqueError, match=reason) if reason else contextlib.nullcontext():
            group_norm_statistics(Recorder(), x, 4, 1e-5, tables(5, 4), technique="vector")
        with pytest.raises(TechniqueError, match=reason) if reason else contextlib.nullcontext():
            group_norm_apply(Recorder(), x, tables(5, 4), 4, None, None, x, technique="vector")
    with pytest.raises(TechniqueError, match="shift, delta and inv_std start at no multiple"):
        group_norm_apply(Recorder(), many, tables(5, 12, 1), 12, None, None, many, technique="vector")


def test_reasons_name_the_shapes_that_decide() -> None:
    image, flat = blank((2, 8, 8, 16)), blank((2, 1024))
    assert heard(channels_first, image, flat) == [
        ("tiled", "matrices of 64x16, read and written in rows through shared memory")
    ]
    small, line = blank((2, 2, 2, 3)), blank((2, 12))
    assert heard(channels_first, small, line) == [("plain", "matrices of 4x3, too small or too narrow for tiles")]
    assert heard(global_avg_pool2d_forward, image, blank((2, 16)))[0][0] == "shared"
    parts = [blank((5, 4)), blank((5, 3)), blank((5, 1))]
    assert [technique for technique, _ in heard(concat, parts, blank((5, 8)))] == ["vector", "scalar", "scalar"]
