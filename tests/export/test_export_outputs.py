import json
import shutil

import onnx
import pytest
from helpers.exporting import ON_PAGE, read_card, read_tree
from PIL import Image

from export import pipeline
from export.card import render_model_card
from export.endpoints import list_endpoints
from export.export_folder import JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats import web
from export.provenance import open_run


class TestCard:
    def test_card_agrees_with_the_files(self, exported):
        card = read_card(exported)
        files = {path.name: path.stat().st_size for path in (exported / "onnx").iterdir()}
        assert card["formats"]["onnx"]["bytes"] == files
        assert card["formats"]["onnx"]["files"] == sorted(f"onnx/{name}" for name in files)
        assert card["formats"]["savedmodel"]["files"] == ["savedmodel/1"]
        for name, endpoint in card["endpoints"].items():
            if endpoint["onnx"]:
                model = onnx.load(exported / endpoint["onnx"])
                stated = {entry.key: entry.value for entry in model.metadata_props}
                assert stated.pop("endpoint") == name and stated["precision"] == "float32"
                assert stated == {key: card[key] for key in stated}
                assert {"run", "step", "averaged", "config_sha256", "image_shape", "n_bits", "d_z", "crop"} <= {*stated}
        assert (exported / TEXT_NAME).read_text() == render_model_card(card)
        inner = json.loads((exported / "savedmodel" / "1" / "assets.extra" / JSON_NAME).read_text())
        assert inner == card

    def test_card_states_parity_and_round_trip_of_every_endpoint(self, exported, opened):
        card = read_card(exported)
        every = {one.name: {output.name for output in one.outputs} for one in list_endpoints(opened[0].config)}
        with_onnx = {one.name for one in list_endpoints(opened[0].config) if one.onnx}
        for name, expected in {"savedmodel": set(every), "onnx": with_onnx}.items():
            entry = card["formats"][name]
            parity = {key: set(outputs) for key, outputs in entry["parity"].items()}
            assert parity == {key: every[key] for key in expected}
            assert all(trip["identical"] == trip["images"] > 0 for trip in entry["round_trip"].values())
            assert set(entry["round_trip"]) == {"real", "black", "white", "noise", "0/255 noise", "checkerboard"}
        text = (exported / TEXT_NAME).read_text()
        assert all(f"| `{key}` |" in text and f"| {key} |" in text for key in every)
        assert "nan" not in text.lower().split()

    def test_card_of_a_run_that_averages_has_its_metrics(self, quick, monkeypatch, finished_run, command, tmp_path):
        monkeypatch.setattr(pipeline, "open_run", open_run)
        assert command("--format", "savedmodel", "--name", "my faces/2", run=finished_run)[::2] == (0, "")
        card, text = read_card(tmp_path / "to"), (tmp_path / "to" / TEXT_NAME).read_text()
        summary = json.loads((finished_run / "summary.json").read_text())
        named = {"name": "my-faces-2", "run": "run", "step": str(summary["best_step"]), "averaged": "true"}
        assert {key: card[key] for key in named} == named
        validation, test = summary["validation_bits_per_dim"], summary["test"]["bits_per_dim"]
        assert card["bits_per_dim"] == {"validation": validation, "test": test, "test_images": 5}
        assert f"run run, step {card['step']}, averaged" in text and f"{test:.3f} on 5 test images" in text
        assert "my-faces-2" in (tmp_path / "to" / "models.config").read_text()

    def test_card_leaves_out_metrics_that_are_not_finite(self, tiny_run, tmp_path):
        run = shutil.copytree(tiny_run, tmp_path / "tiny")
        summary = {"best_step": 1, "validation_bits_per_dim": None, "test": {"bits_per_dim": None, "images": 5}}
        (run / "summary.json").write_text(json.dumps(summary))
        assert open_run(run)[1].bits_per_dim is None

    def test_damaged_summary_is_reported_and_left_out(self, quick, monkeypatch, tiny_run, command, tmp_path):
        run = shutil.copytree(tiny_run, tmp_path / "tiny")
        (run / "summary.json").write_text('{"best_step": 1, "te')
        monkeypatch.setattr(pipeline, "open_run", open_run)
        status, out, err = command("--format", "savedmodel", run=run)
        assert (status, err) == (0, "")
        assert out.count("summary.json cannot be used and is left out: Unterminated string") == 1
        assert read_card(tmp_path / "to")["bits_per_dim"] is None


class TestWeb:
    def test_page_is_complete_and_alone(self, quick, command, runtime, tmp_path, opened):
        status, out, err = command("--format", "web", "--web-runtime", runtime)
        assert (status, err) == (0, "")
        page = tmp_path / "to" / "web"
        assert str(page) in out.splitlines()
        assert {path.name for path in (tmp_path / "to").iterdir()} == {"web", JSON_NAME, TEXT_NAME, MANIFEST, VECTORS}
        assert set(read_card(tmp_path / "to")["formats"]) == {"web"}
        assert {path.name for path in page.iterdir()} == {*(p.name for p in web.PAGE.iterdir()), "model", "runtime"}
        for path in web.PAGE.iterdir():
            assert (page / path.name).read_bytes() == path.read_bytes()
        assert read_tree(page / "runtime") == read_tree(runtime / "dist")
        config = json.loads((page / "model" / "config.json").read_text())
        examples = config.pop("examples")
        # The run was trained on the sample photographs, so some examples of the page were seen in training.
        assert {example["seen"] for example in examples} == {True, False}
        pictures = {example["file"].removeprefix("model/") for example in examples}
        assert {path.name for path in (page / "model").iterdir()} == {*ON_PAGE, "config.json", *pictures}
        for name in pictures:
            with Image.open(page / "model" / name) as picture:
                assert picture.mode == "RGB" and max(picture.size) <= web.EXAMPLE_SIDE
        sizes = {f"model/{name}": (page / "model" / name).stat().st_size for name in ON_PAGE}
        sizes |= {f"runtime/{name}": 100 + number for number, name in enumerate(web.RUNTIME_FILES)}
        known = {"name": "tiny", "image_shape": [8, 8, 3], "n_bits": 8, "centre_crop": 0, "latent_dim": 4}
        known |= {"bits_per_dim": None, "data": opened[1].data, "sizes": sizes, "web_gpu": False}
        assert known.items() <= config.items()
        size = sum(path.stat().st_size for path in page.rglob("*") if path.is_file())
        assert f"{size / 1e6:.1f} MB" in (tmp_path / "to" / TEXT_NAME).read_text()

    def test_runtime_for_graphics_cards_comes_only_on_request(self, quick, command, refused, runtime, tmp_path):
        line = refused("--format", "web", "--web-runtime", runtime, "--web-gpu")
        assert web.GPU_FILES[2] in line
        for name in web.GPU_FILES:
            (runtime / "dist" / name).write_bytes(b"for cards")
        for options, files in (((), web.RUNTIME_FILES), (("--web-gpu",), web.RUNTIME_FILES + web.GPU_FILES)):
            to = tmp_path / str(len(options))
            assert command("--format", "web", "--web-runtime", runtime / "dist", *options, to=to)[0] == 0
            assert {path.name for path in (to / "web" / "runtime").iterdir()} == {*files}
            config = json.loads((to / "web" / "model" / "config.json").read_text())
            assert config["web_gpu"] == bool(options)

    def test_runtime_that_is_missing_is_refused_before_anything_takes_time(self, quick, refused, monkeypatch, tmp_path):
        monkeypatch.setattr(pipeline, "make_test_vectors", lambda *_, **__: pytest.fail("this takes time"))
        line = refused("--format", "web", "--web-runtime", tmp_path)
        assert str(tmp_path) in line and web.RUNTIME_FILES[2] in line
        monkeypatch.setenv("PATH", str(tmp_path))
        line = refused("--format", "web")
        assert "there is no npm here" in line and "--web-runtime" in line
