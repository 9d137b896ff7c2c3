"""Options of the FQ-VAE."""

from dataclasses import dataclass

from .errors import check
from .fields import check_positive, option


@dataclass
class VAEConfig:
    """The FQ-VAE; the names are `FQModel`'s."""

    block_out_channels: list[int] = option([32], "channels of the convolutional levels; n levels shrink by 2^(n-1)")
    layers_per_block: int = option(1, "residual blocks in each level")
    norm_num_groups: int = option(8, "groups of the group normalisations")
    mid_block_add_attention: bool = option(False, "self-attention in the middle of encoder and decoder")
    latent_channels: int = option(3, "D, channels of the latent")
    tokens: str = option(
        "bank",
        "frequency tokens of a learnt bank, of interleaved single coefficients, or the paper's (equations 3-5); grid "
        "for none; transformer for a grid with attention",
        choices=["bank", "interleaved", "paper", "grid", "transformer"],
    )
    filter_start: str = option("partition", "how the paper's filters start", choices=["partition", "alike"])
    num_tokens: int = option(64, "U, tokens in an image; the paper's N is num_tokens / latent_channels")
    num_vq_embeddings: int = option(512, "M, codebook entries")
    vq_embed_dim: int | None = option(None, "m, numbers in a token of bank or combs; 8 by default")
    spectral_crop: int | None = option(None, "side of the square of low frequencies that bank and combs use")
    diffusion_patch_size: int = option(1, "fold patches of this side into channels of the diffusion latents")
    diffusion_layout: str = option(
        "spatial", "diffusion latents are an image, or Fourier coefficients", choices=["spatial", "spectral"]
    )
    commitment_weight: float = option(0.5, "beta of equation 1; the paper has 0.25")
    usage_decay: float = option(0.99, "gamma of equation 8")
    quantizer: str = option(
        "codebook",
        "codebook of equations 1 and 6-10, or a baseline's: ema (VQ-VAE), sq (SQ-VAE), hqa, fsq, residual, simvq",
        choices=["codebook", "ema", "sq", "hqa", "fsq", "residual", "simvq"],
    )
    anchors: str = option(
        "closest",
        "where starving entries move; closest is the paper's, the next two are CVQ-VAE's, none leaves equation 1 alone",
        choices=["closest", "random", "probabilistic", "none"],
    )
    dependency: bool = option(True, "let correlated entries move more, equations 9 and 10")
    fsq_levels: list[int] | None = option(None, "values of each rounded number of FSQ; by default powers of two")
    residual_stages: int = option(4, "entries for each cell of residual quantization")
    temperature_decay: float = option(1e-5, "per step, of the Gumbel softmax of sq and hqa")
    graph_module: bool = option(True, "refine quantized tokens by equation 12")
    painter_block_out_channels: list[int] | None = option(
        None,
        "channels of a decoder that doubles from a size that holds the spectral crop (its last) to that of the image "
        "(its first)",
    )
    painter_layers_per_block: list[int] | None = option(
        None, "residual blocks of that decoder at each size; by default 1, 2, 4 and so on"
    )
    painter_upsampling: str = option(
        "shuffle",
        "how that decoder grows: by sub-pixel convolution, bilinearly, or bilinearly to the image's size alone",
        choices=["shuffle", "bilinear", "bilinear_last"],
    )
    painter_outputs: int = option(
        1, "how many sizes of that decoder, from the image's down, paint what is added up to the image"
    )
    painter_equalizer: bool = option(
        False, "measure, after training, how much weaker or stronger than in images each frequency is, and even it out"
    )
    learnt_channels: int = option(
        0, "so many of the latent channels are learnt with that decoder, beside linear ones, by an encoder at its size"
    )
    learnt_scale: float = option(
        1.0,
        "standard deviation of these in the diffusion latents, where linear channels have 1: smaller ones come out of "
        "the noise later, when the linear ones are known",
    )
    reader_width: int = option(96, "channels of that encoder")
    reader_layers: int = option(6, "its residual blocks")
    init_images: int = option(12288, "training images that filters, scales and codebook start from")

    def __post_init__(self):
        check_positive(self, but=("learnt_channels",))
        check(self.learnt_channels >= 0, "learnt_channels", self.learnt_channels, "must not be negative")
