"""A deeper UNet, or one of more channels of latents, that begins as a smaller one, after Net2Net (Chen et al. 2016)."""

import re

import torch
from diffusers import UNet2DModel

LATENT_CHANNELS_IN = {"conv_in.weight": 1, "conv_out.weight": 0, "conv_out.bias": 0}  # which dimension they are
UP_BLOCK = re.compile(r"(up_blocks\.\d+\.(?:resnets|attentions)\.)(\d+)(\..+)")


@torch.no_grad()
def deepen_(unet: UNet2DModel, trained: UNet2DModel) -> None:
    """Give a UNet the weights of one with as many blocks in each level, or fewer: it computes the same.

    New blocks are residual, and add nothing until training moves them: their last convolution, or projection, is zero.
    In a level of the decoder the first block widens what comes from below, and the last takes the skip connection that
    enters the level; they stay first and last, and new ones go after the first.

    Of latents with more channels the first are the smaller one's; the others it does not read, and makes none of them.

    Args:
        unet: untrained, at least as deep, with as many channels of features.
        trained: the shallower one.

    Raises:
        ValueError: if it has weights that the deeper one has no place for.
    """
    more = unet.config.layers_per_block - trained.config.layers_per_block

    def place(name: str) -> str:
        found = UP_BLOCK.fullmatch(name)
        if not found or found[2] == "0":
            return name
        return f"{found[1]}{int(found[2]) + more}{found[3]}"

    weights = {place(name): weight for name, weight in trained.state_dict().items()}
    names = unet.state_dict().keys()
    new = names - weights.keys()
    if unexpected := sorted(weights.keys() - names):
        raise ValueError(f"the shallower UNet has {len(unexpected)} weights too many, {unexpected[0]} among them")
    weights |= _widened(unet, weights)
    unet.load_state_dict(weights, strict=False)
    for name, parameter in unet.named_parameters():
        if name not in new:
            continue
        if ".conv2." in name or ".to_out.0." in name:
            parameter.zero_()
        elif ".conv_shortcut." in name:
            # What comes from below goes through; the skip connection beside it is not read yet.
            parameter.zero_()
            if parameter.ndim == 4:
                parameter[:, : len(parameter), 0, 0] = torch.eye(len(parameter))


def _widened(unet: UNet2DModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first and last layers of a UNet of fewer channels of latents, with zeros for the others."""
    wider = {}
    for name, dimension in LATENT_CHANNELS_IN.items():
        wider[name] = torch.zeros_like(unet.get_parameter(name))
        wider[name].narrow(dimension, 0, weights[name].shape[dimension]).copy_(weights[name])
    return wider
