"""What the methods of an autoencoder return."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import BaseOutput


@dataclass
class FQDecoderOutput(DecoderOutput):
    """What `forward` and `decode` return.

    Attributes:
        sample: (B, c, H, W) images in [-1, 1], not clamped.
        commit_loss: scalar, codebook loss plus beta times commitment loss (equation 1).
        indices: (B, U) int64 tokens, or None where nothing was quantized.
        perplexity: scalar, of this batch, or None where nothing was quantized.
    """

    indices: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None


@dataclass
class QuantizedLatents(BaseOutput):
    """What `quantize_latents` returns.

    Attributes:
        latents: (B, D, h, w) quantized latents, before the graph module: quantizing interleaved or grid tokens
            again changes nothing.
        loss: scalar, codebook loss plus beta times commitment loss (equation 1).
        indices: (B, U) int64.
        perplexity: scalar, of this batch.
    """

    latents: torch.Tensor
    loss: torch.Tensor
    indices: torch.Tensor
    perplexity: torch.Tensor
