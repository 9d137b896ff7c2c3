"""What a class-conditional pipeline is asked for, as the numbers of classes."""

import operator

import torch

Generators = torch.Generator | list[torch.Generator] | None
ClassLabels = int | str | list | tuple | torch.Tensor | None


def class_numbers(
    labels: ClassLabels, num_images: int, names: list[str], shares: list[float], generator: Generators
) -> torch.Tensor:
    """Class labels as the pipeline takes them -> (num_images,) int64 in 0 .. len(names) - 1.

    Args:
        labels: one number or name for all images, or one for each; None draws them.
        num_images: how many.
        names: of the classes.
        shares: how often None draws each class.
        generator: of the draws, one for all images or one for each.

    Raises:
        ValueError: if a label is no class, or there are not as many as images.
    """
    if labels is None:
        return _draw(shares, num_images, generator)
    if isinstance(labels, torch.Tensor):
        labels = labels.tolist()
    if not isinstance(labels, list | tuple):
        labels = [labels] * num_images
    if len(labels) != num_images:
        raise ValueError(f"{len(labels)} class_labels for {num_images} images: give one for each image, or one for all")
    return torch.tensor([_number(label, names) for label in labels])


def _number(label: int | str, names: list[str]) -> int:
    if isinstance(label, str):
        if label in names:
            return names.index(label)
    else:
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if 0 <= number < len(names):
            return number
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"class_labels: {label!r} is no class; there are 0 .. {len(names) - 1}, by name {shown}")


def _draw(shares: list[float], count: int, generator: Generators) -> torch.Tensor:
    if isinstance(generator, list):
        return torch.cat([_draw(shares, 1, each) for each in generator])
    weights = torch.tensor(shares, device="cpu" if generator is None else generator.device)
    return torch.multinomial(weights, count, replacement=True, generator=generator).cpu()
