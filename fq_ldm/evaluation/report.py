"""`evaluation.json` and `evaluation.md`."""

from pathlib import Path

from ..cards import save_json

PROTOCOL = {
    "mse": "values in [0, 1], reconstructions clamped and rounded to 8 bits",
    "psnr": "data range 1, of the same images",
    "ssim": "uniform 11x11 window, sample covariance, data range 1, of the same images (CVQ-VAE)",
    "ssim_gaussian": "Gaussian 11x11 window of sigma 1.5, population covariance, data range 1 (Wang et al. 2004)",
    "lpips": "VGG16, version 0.1, the same images in [-1, 1]",
    "unit_information_max": "rise of the MSE in [0, 1] when an entry's tokens go to the next nearest entry",
    "kid": "cubic kernel, 100 subsets",
    "precision": "third nearest neighbours",
    "spectral_distance_db": "root mean square over radial frequencies, samples against the compared images",
    "nearest_distance": "root mean square of pixels in [0, 1] to the nearest training image, mirrored or not",
    "classifier_accuracy": "of a small classifier trained on the training images, on the compared images",
    "samples_read": "by that classifier with p >= 0.9",
    "classifier_fid": "of that classifier's last 128 features",
    "agreement": "samples that the classifier takes for the class they were asked to be",
    "agreement_read": "those that it also reads with p >= 0.9",
    "near_copies": "samples nearer to a training image than half the median distance of the compared images",
}


def save_report(folder: Path, report: dict, arrays: dict) -> str:
    """Write `evaluation.json`, with the arrays, and `evaluation.md`.

    Args:
        folder: made if need be.
        report: what was measured on what; `report["metrics"]` becomes the table.
        arrays: name -> {name -> list of numbers}, for the JSON file alone.

    Returns:
        The text of `evaluation.md`.
    """
    rows = [f"| {_label(name, report)} | {_text(value)} |" for name, value in report["metrics"].items()]
    about = f"{report['model']} on {report['split']} of {report['dataset']}, {report['image_size']}"
    text = "\n".join(
        [f"{about}:", "", "| metric | value |", "|---|---|", *rows, "", "```bash", report["command"], "```"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "evaluation.json", {**report, **arrays})
    (folder / "evaluation.md").write_text(text + "\n")
    return text


def _label(name: str, report: dict) -> str:
    extractor = report["feature_extractor"]
    return {
        "mse": "MSE",
        "psnr": "PSNR (dB)",
        "ssim": "SSIM, uniform 11x11 window, data range 1",
        "ssim_gaussian": "SSIM, Gaussian 11x11 window, data range 1",
        "lpips": "LPIPS (VGG16)",
        "rfid": f"rFID ({extractor})",
        "fid": f"FID ({extractor})",
        "kid": f"KID ({extractor})",
        "kid_std": "KID, standard deviation over subsets",
        "kid_subset_size": "KID, images in a subset",
        "precision": f"precision ({extractor})",
        "recall": f"recall ({extractor})",
        "spectral_distance_db": "spectral distance (dB)",
        "nearest_distance": "distance of samples to their nearest training images, median",
        "nearest_distance_smallest": "distance of samples to their nearest training images, smallest",
        "nearest_distance_of_images": "distance of the compared images to theirs, median",
        "nearest_distance_of_images_smallest": "distance of the compared images to theirs, smallest",
        "num_vq_embeddings": "codes",
    }.get(name, name.replace("_", " "))


def _text(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
