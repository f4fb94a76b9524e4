"""A function that reads the files into which `tfdecouple encode` wrote the z and v of images."""

from tfdecouple.corpus import read_codes


def read_codes_by_key(folder, **options):
    """Returns {image key: dict of the image's codes} from the code files in `folder`; asserts that no key repeats."""
    rows = list(read_codes(folder, **options).as_numpy_iterator())
    by_key = {row["key"].decode(): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key
