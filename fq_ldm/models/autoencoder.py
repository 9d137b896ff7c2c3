"""An autoencoder between tokens and images, as a diffusers `VQModel`: what FQ-VAE and its baselines share."""

import math

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..quantization import GraphModule, TokenQuantizer
from ..quantization.precision import keep_dtype
from ..spectrum import spectral_resize
from .diffusion_view import DiffusionView
from .equalizer import Equalizer
from .outputs import FQDecoderOutput, QuantizedLatents
from .painter import Generators, Painter, painted_sizes
from .reader import Reader
from .saved import SavedVQModel
from .start import StartsFromData


class TokenAutoencoder(StartsFromData, SavedVQModel):
    """Encoder -> tokens -> codebook -> graph module -> decoder: the trunk of every method in this library.

    Encoder and decoder are the parent's, or a `Reader` and a `Painter`, around an orthogonal linear map (a colour
    transform, and a spectral crop where the latent is smaller than the image): residual to it, but for a reader's
    channels, which stand beside. So an initialised model is a working linear coder before its first training step. Call
    `initialize_` with a sample of training images before training; a loaded model needs nothing.

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
        reader: dict | None = None,
    ) -> None:
        """Make the modules, with the registered configuration; for the `__init__` of subclasses.

        Args:
            make_tokens: `make_tokens(latent_shape, crop)` gives the layout of the tokens.
            make_codebook: `make_codebook(token_dim)` gives the codebook.
            spectral_crop: as in `FQModel`.
            graph_module: refine quantized tokens by equation 12.
            painter: widths and depths of a `Painter` in place of the parent's decoder.
            equalizer: put an `Equalizer` behind it.
            reader: learnt channels, width and depth of a `Reader` in place of the parent's encoder.
        """
        config = self.config
        # Not VQModel.__init__: it would build a spatial quantizer and register arguments of its own.
        super(VQModel, self).__init__()
        self.tokens_frozen = self.latents_learning = False
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
        self.linear_channels = config.latent_channels - (reader["learnt_channels"] if reader else 0)
        of_blocks = dict(act_fn=config.act_fn, norm_num_groups=config.norm_num_groups)
        if reader is None:
            self.encoder = Encoder(*ends, ("DownEncoderBlock2D",) * levels, double_z=False, **common)
        else:
            first_size = painted_sizes(crop, self.sample_size)[-1]
            self.encoder = Reader(
                config.in_channels, self.linear_channels, size=first_size, sample_size=self.sample_size,
                **reader, **of_blocks,
            )  # fmt: skip
        if painter is None:
            self.decoder = Decoder(*ends[::-1], ("UpDecoderBlock2D",) * levels, **common)
        else:
            self.decoder = Painter(*ends[::-1], crop, self.sample_size, **of_blocks, **painter)
        self.equalizer = Equalizer(config.in_channels, self.sample_size) if equalizer else None
        for conv in (self.decoder.conv_out, *([] if reader else [self.encoder.conv_out])):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.register_buffer("color_transform", torch.eye(self.linear_channels, config.in_channels))
        tokens = make_tokens(self.latent_shape, crop)
        graph = GraphModule(config.num_tokens) if graph_module else None
        self.quantize = TokenQuantizer(tokens, make_codebook(tokens.token_dim), graph)
        self.diffusion_view = self._view(crop, config.diffusion_patch_size, config.diffusion_layout)

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
            linear = self._linear_encode(x)
            if isinstance(self.encoder, Reader):
                latents = torch.cat([linear, self.encoder(x, linear)], dim=1).to(x.dtype)
            else:
                latents = self.encoder(x) + linear.to(x.dtype)
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
            latent_noise: (B, D), deviation of noise on the standardised latents of each image and channel, or None.
        """
        if self.latents_learning and force_not_quantize:  # latents that tokens do not know yet
            low = self.diffusion_view.inverse(self.diffusion_view(h))
            if latent_noise is not None:
                low = low + self._latent_noise(latent_noise, generator, self.diffusion_view.deviation(low))
            sample, found = self._decode_latents(low, generator), {"commit_loss": h.new_zeros(())}
        else:
            tokens, found = self._code(h, force_not_quantize)
            if latent_noise is not None:
                tokens = tokens + self._token_noise(latent_noise, generator)
            sample = self._decode_tokens(tokens, generator)
        output = FQDecoderOutput(sample=sample, **found)
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
        self.tokens_frozen, self.latents_learning = True, False

    def learn_latents_(self) -> None:
        """Let the reader learn with the decoder, on latents that are not quantized; `find_tokens_` is to follow.

        Raises:
            ValueError: if the model has no learnt channels.
        """
        if not isinstance(self.encoder, Reader):
            raise ValueError("this model has no learnt channels: make it with learnt_channels")
        self.requires_grad_(False)
        self.encoder.requires_grad_(True)
        self.decoder.requires_grad_(True)
        self.tokens_frozen, self.latents_learning = False, True

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
        view = self._view(self.diffusion_view.spectral_crop, patch_size, layout)
        self.diffusion_view = view.to(self.diffusion_view.mean.device)
        self.register_to_config(diffusion_layout=layout, diffusion_patch_size=patch_size)

    def _view(self, crop: tuple[int, int], patch_size: int, layout: str) -> DiffusionView:
        scale = self.config.get("learnt_scale", 1.0)
        return DiffusionView(self.latent_shape, crop, patch_size, layout, self.linear_channels, scale)

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

    def _latent_noise(
        self, deviation: torch.Tensor, generator: Generators, unit: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What white noise of these deviations (B, D) on the diffusion latents does to the latents: (B, D, h, w).

        Args:
            deviation: of each image and channel.
            generator: of the noise.
            unit: their deviation, or None for what it was measured to be.
        """
        shape = (len(deviation), *self.diffusion_latent_shape)
        each = deviation.repeat_interleave(shape[1] // deviation.shape[1], 1)[..., None, None]
        return self.diffusion_view.inverse_of_change(randn_tensor(shape, generator, deviation.device) * each, unit)

    def _token_noise(self, deviation: torch.Tensor, generator: Generators) -> torch.Tensor:
        """The same on the tokens: (B, U, m)."""
        noise = self._latent_noise(deviation, generator)
        return self.quantize.split(noise) - self.quantize.split(torch.zeros_like(noise[:1]))

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
            resized = spectral_resize(latents[:, : self.linear_channels], self.sample_size)
            return torch.einsum("dc,bdhw->bchw", self.color_transform.float(), resized)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
