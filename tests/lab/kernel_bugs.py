"""Bugs put into the source of the kernels, each one that a library has had.

`story` says where: R with a number is a row of the project's survey of failures, the others are issues and pull
requests (PR) of the project named.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """A change of a kernel's source, and what must find it."""

    name: str
    story: str
    file: str
    old: str
    new: str
    operation: str
    technique: str
    cases: str  # a pattern of those that are enough to find it
    caught: str  # a kind of KernelFault, or the answer that leaves its bound
    times: int = 1  # that `old` is in the file


DEFAULT = "default"
ACTIVATION = "kernels/activation.py"
APPLY, BACKWARD = "kernels/batchnorm/apply.py", "kernels/batchnorm/backward.py"
SUMS, RUNNING = "kernels/batchnorm/gradient_sums.py", "kernels/batchnorm/running.py"
SPLIT, STATISTICS = "kernels/batchnorm/split.py", "kernels/batchnorm/statistics.py"
AVERAGE, GLOBAL = "kernels/pooling/average.py", "kernels/pooling/global_average.py"
MAXIMUM = "kernels/pooling/maximum.py"
CHANNELS, COLUMNS = "kernels/channels.py", "kernels/columns.py"
CONV, DIRECT = "kernels/conv/host.py", "kernels/conv/direct.py"
GEMM, WINDOWS = "kernels/conv/implicit_gemm.py", "kernels/conv/geometry.py"
LOSS, METRICS, UPDATES = "kernels/loss.py", "kernels/metrics.py", "kernels/updates.py"

SYNCHRONISATION = (
    Bug("barrier-dropped-after-partial-sums", "R25: NVIDIA/Fuser PR489", GLOBAL,
        "        partial[thread] = total\n        cuda.syncthreads()\n", "        partial[thread] = total\n",
        "global_avg_pool2d_forward", "shared", "ordinary/3x7x11x17", "DataRace"),
    Bug("barrier-dropped-in-a-tree", "R25: numba PR6127, numba's own reduction", STATISTICS,
        "            cuda.syncthreads()\n", "",
        "batchnorm_statistics", "scalar", "ordinary/257x17", "DataRace"),
    Bug("shared-memory-reused-without-a-barrier", "R25: karpathy/llm.c PR282", "kernels/tiles.py",
        "                        sums[i, j] += a_value * b_values[j]\n            cuda.syncthreads()\n",
        "                        sums[i, j] += a_value * b_values[j]\n",
        "linear_forward", "tiled", "ordinary/65x64x63", "DataRace"),
    Bug("tile-used-before-it-is-loaded", "R25: HeCBench#263", CHANNELS,
        "        cuda.syncthreads()\n", "",
        "channels_first", "tiled", "ordinary/3x7x11x16", "DataRace"),
    Bug("barrier-in-a-branch", "R25: NVIDIA/Fuser#678", COLUMNS,
        "                partial[thread] += partial[thread + half * width]\n            cuda.syncthreads()\n",
        "                partial[thread] += partial[thread + half * width]\n                cuda.syncthreads()\n",
        "bias_backward", DEFAULT, "ordinary/129x17", "DivergentBarrier"),
    Bug("vote-of-a-part-of-a-warp", "R25: llama.cpp#28475", METRICS,
        "                if lanes > 1:\n", "                if lanes > 1 and leads:\n",
        "count_correct", "warp", "ordinary/127x10", "DivergentBarrier"),
    Bug("step-of-a-warp-sum-missing", "R25: numba PR6127", LOSS,
        "    for k in range(5):\n        other = cuda.shfl_xor_sync(0xFFFFFFFF, total, 16 >> k)\n",
        "    for k in range(4):\n        other = cuda.shfl_xor_sync(0xFFFFFFFF, total, 16 >> k)\n",
        "cross_entropy", "warp", "ordinary/127x10/mean", "loss"),
    Bug("shared-memory-uninitialised-at-the-tail", "OP2-Common#162", GLOBAL,
        "        partial[thread] = total\n", "        if channel < c:\n            partial[thread] = total\n",
        "global_avg_pool2d_forward", "shared", "ordinary/3x7x11x17", "UninitialisedRead"),
    Bug("sums-not-set-to-zero", "R25: HeCBench#263", COLUMNS,
        "        partial[thread] = (a + b) + (c + d)\n",
        "        if column < columns:\n            partial[thread] = (a + b) + (c + d)\n",
        "bias_backward", DEFAULT, "ordinary/129x17", "UninitialisedRead"),
    Bug("race-between-blocks", "R19: pytorch#23550", COLUMNS,
        "sums[index(number * columns + column)]", "sums[index(column)]",
        "bias_backward", DEFAULT, "ordinary/4097x16", "DataRace"),
    Bug("race-between-blocks-in-a-device-function", "R19: pytorch#2778", STATISTICS,
        "            place = cuda.blockIdx.x * channels + channel\n", "            place = channel\n",
        "batchnorm_statistics", "vector", "ordinary/8x32x32x16", "DataRace"),
)  # fmt: skip

MEMORY = (
    Bug("unmasked-load", "R15: cupy#3095", "kernels/elementwise.py",
        "        if i < n:\n", "        if i < n + 1:\n",
        "add", "scalar", "ordinary/5x1", "OutOfBounds"),
    Bug("unmasked-load-of-a-vector", "R16: torch-xpu-ops PR1238", ACTIVATION,
        "        if first + 3 < n:\n            a, b, c, d", "        if first < n:\n            a, b, c, d",
        "relu_forward", "vector", "ordinary/127x17", "OutOfBounds"),
    Bug("slab-of-a-tile-unmasked", "tile-ai/tilelang-ascend#1341", "kernels/tiles.py",
        "                if row < rows and k < last:\n", "                if row < rows:\n",
        "linear_forward", "tiled", "ordinary/17x33x16", "OutOfBounds"),
    Bug("halo-reads-the-next-row", "R15: numba#4647", DIRECT,
        "0 <= column < w_in\n", "0 <= column <= w_in\n",
        "conv2d_forward", "direct", "ordinary/x3x7x11x5", "OutOfBounds"),
    Bug("negative-class-index-used", "R20: pytorch#89369", METRICS,
        "            if target >= 0 and target < classes:\n", "            if target < classes:\n",
        "count_correct", "thread", "ordinary/1000x33", "correct"),
    Bug("flip-one-column-too-far", "distdl#173", "kernels/images.py",
        "                    column = width - 1 - column\n", "                    column = width - column\n",
        "gather_images", DEFAULT, "ordinary/4x7x5x3", "out"),
    Bug("vector-load-on-an-offset-view", "R16: TransformerEngine PR490", ACTIVATION,
        ' and wide(x, y) else', " else",
        "relu_forward", "vector", "ordinary/127x17/offset", "MisalignedAccess"),
    Bug("vector-load-on-an-offset-view-of-images", "R16: mlx PR2433", MAXIMUM,
        "        fours = geometry.c % 4 == 0 and wide(x, y, index)\n", "        fours = geometry.c % 4 == 0\n",
        "max_pool2d_forward", "vector", "*/offset", "MisalignedAccess"),
    Bug("vector-load-on-an-offset-view-of-averages", "R16: mlx PR2433", AVERAGE,
        "        fours = geometry.c % 4 == 0 and wide(dy, dx)\n", "        fours = geometry.c % 4 == 0\n",
        "avg_pool2d_backward", "vector", "*/offset", "MisalignedAccess"),
    Bug("vector-load-on-an-offset-view-of-means", "R16: mlx PR2433", GLOBAL,
        "        fours = c % 4 == 0 and wide(dy, dx)\n", "        fours = c % 4 == 0\n",
        "global_avg_pool2d_backward", "vector", "*/offset", "MisalignedAccess"),
    Bug("vector-load-on-an-offset-part", "R16: mlx PR2433", CHANNELS,
        "y_pitch % 4 == 0 and wide(x, y)\n", "y_pitch % 4 == 0\n",
        "concat", "vector", "*/offset", "MisalignedAccess"),
    Bug("tail-skipped", "R1: onnxruntime#32299", ACTIVATION,
        "            for k in range(3):\n                if first + k < n:\n                    dx",
        "            for k in range(2):\n                if first + k < n:\n                    dx",
        "relu_backward", "vector", "ordinary/127x17", "UnwrittenOutput"),
    Bug("tail-of-four-skipped", "R16: torch-xpu-ops PR1238", "kernels/elementwise.py",
        "    return Launch(add, BLOCK, lambda n: blocks_for(n, 4 * BLOCK)",
        "    return Launch(add, BLOCK, lambda n: max(1, n // (4 * BLOCK))",
        "add", "vector", "ordinary/127x17", "UnwrittenOutput"),
    Bug("input-changed", "R14: pytorch#1866", APPLY,
        "                        store(y, index((at + i * depth) * channels + channel), result)\n"
        "                at = index(at + AHEAD * depth)\n\n    return Launch(\n        apply,",
        "                        store(x, index((at + i * depth) * channels + channel), result)\n"
        "                at = index(at + AHEAD * depth)\n\n    return Launch(\n        apply,",
        "batchnorm_apply", "scalar", "ordinary/7x5", "ModifiedInput"),
)  # fmt: skip

SUMS_OF_PARTS = (
    Bug("last-row-of-a-thread-skipped", "R1: pytorch#181555", COLUMNS,
        "                if row + 3 * lanes < stop:\n", "                if row + 4 * lanes < stop:\n",
        "bias_backward", DEFAULT, "ordinary/4097x16", "db"),
    Bug("last-partial-sum-skipped", "R1: cudf#10368", SUMS,
        "range(row, blocks, DEPTH)", "range(row, max(blocks - 1, 1), DEPTH)",
        "batchnorm_backward", "scalar", "ordinary/70001x1/training", "dgamma"),
    Bug("last-partial-statistics-skipped", "R1: tensorflow#124949", STATISTICS,
        "range(row, blocks, FINISH_DEPTH)", "range(row, max(blocks - 1, 1), FINISH_DEPTH)",
        "batchnorm_statistics", "scalar", "ordinary/70001x1", "mean"),
    Bug("last-block-counted-as-full", "R28: pytorch#22192", STATISTICS,
        "float32(min(span, rows - block * span))", "float32(span)",
        "batchnorm_statistics", "scalar", "ordinary/70001x1", "var"),
    Bug("slice-dropped", "NVIDIA/cutlass#876", CONV,
        "        sum_columns(run, partial, result)\n", "        sum_columns(run, partial[:-1], result)\n",
        "conv2d_backward_weight", "implicit_gemm", "ordinary/x5x28x28x16", "dw"),
    Bug("bias-in-every-slice", "NVIDIA/TensorRT-LLM PR12686", "kernels/matmul.py",
        "        if with_bias and part == 0:\n", "        if with_bias:\n",
        "linear_forward", "tiled", "ordinary/257x784x33/bias", "y"),
    Bug("bias-in-every-slice-of-a-convolution", "NVIDIA/TensorRT-LLM PR12686", GEMM,
        "        if with_bias and part == 0:\n", "        if with_bias:\n",
        "conv2d_forward", "implicit_gemm", "ordinary/x1x5x5x33*/bias", "y"),
    Bug("odd-row-left-out-of-a-tree", "R1: pytorch#24309", SPLIT,
        "1 << ((depth - 1).bit_length() - 1) if depth > 1 else 0", "depth // 2",
        "batchnorm_statistics", "scalar", "ordinary/257x17", "mean"),
)  # fmt: skip

NUMBERS = (
    Bug("n-for-n-minus-1", "R7: pytorch#3122", RUNNING,
        "    unbiased = rows / (rows - 1)\n", "    unbiased = 1.0\n",
        "batchnorm_update_running", DEFAULT, "ordinary/rows-3/*", "running_var"),
    Bug("n-minus-1-for-n", "R7: tinygrad PR807", STATISTICS,
        "(squares[thread] - sums[thread] * rest) / n\n",
        "(squares[thread] - sums[thread] * rest) / (n - float32(1))\n",
        "batchnorm_statistics", "scalar", "ordinary/70001x1", "var"),
    Bug("eps-twice", "R9: chainer#7506", RUNNING,
        "math.sqrt(variance + eps)", "math.sqrt(variance + eps + eps)",
        "batchnorm_running_statistics", DEFAULT, "all-sizes/eps-1e-12", "inv_std"),
    Bug("eps-twice-in-training", "R9: chainer PR4505", STATISTICS,
        "math.sqrt(variance + eps)", "math.sqrt(variance + eps + eps)",
        "batchnorm_statistics", "vector", "ordinary/2x8x16x16", "inv_std"),
    Bug("eps-not-in-evaluation", "R9: chainer#855", RUNNING,
        "math.sqrt(variance + eps)", "math.sqrt(variance)",
        "batchnorm_running_statistics", DEFAULT, "all-sizes/eps-1e-05", "inv_std"),
    Bug("momentum-reversed", "R8: pytorch#18525", RUNNING,
        "running_mean, running_var, shift.size, unbiased, factor)",
        "running_mean, running_var, shift.size, unbiased, 1 - factor)",
        "batchnorm_update_running", DEFAULT, "ordinary/rows-3/*", "running_mean"),
    Bug("stale-statistics", "R21: cudnn-frontend PR483", STATISTICS,
        "    run(factory(channels, index_type(x.size)), x, partial, rows, span)\n",
        "    known = vars(batchnorm_statistics).setdefault('known', {})\n"
        "    if x.shape not in known:\n"
        "        run(factory(channels, index_type(x.size)), x, partial, rows, span)\n"
        "    partial = known.setdefault(x.shape, partial)\n",
        "batchnorm_layer", DEFAULT, "mean-1e*/1x7x11x5", "mean"),
    Bug("evaluation-backward-through-batch-statistics", "R13: pytorch#586, mxnet#9580", BACKWARD,
        "subtracted, dx, (affine, training, relu))", "subtracted, dx, (affine, True, relu))",
        "batchnorm_backward", "vector", "ordinary/2x8x16x16/evaluation", "dx"),
    Bug("mean-of-squares-less-square-of-mean", "R10: tt-metal#45968, tensorflow PR25115", STATISTICS,
        "near = values[j] + chunk_shift[j] / m\n", "near = float32(0)\n",
        "batchnorm_statistics", "scalar", "mean-1e4-std-1e-2/130x3", "var"),
    Bug("nan-of-zero-times-log-zero", "R17: pytorch#39846", LOSS,
        "                    if wanted > float32(0):  # 0 * log 0 is 0\n", "                    if True:\n",
        "cross_entropy", "thread", "one-minus-inf/33x10/mean", "loss"),
    Bug("nan-of-an-infinite-loss", "R12: pytorch#1206", LOSS,
        "    return total + lost if abs(total) < INFINITY else total\n", "    return total + lost\n",
        "cross_entropy", "warp", "minus-inf-at-target/33x10/mean", "loss"),
    Bug("relu-swallows-nan", "R17: mxnet#11115", "kernels/device.py",
        "float32(0) if value <= float32(0) else value", "value if value > float32(0) else float32(0)",
        "relu_forward", "vector", "nan/*", "y"),
    Bug("fused-relu-swallows-nan", "R17: mxnet#11115", "kernels/device.py",
        "float32(0) if value <= float32(0) else value", "value if value > float32(0) else float32(0)",
        "batchnorm_apply", "scalar", "nan/130x3/relu", "y"),
    Bug("mask-of-relu-swallows-nan", "R17: burn PR5658", ACTIVATION,
        "    return float32(0) if y <= float32(0) else dy\n", "    return dy if y > float32(0) else float32(0)\n",
        "relu_backward", "scalar", "nan/*", "dx"),
    Bug("max-pool-swallows-nan", "R17: pytorch#7645", MAXIMUM,
        "    return value > best or value != value\n", "    return value > best\n",
        "max_pool2d_forward", "scalar", "nan/x3x7x9x5*", "y"),
    Bug("lowest-number-for-minus-infinity", "R17: NNlibCUDA.jl#57", MAXIMUM,
        'LOWEST = float("-inf")\n', "LOWEST = -3.4028234663852886e38\n",
        "max_pool2d_forward", "scalar", "all-minus-inf/*", "y"),
    Bug("lowest-number-for-minus-infinity-vector", "R17: NNlibCUDA.jl#57", MAXIMUM,
        'LOWEST = float("-inf")\n', "LOWEST = -3.4028234663852886e38\n",
        "max_pool2d_forward", "vector", "all-minus-inf/x2x9x7x12*", "y"),
    Bug("place-in-the-padding", "tensorflow#10216", MAXIMUM,
        "where3 = int32(max(top, 0) * width + max(left, 0))\n", "where3 = int32(top * width + left)\n",
        "max_pool2d_forward", "vector", "all-minus-inf/x2x9x7x12*", "index"),
    Bug("last-of-the-ties", "pytorch#93630", MAXIMUM,
        "    return value > best or value != value\n", "    return value >= best or value != value\n",
        "max_pool2d_forward", "vector", "integers/x2x8x8x16*", "index"),
    Bug("padding-counted", "R18: pytorch#36977; onnxruntime PR27375", AVERAGE,
        "    constant = count_include_pad or (ph == 0 and pw == 0)\n", "    constant = True\n",
        "avg_pool2d_forward", "scalar", "ordinary/x3x7x9x5*", "y"),
    Bug("padding-counted-vector", "R18: pytorch#36977; onnxruntime PR27375", AVERAGE,
        "    constant = count_include_pad or (ph == 0 and pw == 0)\n", "    constant = True\n",
        "avg_pool2d_backward", "vector", "ordinary/x2x9x7x12*", "dx"),
    Bug("window-beyond-the-element", "distdl#173", AVERAGE,
        "                    if 0 <= window_row < ho and 0 <= window_column < wo and down < kh and across < kw:\n"
        "                        pixel = image * (ho * wo) + (window_row * wo + window_column)\n"
        "                        dy0",
        "                    if 0 <= window_row < ho and 0 <= window_column < wo:\n"
        "                        pixel = image * (ho * wo) + (window_row * wo + window_column)\n"
        "                        dy0",
        "avg_pool2d_backward", "vector", "ordinary/x2x9x7x12*", "dx"),
    Bug("float64-literal", "numba#4676", GLOBAL,
        "            y[i] = total / float32(pixels)\n", "            y[i] = total / pixels\n",
        "global_avg_pool2d_forward", "serial", "ordinary/2x1x5x3", "Float64Promotion"),
    Bug("float64-literal-in-a-device-function", "NVIDIA/raft PR3133", "kernels/device.py",
        "    return float32(0) if value <= float32(0) else value\n", "    return max(value, 0.0)\n",
        "relu_forward", "scalar", "ordinary/1x3", "Float64Promotion"),
)  # fmt: skip

OPERATIONS = (
    Bug("halo-off-by-one", "distdl#173", WINDOWS,
        "tap // c_in % kw - pw\n", "tap // c_in % kw - pw - 1\n",
        "conv2d_forward", "implicit_gemm", "ordinary/x3x7x11x5*", "y"),
    Bug("halo-off-by-one-in-the-weight-gradient", "distdl#173", WINDOWS,
        "0 <= line < h and", "0 < line < h and",
        "conv2d_backward_weight", "direct", "integers/x3x7x11x5*", "dw"),
    Bug("lines-and-columns-swapped", "NNPACK#15, Flux.jl#700", WINDOWS,
        "row // wo % ho * sh", "row // ho % wo * sh",
        "conv2d_backward_weight", "implicit_gemm", "ordinary/x3x7x11x5*", "dw"),
    Bug("axes-swapped", "R14: pytorch#42588", CHANNELS,
        "    _transpose(run, x, y, n, height * width, c, technique)\n",
        "    _transpose(run, x, y, n, height, width * c, technique)\n",
        "channels_first", "plain", "ordinary/3x7x11x16", "y"),
    Bug("kernel-transposed-for-the-gradient", "mlpack PR3376", DIRECT,
        "line + ph - tap // kw, column + pw - tap % kw", "line + ph - tap % kw, column + pw - tap // kw",
        "conv2d_backward_input", "direct", "ordinary/x2x11x7x2*", "dx"),
    Bug("strides-swapped", "pytorch/glow#2273", DIRECT,
        "down // sh) * wo + right // sw)", "down // sw) * wo + right // sh)",
        "conv2d_backward_input", "direct", "ordinary/x2x6x9x3*", "OutOfBounds"),
    Bug("zero-times-infinity-in-the-padding", "R17: pytorch#39044", GEMM,
        "if exists and dx[place] != dx[place]:\n", "if False:\n",
        "conv2d_backward_input", "implicit_gemm", "w-inf/*", "dx"),
    Bug("mask-of-the-next-call", "ooples/AiDotNet.Tensors PR732", "kernels/dropout.py",
        " if in_graph else call\n", " if in_graph else uint32(call + 1)\n",
        "dropout", "vector", "ordinary/127x17/p-0.5*", "y", 2),
    Bug("mask-not-scaled", "ooples/AiDotNet.Tensors PR732", "kernels/dropout.py",
        "0.0 if p == 1 else 1 / (1 - p)", "0.0 if p == 1 else 1 - p",
        "dropout", "scalar", "ordinary/127x17/p-0.1*", "y"),
    Bug("smoothing-over-the-other-classes", "fastai PR1814", LOSS,
        "    off = label_smoothing / classes\n", "    off = label_smoothing / (classes - 1)\n",
        "cross_entropy", "warp", "ordinary/19x7*", "dlogits"),
    Bug("mean-over-ignored-rows", "Paddle#23708, segmentation_models.pytorch#852", LOSS,
        "            if target != ignore_index:\n                count += 1\n",
        "            count += 1\n            if target != ignore_index:\n",
        "cross_entropy", "thread", "ordinary/33x10/mean/ignored-0.3", "loss"),
    Bug("class-out-of-range-accepted", "R20: pytorch#43840, #49882", LOSS,
        "target < 0 or target >= classes:", "target < 0 or target > classes:",
        "cross_entropy", "warp", "no-class/*", "refused"),
    Bug("bias-correction-a-step-ahead", "flashlight#143", UPDATES,
        "lr / (1 - beta1**step), (1 - beta2**step) ** -0.5",
        "lr / (1 - beta1 ** (step + 1)), (1 - beta2 ** (step + 1)) ** -0.5",
        "adam", "scalar", "ordinary/3x7/step-1/*", "value.0"),
    Bug("eps-within-the-root", "R9: chainer PR2214", UPDATES,
        "(math.sqrt(second) * scale + eps)", "(math.sqrt(second + eps) * scale)",
        "adam", "vector", "tiny/*step-1/*", "value.0"),
    Bug("beta2-complement-in-float32", "R10: oneDNN catch_cancel", UPDATES,
        "beta2 * second + new2 * grad * grad", "beta2 * second + (float32(1) - beta2) * grad * grad",
        "adam", "scalar", "ordinary/3x7/step-1/*", "second.0"),
    Bug("nesterov-without-momentum", "Paddle PR12231, mxnet#15543", UPDATES,
        "lr * (grad + momentum * velocity)", "lr * (grad + velocity)",
        "sgd", "vector", "ordinary/3x7/*nesterov", "value.0"),
    Bug("weight-decay-of-the-wrong-sign", "chainer#261", UPDATES,
        "    velocity = momentum * velocity + (grad + decay * value)\n",
        "    velocity = momentum * velocity + (grad - decay * value)\n",
        "sgd", "scalar", "ordinary/3x7/*momentum-0.9/weight-decay-0.0005", "velocity.0"),
    Bug("decoupled-decay-not-scaled-by-the-rate", "FluxML/model-zoo PR303", UPDATES,
        "(0.0, 1 - lr * weight_decay)", "(0.0, 1 - weight_decay)",
        "adam", "vector", "ordinary/3x7/*decoupled", "value.0"),
    Bug("tail-of-a-tensor-skipped", "hpcaitech/ColossalAI PR633", UPDATES,
        "for begin in range(0, size, CHUNK)", "for begin in range(0, size - size % CHUNK or size, CHUNK)",
        "sgd", "scalar", "ordinary/140009/*", "value.4"),
)  # fmt: skip

BUGS = (*SYNCHRONISATION, *MEMORY, *SUMS_OF_PARTS, *NUMBERS, *OPERATIONS)
