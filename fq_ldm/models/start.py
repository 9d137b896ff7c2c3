"""What an untrained model starts from: colours and latents of training images."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from ..quantization.moments import gather
from .reader import Reader

STATISTICS_IMAGES = 1024  # that the diffusion latents are standardised by
START_BATCH = 256  # images
WEIGHED_IMAGES = 64
WEIGHED_NOISE = 0.3  # deviations of a channel: about what a codebook leaves out
LEAST_SHARE = 0.01  # of the deviation of linear channels: what hardly matters must still be told from nothing


class Latents:
    """The latents of batches of images, encoded anew each time that they are gone over."""

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor]):
        self.encode = encode
        self.batches = batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            yield self.encode(batch)


def principal_colors(batches: Iterable[torch.Tensor], num_channels: int) -> torch.Tensor:
    """Orthonormal (D, c) map onto the principal colours of batches of images (b, c, H, W).

    With fewer latent channels than colours, the strongest are kept. With more, the colours are spread over all
    channels by a fixed orthogonal mixing, so that none starts empty.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for images in batches:
        colors = images.double().transpose(0, 1).flatten(1)  # (c, b*H*W)
        count, total = count + colors.shape[1], total + colors.sum(1).cpu()
        products = products + (colors @ colors.T).cpu()
    if not count:
        raise ValueError("a start from data needs images: there are none")
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if not covariance.isfinite().all():
        raise ValueError("a start from data needs finite images; some of these hold NaN or infinite numbers")
    principal = torch.linalg.eigh(covariance).eigenvectors.flip(1).T.float()  # (c, c), strongest first
    principal = principal * torch.where(principal.sum(1, keepdim=True) < 0, -1.0, 1.0)  # fix the sign
    if num_channels <= len(principal):
        return principal[:num_channels]
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(num_channels, len(principal), generator=generator)).Q
    return mixing @ principal


class StartsFromData:
    """How a `TokenAutoencoder` is set by training images, before it is trained and after its latents are learnt."""

    @torch.no_grad()
    def initialize_(self, images: torch.Tensor | Iterable[torch.Tensor]) -> None:
        """Start an untrained model from data: colours, filters and their scales, codebook, latent statistics.

        The result depends on the images alone. Memory does not grow with their number where they come in batches.

        Args:
            images: (n, c, H, W) in [-1, 1], a sample of training images; or an iterable of such batches that can be
                gone over repeatedly, a `DataLoader` for example. n * U must be at least the codebook's size. A learnt
                bank wants several times as many as it mixes coefficients: some 10,000.

        Raises:
            ValueError: if they are too few, all alike, or not finite.
        """
        batches = images.split(START_BATCH) if isinstance(images, torch.Tensor) else images
        self.color_transform.copy_(principal_colors(batches, self.linear_channels))
        latents = self.find_tokens_(batches)
        self.measure_diffusion_latents_(gather(latents, lambda z: z, STATISTICS_IMAGES * math.prod(self.latent_shape)))

    @torch.no_grad()
    def find_tokens_(self, batches: Iterable[torch.Tensor]) -> Latents:
        """Start filters, scales and codebook from the latents of these batches of images, as in `initialize_`.

        Returns:
            The latents, batch by batch.
        """
        learnt = isinstance(self.encoder, Reader)  # any other untrained encoder adds nothing to the linear latents

        def encode(images: torch.Tensor) -> torch.Tensor:
            images = images.to(self.device)
            return self.encode(images).latents.float() if learnt else self._linear_encode(images)

        latents = Latents(encode, batches)
        self.quantize.initialize_(latents)
        return latents

    @torch.no_grad()
    def weigh_learnt_channels_(self, images: torch.Tensor) -> None:
        """Give learnt channels the unit in which an error of theirs costs as much of the image as one of linear ones.

        A codebook counts errors of all channels alike, and tokens spend their numbers where latents vary most. How
        large an encoder has made its channels, which the painter undoes, says nothing of that. What the model paints of
        latents that are not quantized, and what its diffusion latents are, stays as it was, but for rounding. Tokens do
        not follow: `find_tokens_` is to come after it.

        Args:
            images: (n, c, H, W) in [-1, 1], of the training; the first 64 are enough.

        Raises:
            ValueError: if the model has no learnt channels.
        """
        if not isinstance(self.encoder, Reader):
            raise ValueError("this model has no learnt channels to weigh: make it with learnt_channels")
        latents = self.encode(images[:WEIGHED_IMAGES].to(self.device)).latents.float()
        painted = self._decode_latents(latents)
        unit, costs = self.diffusion_view.deviation(latents), []
        for part in (slice(self.linear_channels), slice(self.linear_channels, None)):
            deviation = latents.new_zeros(latents.shape[:2])
            deviation[:, part] = WEIGHED_NOISE
            error = self._latent_noise(deviation, torch.Generator(self.device).manual_seed(0), unit)
            change = self._decode_latents(latents + error) - painted
            costs.append(change.float().square().sum() / error.square().sum())
        linear, learnt = (part.mean() for part in unit.tensor_split([self.diffusion_view.linear_channels]))
        self.scale_learnt_channels_((costs[1] / costs[0]).sqrt().clamp(min=LEAST_SHARE * linear / learnt))

    @torch.no_grad()
    def scale_learnt_channels_(self, factors: torch.Tensor) -> None:
        """Multiply the learnt channels by factors (K,), or one for all, and have the painter and the view undo it.

        Tokens do not follow: `find_tokens_` is to come after it.
        """
        learnt = slice(self.linear_channels, None)
        factors = factors.to(self.encoder.conv_out.weight.device).expand(self.latent_shape[0] - self.linear_channels)
        last, first, view = self.encoder.conv_out, self.decoder.conv_in, self.diffusion_view
        last.weight.mul_(factors.view(-1, 1, 1, 1))
        last.bias.mul_(factors)
        first.weight[:, learnt].div_(factors.view(1, -1, 1, 1))
        view.scale_learnt_(factors)

    @torch.no_grad()
    def measure_diffusion_latents_(self, latents: torch.Tensor, quantized: bool = True) -> None:
        """Standardise the diffusion latents by the statistics of these latents (n, D, h, w).

        Of many latents the first 1024 are enough for a mean and a deviation of each channel.

        Args:
            latents: the encoder's.
            quantized: by those of the quantized latents, else of the unquantized ones, as `project_latents` has them.
                Weak coefficients vary much less once they are quantized.
        """
        parts = latents[:STATISTICS_IMAGES].split(256)
        if quantized:
            parts = [self.quantize.join(self.quantize.codebook(self.quantize.nearest(z))) for z in parts]
        else:
            parts = [self.project_latents(z) for z in parts]
        self.diffusion_view.measure_(torch.cat(parts))
