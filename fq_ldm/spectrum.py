"""Packed orthonormal real FFT and spectral cropping (FQ-VAE, equation 2).

The 2D DFT of a real h x w signal holds h*w independent real numbers: the half
spectrum of `rfft2` repeats some entries of the columns 0 and w/2 as conjugates.
The packed spectrum keeps each independent number once, and scales entries that
stand for a conjugate pair by sqrt(2), so that packing is an orthogonal map:
`unpack(pack(z)) == z` and `norm(pack(z)) == norm(z)`, for odd and even sizes.

Layout of a packed (h, w) spectrum, with n = (w - 1) // 2 paired columns:

    column 0             column frequency 0
    columns 1 .. n       real parts of the column frequencies 1 .. n
    columns n+1 .. 2n    imaginary parts of the column frequencies 1 .. n
    column w-1           column frequency w/2, where w is even

The first column, and the last where w is even, are Hermitian along the rows and
hold the real parts of the row frequencies 0 .. h//2, then the imaginary parts of
the row frequencies 1 .. (h-1)//2.

All functions take float32 (or float64) tensors: half precision has no FFT on the
CPU and only some sizes on CUDA.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

ROUNDING = (2 / 255) ** 2 / 12  # power at each frequency, orthonormal, of rounding [-1, 1] to 8 bits


def pack_spectrum(latents: torch.Tensor) -> torch.Tensor:
    """Packed orthonormal 2D FFT (equation 2 of the paper, without its redundant half).

    Args:
        latents: real tensor (..., h, w), float32 or float64.

    Returns:
        Tensor (..., h, w) of the same dtype and of the same Euclidean norm.
    """
    h, w = latents.shape[-2:]
    n = (w - 1) // 2
    spectrum = torch.fft.rfft2(latents, norm="ortho")  # (..., h, w//2 + 1)
    paired = spectrum[..., 1 : n + 1] * math.sqrt(2)
    parts = [_pack_column(spectrum[..., 0]), paired.real, paired.imag]
    if w % 2 == 0:
        parts.append(_pack_column(spectrum[..., -1]))
    return torch.cat(parts, dim=-1)


def unpack_spectrum(packed: torch.Tensor) -> torch.Tensor:
    """Inverse, and transpose, of `pack_spectrum`: (..., h, w) -> (..., h, w)."""
    h, w = packed.shape[-2:]
    n = (w - 1) // 2
    paired = torch.complex(packed[..., 1 : n + 1], packed[..., n + 1 : 2 * n + 1]) / math.sqrt(2)
    parts = [_unpack_column(packed[..., 0]), paired]
    if w % 2 == 0:
        parts.append(_unpack_column(packed[..., -1]))
    return torch.fft.irfft2(torch.cat(parts, dim=-1), s=(h, w), norm="ortho")


def hermitian(half: torch.Tensor, width: int) -> torch.Tensor:
    """The half spectrum (..., h, w // 2 + 1) of the real image that `irfft2` makes of it.

    In column 0, and for even widths in column w / 2, rows k and -k of a real image are conjugate. Where they are not,
    libraries read such input differently; this is the real part of what it stands for.
    """
    parts = [_hermitian_column(half[..., :1]), half[..., 1 : (width + 1) // 2]]
    if width % 2 == 0:
        parts.append(_hermitian_column(half[..., width // 2 :]))
    return torch.cat(parts, dim=-1)


def _hermitian_column(column: torch.Tensor) -> torch.Tensor:
    """(..., h, 1) -> the same, with rows k and -k conjugate."""
    return (column + column.flip(-2).roll(1, -2).conj()) / 2


def _pack_column(column: torch.Tensor) -> torch.Tensor:
    """The h independent numbers of a Hermitian complex column: (..., h) -> (..., h, 1)."""
    h = column.shape[-1]
    n = (h - 1) // 2
    pairs = column[..., 1 : n + 1] * math.sqrt(2)
    parts = [column[..., :1].real, pairs.real]
    if h % 2 == 0:
        parts.append(column[..., h // 2 : h // 2 + 1].real)
    return torch.cat([*parts, pairs.imag], dim=-1).unsqueeze(-1)


def _unpack_column(packed: torch.Tensor) -> torch.Tensor:
    """Inverse of `_pack_column`, as a complex column: (..., h) -> (..., h, 1)."""
    h = packed.shape[-1]
    n = (h - 1) // 2
    pairs = torch.complex(packed[..., 1 : n + 1], packed[..., h // 2 + 1 :]) / math.sqrt(2)
    parts = [torch.complex(packed[..., :1], torch.zeros_like(packed[..., :1])), pairs]
    if h % 2 == 0:
        middle = packed[..., h // 2 : h // 2 + 1]
        parts.append(torch.complex(middle, torch.zeros_like(middle)))
    return torch.cat([*parts, pairs.conj().flip(-1)], dim=-1).unsqueeze(-1)


def packed_frequencies(h: int, w: int) -> torch.Tensor:
    """The frequency of each packed entry, row by row.

    Returns:
        LongTensor (h*w, 3): row frequency, signed, in -((h-1)//2) .. h//2; column frequency, in 0 .. w//2; and 0 for
        a real or 1 for an imaginary part.
    """
    n = (w - 1) // 2
    paired = torch.arange(1, n + 1)
    borders = [torch.zeros(1, dtype=torch.long), torch.full((1 - w % 2,), w // 2)]
    columns = torch.cat([borders[0], paired, paired, borders[1]])
    column_parts = torch.cat([borders[0], torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)])
    rows = torch.arange(h)
    signed = torch.where(rows <= h // 2, rows, rows - h)
    folded = torch.cat([torch.arange(h // 2 + 1), torch.arange(1, (h - 1) // 2 + 1)])  # of a Hermitian column
    hermitian_column = (columns == 0) | (2 * columns == w)
    row_frequencies = torch.where(hermitian_column, folded.unsqueeze(1), signed.unsqueeze(1))
    parts = torch.where(
        hermitian_column, (rows > h // 2).long().unsqueeze(1), F.pad(column_parts, (0, 1 - w % 2)).unsqueeze(0)
    )
    return torch.stack([row_frequencies, columns.expand(h, w), parts], dim=-1).flatten(0, 1)


@lru_cache(maxsize=64)
def frequency_rings(h: int, w: int, device: torch.device | None = None) -> tuple[torch.Tensor, int]:
    """The frequency of each entry of `torch.fft.fft2`, in cycles per shorter side, to the nearest integer.

    So a ring is one frequency in pixels where images are not square.

    Args:
        h: height.
        w: width.
        device: of the result; the CPU by default.

    Returns:
        LongTensor (h, w), and the number of rings, that of frequency 0 included.
    """
    with torch.inference_mode(False):  # as in `spectral_crop_index`
        side = min(h, w)
        rows, columns = torch.fft.fftfreq(h) * side, torch.fft.fftfreq(w) * side
        rings = torch.hypot(rows.unsqueeze(1), columns).round().long()
        return rings.to(device), int(rings.max()) + 1


def sum_over_rings(power: torch.Tensor) -> torch.Tensor:
    """Values (H, W) at the frequencies of `torch.fft.fft2` -> their sums over each ring of `frequency_rings`: (n,)."""
    rings, count = frequency_rings(*power.shape, power.device)
    return power.new_zeros(count).index_add(0, rings.flatten(), power.flatten())


@lru_cache(maxsize=64)
def spectral_crop_index(
    size: tuple[int, int], crop: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Where the entries of a small packed spectrum lie in a larger one.

    `pack_spectrum(z).flatten(-2)[..., spectral_crop_index(size, crop)]`, unpacked at the
    size `crop`, is `z` low-pass filtered and resampled to `crop`. Every entry of the small
    spectrum has one source, so the crop keeps the norm of what it keeps; putting the
    entries back and zeros elsewhere is its transpose.

    Args:
        size: (h, w) of the large spectrum.
        crop: (h', w') of the small one, at most (h, w).
        device: of the result; the CPU by default.

    Returns:
        LongTensor (h' * w',) of positions in the flattened (h, w) spectrum.

    Raises:
        ValueError: if the crop is larger than the spectrum.
    """
    if crop[0] > size[0] or crop[1] > size[1] or min(crop) < 1:
        raise ValueError(f"spectral crop {crop} must lie between (1, 1) and the latent size {size}")
    with torch.inference_mode(False):  # it is kept, and training cannot use what was made in inference mode
        position = torch.full((size[0], size[1], 2), -1)  # by row (negative ones from the end), column and part
        position[tuple(packed_frequencies(*size).T)] = torch.arange(size[0] * size[1])
        return position[tuple(packed_frequencies(*crop).T)].to(device)


def spectral_resize(latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resample by cropping the spectrum, or by padding it with zeros.

    The map is linear; enlarging is an isometry, and shrinking is its transpose, so that
    `spectral_resize(spectral_resize(z, larger), original) == z`. Amplitudes follow the norm, not
    the mean: an image shrunk to half its height and width keeps its norm and so doubles its values.

    Args:
        latents: real tensor (..., h, w), float32 or float64.
        size: (h', w'); both at most, or both at least, (h, w).

    Returns:
        Tensor (..., h', w').
    """
    old = tuple(latents.shape[-2:])
    if old == tuple(size):
        return latents
    packed = pack_spectrum(latents).flatten(-2)
    if size[0] <= old[0] and size[1] <= old[1]:
        resized = packed.index_select(-1, spectral_crop_index(old, tuple(size), packed.device))
    else:
        resized = packed.new_zeros(*packed.shape[:-1], size[0] * size[1])
        resized = resized.index_copy(-1, spectral_crop_index(tuple(size), old, packed.device), packed)
    return unpack_spectrum(resized.unflatten(-1, size))


def resample(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """As `spectral_resize`, but with the values of an image, which keep their mean and not their norm.

    Args:
        images: real tensor (..., h, w), of any dtype; resampled in float32.
        size: (h', w'); both at most, or both at least, (h, w).

    Returns:
        Tensor (..., h', w'), float32.
    """
    ratio = math.sqrt(math.prod(size) / math.prod(images.shape[-2:]))
    with torch.autocast(images.device.type, enabled=False):
        return spectral_resize(images.float(), size) * ratio
