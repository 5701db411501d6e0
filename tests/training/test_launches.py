"""How many kernels a training step launches, by name: one that is added shows here."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from kernels.launch import Kernel
from kernels.run_emulated import EmulatorRunner
from minidl import nn, optim, schedule
from minidl.backends.emulated import EmulatorBackend
from minidl.data import Augmentation, load
from minidl.models import build
from minidl.training import Trainer

# Of small-cnn with four batch normalizations, two pools and three linear layers; sgd in two groups of parameters.
LAUNCHES = {
    # The batch: its images and the step's numbers from the plan, what augmentation draws, the images, their labels.
    "begin_step_of_block": 1,
    "draw_augmentation_scalar": 1,
    "gather_images_scalar": 1,
    "gather_labels_scalar": 1,
    # Loss, answers, update.
    "cross_entropy_fused": 1,
    "append_result_of_block": 1,
    "update_tensors_vector": 1,
    # Normalization.
    "batchnorm_sum_shifted_vector": 4,
    "batchnorm_finish_statistics": 4,
    "batchnorm_move_running": 4,
    "batchnorm_apply_vector": 4,
    "batchnorm_sum_gradients_vector": 4,
    "batchnorm_finish_gradients": 4,
    "batchnorm_backward_vector": 4,
}
# Convolutions, pools, linear layers and their biases.
OTHERS = 31
# In TF32 two chains of two convolutions: no statistics, no activation and no gradient of batch normalization is written
# between them, and what is left is at their ends. (Of the images as small as these one convolution is cut into slices,
# which have no epilogue: so one pass of each kind is there yet.)
FUSED = LAUNCHES | {
    "conv2d_normalized_forward_tensor_core": 3,
    "conv2d_normalized_backward_weight_tensor_core": 3,
    "conv2d_normalized_backward_input_tensor_core": 3,
    "batchnorm_sum_shifted_vector": 2,
    "batchnorm_apply_vector": 3,
    "batchnorm_sum_gradients_vector": 3,
    "batchnorm_backward_vector": 1,
}
OTHERS_FUSED = 20
# In 16 bits the same chains; three convolutions' weights are rounded for forward and for backward, and three images
# once their slices are added.
OF_BF16 = {name.replace("_tensor_core", "_narrow_tensor_core"): count for name, count in FUSED.items()}
OF_BF16["round_to_scalar"] = 9
# Besides, the loss is scaled, and the gradients are divided by that again in one of the two updates of tensors.
OF_FP16 = OF_BF16 | {
    "scale_forward_vector": 1,
    "sum_squares_vector": 1,
    "norm_of_squares": 1,
    "settle_loss_scale_of_block": 1,
    "update_tensors_vector": 2,
}


class Counting(EmulatorRunner):
    """Notes what is launched, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.uploads = 0

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        self.names[kernel.name] += 1

    def upload(self, host: np.ndarray) -> np.ndarray:
        self.uploads += 1
        return super().upload(host)


@pytest.mark.parametrize(
    ("precision", "expected", "others"),
    [
        ("fp32", LAUNCHES, OTHERS),
        ("tf32", FUSED, OTHERS_FUSED),
        ("bf16", OF_BF16, OTHERS_FUSED),
        ("fp16", OF_FP16, OTHERS_FUSED),
    ],
)
def test_a_training_step_of_small_cnn(precision: str, expected: dict[str, int], others: int) -> None:
    run, digits = Counting(), load("digits")
    backend = EmulatorBackend(run, precision)
    nn.manual_seed(0)
    model = build("small-cnn", digits.image_shape, digits.classes).to(backend)
    nn.fuse(model)
    model[0].input_gradient = False
    optimizer = optim.SGD(optim.decay_groups(model, 5e-4), 0.1, momentum=0.9, nesterov=True)
    rates, augmentation = schedule.constant(0.1), Augmentation(crop_padding=1)
    trainer = Trainer(model, digits, optimizer, rates, batch_size=32, augmentation=augmentation)
    backend.checks_targets = False  # nothing is computed, so there is nothing to look at
    trainer._begin()
    trainer._step(32, look=False)
    run.names.clear()
    run.uploads = 0
    trainer._step(32, look=False)
    assert {name: count for name, count in run.names.items() if name in expected} == expected
    assert sum(run.names.values()) - sum(expected.values()) == others, run.names
    assert run.uploads == 0
