"""A small classifier of real images, to judge generated ones by: are they of the class that was asked for?"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

CONFIDENT = 0.9  # an image counts as read when its most likely class has at least this probability
WIDTHS = (32, 64, 128)
FEATURES = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2


class Classifier(nn.Module):
    """Three convolutions, each of which halves the image, and two linear layers.

    Args:
        channels: c, of the images.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        pool = [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.25)]
        self.trunk = nn.Sequential(*blocks, *pool, nn.Linear(9 * WIDTHS[-1], FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, c, H, W) in [-1, 1], of 8 pixels or more -> logits (B, K)."""
        return self.head(self.trunk(images))

    @torch.no_grad()
    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, c, H, W) in [-1, 1] -> most likely class (B,), its probability (B,), features (B, 128)."""
        features = self.trunk(images)
        probability, number = self.head(features).softmax(-1).max(-1)
        return number, probability, features


def train_classifier(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    channels: int,
    num_classes: int,
    epochs: int,
    mirrored: bool = False,
    device: torch.device | str = "cpu",
) -> Classifier:
    """A classifier trained on real images, in evaluation mode; the random generator of torch is left as it was.

    Args:
        batches: images (B, c, H, W) in [-1, 1] and labels (B,) in 0 .. K - 1, gone over once an epoch.
        channels: c.
        num_classes: K.
        epochs: how often.
        mirrored: mirror half of the images.
        device: where.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(channels, num_classes).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - epoch / epochs)
            for images, labels in batches:
                if mirrored:
                    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
                optimizer.zero_grad()
                F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
                optimizer.step()
    return network.eval()
