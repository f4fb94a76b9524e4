import io
import os
import subprocess
import warnings

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.program_inputs import load_program, make_png_header
from helpers.refusals import message_of
from PIL import Image

from tfdecouple.config import DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.image_file import MOST_PIXELS, read_image
from tfdecouple.data.sources import open_source
from tfdecouple.errors import DataError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))

# Formats that Pillow writes, and by default opens whatever the ending of the name is.
OTHERS = ("EPS", "PDF", "ICO", "ICNS", "TGA", "SGI", "PCX", "DDS", "IM", "JPEG2000", "SPIDER", "AVIF")


def written(path, content):
    path.write_bytes(content)
    return str(path)


def refusal(path):
    message = message_of(DataError, lambda: read_image(path, (8, 8, 3), 0))
    assert path in message
    return message


class TestFormats:
    @pytest.mark.parametrize("kind", OTHERS)
    def test_file_of_a_rare_format_is_refused_and_starts_no_program(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
        content = io.BytesIO()
        try:
            PICTURE.save(content, kind)
        except (KeyError, OSError, ValueError) as error:
            pytest.skip(f"this Pillow does not write {kind}: {error}")
        assert "no image of the formats BMP" in refusal(written(tmp_path / "x.JPG", content.getvalue()))
        if kind in ("EPS", "PDF"):
            for ending in ("eps", "any", "tif", "ppm"):
                assert "no image of the formats" in refusal(written(tmp_path / f"x.{ending}", content.getvalue()))

    @pytest.mark.parametrize(
        ("kind", "ending"),
        [(kind, ending) for kind in ("PNG", "WEBP", "BMP", "GIF", "JPEG", "PPM", "TIFF") for ending in ("JPEG", "any")],
    )
    def test_common_format_is_read_whatever_the_ending_of_its_name(self, tmp_path, kind, ending):
        path = tmp_path / f"x.{ending}"
        PICTURE.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
        read = read_image(str(path), (8, 8, 3), 0)
        assert read.shape == (8, 8, 3)
        if kind not in ("JPEG", "GIF"):
            assert np.array_equal(read, np.asarray(PICTURE))


class TestPixels:
    @pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
    def test_image_of_too_many_pixels_is_refused_in_one_line(self, tmp_path, width, height):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            message = refusal(written(tmp_path / "x.png", make_png_header(width, height)))
        assert f"more than {MOST_PIXELS:,}" in message

    def test_jpeg_of_too_many_pixels_is_decoded_at_half_its_size(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tfdecouple.data.image_file.MOST_PIXELS", 1000)
        path, pixels = tmp_path / "x.jpg", np.full((40, 40, 3), 90, np.uint8)
        Image.fromarray(pixels).save(path)
        assert read_image(str(path), (0, 0, 3), 0).shape == (20, 20, 3)
        Image.fromarray(np.full((80, 80, 3), 90, np.uint8)).save(path)
        assert "more than 1,000" in refusal(str(path))


class TestPipes:
    @pytest.mark.parametrize("path", ["x.png", "x.npy", "/dev/zero", "/"])
    def test_pipe_device_or_folder_is_refused_without_waiting(self, tmp_path, path):
        if not path.startswith("/"):
            os.mkfifo(tmp_path / path)
        with pytest.raises(DataError, match="no regular file"):
            read_image(str(tmp_path / path), (8, 8, 3), 0)

    @pytest.mark.parametrize("cache_gib", [0.0, 1.0])
    def test_pipe_among_images_is_skipped_on_request(self, tmp_path, cache_gib):
        for split in ("train", "validation", "test"):
            (tmp_path / split).mkdir()
            for number in range(3):
                PICTURE.save(tmp_path / split / f"{number}.png")
        os.mkfifo(tmp_path / "train" / "1a.png")
        (tmp_path / "train" / "1b.png").symlink_to("/dev/zero")
        config = DataConfig(source=f"folder:{tmp_path}", cache_gib=cache_gib, on_bad_image="skip")
        source = open_source(config, (8, 8, 3))
        images, _ = load_images(source, "train", 3)
        assert len(images) == 3 and np.array_equal(images[2], np.asarray(PICTURE))
        assert source.skipped == 2


class TestPythonClients:
    """The client of an export, and the example that others start from."""

    @pytest.fixture(params=["export/client.py", "examples/tf_serving/client.py"])
    def refuses(self, request):
        """Returns what the example says of a file that it must refuse."""
        module = load_program(ROOT / request.param)
        shape = 3 if request.param == "export/client.py" else (8, 8, 3)
        # What its `main` makes one line of.
        expected = getattr(module, "Problem", Exception)

        def refuse(path):
            with pytest.raises(expected) as caught:
                module.read_picture(str(path), shape)
            return str(caught.value)

        return refuse

    def test_client_starts_no_program_for_an_image(self, tmp_path, refuses, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
        PICTURE.save(tmp_path / "x.eps", "EPS")
        (tmp_path / "x.eps").rename(tmp_path / "x.png")
        assert "image" in refuses(tmp_path / "x.png")

    @pytest.mark.parametrize("side", [12_000, 20_000])
    def test_client_refuses_an_image_of_too_many_pixels(self, tmp_path, refuses, side):
        (tmp_path / "x.png").write_bytes(make_png_header(side, side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            assert "pixels" in refuses(tmp_path / "x.png")

    def test_client_refuses_pixels_of_32_bits(self, tmp_path, refuses):
        Image.new("F", (8, 8)).save(tmp_path / "x.tif")
        assert "pixels have the mode F, not 8 or 16 bits" in refuses(tmp_path / "x.tif")
