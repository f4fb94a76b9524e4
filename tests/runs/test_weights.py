import io
import json
import shutil

import numpy as np
import pytest
from helpers.models import SMALL, random_images
from helpers.places import ROOT
from helpers.refusals import refused
from PIL import Image

import tfdecouple
from export.formats.web import make_example_files
from tfdecouple.cli import main
from tfdecouple.data.batches import load_images
from tfdecouple.data.image_file import crop_and_resize
from tfdecouple.data.sources import open_source
from tfdecouple.errors import RunError
from tfdecouple.metrics.image_statistics import CHANGES
from tfdecouple.runs import pretrained
from tfdecouple.runs.opened_run import hash_weights
from tfdecouple.runs.pretrained import MANIFEST, WeightsManifest
from tfdecouple.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("eager")

HERE = pretrained.find_pretrained("photographs")


def test_bundled_weights_are_complete_and_small():
    manifest = WeightsManifest.read(HERE / MANIFEST, "photographs")
    assert manifest == WeightsManifest.from_folder(HERE)
    assert sum(facts.bytes for name, facts in manifest.files.items() if "/best-" in name) < 8_000_000


def test_bundled_weights_decode_exactly_and_use_z():
    """Of the pictures that the page begins with, crops that the model never saw, and noise."""
    model = tfdecouple.load_model("photographs")
    crops, _ = load_images(open_source(RunFolder("photographs").read_config().data, (64, 64, 3)), "test", 2)
    pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in make_example_files().values()]
    examples = [crop_and_resize(pixels, (64, 64, 3), 0)[None] for pixels in pictures]
    images = np.concatenate([*examples, crops, random_images(1, 64)])
    z, v = model.encode(images)
    np.testing.assert_array_equal(model.decode(z, v), images)
    switched = model.decode(np.roll(z, -1, 0), v).numpy()
    assert all((ours != image).mean() > 0.1 for ours, image in zip(switched, images, strict=True))
    # Directions of these weights come along, too.
    directions = tfdecouple.load_directions("photographs")
    assert directions.weights_sha256 == hash_weights(model) and directions.names == [*CHANGES]
    assert directions.about["run"] == "photographs"
    for direction in directions:
        moved = model.decode(z[:2] + direction.vector, v[:2]).numpy()
        assert all((ours != image).mean() > 0.1 for ours, image in zip(moved, images, strict=False)), direction


@pytest.fixture
def others(tiny_run, tmp_path, monkeypatch):
    """An installation whose weights are tiny ones of the same name, and a working folder with two images."""
    folder = tmp_path / "site" / "photographs"
    assert main(["publish", "--run", str(tiny_run), "--to", str(folder), "--licence", "mit"]) == 0
    monkeypatch.setattr(pretrained, "BUNDLED", folder.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, image in zip(("a.png", "b.png"), random_images(2, 20), strict=True):
        Image.fromarray(image).save(name)
    return folder


def installed(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_commands_use_bundled_weights_by_default(others, tmp_path, capsys):
    before = installed(others)
    assert main(["switch", "a.png", "b.png"]) == 0
    assert "pictures/switch-pairs.png: switch, 1 pair" in capsys.readouterr().out
    facts = json.loads((tmp_path / "here" / "pictures" / "switch-pairs.json").read_text())
    assert facts["run"] == "photographs" and facts["first"]["files"] == ["a.png"]
    assert main(["switch", "a.png", "b.png", "--out", "elsewhere"]) == 0
    assert (tmp_path / "here" / "elsewhere" / "switch-pairs.png").is_file()
    assert main(["sample", "--count", "2", "--run", "photographs"]) == 0
    assert (tmp_path / "here" / "pictures" / "sample.png").is_file()
    capsys.readouterr()
    assert "interpolate got 1 images" in refused(capsys, lambda: main(["interpolate", "a.png"]))
    line = refused(capsys, lambda: main(["directions", "--run", "photographs"]))
    assert "tfdecouple publish --run photographs --to DIR" in line
    line = refused(capsys, lambda: main(["curves", "--run", "photographs"]))
    assert "photographs has no metrics" in line
    # Nothing was written where they lie.
    assert installed(others) == before


def test_load_model_opens_bundled_weights_and_names_what_it_does_not_know(others):
    assert tfdecouple.load_model("photographs").config == SMALL
    with pytest.raises(RunError, match="the preset cifar10 has no weights"):
        tfdecouple.load_model("cifar10")
    with pytest.raises(RunError, match=r"no run folder photograph; did you mean photographs\?; .* photographs comes"):
        tfdecouple.load_model("photograph")


class TestTrained:
    pytestmark = pytest.mark.slow

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """A copy of the weights as a run folder, in which evaluations of test images may be counted."""
        return shutil.copytree(HERE, tmp_path_factory.mktemp("trained") / "run")

    @pytest.fixture(scope="class")
    def model(self):
        return tfdecouple.load_model("photographs")

    @pytest.fixture(scope="class")
    def source(self):
        return open_source(RunFolder("photographs").read_config().data, (64, 64, 3))

    def test_bits_per_dim_of_the_sample_photographs_are_those_of_the_docs(self, run, traced, tmp_path):
        assert main(["evaluate", "--run", str(run), "--out", str(tmp_path)]) == 0
        report = json.loads((tmp_path / "bits_per_dim-test.json").read_text())
        assert report["images"] == 1000 and report["step"] == RunFolder("photographs").read_summary()["best_step"]
        assert f"{report['bits_per_dim']:.2f} bits/dim" in (ROOT / "docs" / "understanding.md").read_text(
            encoding="utf-8"
        )

    @pytest.mark.parametrize(("size", "spacing"), [(50, 5), (1, 100), (3, 50)])
    def test_bundled_weights_decode_crops_exactly(self, model, source, traced, size, spacing):
        crops = load_images(source, "test", 1000)[0][size % spacing :: spacing]
        crops = crops[: len(crops) // size * size]
        batches = np.split(crops, len(crops) // size)
        codes = [model.encode(batch) for batch in batches]
        for batch, (z, v) in zip(batches, codes, strict=True):
            np.testing.assert_array_equal(model.decode(z, v), batch)
        # The codes of one batch size decode in another.
        z, v = (np.concatenate(parts)[: 2 * size] for parts in zip(*codes, strict=True))
        np.testing.assert_array_equal(model.decode(z, v), crops[: 2 * size])

    def test_bundled_weights_detect_outliers_better_than_likelihood(self, run, traced, tmp_path):
        arguments = ["--run", run, "--images", "50", "--batch-size", "50", "--out", tmp_path]
        assert main(["evaluate", *map(str, arguments), "--outliers", "noise", "constant"]) == 0
        kinds = json.loads((tmp_path / "outliers-test.json").read_text())["outliers"]
        noise, constant = (kinds[kind]["detection"] for kind in ("noise", "constant"))
        assert all(noise[name]["auroc"] > 0.95 for name in ("bits_per_dim", "shell", "typicality")), noise
        # The likelihood of images of one colour is that of photographs.
        assert constant["bits_per_dim"]["auroc"] < 0.6
        # The colour map gives an image of one colour usual contrast, so v of such an image is usual, too.
        assert constant["bits_per_dim_minus_codec"]["auroc"] > 0.95
