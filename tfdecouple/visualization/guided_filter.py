"""A guided filter that applies to photographs the changes of colours that a model made to small copies.

The filter (He, Sun and Tang, "Guided image filtering", 2013; at another size as in Chen et al., "Bilateral guided
upsampling", 2016) describes the change by an affine map of colours around each pixel of the small copy. The maps are
interpolated and applied to the pixels of the photograph.

This file needs NumPy alone. Exports have a copy of it, which their client.py imports.
"""

import itertools
from collections.abc import Callable

import numpy as np

# Side of the square windows, in pixels of the small image; an affine map of colours is fitted to each window.
_WINDOW = 9
# Strength of the fit's ridge term: if the colours (from 0 to 1) in a square of pixels have this variance, the square's
# colour map lies halfway between the fit to the square and the fit to the complete image.
_EVENNESS = 0.01
# Smallest gain of luminance of a colour map. A smaller one would wash out detail that the small image lacks.
_LEAST_CONTRAST = 0.8
# Distance to black and white, in 8-bit values, in which values that the filter moves towards them are compressed.
_SHOULDER = np.float32(32)
# Share of a picture from which on a note says what happened to it.
NOTED = 0.05
_LUMINANCE = (0.299, 0.587, 0.114)


def change_at_full_size(
    photograph: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    unlimited: bool = False,
    notes: dict[str, str] | None = None,
) -> np.ndarray:
    """Changes the colours of a photograph as they change from `before` to `after`; returns uint8 `[H, W, channels]`.

    The photograph keeps its detail: only colours and light change, smoothly across the picture. The model did not
    compute the result, so encoding the result does not give the codes of `after`. If the photograph has the model's
    size, the result is `after`.

    Differences of colours grow at most twofold, and not at all where the photograph is smooth, so that noise and blocks
    of JPEG stay invisible. Values near black and white are compressed instead of clipped. `unlimited` lifts both
    limits. If the first limit takes away a third of the growth in a twentieth of the picture, `notes["limited"]` gets a
    text on it.

    `photograph`, uint8 `[H, W, channels]`, has three channels or one. `before` is the photograph in the size of the
    model's images, and `after` is the image that the model made of `before`; both are uint8 `[h, w, channels]`.
    """
    if photograph.shape == after.shape:
        return after
    maps, limited = _fit_colour_maps(before / np.float32(255), after / np.float32(255), unlimited)
    if notes is not None and limited >= NOTED:
        notes["limited"] = f" in {limited:.0%} of the picture"
    maps = np.moveaxis(maps, 1, -1).astype(np.float32)
    maps[:, :, -1] *= 255
    # The last row and column are repeated, so that the pixels at the borders also lie between two maps.
    maps = np.pad(maps, [(0, 1), (0, 0), (0, 0), (0, 1)], "edge")
    low_rows, row_shares = _find_neighbours(photograph.shape[0], before.shape[0])
    low_columns, shares = _find_neighbours(photograph.shape[1], before.shape[1])
    maps = maps.take(low_columns, -1) * (1 - shares) + maps.take(low_columns + 1, -1) * shares
    result = np.empty_like(photograph)
    # Each band lies between two rows of maps. Bands keep the float32 copies of the photograph small.
    for row, (upper, lower) in enumerate(zip(maps[:-1], maps[1:], strict=True)):
        first, last = np.searchsorted(low_rows, [row, row + 1])
        source = np.moveaxis(photograph[first:last], -1, 0).astype(np.float32)
        for channel in range(len(source)):
            value = _apply_maps(lower[channel] - upper[channel], source) * row_shares[first:last, None]
            value += _apply_maps(upper[channel], source)
            if not unlimited:
                _compress_highlights(value, source[channel])
                shadows = 255 - value
                _compress_highlights(shadows, 255 - source[channel])
                value = 255 - shadows
            result[first:last, :, channel] = np.clip(value + np.float32(0.5), 0, 255)
    return result


def shrink_photograph(photograph: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrinks uint8 `[H, W, channels]` to `[height, width, channels]`; returns the very pixels of `shrink_images`."""
    return _average_areas(_average_areas(photograph, height, 0), width, 1)


def _average_areas(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Resizes an axis of uint8 pixels to `size`: means of the area that each new pixel covers, rounded half upwards."""
    lines, length = np.moveaxis(pixels, axis, 0), pixels.shape[axis]
    # In units of 1 / `size` of a pixel, all borders between new pixels and all sums are whole numbers.
    whole, rest = np.divmod(np.arange(size + 1) * length, size)
    sums = np.stack([lines[start:end].sum(0, np.int64) for start, end in itertools.pairwise(whole)])
    areas = size * sums + np.diff(rest[:, None, None] * lines[np.minimum(whole, length - 1)], axis=0)
    return np.moveaxis(((2 * areas + length) // (2 * length)).astype(np.uint8), 0, axis)


def _apply_maps(maps: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Applies one map per column, float32 `[channels + 1, W]`, to float32 `[channels, rows, W]`; returns `[rows, W]`.

    The last number of each map is the offset, and the numbers before it are the gains of the channels.
    """
    value = maps[-1] + maps[0] * source[0]
    for gain, plane in zip(maps[1:-1], source[1:], strict=True):
        value += gain * plane
    return value


def _compress_highlights(values: np.ndarray, source: np.ndarray) -> None:
    """Compresses in place what exceeds both `source`, the values before a change, and the shoulder below 255.

    The values stay at most 255 where `source` is, and unchanged values stay as they are. Both are float32 `[rows, W]`.
    """
    knees = np.maximum(source, 255 - _SHOULDER)
    # Few values exceed the shoulder; integer indices are faster than a mask.
    bright = np.flatnonzero(values > knees)
    knee = knees.take(bright)
    room, excess = 255 - knee, values.take(bright) - knee
    np.put(values, bright, knee + excess * room / np.sqrt(room * room + excess * excess))


def _find_neighbours(length: int, small_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each pixel along a side, its place between two pixels of a small image, for linear interpolation.

    The result is (indices of the first of the two pixels, weights of the second), int64 and float32 `[length]`.
    """
    places = ((np.arange(length) + 0.5) * small_length / length - 0.5).clip(0, small_length - 1)
    low = places.astype(int)
    return low, (places - low).astype(np.float32)


def _fit_colour_maps(before: np.ndarray, after: np.ndarray, unlimited: bool) -> tuple[np.ndarray, float]:
    """Fits, for each pixel, an affine map of the colours of `before` to the colours of `after` in its neighbourhood.

    The images are float32 `[h, w, channels]`, from 0 to 1. The function returns the maps, float64
    `[h, w, channels, channels + 1]`: for each channel of `after`, the gain of each channel of `before`, and an offset.
    Each map is a mean of least-squares fits in squares of pixels, whose singular values are limited if not `unlimited`.
    Also returned is the share of squares in which the largest singular value was more than 1.5 times its limit.
    """
    channels = before.shape[-1]
    identity = np.eye(channels)
    weights = np.array(_LUMINANCE if channels == 3 else [1.0])
    limited = 0.0

    def average_in_square(values: np.ndarray) -> np.ndarray:
        reach = _WINDOW // 2
        padded = np.pad(values, [(reach, reach)] * 2 + [(0, 0)] * (values.ndim - 2), "symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW, _WINDOW), (0, 1))
        return windows.mean((-1, -2))

    def average_everywhere(values: np.ndarray) -> np.ndarray:
        return values.mean((0, 1), keepdims=True)

    def fit(average: Callable[[np.ndarray], np.ndarray], ridge: float, default: np.ndarray, limit: bool) -> np.ndarray:
        mean_before, mean_after = average(before), average(after)
        columns = before[..., None, :]
        covariance = average(before[..., None] * columns) - mean_before[..., None] * mean_before[..., None, :]
        joint = average(after[..., None] * columns) - mean_after[..., None] * mean_before[..., None, :]
        # `solved` is the transpose of `gains` in gains @ covariance = joint; the ridge term pulls gains to `default`.
        solved = np.linalg.solve(covariance + ridge * identity, np.swapaxes(joint + ridge * default, -1, -2))
        gains = np.swapaxes(solved, -1, -2)
        contrast = np.einsum("i,...ij->...", weights, gains)
        gains = gains + np.maximum(_LEAST_CONTRAST - contrast, 0)[..., None, None] * identity
        if limit:
            nonlocal limited
            variance = np.trace(covariance, axis1=-2, axis2=-1)[..., None]
            most = 1 + variance / (variance + ridge)
            left, stretch, right = np.linalg.svd(gains)
            limited = float((stretch[..., :1] > 1.5 * most).mean())
            gains = left * np.minimum(stretch, most)[..., None, :] @ right
        offsets = mean_after - np.einsum("...ij,...j->...i", gains, mean_before)
        return np.concatenate([gains, offsets[..., None]], -1)

    whole = fit(average_everywhere, 1e-3, identity, False)[..., :-1]
    return average_in_square(fit(average_in_square, _EVENNESS, whole, not unlimited)), limited
