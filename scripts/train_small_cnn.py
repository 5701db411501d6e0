"""Train a small CNN with batch normalization on handwritten digits, on the library's API, in one page.

    python scripts/train_small_cnn.py

Arrays are channels last: images are (n, height, width, channels). There is no autograd: a layer's `forward` remembers
what its `backward` needs, so the order of operations in a step is the order that one reads below.
"""

import numpy as np

from minidl import data, nn, optim, schedule
from minidl.backends import get_backend

EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED = 8, 64, 0.1, 0

backend = get_backend("cpu")  # every number below is computed by its operations
digits = data.load("digits")  # 1,437 training and 360 test images of 8x8 pixels
loader = data.Loader(len(digits.train_images), BATCH_SIZE, SEED)  # which images come in which step

nn.manual_seed(SEED)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False),  # 8x8; no bias: batch normalization would subtract it again
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.MaxPool2d(2),  # 4x4
    nn.Flatten(),
    nn.Linear(4 * 4 * 64, digits.classes),
)
nn.fuse(model)  # batch normalization and ReLU in one pass; same results, less memory traffic
criterion = nn.CrossEntropyLoss()
groups = optim.decay_groups(model, weight_decay=5e-4)  # decay for weights; none for biases and normalization
optimizer = optim.SGD(groups, LEARNING_RATE, momentum=0.9, nesterov=True)
learning_rate = schedule.one_cycle(LEARNING_RATE, EPOCHS * len(loader))


def normalized(images: np.ndarray) -> np.ndarray:
    """Images (n, h, w, c) uint8 as float32 with the training images' mean 0 and deviation 1."""
    return ((images - digits.mean) / digits.std).astype(np.float32)


def test_accuracy() -> float:
    """The share of test images that the model names right, by its running statistics."""
    model.eval()
    with nn.inference():
        answers = model(normalized(digits.test_images)).argmax(axis=1)
    model.train()
    return float(np.mean(answers == digits.test_labels))


if __name__ == "__main__":
    for epoch in range(EPOCHS):
        losses = []
        for index in loader.batches(epoch):
            optimizer.set_lr(learning_rate(optimizer.steps))
            optimizer.zero_grad()
            logits = model(normalized(digits.train_images[index]))
            losses.append(float(criterion(logits, digits.train_labels[index])))
            model.backward(criterion.backward())
            optimizer.step()
        print(f"epoch {epoch + 1}: training loss {np.mean(losses):.4f}, test accuracy {test_accuracy():.2%}")
