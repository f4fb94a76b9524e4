"""Interpolation between two codes, along a line and along an arc."""

import numpy as np
import pytest

from tfdecouple.model.interpolation import interpolate_codes

PLACES = [0, 0.25, 0.5, 0.75, 1]


def measure_angles(codes, other):
    """Returns the angles between codes and another code, along the last axis, float64."""
    codes, other = codes.astype(np.float64), other.astype(np.float64)
    cosine = (codes * other).sum(-1) / np.linalg.norm(codes, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


def test_slerp_turns_at_an_even_speed_and_changes_the_length_linearly():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 192)).astype(np.float32)
    b = 1.5 * b
    codes = interpolate_codes(a, b, PLACES, "slerp").numpy()
    for index, place in enumerate(PLACES):
        np.testing.assert_allclose(measure_angles(codes[:, index], a), place * measure_angles(a, b), atol=1e-3)
    lengths, of_a, of_b = (np.linalg.norm(code, axis=-1)[..., None] for code in (codes, a, b))
    np.testing.assert_allclose(lengths[..., 0], (1 - np.float32(PLACES)) * of_a + np.float32(PLACES) * of_b, rtol=1e-5)
    for path in ("lerp", "slerp"):
        np.testing.assert_array_equal(interpolate_codes(a, b, [0, 1], path), np.stack([a, b], 1))


@pytest.mark.parametrize(("a", "b"), [([1, 2], [2, 4]), ([1, 2], [-2, -4]), ([0, 0], [1, 2]), ([0, 0], [0, 0])])
def test_slerp_of_parallel_codes_is_the_line(a, b):
    a, b = np.float32([a]), np.float32([b])
    np.testing.assert_array_equal(interpolate_codes(a, b, PLACES, "slerp"), interpolate_codes(a, b, PLACES))
