"""The rows of docs/batchnorm-conventions.md, each with the test that holds it (tests/nn/test_conventions.py)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minidl.nn.conventions.table import CONVENTIONS, Convention


class Row(NamedTuple):
    """A point on which frameworks differ, or could; what a cell says follows from the table."""

    point: str
    cell: Callable[[Convention], str]
    test: str


class Note(NamedTuple):
    """A point with one answer for ours, and what is known of others."""

    point: str
    others: str
    ours: str
    test: str


_ONE_VALUE = {
    "error": "an error",
    "beta": "y = beta; the variance counts as 0",
    "nan": "running variance NaN",
}
_FIRST = {"0, 1": "0, 1", "inputs": "inputs", "replaced": "any: the first factor must be 1"}

ROWS = (
    Row("layer", lambda c: f"`{c.layer}`", "test_layers_exist"),
    Row("running statistics: argument", lambda c: f"`{c.momentum}`", "test_arguments_and_defaults"),
    Row("it is the weight of", lambda c: f"the {c.weighs} value", "test_what_momentum_weighs"),
    Row("its default", lambda c: _number(c.default_momentum), "test_arguments_and_defaults"),
    Row("cumulative mean", lambda c: _setting(c.cumulative), "test_cumulative_mean"),
    Row("running variance", lambda c: _bias(c.unbiased), "test_running_variance"),
    Row("variance that normalizes", lambda _: _bias(False), "test_training_output"),
    Row("first running mean, variance", lambda c: _FIRST[c.first], "test_first_batch"),
    Row("eps, inside the root", lambda c: f"`{c.eps}`", "test_eps_is_inside_the_root"),
    Row("its default", lambda c: _number(c.default_eps), "test_arguments_and_defaults"),
    Row("one value a channel in training", lambda c: _ONE_VALUE[c.one_value], "test_one_value_a_channel"),
    Row("axis of channels", lambda c: str(c.axis), "test_training_output"),
    Row("without gamma, beta", lambda c: _switches(c.switches), "test_without_gamma_and_beta"),
    Row("without running statistics", lambda c: _off(c.tracking_switch), "test_without_running_statistics"),
    Row("frozen statistics", lambda c: c.frozen, "test_frozen_statistics"),
    Row("half-precision input is summed in", lambda c: c.half, "test_half_precision"),
    Row("gamma, beta, mean, variance", lambda c: ", ".join(f"`{n}`" for n in c.names[:4]), "test_states_both_ways"),
    Row("count of batches", lambda c: f"`{c.names.batches}`" if c.names.batches else "none", "test_states_both_ways"),
)

NOTES = (
    Note(
        "evaluation's gradient",
        "dx = g gamma / sqrt(running_var + eps): PyTorch; cuDNN has no such call (pytorch#4284), PyTorch/XLA had it "
        "wrong once (xla#913)",
        "as PyTorch; gamma and beta have gradients, too",
        "test_gradient_of_evaluation",
    ),
    Note(
        "training's gradient",
        "through mean and variance: the sum of dx is 0, that of dx xhat is eps / (var + eps) times what it would be "
        "without",
        "the same",
        "test_gradient_of_training",
    ),
    Note(
        "a bias right before",
        "has gradient 0 but for rounding: `bias=False` is usual",
        "the models have none",
        "test_a_bias_before_normalization_learns_nothing",
    ),
    Note(
        "batches of unequal size",
        "apex and PyTorch's SyncBatchNorm merge count, mean and sum of squares; a mean of variances would be wrong",
        "`reestimate_statistics` merges likewise",
        "test_moments_of_unequal_batches",
    ),
    Note(
        "ghost batches",
        "momentum once for each ghost batch (pytorch_tabnet), or a set for each",
        "momentum once a batch, towards the mean of all",
        "test_ghost_batches",
    ),
    Note(
        "a layer used twice",
        "running statistics mix both inputs (keras#8794, pytorch#1738)",
        "the same; a Graph refuses it, and so does `fold`",
        "test_a_layer_used_twice",
    ),
    Note(
        "an empty batch",
        "PyTorch: output empty",
        "output empty, statistics unchanged",
        "test_an_empty_batch",
    ),
    Note(
        "eps = 0",
        "PyTorch refuses it in training",
        "refused",
        "test_eps_of_zero",
    ),
    Note(
        "folding",
        "`torch.nn.utils.fuse_conv_bn_eval`: W s, beta + (b - mean) s",
        "`nn.fold`, the same; tests/nn/test_folding.py",
        "test_folding",
    ),
    Note(
        "weight decay",
        "PyTorch's SGD decays gamma and beta unless told otherwise",
        "`Parameter.decay` is False for both",
        "test_weight_decay_is_not_meant_for_gamma_and_beta",
    ),
    Note(
        "last gamma of a block 0",
        "torchvision: `zero_init_residual`, off unless asked for",
        "`zero_gamma`, off unless asked for",
        "test_zero_gamma",
    ),
)


def table() -> str:
    """The frameworks, point by point, as Markdown."""
    titles = [convention.title for convention in CONVENTIONS.values()]
    rows = [[row.point, *map(row.cell, CONVENTIONS.values()), f"`{row.test}`"] for row in ROWS]
    return _markdown([["", *titles, "test"], *rows])


def notes() -> str:
    """The further points, as Markdown."""
    return _markdown([["", "others", "minidl", "test"], *([*note[:3], f"`{note.test}`"] for note in NOTES)])


def sources() -> str:
    """Where each framework's column stands, and whether tests run it, as Markdown."""
    rows = [["framework", "tested by", "source"]]
    for c in CONVENTIONS.values():
        run = "running it" if c.run else "its documentation or source, as a formula in float64; not run"
        rows.append([c.title, run, c.source])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _number(value: float | None) -> str:
    return "none: must be given" if value is None else f"{value:g}"


def _setting(setting: tuple[str, object] | None) -> str:
    return "none" if setting is None else f"`{setting[0]}={setting[1]}`"


def _bias(unbiased: bool) -> str:
    return "unbiased" if unbiased else "biased"


def _off(switch: str) -> str:
    return f"`{switch}=False`" if switch else "cannot be"


def _switches(switches: tuple[str, str]) -> str:
    return ", ".join(f"`{switch}=False`" for switch in dict.fromkeys(switches) if switch) or "cannot be"
