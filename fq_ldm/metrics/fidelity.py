"""How alike two sets of images look to a trained network: LPIPS of pairs, FID, KID, precision and recall of sets.

The sets' metrics are torch-fidelity's, and so are its feature extractors; the network of LPIPS is the package lpips'.
Images are uint8 (B, c, H, W); greyscale ones are repeated to three channels. Features are (N, F) on the CPU.
"""

import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import lpips
import torch
from torch.hub import load_state_dict_from_url
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor
from torchvision.models import VGG16_Weights

VGG16_URL = VGG16_Weights.IMAGENET1K_V1.url
EXTRACTOR_URLS = {"inception-v3-compat": URL_INCEPTION_V3, "vgg16": VGG16_URL, **CLIP_URLS}
LPIPS_SMALLEST = 16  # pixels: VGG16 halves the image four times
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
PRC_NEIGHBOURHOOD = 3
UNREADABLE = (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)  # torch.load, load_state_dict


class FeatureExtractor:
    """A trained network that turns images into features.

    Args:
        metrics: what the features are for, out of "fid", "kid" and "prc"; the network says which layer serves.
        name: a feature extractor registered with torch-fidelity.
        weights: file with its weights, None to download them from where they are published. The file of an
            extractor that torch-fidelity does not bring itself is read by that extractor's own code.
        device: where the network runs.

    Raises:
        ValueError: if there is no such extractor, or the file does not hold its weights.
        FileNotFoundError: if there is no such file, or the download fails.
    """

    def __init__(
        self,
        metrics: Iterable[str],
        name: str = "inception-v3-compat",
        weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            raise ValueError(
                f"feature_extractor: '{name}' is not registered with torch-fidelity, only "
                f"{', '.join(FEATURE_EXTRACTORS_REGISTRY)}"
            )
        layer_for = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric
        self.name, self.device = name, device
        if weights is not None and name in EXTRACTOR_URLS and name not in CLIP_URLS:
            _check_pickle(weights, EXTRACTOR_URLS[name])
        self.layers = {metric: layer_for(metric) for metric in metrics}
        network = _load_weights(
            "feature_extractor_weights",
            weights,
            EXTRACTOR_URLS.get(name),
            lambda: create_feature_extractor(
                name, sorted(set(self.layers.values())), cuda=False, feature_extractor_weights_path=weights
            ),
        )
        self._network = network.to(device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, c, H, W) uint8 -> layer: features (B, F)."""
        features = self._network(_three_channels(images).to(self.device))
        return {k: v.cpu() for k, v in self._network.convert_features_tuple_to_dict(features).items()}

    def join(self, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What calls returned for the batches -> metric: features (N, F) of all images."""
        joined = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
        return {metric: joined[layer] for metric, layer in self.layers.items()}


class ReconstructionFID:
    """Fréchet distance between images and their reconstructions (rFID).

    Args:
        extractor: made for "fid".
    """

    def __init__(self, extractor: FeatureExtractor):
        self.extractor = extractor
        self._images: list[dict] = []  # features of each batch
        self._reconstructions: list[dict] = []

    def add(self, images: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Two batches (B, c, H, W) uint8."""
        self._images.append(self.extractor(images))
        self._reconstructions.append(self.extractor(reconstructions))

    def compute(self, merge: Callable[[list], list] = list) -> float:
        """The distance over all batches, of all processes by `merge`; see `frechet_distance`."""
        parts = (merge(self._reconstructions), merge(self._images))
        return frechet_distance(*(self.extractor.join(part)["fid"] for part in parts))


class LPIPS:
    """Mean learned perceptual distance of image pairs (Zhang et al. 2018), version 0.1 with VGG16.

    Args:
        weights: file with torchvision's VGG16 weights, None to download them from where they are published. The
            linear heads come with the package lpips.
        device: where the network runs.

    Raises:
        ValueError: if the file does not hold these weights.
        FileNotFoundError: if there is no such file, or the download fails.
    """

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu"):
        self.device = device
        self._network = _load_weights("lpips_weights", weights, VGG16_URL, lambda: _lpips_network(weights)).to(device)
        self._sums: list[tuple[int, float]] = []  # of each batch

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Distance of each pair of uint8 images (B, c, H, W): (B,), from 0 on.

        Raises:
            ValueError: if the images are smaller than 16 x 16 pixels.
        """
        return self.distance(*(x.to(self.device) / 127.5 - 1 for x in (images, targets)))

    def distance(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same of images in [-1, 1], float32, on the network's device; with a gradient.

        Raises:
            ValueError: if the images are smaller than 16 x 16 pixels.
        """
        height, width = images.shape[2:]
        if min(height, width) < LPIPS_SMALLEST:
            raise ValueError(
                f"LPIPS needs images of at least {LPIPS_SMALLEST}x{LPIPS_SMALLEST} pixels, not {height}x{width}"
            )
        return self._network(_three_channels(images), _three_channels(targets)).flatten()

    def add(self, images: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Two batches (B, c, H, W) uint8."""
        self._sums.append((len(images), self(images, reconstructions).sum().item()))

    def compute(self, merge: Callable[[list], list] = list) -> float:
        """The mean over all pairs, of all processes by `merge`."""
        count, total = map(sum, zip(*merge(self._sums), strict=True))
        return total / count


def frechet_distance(features: torch.Tensor, references: torch.Tensor) -> float:
    """Fréchet distance of the Gaussians with the features' means and covariances (Heusel et al. 2017).

    Args:
        features: (N, F).
        references: (N', F).

    Raises:
        ValueError: if there are fewer than two of either.
    """
    _check_count("FID", 2, features, references)
    statistics = (fid_features_to_statistics(x.double()) for x in (features, references))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def kernel_distance(features: torch.Tensor, references: torch.Tensor) -> dict[str, float]:
    """Kernel distance, with the cubic kernel (Bińkowski et al. 2018).

    Args:
        features: (N, F).
        references: (N', F).

    Returns:
        kid and kid_std, mean and standard deviation over 100 random subsets, and kid_subset_size: 1000, or the size of
        the smaller set if that is less. (The subsets of a whole set are all the same: then kid_std says nothing.)

    Raises:
        ValueError: if there are fewer than two of either.
    """
    _check_count("KID", 2, features, references)
    size = min(KID_SUBSET_SIZE, len(features), len(references))
    result = kid_features_to_metric(
        features, references, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False
    )  # fmt: skip
    return {"kid": result[KEY_METRIC_KID_MEAN], "kid_std": result[KEY_METRIC_KID_STD], "kid_subset_size": size}


def precision_recall(features: torch.Tensor, references: torch.Tensor) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), with balls that reach the third nearest neighbour.

    Args:
        features: (N, F), of the samples.
        references: (N', F), of real images.

    Returns:
        precision, recall and f_score (their harmonic mean), each from 0 to 1.

    Raises:
        ValueError: if there are too few of either for three neighbours.
    """
    _check_count("precision and recall", PRC_NEIGHBOURHOOD + 1, features, references)
    # save_cpu_ram: without it four matrices of all distances are held at a time. The values are the same.
    return prc_features_to_metric(
        features, references, prc_neighborhood=PRC_NEIGHBOURHOOD, save_cpu_ram=True, verbose=False
    )  # fmt: skip


def _check_count(metric: str, least: int, features: torch.Tensor, references: torch.Tensor) -> None:
    count = min(len(features), len(references))
    if count < least:
        raise ValueError(f"{metric}: needs at least {least} images in each set, not {count}")


def _three_channels(images: torch.Tensor) -> torch.Tensor:
    return images.expand(-1, 3, -1, -1)  # as it is, if it has three


def _load_weights(option: str, path: str | None, url: str | None, load):
    """`load()`, with one line that names the file and the option if there are no (right) weights."""
    published = f"{Path(url).name} from {url}" if url else "them from where their authors publish them"
    if path is None:
        try:
            return load()
        except (OSError, RuntimeError) as error:  # torch.hub raises the second when it reaches no network
            raise FileNotFoundError(
                f"{option}: could not be downloaded ({error}); get {published} and give it with --{option} FILE"
            ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}; get {published}")
    try:
        return load()
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{option}: {path} does not hold these weights ({reason}); get {published}") from error


def _check_pickle(path: str, url: str) -> None:
    """Refuse a file that holds more than tensors: torch-fidelity would unpickle whatever it holds."""
    _load_weights(
        "feature_extractor_weights", path, url, lambda: torch.load(path, map_location="cpu", weights_only=True)
    )


def _lpips_network(weights: str | None) -> torch.nn.Module:
    if weights is None:
        state = load_state_dict_from_url(VGG16_URL, map_location="cpu", check_hash=True)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # lpips asks it the old way
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    # The slices of lpips keep torchvision's numbers: slice2.5.weight is features.5.weight.
    network.net.load_state_dict({k: state["features." + k.split(".", 1)[1]] for k in network.net.state_dict()})
    return network.requires_grad_(False)
