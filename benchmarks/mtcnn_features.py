r"""A feature extractor for faces where Inception's weights cannot be had: the last network of MTCNN, 256 features.

    pip install --no-deps facenet-pytorch
    python evaluate.py --feature_extractor_module benchmarks.mtcnn_features --feature_extractor mtcnn-onet ...

Its weights come with the package. It was trained to tell faces from the rest and to find eyes, nose and mouth, so its
distances say how alike sets of faces are, on a scale of their own: they do not compare with FIDs of Inception.
"""

import torch.nn.functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

SIDE = 48  # pixels, what the network takes
FEATURES = "256"


class FaceFeatures(FeatureExtractorBase):
    """Images (B, 3, H, W) uint8 -> 256 features (B, 256)."""

    def __init__(self, name, features_list, **kwargs):
        from facenet_pytorch.models.mtcnn import ONet  # no dependency: only who measures faces has it

        super().__init__(name, features_list)
        self.network = ONet().eval().requires_grad_(False)
        self.network.prelu5.register_forward_hook(self._keep)

    @staticmethod
    def get_provided_features_list():
        return (FEATURES,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return FEATURES

    def forward(self, x):
        images = (x.float() - 127.5) / 128
        self.network(F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False))
        return (self._features,)

    def _keep(self, module, inputs, output):
        self._features = output


register_feature_extractor("mtcnn-onet", FaceFeatures)
