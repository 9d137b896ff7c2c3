"""Options of the images."""

from dataclasses import dataclass

from .errors import check
from .fields import option


@dataclass
class DataConfig:
    """Where images come from and how they are cut."""

    dataset: str = option(
        "", "Hub dataset, folder of images, of parquet or of tar files, parquet file, or 'digits' (5,000 of MNIST)"
    )
    dataset_config: str | None = option(None, "configuration of a Hub dataset")
    train_split: str = option("train", "split to train on")
    validation_split: str | None = option(None, "split to measure on; by default some training images are held out")
    validation_size: int = option(500, "training images held out when there is no validation split")
    image_column: str = option("image", "column that holds the images; of tar files, their extension (jpg)")
    label_column: str | None = option(
        None, "column with the classes that a pipeline learns to make; of a folder of images 'label', its subfolders"
    )
    channels: int = option(3, "1 for greyscale images, 3 for colour")
    convert_images: bool = option(
        False,
        "convert instead of stopping: other channels (what is transparent becomes white, 16 bits become 8), the first "
        "frame of animations, and images that are too small, which are enlarged",
    )
    center_crop: int | None = option(None, "first cut a centred square of this many pixels (CelebA: 140)")
    resolution: list[int] = option([32], "height and width in pixels, or one number for both")
    random_flip: bool = option(False, "flip half of the training images left to right")
    max_train_images: int | None = option(None, "use only this many training images")
    skip_bad_images: bool = option(
        False, "look at all images first and leave out those that cannot be used, instead of stopping at one"
    )
    dataloader_num_workers: int = option(0, "processes that load images; 0 loads them in the training process")

    def __post_init__(self):
        check(self.channels in (1, 3), "channels", self.channels, "must be 1 or 3")
        check(
            len(self.resolution) in (1, 2) and min(self.resolution) > 0,
            "resolution",
            self.resolution,
            "must be one or two positive numbers",
        )
        check(self.center_crop is None or self.center_crop > 0, "center_crop", self.center_crop, "must be positive")
        check(self.validation_size > 0, "validation_size", self.validation_size, "must be positive")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.resolution[0], self.resolution[-1])
