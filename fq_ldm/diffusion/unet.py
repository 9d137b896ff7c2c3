"""The UNet."""

import json

from diffusers import UNet2DModel

from ..options import DataError, LDMConfig, UserError, check
from .deeper import deepen_


def build_unet(ldm: LDMConfig, latent_shape: tuple[int, int, int], num_classes: int = 0) -> UNet2DModel:
    """The untrained UNet for diffusion latents of this shape (C, H, W), and for so many classes and "none of them".

    Raises:
        UserError: if the latent cannot be halved once for each level, or the channels do not fit.
    """
    channels, *size = latent_shape
    levels = len(ldm.unet_block_out_channels)
    factor = 2 ** (levels - 1)
    check(
        not any(side % factor for side in size),
        "unet_block_out_channels",
        f"{levels} levels",
        f"must fit latents of {size[0]}x{size[1]}, whose sides are to be multiples of 2^(levels-1)",
    )
    check(
        set(ldm.unet_attention_levels) <= set(range(levels)),
        "unet_attention_levels",
        ldm.unet_attention_levels,
        f"must lie in 0 .. {levels - 1}",
    )
    attention = [level in ldm.unet_attention_levels for level in range(levels)]
    try:
        return UNet2DModel(
            sample_size=tuple(size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(ldm.unet_block_out_channels),
            layers_per_block=ldm.unet_layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=ldm.unet_attention_head_dim,
            norm_num_groups=ldm.unet_norm_num_groups,
            dropout=ldm.unet_dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
    except ValueError as error:
        raise UserError(f"unet: {error}") from error


def open_unet(path: str, option: str) -> UNet2DModel:
    """The trained UNet of a pipeline that an option names, in a folder or on the Hub, in float32.

    Raises:
        DataError: if there is none.
    """
    try:
        return UNet2DModel.from_pretrained(path, subfolder="unet", use_safetensors=True)
    except Exception as error:  # as in open_vae
        raise DataError(f"{option}: no UNet can be loaded from {path} ({' '.join(str(error).split())})") from error


def start_from_(unet: UNet2DModel, path: str, first_channels: int | None = None) -> None:
    """Give a UNet the weights of the one in a pipeline, which may have fewer blocks in each level (`deepen_`).

    Args:
        unet: untrained.
        path: of the pipeline.
        first_channels: how many of the latents' channels that one may know alone, the first; None for all.

    Raises:
        DataError: if there is none, or it has another shape, or is larger.
    """
    trained = open_unet(path, "start_from")
    wanted, found = (json.loads(model.to_json_string()) for model in (unet, trained))
    differ = [name for name in wanted if name[0] != "_" and found[name] != wanted[name]]
    if found["layers_per_block"] < wanted["layers_per_block"]:
        differ.remove("layers_per_block")
    if found["in_channels"] == found["out_channels"] == first_channels:
        differ = [name for name in differ if name not in ("in_channels", "out_channels")]
    if differ:
        found = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in differ)
        raise DataError(f"start_from: the UNet of {path} has {found}: give the options that it was trained with")
    deepen_(unet, trained)
