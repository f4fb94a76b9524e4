import dataclasses
import errno
import os

import onnx
import pytest
import tensorflow as tf
from helpers.exporting import read_card
from helpers.models import SMALL
from helpers.runs import write_run
from helpers.variants import fresh

from export import pipeline
from export.cli import EXIT_REFUSED
from export.export_folder import TEXT_NAME
from export.formats import web
from export.pipeline import ExportConfig, export
from export.verification.comparison import Report


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--format", "onxx"], "a format is 'onxx'; it must be one of 'savedmodel', 'onnx', 'litert', 'web'"),
            (["--endpoints", "decode", "score_all"], "this model has no endpoint 'score_all'; it has encode, "),
            (["--format", "onnx", "--endpoints", "encode"], "--endpoints encode is for the format savedmodel alone, "),
            (["--format", "onnx", "--version", "2"], "--version 2 is for the format savedmodel alone, and the formats"),
            (["--web-runtime", "x"], "web alone, and the formats are savedmodel, onnx; leave it out, or add web to --"),
            (["--web-gpu"], "--web-gpu is for the format web alone, and the formats"),
        ],
    )
    def test_mistake_in_the_command_is_refused(self, refused, arguments, message):
        assert message in refused(*arguments)

    def test_destination_below_a_file_is_refused(self, refused, tmp_path):
        (tmp_path / "file").touch()
        assert f"cannot write to {tmp_path / 'file' / 'to'}" in refused(to=tmp_path / "file" / "to")

    @pytest.mark.parametrize(("key", "wrong"), [("name", "other"), ("image_shape", [4, 4, 3]), ("n_bits", 5)])
    def test_page_that_describes_another_model_is_not_published(self, quick, refused, monkeypatch, runtime, key, wrong):
        describe = web.describe_model
        monkeypatch.setattr(web, "describe_model", lambda provenance: {**describe(provenance), key: wrong})
        line = refused("--format", "web", "--web-runtime", runtime, expected=EXIT_REFUSED)
        assert line.startswith(f"error: not published: web/model/config.json has {key} = {wrong}; expected ")

    @pytest.mark.parametrize("name", ["pipe", "link", ".hidden", ".hidden/file", "notes.txt"])
    def test_what_another_program_puts_among_the_files_is_not_published(self, quick, refused, monkeypatch, name):
        def plant(runtime, folder, vectors, options, report):
            (folder / name).parent.mkdir(exist_ok=True)
            if name == "pipe":
                os.mkfifo(folder / name)
            elif name == "link":
                (folder / name).symlink_to("encoder.onnx")
            else:
                (folder / name).touch()
            return Report()

        monkeypatch.setattr(pipeline, "compare_in_process", plant)
        line = refused("--format", "onnx", expected=EXIT_REFUSED)
        kind = "link" if name == "link" else "unknown"
        assert line.startswith("error: not published: ") and f"{kind}: onnx/{name}" in line

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor"), "out of memory (OOM when "),
            (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory (Cannot allocate memory); take fewer"),
            (tf.errors.ResourceExhaustedError(None, None, "a/b; No space left on device"), "device; free some space"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), "/to: Disk quota exceeded; free some space there\n"),
            (OSError(errno.EACCES, "Permission denied"), "/to: Permission denied\n"),
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "/to: No space left on device; free some space there\n"),
        ],
    )
    def test_lack_of_memory_and_disk_is_named(self, quick, refused, monkeypatch, error, said):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(pipeline, "compare_in_process", fail)
        assert said in refused()

    def test_broken_pipe_of_the_output_is_no_full_disk(self, quick, tiny_run, tmp_path):
        def gone(text):
            if "verifying" in text:
                raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            export(ExportConfig(run=tiny_run, to=tmp_path / "to"), gone)
        assert not (tmp_path / "to").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_model_without_z_is_exported_with_the_endpoints_that_it_has_and_without_a_page(refused, tmp_path):
    model = fresh(dataclasses.replace(SMALL, conditioning="none"))
    run, to = write_run(tmp_path / "plain", model), tmp_path / "exported"
    assert "this model has none; leave the format web out" in refused("--format", "web", run=run)
    export(ExportConfig(run=run, to=to), report=str)
    card = read_card(to)
    arrays = {}
    for name, endpoint in card["endpoints"].items():
        arrays[name] = tuple([array["name"] for array in endpoint[key]] for key in ("inputs", "outputs"))
    known = {"encode": (["images"], ["v"]), "decode": (["v"], ["images"])}
    known["sample"] = (["v_noise", "temperature"], ["images"])
    known["score"] = (["images", "u_noise"], ["bits_per_dim", "shell", "typicality"])
    assert known.items() <= arrays.items() and not {"encode_global", "switch", "interpolate", "edit"} & set(arrays)
    assert set(card["formats"]["savedmodel"]["parity"]) == {*arrays}
    assert card["architecture"]["latent_dim"] is None and card["d_z"] == "0"
    for endpoint in ("encode", "decode", "sample"):
        graph = onnx.load(to / card["endpoints"][endpoint]["onnx"]).graph
        assert arrays[endpoint] == tuple([value.name for value in values] for values in (graph.input, graph.output))
    text = (to / TEXT_NAME).read_text()
    assert "no z (an unconditional flow)" in text and '"z"' not in text
