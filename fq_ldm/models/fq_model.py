"""FQ-VAE (Feng & Liu 2025)."""

import math

from diffusers.configuration_utils import register_to_config

from ..quantization import BankTokens, Codebook, DynamicFilterTokens, GridTokens, InterleavedTokens, TransformerTokens
from .autoencoder import TokenAutoencoder

TOKEN_LAYOUTS = ("bank", "interleaved", "paper", "grid", "transformer")
FREQUENCY_LAYOUTS = {"bank": BankTokens, "interleaved": InterleavedTokens}
DEFAULT_TOKEN_DIM = 8  # m of frequency tokens
READER_WIDTH, READER_LAYERS = 96, 6


class FQModel(TokenAutoencoder):
    """Frequency-quantized VAE: an image becomes U tokens, each of which describes all of it.

    Encoder -> packed orthonormal FFT -> learnt filter bank -> shared codebook -> graph module ->
    inverse FFT -> decoder. Every part can be switched off or replaced by what the paper prints, which
    gives the rows of the paper's ablation.

    Args:
        in_channels: c, colour channels of the images.
        sample_size: H = W, or (H, W).
        block_out_channels: channels of the convolutional levels; n levels give latents of (H, W) / 2^(n-1).
        layers_per_block: residual blocks in each level.
        act_fn: activation of the residual blocks.
        norm_num_groups: groups of the group normalisations; must divide every level's channels.
        mid_block_add_attention: self-attention between encoder and decoder levels (the Fourier transform
            is global already).
        latent_channels: D.
        tokens: "bank" (the default: filters learnt from training images), "interleaved" (fixed combs of single
            Fourier coefficients), "paper" (dynamic filters, equations 3-5), "grid" (cells of a spatial grid: no
            frequency quantization) or "transformer" (cells that attend to one another).
        filter_start: how the paper's filters start, "partition" or "alike"; see `DynamicFilterTokens`.
        num_tokens: U; with the paper's tokens U = N * D, for N filters.
        num_vq_embeddings: M, entries of the shared codebook.
        vq_embed_dim: m, numbers in a token of bank or combs (8 by default); other tokens have a size of their own.
        spectral_crop: h' = w', or (h', w'): bank and combs use only the coefficients of a spectrum of this
            size, and diffusion latents shrink to it; None for all of the latent's.
        diffusion_patch_size: p, folds p x p pixels of the diffusion latents into channels.
        diffusion_layout: "spatial", or "spectral" for Fourier coefficients as diffusion latents.
        commitment_weight: beta of equation 1. The paper has 0.25, with which the latents of natural images outgrow
            the codebook; 1 gives the same error as 0.5, and uses the codes less evenly.
        usage_decay: gamma of equation 8.
        anchors: where starving entries move (equation 6): "closest" (the paper), "random" or "probabilistic"
            (CVQ-VAE's other two), or "none": no re-initialisation.
        dependency: let correlated entries move more (equations 9 and 10).
        graph_module: refine quantized tokens by equation 12.
        painter_block_out_channels: a `Painter` of these channels decodes, the image's size first and last the smallest,
            which holds the spectral crop; None for the trunk's decoder.
        painter_layers_per_block: its residual blocks at each size; 1 at the image's, doubled at each smaller size by
            default.
        painter_upsampling: how it grows, "shuffle", "bilinear" or "bilinear_last": see `Painter`.
        painter_outputs: how many of its sizes paint an image, from the largest down; the sum is the image.
        learnt_channels: K of the D latent channels are those of a `Reader`, which learns with the painter
            (`learn_latents_`) what low frequencies leave open; the others are linear. 0 for a trunk's encoder.
        learnt_scale: their deviation in the diffusion latents; see `DiffusionView`.
        reader_width: channels of the reader.
        reader_layers: its residual blocks.
        painter_equalizer: its images differ as much as training images at every frequency, by gains that are measured
            after training by `fq_ldm.models.equalize_`.

    Raises:
        ValueError: if the sizes do not fit one another; the message says which do.
    """

    # Recorded in model_index.json: a name that stays when files move.
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
        tokens: str = "bank",
        filter_start: str = "partition",
        num_tokens: int = 64,
        num_vq_embeddings: int = 512,
        vq_embed_dim: int | None = None,
        spectral_crop: int | tuple[int, int] | None = None,
        diffusion_patch_size: int = 1,
        diffusion_layout: str = "spatial",
        commitment_weight: float = 0.5,
        usage_decay: float = 0.99,
        anchors: str = "closest",
        dependency: bool = True,
        graph_module: bool = True,
        painter_block_out_channels: tuple[int, ...] | None = None,
        painter_layers_per_block: tuple[int, ...] | None = None,
        painter_upsampling: str = "shuffle",
        painter_outputs: int = 1,
        painter_equalizer: bool = False,
        learnt_channels: int = 0,
        learnt_scale: float = 1.0,
        reader_width: int = READER_WIDTH,
        reader_layers: int = READER_LAYERS,
    ):
        if tokens not in TOKEN_LAYOUTS:
            raise ValueError(f"tokens must be one of {', '.join(TOKEN_LAYOUTS)}, not {tokens}")
        if tokens not in FREQUENCY_LAYOUTS and (vq_embed_dim is not None or spectral_crop is not None):
            raise ValueError(
                f"vq_embed_dim and spectral_crop are for tokens {' and '.join(FREQUENCY_LAYOUTS)}: leave them out for "
                f"{tokens}"
            )
        if tokens != "paper" and filter_start != "partition":
            raise ValueError(f"filter_start is for tokens paper: leave it out for {tokens}")

        def make_tokens(latent_shape, crop):
            if tokens in FREQUENCY_LAYOUTS:
                dim = DEFAULT_TOKEN_DIM if vq_embed_dim is None else vq_embed_dim
                return FREQUENCY_LAYOUTS[tokens](latent_shape, num_tokens, dim, crop)
            if tokens == "paper":
                return DynamicFilterTokens(latent_shape, num_tokens, filter_start)
            return (GridTokens if tokens == "grid" else TransformerTokens)(latent_shape, num_tokens)

        def make_codebook(token_dim):
            return Codebook(num_vq_embeddings, token_dim, commitment_weight, usage_decay, anchors, dependency)

        painter = self._painter_options()
        reader = self._reader_options()
        self._build(make_tokens, make_codebook, spectral_crop, graph_module, painter, painter_equalizer, reader)
        size = self.diffusion_view.spectral_crop
        held, latents = num_tokens * self.quantize.tokens.token_dim, latent_channels * math.prod(size)
        if reader and held != latents:
            raise ValueError(
                f"num_tokens {num_tokens}: with learnt_channels tokens must hold all {latents} numbers of "
                f"{latent_channels}x{size[0]}x{size[1]} latents, and these hold {held}"
            )

    def _reader_options(self) -> dict | None:
        """Of the registered configuration, for `_build`."""
        config = self.config
        if not config.learnt_channels:
            given = (config.learnt_scale, config.reader_width, config.reader_layers)
            if given != (1, READER_WIDTH, READER_LAYERS):
                raise ValueError(
                    "learnt_scale, reader_width and reader_layers are for learnt_channels: give those too, or leave "
                    "them out"
                )
            return None
        if config.painter_block_out_channels is None or not 0 < config.learnt_channels < config.latent_channels:
            raise ValueError(
                f"learnt_channels {config.learnt_channels}: are for a painter, and fewer than the latent_channels "
                f"{config.latent_channels}: give painter_block_out_channels, and room for linear channels"
            )
        if not config.learnt_scale > 0:
            raise ValueError(f"learnt_scale {config.learnt_scale}: is a deviation, and must be above 0")
        if config.diffusion_layout != "spatial":
            raise ValueError(
                f"diffusion_layout {config.diffusion_layout}: learnt_channels are learnt in the spatial one; "
                "train_ldm.py can choose another"
            )
        return dict(learnt_channels=config.learnt_channels, width=config.reader_width, layers=config.reader_layers)

    def _painter_options(self) -> dict | None:
        """Of the registered configuration, for `_build`."""
        config = self.config
        given = (config.painter_layers_per_block, config.painter_upsampling, config.painter_outputs)
        if config.painter_block_out_channels is None:
            if given != (None, "shuffle", 1) or config.painter_equalizer:
                raise ValueError(
                    "painter_layers_per_block, painter_upsampling, painter_outputs and painter_equalizer are for a "
                    "painter: give painter_block_out_channels too, or leave them out"
                )
            return None
        channels, layers = config.painter_block_out_channels, config.painter_layers_per_block
        return dict(
            block_out_channels=channels,
            layers_per_block=[2**i for i in range(len(channels))] if layers is None else layers,
            upsampling=config.painter_upsampling,
            outputs=config.painter_outputs,
        )
