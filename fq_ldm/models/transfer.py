"""The tokens of a trained model in another one: of the same image size, or of another."""

import math

import torch
from torch import nn

from ..quantization import BankTokens, InterleavedTokens
from ..quantization.tokens import coefficients_inside
from .autoencoder import TokenAutoencoder
from .painter import Painter
from .reader import Reader

# Of a configuration: what concerns decoders and the training of a codebook.
NOT_OF_TOKENS = (
    "_", "painter_", "commitment_weight", "usage_decay", "anchors", "dependency",
    "sample_size", "spectral_crop",  # `take_tokens_` has words of its own for them
)  # fmt: skip

# Of a configuration, what a decoder of linear channels and their view depend on.
OF_LINEAR = ("in_channels", "act_fn", "norm_num_groups", "diffusion_patch_size", "diffusion_layout")

NO_TOKENS = ("decoder.", "equalizer.")  # weights of what comes after the tokens


def differing_options(
    source: TokenAutoencoder, model: TokenAutoencoder, free: tuple[str, ...] = NOT_OF_TOKENS
) -> list[str]:
    """The options in which two models differ, but those that begin with what is `free`.

    By default they are those that tokens and diffusion latents depend on.
    """

    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    pairs = [(key, plain(source.config[key]), plain(model.config[key])) for key in source.config
             if key in model.config and not key.startswith(free)]  # fmt: skip
    return [f"{key} {theirs}, not {ours}" for key, theirs, ours in pairs if theirs != ours]


@torch.no_grad()
def take_tokens_(model: TokenAutoencoder, source: TokenAutoencoder, learning: bool = False) -> list[str]:
    """Give a model the tokens and diffusion latents of a trained one, bit for bit, and freeze them; or its linear ones.

    A source of another image size has the same tokens for the same picture, resampled by its spectrum, if it is a
    linear coder (`freeze_tokens`) of frequency tokens, with learnt channels or without: they describe low frequencies,
    of which all sizes have the same. Only amplitudes differ, since the transform keeps the norm. So a diffusion model
    of its latents is one of these.

    A model with learnt channels takes the linear ones of a linear coder, and its decoder, which paints as it did: the
    learnt channels come last, and are not read at first. Nothing is frozen then, and tokens are to be found when they
    have been learnt.

    Args:
        model: untrained.
        source: trained.
        learning: learnt channels are to learn on. They get a deviation of 1, which the decoder undoes, and the one in
            diffusion latents may become another (`learnt_scale`).

    Returns:
        The names of the decoder's weights that were taken too: all if it has the same shape, those of the sizes in
        common if both are painters that begin at the same one, and none else. At a size where this one has more blocks
        of as many channels, these change nothing at first.

    Raises:
        ValueError: if the model's options make other tokens, or tokens that are bound to their image size.
    """
    if type(source) is not type(model):
        raise ValueError(
            f"is a {type(source).__name__}, not a {type(model).__name__}: give the quantizer it was made with"
        )
    if isinstance(model.encoder, Reader) and not isinstance(source.encoder, Reader):
        return _take_linear(model, source)
    if source.sample_size != model.sample_size:
        _check_resizable(source, model)
    differences = differing_options(source, model, NOT_OF_TOKENS + (("learnt_scale",) if learning else ()))
    if source.diffusion_view.spectral_crop != model.diffusion_view.spectral_crop:
        crops = source.diffusion_view.spectral_crop, model.diffusion_view.spectral_crop
        differences.append(f"tokens inside the spectral_crop {crops[0]}, not {crops[1]}")
    if differences:
        raise ValueError(f"has {'; '.join(differences)}: give the options it was made with")
    theirs = source.state_dict()
    decoder = _common_decoder(model, source)
    state = {name: value for name, value in theirs.items() if not name.startswith(NO_TOKENS)}
    state |= {name: theirs[their_name] for name, their_name in decoder.items()}
    ours = model.state_dict()
    state |= {name: torch.zeros_like(ours[name]) for name in _last_of_new_blocks(ours, decoder)}
    if source.sample_size != model.sample_size:
        state |= _resized(source, model)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith(NO_TOKENS) for name in missing):
        raise ValueError(f"has other weights than its configuration says: {', '.join([*missing, *unexpected])}")
    model.freeze_tokens_()
    if learning and model.diffusion_view.has_learnt_channels:
        # With a deviation of 1, which optimizers are made for; their unit is found anew afterwards.
        model.scale_learnt_channels_(1 / source.diffusion_view.learnt_deviation)
    return list(decoder)


def _take_linear(model: TokenAutoencoder, source: TokenAutoencoder) -> list[str]:
    """What `take_tokens_` does for a model with learnt channels and a source without."""
    if _has_learnt(source.encoder):
        raise ValueError("has an encoder that has learnt: take one with freeze_tokens, whose latents are linear")
    pairs = {
        "linear channels": (source.linear_channels, model.linear_channels),
        "sample_size": (source.sample_size, model.sample_size),
        "latents of": (source.latent_shape[1:], model.latent_shape[1:]),
        "spectral_crop": (source.diffusion_view.spectral_crop, model.diffusion_view.spectral_crop),
        **{name: (source.config[name], model.config[name]) for name in OF_LINEAR},
    }
    if differences := [f"{name} {theirs}, not {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]:
        raise ValueError(f"has {'; '.join(differences)}: give what it was made with, and learnt_channels beside it")
    first = "decoder.conv_in.weight"
    theirs, ours = source.state_dict(), model.state_dict()
    of_decoder = {name: value for name, value in theirs.items() if name.startswith("decoder.")}
    rest = [{name: vae[name].shape for name in vae if name.startswith("decoder.") and name != first}
            for vae in (theirs, ours)]  # fmt: skip
    if rest[0] != rest[1]:
        raise ValueError("has another decoder: give the painter_ options it was made with")
    of_decoder[first] = torch.zeros_like(ours[first])
    of_decoder[first][:, : model.linear_channels] = theirs[first]
    model.load_state_dict(of_decoder | {"color_transform": theirs["color_transform"]}, strict=False)
    return list(of_decoder)


def _common_decoder(model: TokenAutoencoder, source: TokenAutoencoder) -> dict[str, str]:
    """The weights that two decoders share, by their names in both.

    All of one architecture, or of painters with the same first size those of the sizes in common, with the ways out
    that both have there.
    """
    ours, theirs = (
        {f"decoder.{name}": value.shape for name, value in decoder.state_dict().items()}
        for decoder in (model.decoder, source.decoder)
    )
    painters = [isinstance(decoder, Painter) for decoder in (model.decoder, source.decoder)]
    if all(painters) and model.decoder.first_size != source.decoder.first_size:
        return {}  # their stages see the same latents at different sizes
    if ours == theirs:
        return {name: name for name in ours}
    taken: dict[str, str] = {}
    if not all(painters):
        return taken
    ways_out, their_ways_out = model.decoder.ways_out(), source.decoder.ways_out()
    for size, stage in enumerate(model.decoder.stages()):
        names = _names(theirs, stage)
        if not names or any(theirs[name] != ours.get(name) for name in names):
            break  # a later stage would be given features that it has never seen
        taken |= {name: name for name in names}
        if size in ways_out and size in their_ways_out:
            pairs = zip(_names(ours, ways_out[size]), _names(theirs, their_ways_out[size]), strict=True)
            taken |= dict(pairs)
    return taken


def _last_of_new_blocks(weights: dict, taken: dict[str, str]) -> list[str]:
    """The weights that end residual blocks, where a painter has more of them than the source at a size in common."""
    sizes = {name.split(".")[2] for name in taken if name.startswith("decoder.sizes.")}
    return [
        name for name in weights
        if name.startswith("decoder.sizes.") and name.split(".")[2] in sizes and name not in taken
        and name.endswith(("conv2.weight", "conv2.bias"))
    ]  # fmt: skip


def _names(weights: dict, beginnings: tuple[str, ...]) -> list[str]:
    return sorted(name for name in weights if name.removeprefix("decoder.").startswith(beginnings))


def _has_learnt(encoder: nn.Module) -> bool:
    """Whether a trunk's encoder adds anything to the linear latents, which it does not at first."""
    return bool(encoder.conv_out.weight.any() or encoder.conv_out.bias.any())


def _check_resizable(source: TokenAutoencoder, model: TokenAutoencoder) -> None:
    """Raise a `ValueError` if a source's tokens are bound to its image size."""
    sizes = f"was made for images of {source.sample_size}, not {model.sample_size}"
    if not isinstance(source.quantize.tokens, BankTokens | InterleavedTokens):
        raise ValueError(f"{sizes}, and only frequency tokens are the same at both")
    if isinstance(source.encoder, Reader):
        if not isinstance(model.encoder, Reader):
            raise ValueError(f"{sizes}, and has learnt channels: give learnt_channels")
        seen = [(vae.encoder.size, vae.encoder.patch) for vae in (source, model)]
        if seen[0] != seen[1]:
            raise ValueError(f"{sizes}, and its learnt channels are read at another size: {seen[0]}, not {seen[1]}")
    elif _has_learnt(source.encoder):
        raise ValueError(f"{sizes}, and its encoder has learnt that size: take one with freeze_tokens")


def _resized(source: TokenAutoencoder, model: TokenAutoencoder) -> dict[str, torch.Tensor]:
    """What changes in the state of a source's tokens for the image size of another model."""
    ratio = math.sqrt(math.prod(model.latent_shape) / math.prod(source.latent_shape))
    tokens, crop = source.quantize.tokens, source.quantize.tokens.spectral_crop
    device = tokens.index.device
    places = torch.full((math.prod(source.latent_shape),), -1, device=device)
    places[coefficients_inside(source.latent_shape, crop, device)] = coefficients_inside(
        model.latent_shape, crop, device
    )
    return {
        "quantize.tokens.index": places[tokens.index],
        "quantize.tokens.mean": tokens.mean * ratio,
        "quantize.tokens.log_gain": tokens.log_gain - math.log(ratio),
        "diffusion_view.mean": source.diffusion_view.mean * ratio,
        "diffusion_view.std": source.diffusion_view.std * ratio,
    }
