"""What is compiled: how much, how long, and who hears of it."""

import time

import pytest
from numba import njit
from numba.core import config

from minidl.backends.compilation import COMPILATION, Compilation
from minidl.backends.cpu.compile import compiled


def test_nothing_yet() -> None:
    compilation = Compilation()
    assert (compilation.functions, compilation.seconds, compilation.problem) == (0, 0.0, None)


def test_what_is_compiled_within_counts_but_takes_no_time_of_its_own() -> None:
    compilation = Compilation()
    began = time.perf_counter()
    compilation.begin()
    compilation.begin()
    time.sleep(0.02)
    compilation.end()
    assert (compilation.functions, compilation.seconds) == (1, 0.0)
    compilation.end()
    assert compilation.functions == 2
    assert 0.02 <= compilation.seconds <= time.perf_counter() - began
    time.sleep(0.02)
    before = compilation.seconds
    compilation.begin()
    compilation.end()
    assert compilation.functions == 3
    assert before < compilation.seconds < time.perf_counter() - began - 0.02


def test_who_listens_hears_of_each_that_is_not_within_another() -> None:
    compilation = Compilation()
    heard: list[int] = []
    with compilation.watched(lambda: heard.append(compilation.functions)):
        compilation.begin()
        compilation.begin()
        compilation.end()
        compilation.end()
        compilation.begin()
        compilation.end()
    compilation.begin()
    compilation.end()
    assert heard == [0, 2]


def test_an_error_of_who_listens_leaves_the_count_right() -> None:
    compilation = Compilation()

    def fail() -> None:
        raise BrokenPipeError

    with compilation.watched(fail):
        with pytest.raises(BrokenPipeError):
            compilation.begin()
        compilation.end()
    heard: list[int] = []
    with compilation.watched(lambda: heard.append(compilation.functions)):
        compilation.begin()
    assert heard == [1]


def test_what_is_ours_is_optimized_less_and_nothing_else_is(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    before, heard = config.OPT, []
    ours, other = compiled(lambda x: x + 1), njit(lambda x: x + 2)
    with COMPILATION.watched(lambda: heard.append(int(config.OPT))):
        assert ours(1) == 2
        assert config.OPT is before
        assert other(1) == 3
    assert heard == [min(before, 2)]
    assert config.OPT is before
