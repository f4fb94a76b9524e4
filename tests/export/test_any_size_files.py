import json

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.exporting import read_vectors
from helpers.models import random_images
from PIL import Image

from export import client
from export.endpoints import list_endpoints
from export.exported_model import ExportedModel
from export.formats.onnx import build_onnx
from export.pipeline import ExportConfig, export
from export.verification.verify import verify_folder

SIZES = [(8, 8), (1, 1), (13, 21), (30, 4)]


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A folder with an encoder and a decoder whose height and width are free."""
    folder, exported = tmp_path_factory.mktemp("any_size"), ExportedModel(model, channels_first=True, any_size=True)
    metadata = {"image_shape": json.dumps(model.config.image_shape), "crop": "largest centre square"}
    for endpoint in list_endpoints(model.config, any_size=True):
        onnx.save(build_onnx(exported, endpoint, metadata), folder / f"{endpoint.onnx}.onnx")
    return folder


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_onnx_files_of_any_size_return_the_models_codes_and_the_same_pixels(files, model, eager, size):
    served, images = client.Model(files), random_images(3, (*size, 3))
    codes = served.encode(images)
    for name, right in zip(("z", "v"), model.encode(images)[:2], strict=True):
        np.testing.assert_allclose(codes[name], right, rtol=0, atol=1e-5 * np.abs(right).max())
    np.testing.assert_array_equal(served.decode(**codes), images)


def test_switched_images_have_the_size_of_v(files):
    a, b = random_images(1, (9, 12, 3)), random_images(1, (20, 5, 3), seed=1)
    ab, ba = client.Model(files).switch(a, b)
    assert (ab.shape, ba.shape) == (b.shape, a.shape)


def test_the_client_decodes_a_picture_at_its_own_size(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "FOLDER", files)
    (pixels,) = random_images(1, (11, 7, 3))
    Image.fromarray(pixels).save("a.png")
    assert client.main(["--own-size", "a.png"]) == 0
    assert capsys.readouterr().out == "own_size.png: a.png decoded at 7 x 11; 0 of 231 values are lost\n"
    np.testing.assert_array_equal(np.asarray(Image.open("own_size.png")), pixels)
    monkeypatch.setattr(client.Model, "decode", lambda self, **codes: pixels[None] // 2)
    assert client.main(["--own-size", "a.png"]) == 1
    for wrong in (["--own-size"], ["--own-size", *["a.png"] * 3], ["--own-size", "--check", "a.png"]):
        assert client.main(wrong) == 2


def test_client_refuses_own_sizes_for_files_of_one_size(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(client, "FOLDER", exported)
    assert client.main(["--own-size", "a.png"]) == 2
    assert capsys.readouterr().err == "error: these files are for images of 8 x 8; export with --any-size\n"


def test_any_size_is_refused_for_the_page_and_for_weights_of_fixed_size(quick, refused, monkeypatch):
    assert "--any-size is not for the format web" in refused("--any-size", "--format", "web")
    monkeypatch.setattr("export.pipeline.find_weight_of_fixed_size", lambda config: "flow/whitening/last")
    assert "the shape of the weight flow/whitening/last depends on the image size" in refused("--any-size")


@pytest.mark.slow
def test_all_formats_are_verified_at_three_sizes(tiny_run, tmp_path):
    to = tmp_path / "to"
    config = ExportConfig(run=tiny_run, to=to, formats=("savedmodel", "onnx", "litert"), any_size=True)
    export(config, report=str)
    card = json.loads((to / "model_card.json").read_text())
    sizes = ["8x8", "5x9", "21x9"]
    assert card["endpoints"].keys() == {"encode", "decode"}
    assert read_vectors(to)["sizes"].tolist() == sizes
    for entry in card["formats"].values():
        assert [*entry["parity"]] == [f"{name} {size}" for size in sizes for name in ("encode", "decode")]
        assert {f"real {size}" for size in sizes} < entry["round_trip"].keys()
        assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
    assert verify_folder(to, report=str) == ([], [])
    images = random_images(2, (14, 19, 3))
    signatures = tf.saved_model.load(str(to / "savedmodel" / "1")).signatures
    decoded = signatures["decode"](**signatures["encode"](images=tf.constant(images)))["images"]
    np.testing.assert_array_equal(decoded[:, :14, :19], images)
