"""Lines of batch and group normalization.

So small an array has few rows for a thread; a limit says so where what belongs to its channels counts beside them.
"""

from kernels import batchnorm as bn
from kernels import group_norm as gn
from kernels.batch_statistics import GradientSums
from kernels.chip import HOPPER
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, Storage
from minidl.lab.access_lines.line import Call, Line, ones, statistics

BATCH = 16, 16, 16, 64
BATCHES = 32, 16, 16, 64  # as many bytes in 16 bits
FEW_RESIDENT = (
    "what belongs to channels, and what blocks tell each other of them, is float32, here for 16 rows a thread"
)
FEW_ROWS = "a thread reads what belongs to its channels, here for as few as 4 rows"


def _apply(run: EmulatorRunner) -> None:
    x, c, known = ones(*BATCH), ones(64), statistics(64)
    bn.batchnorm_apply(run, x, known, c, c, ones(*BATCH), True, technique="vector")
    bn.batchnorm_add_relu_apply(run, x, x, known, c, c, ones(*BATCH), technique="vector")


def _batchnorm_backward(run: EmulatorRunner) -> None:
    x, c = ones(*BATCH), ones(64)
    gradients = ones(*BATCH), ones(64), ones(64)
    bn.batchnorm_backward(run, x, x, statistics(64), c, c, *gradients, True, True, technique="vector")


def _residual_backward(run: EmulatorRunner) -> None:
    x, gradients = ones(*BATCH), [ones(*BATCH), ones(*BATCH), ones(64), ones(64)]
    bn.batchnorm_add_relu_backward(run, x, x, x, statistics(64), ones(64), *gradients, True, technique="vector")


def _statistics(run: EmulatorRunner) -> None:
    bn.batchnorm_statistics(run, ones(*BATCH), 1e-5, statistics(64), technique="vector")


def _persistent(run: EmulatorRunner) -> None:
    run.chip = HOPPER._replace(multiprocessors=16)
    x, c, known = ones(*BATCH), ones(64), statistics(64)
    bn.batchnorm_forward(run, x, c, c, 1e-5, known, ones(*BATCH), True, technique="persistent")
    gradients = ones(*BATCH), ones(64), ones(64)
    bn.batchnorm_backward(run, x, x, known, c, c, *gradients, True, True, technique="persistent")
    bn.batchnorm_add_relu_backward(
        run, x, x, x, known, c, gradients[0], ones(*BATCH), *gradients[1:], True, technique="persistent"
    )


def _stored(storage: Storage) -> Call:
    """All of these of images in 16 bits."""

    def call(run: EmulatorRunner) -> None:
        x, c, known = ones(*BATCH, dtype=storage.dtype), ones(64), statistics(64)
        y, gradients = ones(*BATCH, dtype=storage.dtype), (ones(64), ones(64))
        bn.batchnorm_statistics(run, x, 1e-5, known, technique="vector")
        bn.batchnorm_apply(run, x, known, c, c, y, True, technique="vector")
        bn.batchnorm_add_relu_apply(run, x, x, known, c, c, y, technique="vector")
        bn.batchnorm_backward(run, x, x, known, c, c, y, *gradients, True, True, technique="vector")
        bn.batchnorm_add_relu_backward(
            run, x, x, x, known, c, y, ones(*BATCH, dtype=storage.dtype), *gradients, True, technique="vector"
        )

    return call


def _stored_persistent(storage: Storage) -> Call:
    def call(run: EmulatorRunner) -> None:
        run.chip = HOPPER._replace(multiprocessors=16)
        x, c, known = ones(*BATCHES, dtype=storage.dtype), ones(64), statistics(64)
        y, gradients = ones(*BATCHES, dtype=storage.dtype), (ones(64), ones(64))
        bn.batchnorm_forward(run, x, c, c, 1e-5, known, y, True, technique="persistent")
        bn.batchnorm_backward(run, x, x, known, c, c, y, *gradients, True, True, technique="persistent")
        bn.batchnorm_add_relu_backward(
            run, x, x, x, known, c, y, ones(*BATCHES, dtype=storage.dtype), *gradients, True, technique="persistent"
        )

    return call


def _merge(run: EmulatorRunner) -> None:
    """What a convolution's epilogue leaves of 4096 tiles."""
    partial = ones(3, 4096, 64)
    bn.merge_statistics(run, partial, statistics(64), 4096 * 128, 128, 1e-5)
    bn.merge_gradient_sums(run, partial[:2], ones(64), GradientSums(*statistics(64)), 4096 * 128)


def _group_norm(shape: tuple[int, ...], groups: int) -> Call:
    """Statistics, forward and backward."""

    def call(run: EmulatorRunner) -> None:
        x, c, known = ones(*shape), ones(shape[-1]), statistics(shape[0], groups)
        gn.group_norm_statistics(run, x, groups, 1e-5, known)
        gn.group_norm_apply(run, x, known, groups, c, c, ones(*shape))
        gradients = ones(*shape), ones(shape[-1]), ones(shape[-1])
        gn.group_norm_backward(run, x, x, known, groups, c, *gradients)

    return call


IMAGES, SAMPLES = _group_norm((8, 16, 16, 64), 8), _group_norm((64, 256), 1)
LONG = _group_norm((16, 1024), 1)
# In 16 bits a row of 8 channels takes 16 bytes, and what belongs to these is float32.
STORED = (
    ("sum_shifted", 1.05, ""),
    ("apply", 1.65, FEW_ROWS),
    ("add_relu_apply", 1.45, FEW_ROWS),
    ("sum_gradients", 1.65, FEW_ROWS),
    ("mask_and_sum_gradients", 1.15, FEW_ROWS),
    ("backward", 1.6, FEW_ROWS),
)
LINES = (
    Line("batchnorm_sum_shifted_vector", "16x16x16x64", _statistics),
    Line("batchnorm_apply_vector", "16x16x16x64", _apply, 1.35, FEW_ROWS),
    Line("batchnorm_add_relu_apply_vector", "16x16x16x64", _apply, 1.35, FEW_ROWS),
    Line("batchnorm_sum_gradients_vector", "16x16x16x64", _batchnorm_backward, 1.35, FEW_ROWS),
    Line("batchnorm_backward_vector", "16x16x16x64", _batchnorm_backward, 1.35, FEW_ROWS),
    Line("batchnorm_mask_and_sum_gradients_vector", "16x16x16x64", _residual_backward, 1.1, FEW_ROWS),
    Line("batchnorm_forward_persistent_vector", "16x16x16x64, 16 multiprocessors", _persistent),
    Line("batchnorm_backward_persistent_vector", "16x16x16x64, 16 multiprocessors", _persistent),
    Line("batchnorm_add_relu_backward_persistent_vector", "16x16x16x64, 16 multiprocessors", _persistent),
    *(
        Line(f"batchnorm_{name}_vector", f"16x16x16x64, {storage}", call, limit, why)
        for storage, call in ((BFLOAT16, _stored(BFLOAT16)), (FLOAT16, _stored(FLOAT16)))
        for name, limit, why in STORED
    ),
    *(
        Line(
            f"batchnorm_{name}_persistent_vector",
            f"32x16x16x64, {storage}, 16 multiprocessors",
            call,
            1.1,
            FEW_RESIDENT,
        )
        for storage, call in ((BFLOAT16, _stored_persistent(BFLOAT16)), (FLOAT16, _stored_persistent(FLOAT16)))
        for name in ("forward", "backward", "add_relu_backward")
    ),
    Line("batchnorm_merge_statistics", "4096 of 64", _merge),
    Line("batchnorm_merge_gradients", "4096 of 64", _merge),
    Line("group_norm_sum_shifted_vector", "8x16x16x64, 8 groups", IMAGES),
    Line("group_norm_apply_vector", "8x16x16x64, 8 groups", IMAGES, 1.2, FEW_ROWS),
    Line("group_norm_sum_gradients_vector", "8x16x16x64, 8 groups", IMAGES),
    Line("group_norm_backward_vector", "8x16x16x64, 8 groups", IMAGES, 1.1, FEW_ROWS),
    Line("group_norm_statistics_of_groups_vector", "16x1024, 1 group", LONG),
    Line("group_norm_backward_of_groups_vector", "64x256, 1 group", SAMPLES, 1.2, "and gamma for each sample"),
    Line("group_norm_backward_of_groups_vector", "16x1024, 1 group", LONG, 2.4, "a long group is read twice"),
)
