"""Functions that read and compare the files into which `tfdecouple encode` wrote the z and v of images."""

import numpy as np

from tfdecouple.corpus import read_codes


def read_codes_by_key(folder, **options):
    """Returns {image key: dict of the image's codes} from the code files in `folder`; asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def assert_same_codes(folder, expected, tolerance=1e-5):
    """Asserts that two folders have the same images, labels and fields, and equal codes up to rounding."""
    codes, expected = read_codes_by_key(folder), read_codes_by_key(expected)
    assert codes.keys() == expected.keys()
    for key, row in codes.items():
        assert row.keys() == expected[key].keys() and row["label"] == expected[key]["label"]
        for name in row.keys() - {"key", "label"}:
            value = expected[key][name]
            np.testing.assert_allclose(row[name], value, rtol=tolerance, atol=tolerance, err_msg=f"{name} of {key}")
