"""A small classifier of handwritten digits, to judge generated ones by."""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

CONFIDENT = 0.9  # a digit counts as read when its most likely class has at least this probability
EPOCHS = 15
BATCH_SIZE = 64


def train_classifier(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A convolutional network trained on digits (n, 1, 28, 28) in [-1, 1] with labels (n,) in 0 .. 9."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in tqdm(range(EPOCHS), desc="training the classifier"):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - epoch / EPOCHS)
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def read_digits(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely class (n,) of digits (n, 1, 28, 28) in [-1, 1], and its probability (n,)."""
    probability, digit = network(images).softmax(-1).max(-1)
    return digit, probability
