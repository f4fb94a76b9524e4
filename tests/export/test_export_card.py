"""The model card: its words follow from its figures, and what it tells to run runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from helpers import cards
from helpers.models import SMALL
from helpers.onnx_texts import WITHOUT_Z, write_models
from helpers.places import ROOT
from helpers.variants import OF_CLASSES

from export.card import JSON_NAME, TEXT_NAME, card_text, exactness, licence_of, make_card, merged
from export.endpoints import endpoints
from export.origin import Origin, open_run, without_path
from tfdecouple.config import Config, DataConfig
from tfdecouple.runs.opened_run import load_model, save_run

LATENCY = {"encode": {"1": 1.0}}


def of_tiny() -> dict:
    """By what an entry is known to be of the model of `origin_of`."""
    return {"name": "tiny", "config_sha256": origin_of().metadata()["config_sha256"], "run": "tiny", "step": 1}


def entry(lost: int = 0, kind: str = "noise", **more: object) -> dict:
    trips = {"real": {"images": 21, "identical": 21}, kind: {"images": 4, "identical": 4 - lost}}
    parity = {"encode": {"v": {"max": 1e-6, "mean": 1e-8}}}
    files = {**of_tiny(), "files": ["onnx/encoder.onnx"], "latency_ms": LATENCY}
    return {**files, "parity": parity, "round_trip": trips, **more}


def origin_of(data: DataConfig | None = None, **options: object) -> Origin:
    config = Config(name="tiny", model=SMALL, data=data or DataConfig())
    values = {"step": 1, "averaged": False, "parameters": 1, "data": "any", "bits_per_dim": None, **options}
    return Origin("tiny", "tiny", config, **values)  # type: ignore[arg-type]


PAGE = {**of_tiny(), "files": ["web/index.html"], "checked": {}, "bytes": 34_900_000}


def card_of(formats: dict, **options: object) -> dict:
    origin = origin_of(**options)  # type: ignore[arg-type]
    return make_card(origin, endpoints(origin.config.model), "4 test images", formats)


class TestExactness:
    def test_is_promised_where_all_formats_returned_all_images(self) -> None:
        found = exactness(0.8, 8, {"onnx": entry(), "savedmodel": entry()})
        assert found["promised"] is True
        assert "every image that was tried: 21 real, 4 noise by onnx, savedmodel. Promised for" in found["meaning"]
        # Formats of an earlier export may have tried others.
        found = exactness(0.8, 8, {"onnx": entry(), "savedmodel": entry(kind="black")})
        assert "tried: 21 real, 4 noise by onnx; 21 real, 4 black by savedmodel. Promised for" in found["meaning"]

    @pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 0.99])
    def test_is_promised_for_no_more_than_images_like_the_real_ones(self, alpha) -> None:
        # No alpha keeps all: a model of alpha 0.5, docs/results/conditional, lost noise of 0 and 255 before patterns.
        results = ROOT / "docs" / "results"
        (row,) = [
            row
            for row in json.loads((results / "by_length.json").read_text())["rows"]
            if (row["run"], row["updates"]) == ("conditional", 46_000)
        ]
        config = Config.from_json(results / "conditional" / "config.json")
        assert config.model.alpha == 0.5 and config.training.patterns_after == 46_000 and row["noise_lost"] > 0
        meaning = exactness(alpha, 8, {"onnx": entry()})["meaning"]
        (promise,) = [sentence for sentence in re.split(r"(?<=\.) ", meaning) if "Promised" in sentence]
        assert promise.startswith("Promised for images like the real ones, of float32 files, within one runtime")
        assert promise.endswith("; an image that no camera takes can be lost.") and "any image" not in meaning

    @pytest.mark.parametrize("name", ["onnx", "savedmodel"])
    def test_is_not_promised_where_one_format_lost_one_image(self, name) -> None:
        formats = {"onnx": entry(), "savedmodel": entry()} | {name: entry(lost=1)}
        found = exactness(0.8, 8, formats)
        assert found["promised"] is False and "Promised for" not in found["meaning"]
        counts = "; ".join(f"{each} {24 if each == name else 25}" for each in ("onnx", "savedmodel"))
        assert "here of the kinds noise: of 25 images decode(encode(image))" in found["meaning"]
        assert f"the very same pixels of so many: {counts} (each kind below); all real" in found["meaning"]
        assert found["meaning"].endswith("; all real ones came back. Not promised.")

    def test_stays_short_however_many_kinds_are_lost(self) -> None:
        kinds = ("black", "white", "noise", "0/255 noise", "checkerboard", "real")
        trips = {kind: {"images": 64, "identical": 3, "model": 2, "model_gives_back": 3} for kind in kinds}
        formats = {name: {**entry(), "round_trip": trips} for name in ("onnx", "savedmodel")}
        text = card_text(card_of(formats))
        (line,) = [line for line in text.splitlines() if line.startswith("| exactness |")]
        assert len(line) < 300 and "onnx 18; savedmodel 18" in line
        # The figures of each kind stand with those of each format.
        assert text.count("0/255 noise 3 of 64 (the model itself gives back 3, surely keeps 2)") == 2

    def test_says_how_many_the_model_itself_keeps(self) -> None:
        lossy = entry(lost=3)
        lossy["round_trip"]["noise"] |= {"model": 1, "model_gives_back": 3}
        text = card_text(card_of({"onnx": lossy}))
        assert "real 21 of 21, noise 1 of 4 (the model itself gives back 3, surely keeps 1). Surely kept is" in text
        lossy["round_trip"]["noise"] = {"images": 4, "identical": 4, "model": 4, "model_gives_back": 4}
        assert "noise 4 of 4.\n" in card_text(card_of({"onnx": lossy}))

    def test_is_not_promised_at_alpha_1_whatever_came_back(self) -> None:
        found = exactness(1.0, 8, {"onnx": entry()})
        assert found["promised"] is False
        assert "was tried: 21 real, 4 noise by onnx. Not promised for others: alpha is 1," in found["meaning"]

    def test_of_additive_couplings_alpha_says_nothing(self) -> None:
        additive = dataclasses.replace(SMALL, transform="additive", multiscale_transform="additive")
        origin = dataclasses.replace(origin_of(), config=Config(model=additive))
        card = make_card(origin, endpoints(additive), "", {"onnx": entry()})
        assert card["exact"]["promised"] and card["architecture"]["alpha"] is None
        text = card_text(card)
        assert "parameters, additive couplings" in text and "alpha is" not in text

    def test_of_the_page_says_what_was_checked_there_and_borrows_nothing(self) -> None:
        found = exactness(0.8, 8, {"web": PAGE})
        assert found["promised"] is False and "was tried with none of these files" in found["meaning"]
        assert "web: in Python: not run; in Node: not run; in a browser: not run." in found["meaning"]
        checked = {**PAGE, "checked": {"python": "76 of 76 images", "browser": "64 of 64 images came back"}}
        text = card_text(card_of({"onnx": entry(), "web": checked}))
        said = "in Python: 76 of 76 images; in Node: not run; in a browser: 64 of 64 images came back"
        assert f"Checked {said}." in text and f"web: {said}." in text
        section = text.partition("### web")[2].partition("##")[0]
        assert "identical" not in section and "|" not in section

    def test_is_not_promised_where_nothing_was_tried_and_says_what_was_left_out(self) -> None:
        score = {**entry(), "round_trip": {}}
        text = card_text(card_of({"savedmodel": score}))
        assert "not measured: decode(encode(image)) was tried with none of these files." in text
        assert "Promised for" not in text and "0 by savedmodel" not in text and "Images identical" not in text
        assert exactness(0.8, 8, {"savedmodel": score})["promised"] is False
        both = exactness(0.8, 8, {"onnx": entry(), "savedmodel": score})
        assert both["promised"] is True and "21 real, 4 noise by onnx." in both["meaning"]
        assert both["meaning"].endswith("savedmodel: not tried, since its endpoints do not both encode and decode.")

    def test_with_fewer_bits_names_the_images(self) -> None:
        assert "multiples of 8." in exactness(0.8, 5, {"onnx": entry()})["meaning"]


def test_a_folder_of_images_is_told_by_its_name_alone() -> None:
    config = Config(data=DataConfig(source="folder:/home/somebody/photos"))
    assert without_path("images in /home/somebody/photos", config) == "images in photos"
    assert without_path("3 test images of images in /home/somebody/photos", config).endswith("of images in photos")
    assert without_path("TFDS cifar10", Config(data=DataConfig(source="cifar10", data_dir="/data"))) == "TFDS cifar10"


class TestMerged:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "encoder.onnx").touch()
        return tmp_path

    def test_words_follow_from_the_figures_of_an_earlier_export_too(self, folder) -> None:
        (folder / JSON_NAME).write_text(json.dumps(card_of({"onnx": entry(lost=1)})))
        now = card_of({"savedmodel": entry()})
        assert now["exact"]["promised"] is True
        whole = merged(now, folder)
        assert set(whole["formats"]) == {"onnx", "savedmodel"} and whole["exact"]["promised"] is False
        assert "of so many: onnx 24; savedmodel 25" in card_text(whole)

    def test_what_lies_there_no_more_is_not_spoken_of(self, folder) -> None:
        (folder / JSON_NAME).write_text(json.dumps(card_of({"onnx": entry(lost=1)})))
        (folder / "onnx" / "encoder.onnx").unlink()
        whole = merged(card_of({"savedmodel": entry()}), folder)
        assert set(whole["formats"]) == {"savedmodel"} and whole["exact"]["promised"] is True

    def test_files_of_another_model_are_named_and_nothing_is_said_for_them(self, folder) -> None:
        other = entry(lost=1, name="other", run="else", signatures=["interpolate"], files=["savedmodel/1"])
        (folder / "savedmodel" / "1").mkdir(parents=True)
        older = {key: value for key, value in entry().items() if key not in ("name", "config_sha256")}
        (folder / JSON_NAME).write_text(json.dumps(card_of({"savedmodel": other, "onnx": older})))
        page = {**PAGE, "files": ["onnx"]}
        whole = merged(card_of({"web": page}), folder)
        assert {*whole["formats"]} == {"web"} and {*whole["others"]} == {"savedmodel", "onnx"}
        assert whole["exact"]["promised"] is False and "25" not in whole["exact"]["meaning"]
        text = card_text(whole)
        assert "### savedmodel, of another model\n\nFrom run else, step 1, exported as other: savedmodel/1." in text
        assert "curl" not in text and "exported as what is not known: onnx/encoder.onnx." in text
        # They are kept until they are replaced, and are formats again of a card of their own model.
        (folder / JSON_NAME).write_text(json.dumps(whole))
        again = merged({**card_of({"web": page}), "name": "other"}, folder)
        assert {*again["formats"]} == {"savedmodel", "web"} and {*again["others"]} == {"onnx"}
        assert "others" not in merged(card_of({"savedmodel": entry(), "onnx": entry()}), folder)

    def test_onnx_files_are_named_where_they_lie(self, folder) -> None:
        def named(card):
            of_json = {one["onnx"] for one in card["endpoints"].values()} - {None}
            assert of_json == set(re.findall(r"onnx/\w+\.onnx(?= \|)", card_text(card)))
            return of_json

        every = card_of({"onnx": entry()})
        alone = card_of({"savedmodel": entry(files=["savedmodel/1"])})
        assert named(every) >= {"onnx/encoder.onnx", "onnx/decoder.onnx"} and named(alone) == set()
        # What an earlier export of the same model put there counts, also where another came in between.
        for name, right in {"tiny": named(every), "other": set(), "tiny once more": named(every)}.items():
            if name == "tiny":
                (folder / JSON_NAME).write_text(json.dumps(every))
            whole = merged({**alone, "name": name.split()[0]}, folder)
            assert named(whole) == right, name
            (folder / JSON_NAME).write_text(json.dumps(whole))

    def test_an_earlier_entry_that_cannot_be_told_counts_for_nothing(self, folder) -> None:
        half = {**entry(), "parity": 3}
        (folder / JSON_NAME).write_text(json.dumps(card_of({"onnx": half})))
        card = card_of({"web": PAGE})
        assert merged(card, folder) == card

    @pytest.mark.parametrize("text", ["[]", "{", '{"formats": [1]}', '{"formats": {"onnx": {}}}', '{"formats": null}'])
    def test_an_earlier_card_that_is_damaged_counts_for_nothing(self, folder, text) -> None:
        (folder / JSON_NAME).write_text(text)
        card = card_of({"savedmodel": entry()})
        assert merged(card, folder) == card


class TestRights:
    def test_an_import_says_data_unknown_and_claims_no_licence(self, tiny_run, tmp_path) -> None:
        run = tmp_path / "imported"
        shutil.copytree(tiny_run / "checkpoints", run / "checkpoints")
        config = json.loads((tiny_run / "config.json").read_text())
        config["description"] = "imported from a checkpoint of the reference, model.npz"
        (run / "config.json").write_text(json.dumps(config))
        # As `import_wolf` leaves it.
        (run / "summary.json").write_text(json.dumps({"imported_from": "some/model.npz", "parameters": {}}))
        _, origin = open_run(run)
        text = card_text(make_card(origin, endpoints(SMALL), "4 test images", {"onnx": entry()}))
        line = "".join(re.findall(r"\| (?:trained on|rights in the images) \|.*", text))
        assert "data unknown (imported from a checkpoint of the reference, model.npz)" in line
        assert "No licence is claimed" in line
        assert not re.search("CC0|CC BY|public domain|photograph", line)

    def test_a_model_that_was_saved_alone_claims_none_unless_its_config_says_more(self, tiny_run, tmp_path) -> None:
        model = load_model(tiny_run)
        save_run(model, tmp_path / "mine")
        save_run(model, tmp_path / "told", Config(model=SMALL, data=DataConfig(source="folder:/home/ada/faces")))
        # As it was left before there was a summary beside it.
        old = shutil.copytree(tmp_path / "mine", tmp_path / "old")
        (old / "summary.json").unlink()
        for run in ("mine", "old"):
            _, origin = open_run(tmp_path / run)
            card = make_card(origin, endpoints(SMALL), "any", {"onnx": entry()})
            assert card["data"]["source"] == "data unknown" and "No licence is claimed" in card["data"]["licence"]
        _, origin = open_run(tmp_path / "told")
        assert origin.images_known and origin.data == "folder:faces" and "No licence" not in licence_of(origin)

    def test_other_runs_say_whose_images_they_are(self) -> None:
        for source, said in {"photographs": "CC0", "cifar10": "Krizhevsky", "folder:faces": "not recorded"}.items():
            origin = dataclasses.replace(origin_of(DataConfig(source=source)), data=source)
            assert said in make_card(origin, endpoints(SMALL), "any", {"onnx": entry()})["data"]["licence"]


@pytest.fixture(scope="module")
def without_z(tmp_path_factory):
    """A folder of files of a model without z, and their card."""
    folder = tmp_path_factory.mktemp("without_z")
    origin = dataclasses.replace(origin_of(), config=Config(model=dataclasses.replace(SMALL, conditioning="none")))
    card = make_card(origin, endpoints(origin.config.model), "4 test images", {"onnx": entry()})
    (folder / JSON_NAME).write_text(json.dumps(card))
    (folder / TEXT_NAME).write_text(card_text(card))
    write_models(folder / "onnx", WITHOUT_Z)
    return folder


class TestCalls:
    """The blocks of the card; those of grey models, of labels and of LiteRT run where such are exported."""

    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_python(self, folder, request) -> None:
        cards.run_python(request.getfixturevalue(folder))

    def test_curl(self, exported) -> None:
        codes = cards.run_curl(exported)
        assert np.shape(codes["z"]) == (SMALL.latent_dim,) and np.shape(codes["v"]) == SMALL.image_shape

    @pytest.mark.slow
    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_javascript(self, folder, request, npm_example) -> None:
        cards.run_javascript(request.getfixturevalue(folder), npm_example("onnxruntime_node"))

    def test_of_a_model_that_encodes_by_labels_name_them(self) -> None:
        origin = dataclasses.replace(origin_of(), config=Config(name="tiny", model=OF_CLASSES["classes"]))
        formats = {name: entry() for name in ("savedmodel", "onnx", "litert")}
        text = card_text(make_card(origin, endpoints(origin.config.model), "4 test images", formats))
        for line in (
            "labels = np.zeros((1,), np.int32)",
            'z, v = encoder.run(None, {"images": images, "labels": labels})',
            'same = decoder.run(None, {"z": z, "v": v})[0]',
            'const labels = new ort.Tensor("int32", new Int32Array(1), [1]);',
            "const { z, v } = await encoder.run({ images, labels });",
            "codes = encoder(images=np.zeros((1, 4, 4, 3), np.uint8), labels=np.zeros((1,), np.int32))",
        ):
            assert f"\n{line}\n" in text, line
        assert '"instances": [{"images": [[[0] * 3] * 4] * 4, "labels": 0}]' in text

    def test_of_formats_that_are_not_there_nothing_is_told(self) -> None:
        text = card_text(card_of({"web": PAGE}))
        assert (
            "python3 -m http.server -d web" in text
            and "34.9 MB" in text
            and "onnxruntime" not in text.partition("## Calling it")[2]
        )


def test_says_of_a_flow_without_z_what_it_is() -> None:
    model = dataclasses.replace(SMALL, conditioning="none")
    origin = dataclasses.replace(origin_of(), config=Config(model=model))
    text = card_text(make_card(origin, endpoints(model), "", {"onnx": entry()}))
    assert "without a global code" in text and "decouples" not in text


def test_says_of_other_channels_that_a_file_has_exactly_so_many() -> None:
    config = Config(model=dataclasses.replace(SMALL, image_shape=(8, 4, 5)))
    card = make_card(dataclasses.replace(origin_of(), config=config), endpoints(config.model), "", {"onnx": entry()})
    text = card_text(card)
    assert "| architecture | 8 x 4 with 5 channels, 8 bits" in text
    assert "turned upright as their EXIF data say, with exactly 5 channels, cropped to the largest centre" in text
    assert "images = np.zeros((1, 8, 4, 5), np.uint8)" in text


def test_says_how_an_image_is_made_and_what_a_runtime_needs() -> None:
    text = card_text(card_of({"onnx": entry()}, data=DataConfig(source="folder:faces", centre_crop=140)))
    assert "cropped to the centre square of 140 pixels, or the largest, resized to 8 x 8 bilinear" in text
    for needed in ("NVIDIA_TF32_OVERRIDE=0", "use_tf32: 0", "INFERENCE_PRECISION_HINT: f32"):
        assert needed in text
