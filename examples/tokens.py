"""What a token is: python examples/tokens.py MODEL --images DATASET [--output_dir .]

Writes two pictures of a trained FQ-VAE whose tokens are filters of a bank, or interleaved coefficients:

token_filters.png  A column for each of a few tokens; the last for all of them together. Above, the frequencies that a
                   token holds, zero in the middle, in the colour of their latent channel. Between, the waves that they
                   stand for: all numbers of the token are one. In the last column, the image. Below, the token's part
                   of that image; in the last column, the sum of all parts. Waves and parts are around grey, their
                   contrast stretched.
token_change.png   A row for each of a few tokens: the reconstruction, the same with this one token replaced by the
                   entry farthest from its own, and the difference of the two around grey, its contrast stretched.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from fq_ldm import load_vae
from fq_ldm.cards import save_grid
from fq_ldm.data import load_images, sample_images
from fq_ldm.models import TokenAutoencoder
from fq_ldm.options import DataConfig
from fq_ldm.quantization import BankTokens, InterleavedTokens
from fq_ldm.spectrum import pack_spectrum, packed_frequencies, spectral_resize

FILTERS, CHANGES = 5, 3  # tokens in each picture
TILE = 128  # pixels, at least, of the longer side of an image in the pictures
DARK, AXES = 0.1, 0.3  # greys of the frequencies that a token does not hold


def choose_tokens(model: TokenAutoencoder, count: int) -> list[int]:
    """So many tokens, or all if there are fewer, spread evenly over their numbers."""
    available = model.config.num_tokens
    count = min(count, available)
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]


def token_parts(model: TokenAutoencoder, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token of one image adds to its latent.

    Args:
        model: with tokens of a bank, or interleaved.
        tokens: (U, m), as `model.quantize.split` gives them, float32.

    Returns:
        The parts (U, D, h, w) and the latent (1, D, h, w) of tokens that are zero: added up they are the latent of all
        tokens, since `join` is linear but for the coefficients' means.
    """
    join = model.quantize.join
    empty = join(torch.zeros_like(tokens)[None])
    alone = torch.diag_embed(tokens.T).permute(1, 2, 0)  # (U, U, m): row i has token i alone
    return torch.cat([join(rows) for rows in alone.split(32)]) - empty, empty


def linear_images(model: TokenAutoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, D, h, w) -> images (n, c, H, W), as the linear coder that the decoder is built around.

    Of learnt channels it knows nothing: they are no part of an image.
    """
    resized = spectral_resize(latents[:, : model.linear_channels], model.sample_size)
    return torch.einsum("dc,ndhw->nchw", model.color_transform, resized)


def filter_energy(model: TokenAutoencoder, tokens: list[int]) -> torch.Tensor:
    """Where in the spectrum the orthonormal filters of tokens lie: (D, h * w), the number of filters in all."""
    layout = model.quantize.tokens
    lengths = layout.error_weights().rsqrt()  # of a step in a token that is 1 long in the latent
    empty = layout.join(torch.zeros_like(lengths)[None])
    energy = torch.zeros(empty.shape[1:])
    for token in tokens:
        steps = torch.zeros(layout.token_dim, *lengths.shape)
        steps[range(layout.token_dim), token, range(layout.token_dim)] = lengths[token]
        energy += pack_spectrum(layout.join(steps) - empty).square().sum(0)
    return energy.flatten(1)


def frequency_planes(model: TokenAutoencoder, chosen: list[int]) -> torch.Tensor:
    """The frequencies that tokens hold, zero in the middle, and last those of all tokens.

    Returns:
        Pictures (n + 1, 3, 2 (h' // 2) + 1, 2 (w' // 2) + 1) in [0, 1], for a spectral crop of (h', w').
    """
    layout = model.quantize.tokens
    _, h, w = layout.latent_shape
    rows, columns = (side // 2 for side in layout.spectral_crop)
    row, column, _ = packed_frequencies(h, w).T
    inside = (row.abs() <= rows) & (column <= columns)
    place = (rows + row[inside]) * (2 * columns + 1) + columns + column[inside]
    shades = model.color_transform / model.color_transform.abs().amax(1, keepdim=True)
    shades = (0.5 + 0.5 * shades).expand(-1, 3)  # (D, 3): greyscale has one colour
    planes = []
    for group in [[token] for token in chosen] + [range(model.config.num_tokens)]:
        energy = filter_energy(model, list(group))[: model.linear_channels]  # learnt ones have no colour
        plane = torch.zeros(len(energy), (2 * rows + 1) * (2 * columns + 1)).index_add(1, place, energy[:, inside])
        plane = (plane + plane.flip(1)).unflatten(1, (2 * rows + 1, 2 * columns + 1))  # a real wave has both signs
        total = plane.sum(0)
        color = torch.einsum("dhw,dc->chw", plane, shades) / total.clamp(min=1e-12)
        ground = torch.full_like(color, DARK)
        ground[:, rows], ground[:, :, columns] = AXES, AXES
        planes.append(torch.lerp(ground, color, (total / total.max()).sqrt()))
    return torch.stack(planes)


def replace_token(model: TokenAutoencoder, indices: torch.Tensor, token: int) -> torch.Tensor:
    """Tokens (1, U) with the entry farthest from its own, as errors in the latent count, in one place."""
    entries = model.quantize.codebook(torch.arange(model.config.num_vq_embeddings)[:, None])[:, 0]  # (M, m)
    distance = (entries - entries[indices[0, token]]).square() @ model.quantize.tokens.error_weights()[token]
    replaced = indices.clone()
    replaced[0, token] = distance.argmax()
    return replaced


def changed_share(before: torch.Tensor, after: torch.Tensor) -> float:
    """The part of the pixels of images (1, c, H, W) in [-1, 1] that have another colour in 8 bits."""
    first, second = (((images.clamp(-1, 1) + 1) * 127.5).round() for images in (before, after))
    return (first != second).any(1).float().mean().item()


def stretch(images: torch.Tensor) -> torch.Tensor:
    """Signed images (n, c, H, W) around grey, the largest value of each at the end of [0, 1]."""
    return 0.5 + 0.5 * images / images.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)


def enlarge(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (n, c, h, w) of one or three colours -> (n, 3, *size), without smoothing."""
    return F.interpolate(images.expand(-1, 3, -1, -1), size)


@torch.no_grad()
def draw_filters(model: TokenAutoencoder, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tiles of token_filters.png for one image (1, c, H, W), row by row."""
    chosen = choose_tokens(model, FILTERS)
    tokens = model.quantize.split(model.encode(image).latents)[0]
    parts, empty = token_parts(model, tokens)
    waves, _ = token_parts(model, torch.ones_like(tokens))
    together = linear_images(model, parts.sum(0, keepdim=True) + empty)
    rows = [
        frequency_planes(model, chosen),
        torch.cat([stretch(linear_images(model, waves[chosen])), (image + 1) / 2]),
        torch.cat([stretch(linear_images(model, parts[chosen])), (together + 1) / 2]),
    ]
    return torch.cat([enlarge(row, size) for row in rows])


@torch.no_grad()
def draw_changes(model: TokenAutoencoder, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tiles of token_change.png for one image (1, c, H, W), row by row; prints how many pixels each token changes."""
    indices = model.tokenize(image)
    before = model.detokenize(indices)
    rows = []
    for token in choose_tokens(model, CHANGES):
        after = model.detokenize(replace_token(model, indices, token))
        print(f"token {token}: replaced, it changes {changed_share(before, after):.1%} of the pixels in 8 bits")
        rows += [(before + 1) / 2, (after + 1) / 2, stretch(after - before)]
    return enlarge(torch.cat(rows), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of an FQ-VAE; of a pipeline, the folder vqvae in it")
    parser.add_argument("--images", required=True, help="dataset to take the image from")
    parser.add_argument("--validation_split", help="its split; by default some of train are held out")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--center_crop", type=int, help="of the images, as in training")
    parser.add_argument("--seed", type=int, default=0, help="chooses the image")
    parser.add_argument("--output_dir", type=Path, default=Path("."))
    options = parser.parse_args()
    model = load_vae(options.model)
    if not isinstance(model.quantize.tokens, (BankTokens, InterleavedTokens)):
        parser.error(f"{options.model}: its tokens are no filters of a bank and no Fourier coefficients")
    data = DataConfig(
        dataset=options.images, validation_split=options.validation_split, image_column=options.image_column,
        center_crop=options.center_crop, channels=model.config.in_channels, resolution=list(model.sample_size),
    )  # fmt: skip
    with torch.no_grad():
        held = filter_energy(model, range(model.config.num_tokens)).sum(1).tolist()
    print(f"filters that tokens hold of each latent channel: {' '.join(f'{number:.0f}' for number in held)}")
    image = sample_images(load_images(data)[1], 1, options.seed)
    scale = -(-TILE // max(model.sample_size))
    size = (scale * model.sample_size[0], scale * model.sample_size[1])
    for name, draw, columns in (
        ("token_filters.png", draw_filters, len(choose_tokens(model, FILTERS)) + 1),
        ("token_change.png", draw_changes, 3),
    ):
        save_grid(draw(model, image, size), options.output_dir / name, columns)
        print(options.output_dir / name)


if __name__ == "__main__":
    main()
