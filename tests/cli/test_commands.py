import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import command, refuse
from helpers.models import random_images, save_images
from helpers.refusals import refused
from helpers.runs import run_config
from PIL import Image

import tfdecouple
from tfdecouple import randomness
from tfdecouple.cli import main
from tfdecouple.data.image_file import read_image
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.latent_directions import Direction, Directions
from tfdecouple.runs.opened_run import hash_weights, load_model
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.files import write_text
from tfdecouple.visualization.full_size import read_photograph
from tfdecouple.visualization.grids import LINE, draw_grid
from tfdecouple.visualization.guided_filter import shrink_photograph
from tfdecouple.visualization.plots import project_to_components

pytestmark = pytest.mark.usefixtures("eager_file")

SIDE = 8


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder with two labels: 12 images for training, 4 for validation and 8 for test."""
    counts = {"train": 6, "validation": 2, "test": 4}.items()
    places = [(f"{split}/{label}", count) for split, count in counts for label in ("bright", "dark")]
    names = [f"{place}/{number}.png" for place, count in places for number in range(count)]
    images = dict(zip(names, random_images(24, seed=9), strict=True))
    return save_images(tmp_path_factory.mktemp("labelled"), images)


@pytest.fixture(scope="module")
def model(finished_run):
    return load_model(finished_run)


def read_facts(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


class Shown:
    def __init__(self, folder, name):
        self.facts = read_facts(folder, name)
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.mode == "RGB"
            self.pixels = np.asarray(picture)

    def require(self, images, header=0, **options):
        """Asserts that the picture is a grid of `images`, `[rows, columns, 8, 8, 3]`, with a header and a caption."""
        grid = np.asarray(draw_grid(np.asarray(images), **options))
        bottom, margin = header + grid.shape[0], self.pixels.shape[1] - grid.shape[1]
        np.testing.assert_array_equal(self.pixels[header:bottom, margin:], grid)
        # What is left over is for the labels of the rows, and for whole lines of the caption.
        lines, rest = divmod(self.pixels.shape[0] - bottom - 6, LINE)
        assert 0 <= margin < 60 and 1 <= lines <= 8 and rest == 0
        assert (self.pixels[bottom:] < 100).any(), "there is no caption"


def files_of(folder, split):
    """The images of a split in the source's order."""
    paths = sorted((folder / split).rglob("*.png"), key=lambda path: path.relative_to(folder / split).as_posix())
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_sample_shows_the_samples_of_the_model_at_each_temperature(finished_run, model, tmp_path, capsys):
    options = ("--temperatures", 0.5, 1, "--count", 12, "--seed", 3)
    command("sample", "--run", finished_run, "--out", tmp_path, *options)
    shown = Shown(tmp_path, "sample")
    images = np.full((2, 20, SIDE, SIDE, 3), 255, np.uint8)
    for band, temperature in zip(images, (0.5, 1.0), strict=True):
        band[:12] = model.sample(12, temperature, seed=3)
    shown.require(images.reshape(4, 10, SIDE, SIDE, 3), group=(2, 0))
    rows = {"0.5": {"temperature": 0.5}, "1": {"temperature": 1.0}}
    expected = {"run": str(finished_run), "averaged": True, "seed": 3, "count": 12, "rows": rows}
    assert expected.items() <= shown.facts.items()
    assert shown.facts["step"] in (5, 10)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'sample.png'}: 12 samples")


@pytest.mark.parametrize(("changed", "exact"), [(0, 6), (1, 5)])
def test_reconstruct_shows_images_and_counts_exact_ones(
    finished_run, image_folder, tmp_path, monkeypatch, capsys, changed, exact
):
    decode, change = DecoupledModel.decode, np.uint8([0, changed, 0, 0, 0, 0]).reshape(6, 1, 1, 1)
    monkeypatch.setattr(DecoupledModel, "decode", lambda self, z, v: np.array(decode(self, z, v)) ^ change)
    command("reconstruct", "--run", finished_run, "--out", tmp_path, "--split", "validation")
    shown = Shown(tmp_path, "reconstruct")
    assert sorted(shown.facts["indices"]) == list(range(6))
    images = files_of(image_folder, "validation")[shown.facts["indices"]]
    shown.require([images, images ^ change], group=(2, 0))
    expected = {"exact": exact, "count": 6, "split": "validation", "data": f"images in {image_folder}"}
    assert expected.items() <= shown.facts.items()
    assert f"{exact} of 6 images are equal to the last pixel" in capsys.readouterr().out


def arrange_pairs(model, a, b, strength):
    """Returns the images of a switch, `[2, 2 * pairs, 8, 8, 3]`: of each pair a and ba, and below them b and ab."""
    (z_a, v_a), (z_b, v_b) = model.encode(a), model.encode(b)
    ba = model.decode((1 - strength) * z_a + strength * z_b, v_a)
    ab = model.decode((1 - strength) * z_b + strength * z_a, v_b)
    return [np.stack(images, 1).reshape(-1, SIDE, SIDE, 3) for images in ([a, ba], [b, ab])]


class TestSwitch:
    def test_switch_shows_pairs_within_and_across_labels(self, finished_run, labelled, model, tmp_path):
        options = ("--data", f"folder:{labelled}", "--count", 3, "--strength", 0.5)
        command("switch", "--run", finished_run, "--out", tmp_path, *options)
        images = files_of(labelled, "test")
        for how in ("within", "across"):
            shown = Shown(tmp_path, f"switch-{how}")
            first, second = shown.facts["first"], shown.facts["second"]
            assert {"pairing": how, "count": 3, "strength": 0.5}.items() <= shown.facts.items()
            assert len({*first["indices"], *second["indices"]}) == 6
            names = [("bright", "dark")[index >= 4] for index in first["indices"]]
            assert first["labels"] == names
            assert [a == b for a, b in zip(names, second["labels"], strict=True)] == [how == "within"] * 3
            shown.require(arrange_pairs(model, images[first["indices"]], images[second["indices"]], 0.5), group=(2, 2))

    def test_switch_writes_photographs_at_their_own_size(self, finished_run, model, tmp_path):
        kinds = [("a.jpg", 40, 30, "RGB"), ("b.png", 8, 8, "L")]
        kinds += [("more/a.png", 300, 10, "RGBA"), ("c.webp", 1, 1, "RGB")]
        paths = [tmp_path / name for name, *_ in kinds]
        for number, (path, (_, width, height, mode)) in enumerate(zip(paths, kinds, strict=True)):
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 4), np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(path)
        command("switch", "--run", finished_run, "--out", tmp_path / "out", "--max-side", 100, *paths)
        shown = Shown(tmp_path / "out", "switch-pairs")
        assert shown.facts["first"] == {"files": [str(paths[0]), str(paths[2])]}
        images = [shrink_photograph(read_photograph(str(path), 3, 100).pixels, SIDE, SIDE) for path in paths]
        shown.require(arrange_pairs(model, np.stack(images[::2]), np.stack(images[1::2]), 0.9), group=(2, 2))
        results = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
        assert results.pop("switch-pairs.png")
        expected = {"a-z-of-b.jpg": (40, 30), "b-z-of-a.png": (8, 8), "a-z-of-c.png": (100, 3), "c-z-of-a.webp": (1, 1)}
        assert results == expected
        command("switch", "--run", finished_run, "--out", tmp_path / "model", "--size", "model", *paths)
        assert {path.name for path in (tmp_path / "model").iterdir()} == {"switch-pairs.png", "switch-pairs.json"}
        images = np.stack([read_image(path, (SIDE, SIDE, 3), 0) for path in paths])
        expected = arrange_pairs(model, images[::2], images[1::2], 0.9)
        Shown(tmp_path / "model", "switch-pairs").require(expected, group=(2, 2))
        # Photographs of one name do not write over each other.
        command("switch", "--run", finished_run, "--out", tmp_path / "same", paths[0], tmp_path / "more/a.png")
        assert (tmp_path / "same/a-z-of-a.jpg").is_file() and (tmp_path / "same/a-z-of-a.png").is_file()


@pytest.mark.parametrize(("name", "size"), [("switch", "own"), ("interpolate", "model"), ("edit", "own")])
def test_each_photograph_is_read_and_encoded_once(finished_run, tmp_path, monkeypatch, name, size):
    opened, encoded = [], []
    images = {f"{number}.png": random_images(1, 20)[0] for number in range(6)}
    photographs = save_images(tmp_path / "photographs", images)
    run, read, encode = shutil.copytree(finished_run, tmp_path / "run"), Image.open, DecoupledModel.encode
    vector = np.ones(load_model(run).config.latent_dim, np.float32)
    Directions(hash_weights(load_model(run)), {}, (Direction("up", "means", vector, {}),)).write(run)

    def count_encode(model, images, *more, **options):
        encoded.append(len(images))
        return encode(model, images, *more, **options)

    monkeypatch.setattr(
        Image, "open", lambda file, *more, **options: opened.append(file) or read(file, *more, **options)
    )
    monkeypatch.setattr(DecoupledModel, "encode", count_encode)
    files, more = sorted(photographs.iterdir()), ["--direction", "up"] if name == "edit" else []
    command(name, *files, "--run", run, "--out", tmp_path / "out", "--size", size, *more)
    assert len(opened) == sum(encoded) == len(files)


def test_interpolate_shows_z_downwards_and_v_to_the_right(finished_run, image_folder, model, tmp_path):
    command("interpolate", "--run", finished_run, "--out", tmp_path, "--steps", 3, "--count", 2)
    shown, places, images = Shown(tmp_path, "interpolate"), [0, 0.5, 1], files_of(image_folder, "test")
    assert shown.facts["places"] == places
    pairs = (images[shown.facts[which]["indices"]] for which in ("first", "second"))
    grid = model.interpolate(*pairs, places, places, path=shown.facts["path"])
    shown.require(np.reshape(grid, [6, 3, SIDE, SIDE, 3]), header=LINE, group=(3, 0))


def test_neighbours_counts_repeated_images(finished_run, image_folder, model, tmp_path, monkeypatch):
    images = files_of(image_folder, "train")
    repeated = images[[4, 17]]
    monkeypatch.setattr(DecoupledModel, "sample", lambda self, n, temperature, seed: tf.constant(repeated))
    command("neighbours", "--run", finished_run, "--out", tmp_path, "--count", 2)
    shown = Shown(tmp_path, "neighbours")
    assert shown.facts["copies"] == 2 and shown.facts["searched"] == 20 and shown.facts["split"] == "train"
    nearest = shown.facts["nearest"]
    z = np.asarray(model.posterior(images).mean())
    for name, vectors in {"pixels": images.reshape(20, -1).astype(float), "z": z}.items():
        distances = np.linalg.norm(vectors[None] - vectors[[4, 17], None], axis=2)
        np.testing.assert_allclose(nearest[name]["distances"], np.sort(distances, 1)[:, :5], atol=1e-4)
        assert [row[0] for row in nearest[name]["indices"]] == [4, 17]
    halves = [np.insert(images[nearest[name]["indices"]], 0, repeated, axis=1) for name in ("pixels", "z")]
    shown.require(np.concatenate(halves, 1), header=LINE, group=(0, 6), width=1000)


def test_project_shows_principal_components(finished_run, labelled, model, tmp_path):
    command("project", "--run", finished_run, "--out", tmp_path, "--data", f"folder:{labelled}", "--split", "train")
    facts = read_facts(tmp_path, "project")
    with Image.open(tmp_path / "project.png") as picture:
        assert picture.format == "PNG" and picture.size == (900, 660)
        assert len(set(picture.convert("RGB").getdata())) > 10
    assert facts["indices"] == list(range(12)) and facts["count"] == 12
    assert facts["labels"] == ["bright"] * 6 + ["dark"] * 6
    points, shares = project_to_components(np.asarray(model.posterior(files_of(labelled, "train")).mean()))
    np.testing.assert_allclose(facts["points"], points, atol=1e-5)
    np.testing.assert_allclose(facts["explained_variance"], shares, atol=1e-5)


def test_curves_leave_out_values_that_are_not_finite_and_absent_terms(finished_run, tmp_path):
    run = tmp_path / "still"
    run.mkdir()
    config = RunFolder(finished_run).read_config()
    # Where z is a function of the label there is no KL.
    model = dataclasses.replace(config.model, classes=3, prior="classes")
    write_text(run / "config.json", dataclasses.replace(config, model=model).to_json())
    rows = [
        {"step": 2, "kind": "train", "bits_per_dim": 7.0, "kl": 0.0, "learning_rate": "nan"},
        {"step": 4, "kind": "train", "bits_per_dim": 6.0, "kl": 0.0, "learning_rate": 1.0},
    ]
    write_text(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "ki')
    command("curves", "--run", run, "--run", finished_run)
    facts = read_facts(run / "pictures", "curves")["runs"]
    assert [(entry["name"], entry["last_step"]) for entry in facts] == [("still", 4), ("run", 10)]
    curves = {"bits_per_dim": ([2, 4], [7.0, 6.0]), "learning_rate": ([4], [1.0])}
    assert RunFolder(run).read_curves() == {"train": curves, "validation": {}}


# Sizes by name; the first picture lies on its side, as its EXIF data say.
SIZES = {"cat/lying.png": (13, 20), "dog/upright.png": (9, 30), "model.png": (8, 8)}


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    names = [f"{split}/{number}.png" for split in ("train", "validation") for number in range(2)]
    images = {name: random_images(1, SIDE)[0] for name in names} | {f"test/{name}": read_sized(name) for name in SIZES}
    folder = save_images(tmp_path_factory.mktemp("photographs"), images)
    lying, exif = Image.fromarray(read_sized("cat/lying.png")), Image.Exif()
    exif[0x0112] = 6
    lying.transpose(Image.Transpose.ROTATE_90).save(folder / "test/cat/lying.png", exif=exif)
    return folder


def read_sized(name):
    return random_images(1, (*SIZES[name], 3), seed=len(name))[0]


def test_reconstruct_counts_the_subpixels_of_every_image(tiny_run, sizes, tmp_path, capsys):
    command("reconstruct", "--run", tiny_run, "--data", f"folder:{sizes}", "--out", tmp_path, "--own-size")
    assert capsys.readouterr().out.count(", 0 of ") == 3
    for name, (height, width) in SIZES.items():
        # The names of a folder with splits begin with that of the split.
        file = tmp_path / f"reconstruct-test-{name.replace('/', '-')}"
        facts = json.loads(file.with_suffix(".json").read_text())
        assert facts["image"] == f"test/{name}" and facts["lost_subpixels"] == 0
        assert (facts["height"], facts["width"]) == (height, width)
        pixels = np.asarray(Image.open(file))
        factor = max(1, 800 // (2 * (width + 2)))
        shown = pixels[2 : 2 + height * factor : factor, 2 : 2 + width * factor : factor]
        np.testing.assert_array_equal(shown, read_sized(name))


def test_folder_that_the_model_was_not_trained_on_is_measured_whole(tiny_run, sizes, tmp_path, capsys):
    plain = shutil.copytree(sizes / "test", tmp_path / "plain")
    for options in (["--data", f"folder:{plain}"], ["--data", f"folder:{sizes}", "--split", "all"]):
        command("reconstruct", "--run", tiny_run, "--out", tmp_path / "out", *options)
        command("evaluate", "--run", tiny_run, "--out", tmp_path / "out", *options)
        shown, measured = (read_facts(tmp_path / "out", name) for name in ("reconstruct", "bits_per_dim-all"))
        count = sum(path.is_file() for path in pathlib.Path(options[1].removeprefix("folder:")).rglob("*"))
        assert shown["count"] == measured["images"] == count and shown["split"] == "all"
    capsys.readouterr()
    assert "there is no split 'all'" in refuse(capsys, "evaluate", "--run", tiny_run, "--split", "all")


def test_evaluate_measures_bits_per_dim_of_every_image(tiny_run, sizes, tmp_path, capsys):
    options = ("--own-size", "--samples", 2, "--seed", 3)
    command("evaluate", "--run", tiny_run, "--data", f"folder:{sizes}", "--out", tmp_path, *options)
    values = read_facts(tmp_path, "own_size-test")
    assert f"{values['bits_per_dim']:.4f}" in capsys.readouterr().out and values["samples"] == 2
    model = load_model(tiny_run)
    for index, row in enumerate(values["images"]):
        name = row["image"].removeprefix("test/")
        assert SIZES[name] == (row["height"], row["width"])
        seeds = [randomness.derive_seed(3, "own size", index, draw) for draw in range(2)]
        bits = [float(model.bound(read_sized(name)[None], seed=seed).bits_per_dim[0]) for seed in seeds]
        assert row["bits_per_dim"] == pytest.approx(np.mean(bits), rel=1e-6)
    assert values["bits_per_dim"] == pytest.approx(np.mean([row["bits_per_dim"] for row in values["images"]]))


def test_unusable_run_image_or_output_folder_of_a_command_is_named_in_one_line(
    capsys, finished_run, image_folder, tmp_path
):
    begun, path = tmp_path / "begun", tmp_path / "a.png"
    write_text(begun / "config.json", run_config(image_folder).to_json())
    path.write_text("text")
    for name, says in (("sample", "no checkpoint yet"), ("curves", "no metrics")):
        assert f"there is no run folder {tmp_path / 'none'}" in refuse(capsys, name, "--run", tmp_path / "none")
        line = refuse(capsys, name, "--run", begun)
        assert str(begun) in line and says in line
    line = refuse(capsys, "switch", "--run", finished_run, path, path)
    assert f"cannot read the image {path}" in line and "on_bad_image" not in line
    # The run is missing, too: the folder is checked first.
    for name in ("curves", "evaluate", "encode", "switch"):
        assert f"{path} is no folder" in refuse(capsys, name, "--run", "no", "--out", path / "deeper")


def save(path, size, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_images(1, (*size, 3), seed=seed)[0]).convert(mode).save(path)
    return path


@pytest.fixture
def photographs(tmp_path):
    """A folder with a photograph of the model's size, others of more, and two that cannot be read."""
    folder = tmp_path / "photographs"
    save(folder / "a.png", (SIDE, SIDE), seed=1)
    save(folder / "a.jpg", (30, 40), seed=2)
    save(folder / "deeper" / "grey.jpg", (20, 10), "L", seed=3)
    save(folder / "c.gif", (9, 11), "P", seed=4)
    (folder / "header.png").write_text("text")
    cut = save(folder / "cut.png", (60, 60), seed=5)
    cut.write_bytes(cut.read_bytes()[:3000])
    return folder


@pytest.fixture
def switch(finished_run, tmp_path, photographs):
    """Runs the command for the folder `photographs`, with a reference of one colour; returns its status."""

    def run(*others, folder=photographs, out=tmp_path / "out", reference=None):
        reference = reference or save(tmp_path / "reference.png", (5, 7), seed=6)
        words = ["switch", "--run", finished_run, "--reference", reference, "--to", out, *others, folder]
        return main([str(argument) for argument in words])

    return run


def list_files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_switched_folder_has_names_sizes_and_v_of_photographs(switch, photographs, finished_run, tmp_path):
    assert switch("--strength", 1) == 1
    out = tmp_path / "out"
    assert list_files(out) == ["a.jpg", "a.png", "c.png", "deeper/grey.jpg", "switch.json"]
    for name, source in {"a.jpg": "a.jpg", "c.png": "c.gif", "deeper/grey.jpg": "deeper/grey.jpg"}.items():
        with Image.open(out / name) as result, Image.open(photographs / source) as photograph:
            assert result.size == photograph.size and result.mode == "RGB"
    model = load_model(finished_run)
    with Image.open(tmp_path / "reference.png") as reference, Image.open(photographs / "a.png") as photograph:
        # The model itself shrinks images of another size for its encoder.
        z = model.posterior(np.asarray(reference)[None]).mean()
        expected = model.decode(z, model.encode(np.asarray(photograph)[None]).v)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a.png")), expected)


def test_switch_refuses_a_folder_with_results_of_another_command(switch, photographs, tmp_path, capsys):
    assert switch("--strength", 1) == 1
    manifest, before = tmp_path / "out" / "switch.json", (tmp_path / "out" / "a.jpg").read_bytes()
    other = save(tmp_path / "other.png", (5, 7), seed=9)
    more = save(tmp_path / "more" / "a.png", (9, 9)).parent
    capsys.readouterr()
    # The command did not write the files in the last folder, so it must not take them for its results.
    for changes in ({"reference": other}, {"folder": more}, {}, {"folder": more, "out": photographs}):
        assert "another folder" in refused(capsys, lambda changes=changes: switch("--strength", 0.5, **changes))
    manifest.write_text("[")
    assert "another folder" in refused(capsys, switch)
    assert manifest.read_text() == "[" and (tmp_path / "out" / "a.jpg").read_bytes() == before


def test_folder_that_cannot_be_switched_is_refused_with_nothing_written(switch, photographs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(photographs)
    before = list_files(tmp_path)
    for others, changes, message in (
        ([], {"folder": tmp_path / "empty"}, "holds 0 images"),
        ([], {"folder": tmp_path / "none"}, "does not exist"),
        ([], {"folder": photographs / "a.png"}, "there is no folder"),
        ([], {"reference": tmp_path / "none.png"}, "does not exist"),
        ([], {"reference": photographs / "header.png"}, "cannot read the image"),
        ([], {"out": photographs}, "would be read as photographs"),
        ([], {"out": tmp_path / "link" / "results"}, "would be read as photographs"),
        (["--size", "model"], {}, "--size"),
        ([photographs], {}, "got 2"),
    ):
        assert message in refused(capsys, lambda others=others, changes=changes: switch(*others, **changes))
    save(photographs / "c.png", (9, 9))
    line = refused(capsys, switch)
    assert "c.gif" in line and "c.png" in line and "rename one" in line
    (tmp_path / "file").write_text("")
    (photographs / "c.gif").unlink()
    assert "cannot write" in refused(capsys, lambda: switch(out=tmp_path / "file"))
    after = {*before, "file", "photographs/c.png", "reference.png"} - {"photographs/c.gif"}
    assert set(list_files(tmp_path)) == after


def test_switch_folder_writes_the_files_that_the_command_writes(switch, photographs, finished_run, tmp_path):
    assert switch("--strength", 0.5, "--max-side", 12) == 1
    model = load_model(finished_run)
    arguments = (model, tmp_path / "reference.png", photographs)
    result = tfdecouple.switch_folder(*arguments, tmp_path / "python", strength=0.5, max_side=12)
    assert len(result.written) == 4 and not result.kept and len(result.errors) == 2
    assert Image.open(tmp_path / "out" / "a.jpg").size == (12, 9)
    for path in result.written:
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "python")).read_bytes()
    again = tfdecouple.switch_folder(*arguments, tmp_path / "out", strength=0.5, max_side=12)
    assert sorted(again.kept) == sorted(path for path in (tmp_path / "out").rglob("*.[jp][pn]g")) and not again.written
    assert json.loads((tmp_path / "out" / "switch.json").read_text())["strength"] == 0.5
