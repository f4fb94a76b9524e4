"""Tests of the benchmarks: calculated tables, and short runs."""

import dataclasses
import json
import random
import subprocess
import sys

import pytest
from helpers.models import LEAST, SMALL_SETTINGS, random_images
from helpers.places import ROOT
from helpers.runs import write_run
from PIL import Image

from tfdecouple.config import MEMORY, load_preset, override
from tfdecouple.model import DecoupledModel

sys.path.insert(0, str(ROOT))

from benchmarks import scaling  # noqa: E402
from benchmarks.common import write_tables  # noqa: E402
from benchmarks.training_cost import count_activation_bytes  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked")

# Largest allowed ratio between the measured and the calculated memory of an image, in either direction.
WITHIN = 4 / 3
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def printed_by(name, *arguments):
    """Returns what a benchmark prints."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written_by(name, folder, *arguments):
    """Returns the rows that a benchmark writes with `--json`."""
    printed_by(name, *arguments, "--json", folder / "measured.json")
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))["rows"]


class TestScaling:
    @pytest.mark.slow
    @pytest.mark.parametrize("memory", ["keep", "invert"])
    def test_image_takes_the_calculated_memory(self, memory):
        # So few layers that an image is most of what is computed.
        settings = ["model.image_shape=[64,64,3]", "model.steps=[1,1]", "model.hidden_channels=[16,16]"]
        settings += ["model.encoder_channels=[16]", "model.latent_dim=4", "training.init_images=2"]
        calculated = count_activation_bytes(override(load_preset("quickstart"), settings).model, memory=memory) / 2**20
        options = ["--preset", "quickstart", "--memory", memory, "--live", "--threads", "1"]
        options += [text for setting in settings for text in ("--set", setting)]
        small = round(256 / calculated)
        smaller, larger = (
            json.loads(printed_by("throughput", "--phase", f"first_step{batch}", *options).splitlines()[-1])
            for batch in (small, 2 * small)
        )
        measured = (larger["peak_live_mib"] - smaller["peak_live_mib"]) / small
        assert 1 / WITHIN <= measured / calculated <= WITHIN

    def test_scaling_rows_become_the_tables_and_the_plot_of_the_docs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scaling, "DEPTHS", (1,))
        memory = scaling.calculate_memory()
        page = tmp_path / "scaling.md"
        page.write_text(SCALING, encoding="utf-8")
        calculated = {"memory": memory, "ceiling": scaling.calculate_ceilings()}
        write_tables(page, {name: scaling.render_table(name, calculated) for name in calculated})
        assert page.read_text(encoding="utf-8") == SCALING
        depths = [
            {"depth": depth, "preset": "imagenet64", "memory": mode, "ms_per_call": 10.0 * depth**2}
            | {"first_call_s": 5.0 * depth, "second_step_s": 0.1, "peak_rss_mib": 900.0}
            | {"mib_per_image": 3.0 * depth, "calculated_mib_per_image": 3.1 * depth}
            for mode in MEMORY
            for depth in (1, 2, 4)
        ]
        assert "| invert | exponent | 2.00 | 1.01 | 0.00 | 1.00 |" in scaling.render_table("depth", {"depth": depths})
        scaling.plot_scaling({"depth": depths, "large": depths, "memory": memory}, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10000


@pytest.mark.slow
def test_exactness_benchmark_loses_no_value_of_grey_rectangles(tmp_path):
    random.seed(0)
    model = DecoupledModel(dataclasses.replace(LEAST, image_shape=(4, 8, 1)))
    model.initialize(random_images(16, (4, 8, 1)))
    folder = write_run(tmp_path / "run", model)
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(random_images(4, (4, 8, 1))):
            Image.fromarray(image.squeeze()).save(tmp_path / "pictures" / split / f"{number}.png")
    data = f"folder:{tmp_path / 'pictures'}"
    rows = written_by("exactness", tmp_path, "--run", folder, "--count", "3", "--data", data)
    assert len(rows) == 5 and rows[-1]["of"] == 3 and all(row["lost"] == 0 for row in rows)


def test_export_benchmark_times_each_endpoint_of_a_runtime(exported):
    options = ["--runtimes", "onnx", "--rounds", "1", "--batches", "2"]
    rows = [json.loads(line) for line in printed_by("export", "--exported", exported, *options).splitlines()]
    assert [(row["what"], row["runtime"], row["batch"]) for row in rows] == [
        ("encode", "onnx", 2),
        ("decode", "onnx", 2),
    ]
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_throughput_benchmark_prints_one_json_object():
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--phase", "train2", "--preset", "quickstart", "--reps", "1", "--seconds", "0.01"]
    measured = json.loads(printed_by("throughput", *options, *changes).splitlines()[-1])
    assert measured["batch"] == 2
    for name in ("images_per_s", "best_images_per_s", "cpu_s_per_image", "peak_rss_mib", "first_step_s", "params"):
        assert measured[name] > 0


@pytest.mark.slow
def test_inversion_benchmark_shows_errors_growing_as_a_scale_vanishes(tmp_path):
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--alphas", "0.5", "--updates", "1", "--precisions", "float32", "--batch", "2", "--break", *changes]
    first, *spoiled = [
        (float(row["error"]), float(row["largest"])) for row in written_by("inversion", tmp_path, *options)
    ]
    assert max(first) < 1e-4 and len(spoiled) == 5
    errors = [error for error, _ in spoiled]
    assert errors == sorted(errors) and errors[-1] > 1e-3
