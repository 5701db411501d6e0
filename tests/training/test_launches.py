"""How many kernels a training step launches, by name: one that is added shows here."""

from collections import Counter
from typing import Any

import numpy as np

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
    "cross_entropy_targets": 1,
    "cross_entropy_rows": 1,
    "cross_entropy_sum": 1,
    "append_result_of_block": 1,
    "update_tensors_vector": 2,
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
OTHERS = 32


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


def test_a_training_step_of_small_cnn() -> None:
    run, digits = Counting(), load("digits")
    backend = EmulatorBackend(run)
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
    assert {name: count for name, count in run.names.items() if name in LAUNCHES} == LAUNCHES
    assert sum(run.names.values()) - sum(LAUNCHES.values()) == OTHERS, run.names
    assert run.uploads == 0
