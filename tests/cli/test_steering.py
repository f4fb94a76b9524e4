import json
import shutil

import numpy as np
import pytest
from helpers.commands import command, refuse
from helpers.models import save_images
from PIL import Image

from tfdecouple import load_directions
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import RunError, UserError
from tfdecouple.metrics.image_statistics import CHANGES
from tfdecouple.runs.latent_directions import CLASSIFIER, MEANS, Direction, Directions
from tfdecouple.runs.opened_run import Run, hash_weights, load_model
from tfdecouple.visualization.grids import LINE, draw_grid

pytestmark = pytest.mark.usefixtures("eager_file", "quiet")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Red, green and blue images with noise: of each 8 for training, 4 for validation and 4 for test."""
    rng = np.random.default_rng(0)
    images = {
        f"{split}/{colour}/{colour}-{number}.png": rng.integers(0, 80, (8, 8, 3), np.uint8) + shade
        for split, count in {"train": 8, "validation": 4, "test": 4}.items()
        for colour, shade in zip(("red", "green", "blue"), 150 * np.eye(3, dtype=np.uint8), strict=True)
        for number in range(count)
    }
    return save_images(tmp_path_factory.mktemp("coloured"), images)


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of `tiny_run` that directions may be written into."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("steered") / "run")


def find(run, coloured, *more):
    amounts = ("--amounts", -1, 0, 1)
    command("directions", "--run", run, "--data", f"folder:{coloured}", "--count", 1, *amounts, *more)


@pytest.fixture(scope="module")
def found(run, coloured, tmp_path_factory, eager_file):
    """The directions of the labels, and where their pictures are."""
    pictures = tmp_path_factory.mktemp("pictures")
    find(run, coloured, "--out", pictures)
    return load_directions(run), pictures


class TestDirections:
    def test_directions_of_each_label_are_found_by_both_methods_and_shown(self, found, run, coloured):
        (directions, pictures), model = found, load_model(run)
        assert directions.names == ["blue", "green", "red"] and len(directions) == 6
        assert directions.weights_sha256 == hash_weights(model)
        files = sorted((coloured / "train").rglob("*.png"))
        z = model.posterior(np.stack([read_image(str(file), (8, 8, 3), 0) for file in files])).mean().numpy()
        is_red = np.array([file.parent.name == "red" for file in files])
        expected = is_red.std() * (z[is_red].mean(0) - z[~is_red].mean(0))
        np.testing.assert_allclose(directions["red"].vector, expected, atol=1e-5)
        for direction in directions:
            figures = direction.figures
            assert 0 <= figures["accuracy"] <= 1 and figures["split"] == "validation"
            assert (figures["held_out_with"], figures["held_out_without"]) == (4, 8)
            assert (figures["images_with"], figures["images_without"]) == (8, 16)
        names = {f"direction-{name}.{kind}" for name in ("red", "green", "blue") for kind in ("png", "json")}
        assert {path.name for path in pictures.iterdir()} == names
        facts = json.loads((pictures / "direction-red.json").read_text())
        assert (facts["amounts"], facts["direction"]) == ([-1, 0, 1], "red")
        assert set(facts["found"]) == {MEANS, CLASSIFIER}

    def test_directions_of_a_csv_file_join_earlier_directions(self, found, run, coloured, tmp_path, capsys):
        rows = ["file,brightness,is_red,nothing"]
        for file in sorted(coloured.rglob("*.png")):
            brightness = np.asarray(Image.open(file)).mean()
            rows.append(f"{file.relative_to(coloured).as_posix()},{brightness},{int(file.parent.name == 'red')},3")
        (tmp_path / "numbers.csv").write_text("\n".join(rows))
        find(run, coloured, "--attributes", tmp_path / "numbers.csv", "--out", tmp_path)
        out, err = capsys.readouterr()
        assert "of the variance of held-out images" in out and "no direction nothing" in err
        directions = load_directions(run)
        assert directions.names == ["blue", "green", "red", "brightness", "is_red"]
        # A column of two values is a label: that of the same images.
        np.testing.assert_array_equal(directions["is_red"].vector, directions["red"].vector)
        assert directions["brightness"].figures["kind"] == "number"


class TestEdit:
    def test_edit_shows_images_along_the_direction(self, found, run, coloured, tmp_path, capsys):
        directions, _ = found
        file = coloured / "test" / "green" / "green-0.png"
        command("edit", file, "--run", run, "--out", tmp_path, "--direction", "red", "--amounts", 0, 1.5)
        assert "along red, means" in capsys.readouterr().out
        facts = json.loads((tmp_path / "edit.json").read_text())
        assert facts["amounts"] == [0, 1.5] and facts["files"] == [str(file)]
        image = read_image(str(file), (8, 8, 3), 0)
        edited = np.asarray(load_model(run).edit(image[None], directions["red"], 1.5))[0]
        grid = np.asarray(draw_grid(np.stack([[image, edited]])))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "edit.png"))[LINE : LINE + len(grid)], grid)
        assert {path.name for path in tmp_path.iterdir()} == {"edit.png", "edit.json", "green-0-red+1.5.png"}
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "green-0-red+1.5.png")), edited)

    def test_statistics_need_no_labels_and_edit_takes_them_by_name(self, run, image_folder, tmp_path, capsys):
        own = shutil.copytree(run, tmp_path / "own")
        find(own, image_folder, "--statistics", "--images", 12, "--out", tmp_path)
        assert "warmer          decoded     brighter " in capsys.readouterr().out
        found = load_directions(own)
        assert found.names[-4:] == list(CHANGES) and found["warmer"].method == "decoded"
        assert set(found["warmer"].figures["changes"]) == set(CHANGES)
        assert (tmp_path / "direction-more_contrast.png").is_file()
        file = next(image_folder.rglob("*.png"))
        edit = ("edit", "--run", own, "--out", tmp_path / "edited", "--amounts=1", "--direction", "more contrast", file)
        command(*edit)
        assert (tmp_path / "edited" / f"{file.stem}-more_contrast+1.png").is_file()
        line = refuse(capsys, *edit, "--method", "means", begun=True)
        assert "there is no direction 'more contrast' by the method means" in line

    def test_edit_refuses_unknown_directions_and_those_of_other_weights(
        self, found, run, tiny_run, coloured, tmp_path, capsys
    ):
        other = shutil.copytree(run, tmp_path / "other")
        values = json.loads((other / "directions.json").read_text())
        (other / "directions.json").write_text(json.dumps({**values, "weights_sha256": "0" * 64}))
        file = next((coloured / "test").rglob("*.png"))
        for folder, name, says in (
            (run, "rad", "did you mean red"),
            (tiny_run, "red", "has no directions yet"),
            (other, "red", "other weights"),
        ):
            assert says in refuse(capsys, "edit", "--run", folder, "--direction", name, file)
        # They are found again, and the old ones go.
        find(other, coloured, "--labels", "red", "green")
        assert "written anew" in capsys.readouterr().err
        assert Run.open(other).directions().names == ["red", "green"]


class TestFile:
    def test_directions_file_keeps_vectors_to_the_bit(self, tmp_path):
        vector = np.random.default_rng(0).standard_normal(5).astype(np.float32)
        Directions("abc", {"step": 3}, (Direction("a", "means", vector, {"accuracy": None}),)).write(tmp_path)
        back = Directions.read(tmp_path, 5)
        np.testing.assert_array_equal(back["a"].vector, vector)
        assert back["a"].vector.dtype == np.float32
        assert back["a"].figures == {"accuracy": None} and back.about == {"step": 3}
        with pytest.raises(UserError, match="there is no direction 'b'"):
            back["b"]

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"version": 2}, "version"),
            ({"directions": [{"name": "a", "method": "magic", "vector": [1, 2]}]}, "directions.0.method"),
            ({"directions": [{"name": "a", "method": "means", "vector": [1]}]}, "the 2 numbers"),
            ({"directions": [{"name": "a", "method": "means", "vector": [1, 1e300]}]}, "directions.0.vector.1"),
        ],
    )
    def test_damaged_directions_file_is_one_line(self, tmp_path, change, part):
        right = {"version": 1, "weights_sha256": "", "directions": []}
        (tmp_path / "directions.json").write_text(json.dumps({**right, **change}))
        with pytest.raises(RunError, match=part):
            Directions.read(tmp_path, 2)
