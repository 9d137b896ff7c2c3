"""Options of `evaluate.py`."""

from dataclasses import dataclass

from .errors import check
from .fields import option

VAE_METRICS = ("reconstruction", "codebook", "lpips", "rfid", "spectrum", "unit_information")
NETWORK_METRICS = ("fid", "kid", "prc")  # of a feature extractor
PIPELINE_METRICS = (*NETWORK_METRICS, "spectrum", "neighbours", "classes")


@dataclass
class EvaluationConfig:
    """What to measure, and on what."""

    model: str = option("", "folder or Hub repository of a trained FQ-VAE or of a pipeline")
    revision: str | None = option(None, "branch, tag or commit of that repository")
    output_dir: str = option("", "folder for evaluation.json and evaluation.md")
    metrics: list[str] = option(
        [],
        "for an FQ-VAE any of reconstruction and codebook (the default), lpips, rfid, spectrum and unit_information; "
        "for a pipeline any of fid, kid, prc, spectrum, neighbours and, with --label_column, classes (all by default)",
        choices=sorted({*VAE_METRICS, *PIPELINE_METRICS}),
    )
    reference: str = option(
        "validation", "images to measure on, or to compare samples with", choices=["validation", "train"]
    )
    quantize: bool = option(
        True, "an FQ-VAE reconstructs from its tokens; false: from latents as they are, for decoders trained on those"
    )
    max_images: int | None = option(None, "measure on this many of them, chosen at random; by default on all")
    batch_size: int = option(64, "images computed at a time")
    feature_extractor: str = option(
        "inception-v3-compat", "network of rfid, fid, kid and prc, registered with torch-fidelity"
    )
    feature_extractor_weights: str | None = option(None, "file with its weights; by default they are downloaded")
    feature_extractor_module: str | None = option(
        None, "Python module to import first, which registers an extractor of yours with torch-fidelity"
    )
    lpips_weights: str | None = option(None, "file with torchvision's VGG16 weights; by default they are downloaded")
    unit_images: int = option(256, "images for unit_information, chosen at random")
    num_samples: int = option(10_000, "images that the pipeline generates")
    neighbour_samples: int = option(200, "samples whose nearest training images are looked up")
    num_inference_steps: int | None = option(
        None,
        "denoising steps: of DDPM if as many as in training, else of DPM-Solver++; by default those that the UNet was "
        "distilled for, or 50",
    )
    temperature: float = option(1.0, "of the samples: below 1, with DPM-Solver++ without noise, calmer and more alike")
    learnt_temperature: float | None = option(None, "of their learnt channels alone; by default the pipeline's own")
    pag_scale: float | None = option(
        None, "of the samples' guidance by attention, 0 for none; by default the pipeline's own"
    )
    pag_threshold: float | None = option(
        None, "guide so what attention changes less than this: inf for all; by default the pipeline's own"
    )
    guidance_scale: float = option(1.0, "of classifier-free guidance, for pipelines with classes; 1 for none")
    guidance_interval: list[float] = option([0.0, 1.0], "guide between these shares of the noise only")
    classifier_epochs: int = option(15, "over the training images, of the classifier that judges classes")
    classifier: str | None = option(
        None, "file to keep that classifier in: the next evaluation judges by the same one, without training it"
    )
    seed: int = option(0, "seed of the samples and of the choice of images")
    device: str | None = option(None, "torch device; by default a GPU if there is one")

    def __post_init__(self):
        for name in (
            "max_images",
            "batch_size",
            "unit_images",
            "num_samples",
            "num_inference_steps",
            "neighbour_samples",
            "temperature",
            "learnt_temperature",
            "pag_threshold",
            "classifier_epochs",
        ):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "must be positive")
        check(self.pag_scale is None or self.pag_scale >= 0, "pag_scale", self.pag_scale, "must not be negative")
        of_tokens = sorted({"codebook", "unit_information"} & set(self.metrics))
        check(
            self.quantize or not of_tokens, "quantize", "false", f"is needed by the metrics {' and '.join(of_tokens)}"
        )
        interval = self.guidance_interval
        check(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            "guidance_interval",
            interval,
            "must be two shares of the noise in 0 .. 1, in order",
        )
