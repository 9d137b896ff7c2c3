"""Images: their sources, how they are cut, and what happens to bad ones."""

from .bad_images import BAD_IMAGES_FILE
from .images import ImageDataset, random_flip, sample_batches, sample_images, to_tensor
from .loading import load_images

__all__ = [
    "BAD_IMAGES_FILE",
    "ImageDataset",
    "load_images",
    "random_flip",
    "sample_batches",
    "sample_images",
    "to_tensor",
]
