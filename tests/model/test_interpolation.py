"""The places between two codes."""

import numpy as np
import pytest

from tfdecouple.model.interpolation import interpolate_codes

PLACES = [0, 0.25, 0.5, 0.75, 1]


@pytest.fixture(scope="module")
def codes():
    """Two batches of three codes, drawn from a standard normal as v is."""
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8, 3)).astype(np.float32)


def angles(codes, other):
    """Angles between codes and another, along the last axis, float64."""
    codes, other = codes.astype(np.float64), other.astype(np.float64)
    cosine = (codes * other).sum(-1) / np.linalg.norm(codes, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


@pytest.mark.parametrize("path", ["lerp", "slerp"])
def test_interpolation_is_exact_at_both_ends(codes, path):
    found = interpolate_codes(*codes, [0, 1], path)
    np.testing.assert_array_equal(found[:, 0], codes[0])
    np.testing.assert_array_equal(found[:, 1], codes[1])


def test_slerp_turns_at_an_even_speed_and_keeps_the_length(codes):
    a, b = codes.reshape(2, 3, -1)
    # One is longer than a draw.
    b = 1.5 * b
    found = interpolate_codes(a, b, PLACES, "slerp").numpy()
    whole = angles(a, b)
    for index, place in enumerate(PLACES):
        np.testing.assert_allclose(angles(found[:, index], a), place * whole, atol=1e-3)
    lengths, of_a, of_b = (np.linalg.norm(code, axis=-1)[..., None] for code in (found, a, b))
    np.testing.assert_allclose(lengths[..., 0], (1 - np.float32(PLACES)) * of_a + np.float32(PLACES) * of_b, rtol=1e-5)
    # The middle of the line is shorter by about the square root of 2.
    middle = np.linalg.norm(interpolate_codes(a, b, [0.5]).numpy()[:, 0], axis=-1)
    np.testing.assert_allclose(middle / lengths[:, 2, 0], np.sqrt(0.5), atol=0.08)


@pytest.mark.parametrize(("a", "b"), [([1, 2], [2, 4]), ([1, 2], [-2, -4]), ([0, 0], [1, 2]), ([0, 0], [0, 0])])
def test_slerp_of_parallel_codes_is_the_line(a, b):
    a, b = np.float32([a]), np.float32([b])
    np.testing.assert_array_equal(interpolate_codes(a, b, PLACES, "slerp"), interpolate_codes(a, b, PLACES))
