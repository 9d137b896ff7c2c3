"""The pictures beside the tables, and the paper's figures."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

OURS = "#c0392b"
OTHERS = ["#34495e", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#d35400"]


def bars(
    path: Path, titles: list[str], values: list[float], spreads: list[float], label: str, ours: list[bool]
) -> None:
    """Horizontal bars, the smallest value on top."""
    order = np.argsort(values)[::-1]
    figure, axis = plt.subplots(figsize=(8, 0.4 * len(titles) + 1.2), layout="constrained")
    axis.barh(
        [titles[i] for i in order],
        [values[i] for i in order],
        xerr=[spreads[i] for i in order] if any(spreads) else None,
        color=[OURS if ours[i] else OTHERS[1] for i in order],
    )
    for y, i in enumerate(order):
        axis.text(values[i] + spreads[i], y, f" {values[i]:.4f}", va="center", fontsize=8)
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(path: Path, series: dict[str, np.ndarray], x_label: str, y_label: str, points: bool = False) -> None:
    """One line for each model over the codebook's entries; the last one is ours.

    With `points`, each entry is a dot, and the line is a moving average.
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for i, (title, values) in enumerate(series.items()):
        color = OURS if i == len(series) - 1 else OTHERS[i]
        if points:
            axis.plot(values, ".", color=color, markersize=2, alpha=0.4)
            width = max(1, len(values) // 20)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axis.plot(np.arange(len(smooth)) + (width - 1) / 2, smooth, color=color, label=title)
        else:
            axis.plot(values, color=color, label=title)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def image_rows(path: Path, rows: dict[str, torch.Tensor]) -> None:
    """One titled row of images (n, c, H, W) in [0, 1] for each entry."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(10, 1.35 * len(rows)), layout="constrained", squeeze=False)
    for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        pixels = images.float().clamp(0, 1).permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (H, n*W, c)
        axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left", pad=2)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)
