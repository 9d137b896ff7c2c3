"""An autoencoder between tokens and images, as a diffusers `VQModel`: what FQ-VAE and its baselines share."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..quantization import GraphModule, TokenQuantizer
from ..quantization.moments import gather
from ..quantization.precision import keep_dtype
from ..spectrum import spectral_resize
from .diffusion_view import DiffusionView
from .equalizer import Equalizer
from .outputs import FQDecoderOutput, QuantizedLatents
from .painter import Generators, Painter
from .saved import SavedVQModel
from .start import LinearLatents, principal_colors

STATISTICS_IMAGES = 1024  # that the diffusion latents are standardised by
START_BATCH = 256  # images


class TokenAutoencoder(SavedVQModel):
    """Encoder -> tokens -> codebook -> graph module -> decoder: the trunk of every method in this library.

    Encoder and decoder are the parent's, each a residual around an orthogonal linear map (a colour
    transform, and a spectral crop where the latent is smaller than the image), so that an initialised
    model is a working linear coder before its first training step. Call `initialize_` with a sample of
    training images before training; a loaded model needs nothing.

    Images are (B, c, H, W) in [-1, 1], of the size and channels the model was built for.
    """

    # Codes, statistics and gains must not be rounded when weights are loaded as float16.
    _keep_in_fp32_modules = ["quantize", "diffusion_view", "color_transform", "equalizer"]

    def _build(
        self,
        make_tokens,
        make_codebook,
        spectral_crop=None,
        graph_module: bool = False,
        painter: dict | None = None,
        equalizer: bool = False,
    ) -> None:
        """Make the modules, with the registered configuration; for the `__init__` of subclasses.

        Args:
            make_tokens: `make_tokens(latent_shape, crop)` gives the layout of the tokens.
            make_codebook: `make_codebook(token_dim)` gives the codebook.
            spectral_crop: as in `FQModel`.
            graph_module: refine quantized tokens by equation 12.
            painter: widths and depths of a `Painter` in place of the parent's decoder.
            equalizer: put an `Equalizer` behind it.
        """
        config = self.config
        # Not VQModel.__init__: it would build a spatial quantizer and register arguments of its own.
        super(VQModel, self).__init__()
        self.tokens_frozen = False
        levels = len(config.block_out_channels)
        factor = 2 ** (levels - 1)
        self.sample_size = _pair(config.sample_size)
        if any(side % factor for side in self.sample_size):
            raise ValueError(
                f"sample_size {self.sample_size} with {levels} levels must be a multiple of {factor} "
                "in height and width"
            )
        latent_size = (self.sample_size[0] // factor, self.sample_size[1] // factor)
        crop = latent_size if spectral_crop is None else _pair(spectral_crop)
        if crop[0] > latent_size[0] or crop[1] > latent_size[1]:
            raise ValueError(f"spectral_crop {crop} is larger than the latent {latent_size}")
        self.latent_shape = (config.latent_channels, *latent_size)
        common = dict(
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            act_fn=config.act_fn,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        ends = (config.in_channels, config.latent_channels)
        self.encoder = Encoder(*ends, ("DownEncoderBlock2D",) * levels, double_z=False, **common)
        if painter is None:
            self.decoder = Decoder(*ends[::-1], ("UpDecoderBlock2D",) * levels, **common)
        else:
            self.decoder = Painter(
                *ends[::-1],
                crop,
                self.sample_size,
                act_fn=config.act_fn,
                norm_num_groups=config.norm_num_groups,
                **painter,
            )
        self.equalizer = Equalizer(self.sample_size) if equalizer else None
        for conv in (self.encoder.conv_out, self.decoder.conv_out):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.register_buffer("color_transform", torch.eye(*ends[::-1]))
        tokens = make_tokens(self.latent_shape, crop)
        graph = GraphModule(config.num_tokens) if graph_module else None
        self.quantize = TokenQuantizer(tokens, make_codebook(tokens.token_dim), graph)
        self.diffusion_view = DiffusionView(
            self.latent_shape, crop, config.diffusion_patch_size, config.diffusion_layout
        )

    def _apply(self, fn, recurse=True):
        colors = self.color_transform
        super()._apply(fn, recurse)
        self.color_transform = keep_dtype(fn, colors)  # a buffer of the model itself; see `Float32Module`
        return self

    @property
    def bits_per_image(self) -> float:
        """U * log2(M)."""
        return self.config.num_tokens * math.log2(self.config.num_vq_embeddings)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Images (B, c, H, W) in [-1, 1] -> latents (B, D, h, w), before quantization.

        Raises:
            ValueError: if the images have other channels or another size than the model.
        """
        expected = (self.config.in_channels, *self.sample_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"this model takes images of shape (batch, {', '.join(map(str, expected))}), not {tuple(x.shape)}"
            )
        with self._gradients():
            latents = self.encoder(x) + self._linear_encode(x).to(x.dtype)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: torch.Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape=None,
        generator: Generators = None,
        latent_noise: torch.Tensor | None = None,
    ) -> FQDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Latents (B, D, h, w) -> images.

        Args:
            h: latents, of `encode` or `from_diffusion_latents`.
            force_not_quantize: take the latents as they are: quantized already (`quantize_latents`; exact for
                interleaved and grid tokens), or by a decoder that was trained on unquantized ones.
            return_dict: return a `FQDecoderOutput`, else the tuple (sample, commit_loss).
            shape: unused; in the parent's signature.
            generator: of a `Painter`'s noise, one for the batch or one for each image; None for the same in all.
            latent_noise: (B,), deviation of noise on the standardised latents of each image, or None.
        """
        tokens, found = self._code(h, force_not_quantize)
        if latent_noise is not None:
            tokens = tokens + self._token_noise(latent_noise, generator)
        output = FQDecoderOutput(sample=self._decode_tokens(tokens, generator), **found)
        return output if return_dict else (output.sample, output.commit_loss)

    def forward(
        self,
        sample: torch.Tensor,
        return_dict: bool = True,
        force_not_quantize: bool = False,
        generator: Generators = None,
        latent_noise: torch.Tensor | None = None,
    ) -> FQDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Images -> reconstructions, the loss of the quantizer, tokens and perplexity.

        In training mode with gradients on, the codebook takes a step of equations 6-10. The arguments are `decode`'s.
        """
        latents = self.encode(sample).latents
        return self.decode(latents, force_not_quantize, return_dict, None, generator, latent_noise)

    def freeze_tokens_(self) -> None:
        """Let nothing but the decoder learn from now on: images keep their tokens, whatever is trained."""
        self.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.tokens_frozen = True

    @apply_forward_hook
    def quantize_latents(self, latents: torch.Tensor) -> QuantizedLatents:
        """Latents (B, D, h, w) -> quantized frequency latents, of the same dtype, and what goes with them."""
        quantized = self.quantize.quantize(latents)
        return QuantizedLatents(
            latents=self.quantize.join(quantized.tokens).to(latents.dtype),
            loss=quantized.loss,
            indices=quantized.indices,
            perplexity=quantized.perplexity,
        )

    @apply_forward_hook
    def project_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> the part of them that tokens hold, not quantized, of the same dtype."""
        return self.quantize.join(self.quantize.split(latents)).to(latents.dtype)

    def loss(self, images: torch.Tensor, output: FQDecoderOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """The training loss for the images (B, c, H, W) and `forward`'s output, and the mean squared error in it.

        It is equation 1, or what the codebook of a baseline asks for.
        """
        reconstruction_loss = F.mse_loss(output.sample.float(), images)
        return self.quantize.codebook.objective(reconstruction_loss, output.commit_loss), reconstruction_loss

    @apply_forward_hook
    def tokenize(self, x: torch.Tensor, exclude: int | None = None) -> torch.LongTensor:
        """Images (B, c, H, W) -> tokens (B, U), in 0 .. M-1. Does not train the codebook.

        Args:
            x: images.
            exclude: a codebook entry that may not be chosen.
        """
        return self.quantize.nearest(self.encode(x).latents, exclude)

    @apply_forward_hook
    def detokenize(self, indices: torch.LongTensor, generator: Generators = None) -> torch.Tensor:
        """Tokens (B, U) -> images (B, c, H, W): `model(x).sample` of the images they came from.

        Args:
            indices: int64.
            generator: as in `decode`.

        Raises:
            ValueError: if the shape is not (B, U) or an index is not in 0 .. M-1.
        """
        u, m = self.config.num_tokens, self.config.num_vq_embeddings
        if indices.ndim != 2 or indices.shape[1] != u:
            raise ValueError(f"tokens must have the shape (batch, {u}), not {tuple(indices.shape)}")
        if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < m):
            raise ValueError(f"tokens must lie in 0 .. {m - 1}; found {int(indices.min())} .. {int(indices.max())}")
        return self._decode_tokens(self.quantize.codebook(indices), generator)

    @apply_forward_hook
    def to_diffusion_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> what a diffusion model learns: (B, *diffusion_latent_shape), float32."""
        return self.diffusion_view(latents)

    @apply_forward_hook
    def from_diffusion_latents(self, diffusion_latents: torch.Tensor) -> torch.Tensor:
        """Diffusion latents -> latents (B, D, h, w), float32: exact for quantized latents."""
        return self.diffusion_view.inverse(diffusion_latents)

    @property
    def diffusion_latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the diffusion latents."""
        return self.diffusion_view.shape

    def set_diffusion_view_(self, layout: str, patch_size: int) -> None:
        """Show diffusion models another view of the latents; `measure_diffusion_latents_` must follow.

        Args:
            layout: "spatial" or "spectral"; see `DiffusionView`.
            patch_size: p, folds p x p pixels, or coefficients, into channels.

        Raises:
            ValueError: if the latents have no such view.
        """
        view = DiffusionView(self.latent_shape, self.diffusion_view.spectral_crop, patch_size, layout)
        self.diffusion_view = view.to(self.diffusion_view.mean.device)
        self.register_to_config(diffusion_layout=layout, diffusion_patch_size=patch_size)

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
        self.color_transform.copy_(principal_colors(batches, self.config.latent_channels))
        latents = LinearLatents(lambda batch: self._linear_encode(batch.to(self.device)), batches)
        self.quantize.initialize_(latents)
        self.measure_diffusion_latents_(gather(latents, lambda z: z, STATISTICS_IMAGES * math.prod(self.latent_shape)))

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

    def _gradients(self):
        """Of what makes tokens: none while they are frozen, which leaves the codebook alone too."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.tokens_frozen)

    def _code(self, latents: torch.Tensor, force_not_quantize: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The tokens (B, U, m) to decode, and what an `FQDecoderOutput` holds beside images."""
        with self._gradients():
            if force_not_quantize:
                return self.quantize.split(latents), {"commit_loss": latents.new_zeros(())}
            quantized = self.quantize.quantize(latents)
        found = {"commit_loss": quantized.loss, "indices": quantized.indices, "perplexity": quantized.perplexity}
        return quantized.tokens, found

    def _token_noise(self, deviation: torch.Tensor, generator: Generators) -> torch.Tensor:
        """What white noise of these deviations (B,) on the diffusion latents does to the tokens: (B, U, m)."""
        shape = (len(deviation), *self.diffusion_latent_shape)
        noise = randn_tensor(shape, generator, deviation.device) * deviation.view(-1, 1, 1, 1)
        none = self.quantize.split(self.diffusion_view.inverse(torch.zeros_like(noise[:1])))
        return self.quantize.split(self.diffusion_view.inverse(noise)) - none

    def _decode_tokens(self, tokens: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        return self._decode_latents(self.quantize.refine(tokens), generator)

    def _decode_latents(self, latents: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        dtype = self.decoder.conv_in.weight.dtype
        if isinstance(self.decoder, Painter):
            painted = self.decoder(latents, generator)
        else:
            painted = self.decoder(latents.to(dtype))
        images = painted + self._linear_decode(latents).to(dtype)  # in training as they are: gains come after it
        return images if self.equalizer is None or self.training else self.equalizer(images)

    def _linear_encode(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            mixed = torch.einsum("dc,bchw->bdhw", self.color_transform.float(), x.float())
            return spectral_resize(mixed, self.latent_shape[1:])

    def _linear_decode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            resized = spectral_resize(latents, self.sample_size)
            return torch.einsum("dc,bdhw->bchw", self.color_transform.float(), resized)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
