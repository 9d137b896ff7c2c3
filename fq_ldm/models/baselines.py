"""The methods that FQ-VAE is compared with, on its trunk and at its bits, each with its own quantizer and loss.

VQ-VAE and CVQ-VAE need no class here: they are `FQModel` with `tokens="grid"`, without anchors or with them.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from ..quantization import GridTokens, StochasticCodebook
from ..quantization.library import EMACodebook, FSQCodebook, ResidualCodebook, SimVQCodebook
from ..quantization.moments import Batches, gather
from ..quantization.quantizer import START_NUMBERS
from ..quantization.stochastic import HQACodebook
from .autoencoder import TokenAutoencoder
from .outputs import FQDecoderOutput
from .painter import Generators

QUANTIZERS = ("ema", "sq", "fsq", "residual", "simvq")
HQA_TEMPERATURE = 2 / 3  # of the Gumbel softmax at the start, its authors' value
HQA_CHANNELS = 32  # of the convolutions between HQA's two layers


class BaselineModel(TokenAutoencoder):
    """A spatial autoencoder with the quantizer of another paper.

    Args:
        quantizer: "ema" (VQ-VAE with running means, k-means start and revival), "sq" (SQ-VAE, Gaussian type I),
            "fsq" (finite scalar quantization), "residual" (residual quantization), "simvq".
        num_tokens: U, the cells of the grid; with residual quantization cells times stages.
        num_vq_embeddings: M.
        fsq_levels: values of each rounded number; their product must be M. By default powers of two up to 8.
        residual_stages: entries for each cell of residual quantization.
        temperature_decay: of SQ-VAE's Gumbel softmax; see `StochasticCodebook`.
        others: as in `FQModel`.

    Raises:
        ValueError: if the sizes do not fit one another; the message says which do.
    """

    __module__ = "fq_ldm"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        sample_size: int | tuple[int, int] = 32,
        block_out_channels: tuple[int, ...] = (32,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 8,
        mid_block_add_attention: bool = False,
        latent_channels: int = 3,
        quantizer: str = "ema",
        num_tokens: int = 64,
        num_vq_embeddings: int = 512,
        fsq_levels: tuple[int, ...] | None = None,
        residual_stages: int = 4,
        temperature_decay: float = 1e-5,
        diffusion_patch_size: int = 1,
        diffusion_layout: str = "spatial",
    ):
        if quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer must be one of {', '.join(QUANTIZERS)}, not {quantizer}")
        of_one = (("fsq", "fsq_levels", fsq_levels, None), ("residual", "residual_stages", residual_stages, 4),
                  ("sq", "temperature_decay", temperature_decay, 1e-5))  # fmt: skip
        for owner, name, value, default in of_one:
            if value != default and quantizer != owner:
                raise ValueError(f"{name} is an option of the quantizer {owner}, not of {quantizer}: leave it out")
        if quantizer == "fsq" and fsq_levels is None:
            fsq_levels = _even_levels(num_vq_embeddings)
        if quantizer == "fsq" and math.prod(fsq_levels) != num_vq_embeddings:
            raise ValueError(
                f"fsq_levels {list(fsq_levels)} make {math.prod(fsq_levels)} codes, but num_vq_embeddings is "
                f"{num_vq_embeddings}"
            )
        if quantizer == "residual" and num_tokens % residual_stages:
            raise ValueError(f"num_tokens {num_tokens} must be a multiple of residual_stages {residual_stages}")

        def make_tokens(latent_shape, crop):
            return GridTokens(latent_shape, num_tokens // residual_stages if quantizer == "residual" else num_tokens)

        def make_codebook(token_dim):
            if quantizer == "ema":
                return EMACodebook(num_vq_embeddings, token_dim)
            if quantizer == "simvq":
                return SimVQCodebook(num_vq_embeddings, token_dim)
            if quantizer == "fsq":
                return FSQCodebook(fsq_levels, token_dim)
            if quantizer == "residual":
                return ResidualCodebook(num_vq_embeddings, token_dim, residual_stages)
            return StochasticCodebook(
                num_vq_embeddings,
                token_dim,
                temperature_decay=temperature_decay,
                data_elements=in_channels * math.prod(self.sample_size) / math.prod(self.latent_shape),
            )

        self._build(make_tokens, make_codebook)


def _even_levels(num_vq_embeddings: int) -> list[int]:
    """Powers of two, at most 8 and as even as can be, whose product is the number of codes: 1024 -> 8, 8, 4, 4."""
    bits = num_vq_embeddings.bit_length() - 1
    if 2**bits != num_vq_embeddings:
        raise ValueError(f"num_vq_embeddings {num_vq_embeddings} is not a power of two: give fsq_levels")
    count = math.ceil(bits / 3)
    return [2 ** (bits // count + (i < bits % count)) for i in range(count)]


class HQATokens(GridTokens):
    """HQA's second layer: cells of a fine grid, themselves coded by an autoencoder to the tokens of a coarse one.

    `split` codes latents down to the tokens; `join` decodes them to fine cells and quantizes those with the first
    layer's codebook. Encoder and decoder are residual around the identity, as the trunk is.

    Args:
        latent_shape: (D, h, w).
        num_tokens: U, of the coarse grid; the fine one has 4 U cells.
        codebook: of the first layer.
        channels: of the convolutions.
    """

    def __init__(self, latent_shape: tuple[int, int, int], num_tokens: int, codebook: HQACodebook, channels: int):
        super().__init__(latent_shape, num_tokens)
        self.fine = GridTokens(latent_shape, 4 * num_tokens)
        self.codebook = codebook
        common = dict(block_out_channels=(channels,), layers_per_block=1, mid_block_add_attention=False)
        common["norm_num_groups"] = 8
        width = self.fine.token_dim
        self.encoder = Encoder(width, width, ("DownEncoderBlock2D",), double_z=False, **common)
        self.decoder = Decoder(width, width, ("UpDecoderBlock2D",), **common)
        for conv in (self.encoder.conv_out, self.decoder.conv_out):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> the fine cells (B, 4D, h/2, ...) as maps, before any quantization."""
        return F.pixel_unshuffle(latents, self.fine.patch_size)

    def encode_cells(self, cells: torch.Tensor) -> torch.Tensor:
        """Fine cells -> tokens (B, U, m)."""
        cells = cells + self.encoder(cells)
        return F.pixel_unshuffle(cells, self.patch_size // self.fine.patch_size).flatten(2).mT

    def decode_cells(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m) -> the fine cells that the second layer predicts."""
        cells = F.pixel_shuffle(tokens.mT.unflatten(2, self.grid), self.patch_size // self.fine.patch_size)
        return cells + self.decoder(cells)

    @torch.no_grad()
    def initialize_(self, latents: Batches) -> None:
        """Start the first layer's codebook from batches of latents (b, D, h, w) of training images."""
        self.codebook.initialize_(gather(latents, self.fine.split, START_NUMBERS).flatten(0, 1))

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w), float32 -> tokens (B, U, m)."""
        return self.encode_cells(self.cells(latents))

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m), float32 -> latents (B, D, h, w) of first-layer entries."""
        cells = self.decode_cells(tokens).flatten(2).mT
        return self.fine.join(self.codebook(self.codebook.nearest(cells)))


class HQAModel(TokenAutoencoder):
    """Hierarchical quantized autoencoder (Williams et al. 2020) of two layers; only the second one's tokens are stored.

    Each layer is trained on its own objective, both at the same time instead of one after the other: the first on
    the images, the second on the first one's encoding, without a gradient between them.

    Args:
        num_tokens: U, of the second layer; the first has four times as many.
        num_vq_embeddings: M, of both layers.
        temperature_decay: of the Gumbel softmax; see `StochasticCodebook`.
        others: as in `FQModel`.

    Raises:
        ValueError: if the sizes do not fit one another; the message says which do.
    """

    __module__ = "fq_ldm"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        sample_size: int | tuple[int, int] = 32,
        block_out_channels: tuple[int, ...] = (32,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 8,
        mid_block_add_attention: bool = False,
        latent_channels: int = 3,
        num_tokens: int = 64,
        num_vq_embeddings: int = 512,
        temperature_decay: float = 1e-5,
        diffusion_patch_size: int = 1,
        diffusion_layout: str = "spatial",
    ):
        def make_hqa_codebook(token_dim):
            ratio = in_channels * math.prod(self.sample_size) / math.prod(self.latent_shape)
            return HQACodebook(num_vq_embeddings, token_dim, HQA_TEMPERATURE, temperature_decay, ratio)

        def make_tokens(latent_shape, crop):
            fine_dim = GridTokens(latent_shape, 4 * num_tokens).token_dim
            return HQATokens(latent_shape, num_tokens, make_hqa_codebook(fine_dim), HQA_CHANNELS)

        self._build(make_tokens, make_hqa_codebook)

    def forward(
        self,
        sample: torch.Tensor,
        return_dict: bool = True,
        force_not_quantize: bool = False,
        generator: Generators = None,
        latent_noise: torch.Tensor | None = None,
    ) -> FQDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Images -> in training the first layer's reconstructions and both layers' losses, else what others give.

        In training the last three arguments, which are `decode`'s, are of no use.
        """
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(sample, return_dict, force_not_quantize, generator, latent_noise)
        latents = self.encode(sample).latents
        tokens, codebook = self.quantize.tokens, self.quantize.codebook
        with torch.autocast(sample.device.type, enabled=False):
            latents = latents.float()
            first = tokens.codebook.quantize(tokens.fine.split(latents))
            cells = tokens.cells(latents.detach())
            second = codebook.quantize(tokens.encode_cells(cells))
            second_error = F.mse_loss(tokens.decode_cells(second.tokens), cells)
            loss = first.loss + second.loss + second_error
            quantized = tokens.fine.join(first.tokens)
        output = FQDecoderOutput(
            sample=self._decode_latents(quantized),
            commit_loss=loss,
            indices=second.indices,
            perplexity=second.perplexity,
        )
        return output if return_dict else (output.sample, output.commit_loss)
