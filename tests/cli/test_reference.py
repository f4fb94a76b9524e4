import json

import numpy as np
import pytest
from helpers.models import random_images
from helpers.refusals import refused
from PIL import Image

import tfdecouple
from tfdecouple.cli import main
from tfdecouple.runs.opened_run import load_model

pytestmark = pytest.mark.usefixtures("eager_file")

SIDE = 8


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
        command = ["switch", "--run", finished_run, "--reference", reference, "--to", out, *others, folder]
        return main([str(argument) for argument in command])

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
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    other = save(tmp_path / "other.png", (5, 7), seed=9)
    more = save(tmp_path / "more" / "a.png", (9, 9)).parent
    capsys.readouterr()
    for changes in ({"reference": other}, {"folder": more}, {}):
        assert "another folder" in refused(capsys, lambda changes=changes: switch("--strength", 0.5, **changes))
    # The command did not write these files, so it must not take them for its results.
    assert "another folder" in refused(capsys, lambda: switch(folder=more, out=photographs))
    (tmp_path / "out" / "switch.json").write_text("[")
    before[tmp_path / "out" / "switch.json"] = b"["
    assert "another folder" in refused(capsys, switch)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_folder_that_cannot_be_switched_is_refused_with_nothing_written(switch, photographs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(photographs)
    mistakes = [
        ({"folder": tmp_path / "empty"}, "holds 0 images"),
        ({"folder": tmp_path / "none"}, "does not exist"),
        ({"folder": photographs / "a.png"}, "there is no folder"),
        ({"reference": tmp_path / "none.png"}, "does not exist"),
        ({"reference": photographs / "header.png"}, "cannot read the image"),
        ({"out": photographs}, "would be read as photographs"),
        ({"out": tmp_path / "link" / "results"}, "would be read as photographs"),
        ({"out": photographs / "a.png"}, "is no folder"),
    ]
    before = list_files(tmp_path)
    for changes, message in mistakes:
        assert message in refused(capsys, lambda changes=changes: switch(**changes))
    for others, message in ((["--size", "model"], "--size"), ([photographs], "got 2")):
        assert message in refused(capsys, lambda others=others: switch(*others))
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
