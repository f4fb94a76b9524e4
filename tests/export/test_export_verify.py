"""Verification of an export folder where it lies: the manifest, `--verify`, and what later exports record."""

import hashlib
import importlib.util
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from helpers.exporting import ON_PAGE, ignore_message, read_vectors
from onnx import numpy_helper

from export.card import TEXT_NAME
from export.cli import EXIT_REFUSED, main
from export.endpoints import list_onnx_names
from export.export_folder import MANIFEST, VECTORS, Manifest, load_manifest
from export.pipeline import ExportConfig, export
from export.provenance import open_run
from export.verification import verify
from export.verification.comparison import Report, compare_files
from tfdecouple.storage.files import FileDigest

PARTS = ("savedmodel/1", "onnx")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of an export, to be changed."""
    return shutil.copytree(exported, tmp_path / "exported")


@pytest.fixture
def files_alone(monkeypatch):
    """Leaves the answers out, so that only files are compared."""
    monkeypatch.setattr(verify, "compare_in_process", lambda *_, **__: Report())


def problems_of(folder):
    said = []
    return verify.verify_folder(folder, said.append)[0], said


class TestManifest:
    def test_has_the_digest_of_every_file(self, exported):
        listed = json.loads((exported / MANIFEST).read_text())["files"]
        there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
        assert {*listed} == there - {MANIFEST}
        assert all(FileDigest.from_file(exported / name).model_dump() == digest for name, digest in listed.items())
        assert "onnx/encoder.onnx" in listed and "savedmodel/1/assets.extra/model_card.json" in listed

        names = {"out/encode/v/values", "in/sample/v_noise", "kept/black", "weights/NCHW", "weights/NHWC"}
        assert names <= {*read_vectors(exported)}
        (path,) = (exported / VECTORS).iterdir()
        assert path.stat().st_size < 1_000_000

    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", '{"format": 2}', '{"format": 1, "parts": [], "files": {}}',
            '{"format": 1, "parts": {"onnx": {"names": {}, "vectors": "/etc/x"}}, "files": {}}',
            '{"format": 1, "parts": {"onnx": {"names": {"encode": "../x"},'
            ' "vectors": "test_vectors/0123456789abcdef.npz"}}, "files": {}}',
            '{"format": 1, "parts": {"savedmodel": {"names": {}, "vectors": "test_vectors/0123456789abcdef.npz"}},'
            ' "files": {}}',
            '{"format": 1, "parts": {}, "files": {"../../etc/passwd": {"sha256": "0", "bytes": 1}}}',
            "[" * 100_000, '{"format": "\\ud800"}', b"\xff\xfe\x00",
        ],
    )  # fmt: skip
    def test_damaged_one_is_one_line(self, tmp_path, capsys, text):
        (tmp_path / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        assert main(["--verify", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path / MANIFEST} is no manifest") and err.count("\n") == 1, err


@pytest.mark.usefixtures("forked")
class TestVerify:
    def test_unchanged_export_passes(self, exported, capsys):
        assert main(["--verify", str(exported)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "onnx: CPUExecutionProvider\n" in out and "savedmodel/1: tensorflow\n" in out
        assert out.endswith(f"{exported} is as it was exported, and answers as the model did\n")

    def test_folder_without_a_manifest_and_one_that_does_not_exist(self, tmp_path, capsys):
        assert main(["--verify", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path} has no manifest.json") and err.count("\n") == 1
        assert main(["--verify", str(tmp_path / "none")]) == 2
        assert capsys.readouterr().err == f"error: there is no export folder {tmp_path / 'none'}\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--verify", "a", "--run", "b"], "--verify takes an export folder and neither --run nor --to"),
            (["--run", "a"], "--run and --to are needed, or --verify"),
            (["--run", "a", "--to", "b", "--expect", "c"], "--expect belongs to --verify"),
        ],
    )
    def test_arguments_that_do_not_go_together(self, arguments, said, capsys):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2 and capsys.readouterr().err.endswith(f"error: {said}\n")

    def test_each_file_that_changed_is_a_line(self, copy, files_alone):
        os.truncate(copy / "onnx" / "encoder.onnx", 1000)
        with (copy / "savedmodel" / "1" / "variables" / "variables.data-00000-of-00001").open("r+b") as file:
            file.seek(100)
            byte = file.read(1)
            file.seek(100)
            file.write(bytes([byte[0] ^ 1]))
        (copy / TEXT_NAME).unlink()
        (copy / "onnx" / "sampler.onnx").unlink()
        (copy / "onnx" / "more.onnx").touch()
        assert problems_of(copy)[0] == [
            "unknown: onnx/more.onnx",
            "missing: MODEL_CARD.md",
            "changed: onnx/encoder.onnx",
            "missing: onnx/sampler.onnx",
            "changed: savedmodel/1/variables/variables.data-00000-of-00001",
            *(
                f"{part}: its answers were not checked, since files of it are not as they were exported"
                for part in PARTS
            ),
        ]

    def test_settings_of_a_server_may_be_edited(self, copy, files_alone):
        (copy / "batching.config").write_text("max_batch_size { value: 8 }\n")
        problems, said = problems_of(copy)
        assert problems == []
        assert "changed: batching.config (settings of a server, which are yours to edit)" in said
        count = len(load_manifest(copy).files)
        assert f"{count - 1} of {count} files are as they were exported" in said

    @pytest.mark.parametrize("name", ["onnx/encoder.onnx", MANIFEST, "onnx"])
    def test_what_is_replaced_by_a_link_to_the_same_is_refused(self, copy, files_alone, tmp_path, name):
        (copy / name).rename(tmp_path / "elsewhere")
        (copy / name).symlink_to(tmp_path / "elsewhere")
        assert f"link: {name}" in problems_of(copy)[0]

    def test_what_is_hidden_or_was_not_exported_is_refused(self, copy, files_alone):
        names = [".export-killed/more", ".export.lock", ".exports.sh", "onnx/.export", "savedmodel/2/x"]
        for name in names:
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).touch()
        assert problems_of(copy)[0] == [f"unknown: {name}" for name in names]

    def test_empty_folder_is_refused_for_a_server_would_take_it_for_a_version(self, copy, files_alone):
        (copy / "savedmodel" / "2" / "a").mkdir(parents=True)
        assert problems_of(copy)[0] == ["unknown: savedmodel/2/a"]

    def test_endpoint_that_is_dropped_from_a_part_is_refused(self, copy, capsys, monkeypatch):
        whole = json.loads((copy / MANIFEST).read_text())
        del whole["parts"]["onnx"]["names"]["decode"]
        (copy / MANIFEST).write_text(json.dumps(whole))

        def run(runtime, folder, vectors, options, report):
            return compare_files(runtime, folder, read_vectors(copy), **options) if runtime == "onnx" else Report()

        monkeypatch.setattr(verify, "compare_in_process", run)
        assert main(["--verify", str(copy)]) == EXIT_REFUSED
        assert (
            "the files are decoder.onnx, encoder.onnx, sampler.onnx; expected encoder.onnx, sa"
            in capsys.readouterr().err
        )

    def test_part_is_run_where_its_name_says_and_by_the_runtime_of_its_name(self, copy, monkeypatch):
        shutil.copytree(copy / "savedmodel" / "1", copy / "savedmodel" / "2")
        whole = json.loads((copy / MANIFEST).read_text())
        whole["parts"]["savedmodel/2"] = whole["parts"]["savedmodel/1"]
        for name in [name for name in whole["files"] if name.startswith("savedmodel/1/")]:
            whole["files"][name.replace("/1/", "/2/")] = whole["files"][name]
        (copy / MANIFEST).write_text(json.dumps(whole))
        run = []
        monkeypatch.setattr(verify, "compare_in_process", lambda *given: run.append(given[:2]) or Report())
        assert problems_of(copy)[0] == []
        folders = {"onnx": ["onnx"], "savedmodel": ["savedmodel/1", "savedmodel/2"]}
        assert sorted(run) == sorted((name, (copy / one).resolve()) for name, ones in folders.items() for one in ones)

    def test_settings_that_name_another_model_are_refused(self, copy, files_alone):
        path = copy / "models.config"
        text = path.read_text()
        path.write_text(text.replace('name: "tiny"', 'name: "other"'))
        assert problems_of(copy)[0] == ["models.config names other and not the model tiny"]
        path.write_text(text.replace("config {", "config { model_version_policy { all {} }", 1) + "}")
        assert problems_of(copy)[0][0].startswith("models.config cannot be read: ")

    @pytest.mark.parametrize("removed", [False, True])
    def test_part_that_is_dropped_with_its_line_is_refused_where_another_is_left(self, copy, files_alone, removed):
        whole = json.loads((copy / MANIFEST).read_text())
        del whole["parts"]["savedmodel/1"]
        if removed:
            shutil.rmtree(copy / "savedmodel")
            whole["files"] = {name: one for name, one in whole["files"].items() if not name.startswith("savedmodel/")}
        (copy / MANIFEST).write_text(json.dumps(whole))
        assert any(line.startswith("no part of the export: savedmodel/1") for line in problems_of(copy)[0])

    @pytest.mark.parametrize(
        "name",
        [
            "install.sh",
            "numpy.py",
            "Models.config",
            "onnx/weights.bin",
            "onnx/deep/encoder.onnx",
            "savedmodel/1/assets/vocabulary.txt",
            "savedmodel/1/saved_model.pbtxt",
            "test_vectors/0123456789abcdef.npz",
        ],
    )
    def test_file_that_no_export_writes_is_refused_even_if_the_manifest_lists_it(self, copy, files_alone, name):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("x")
        whole = json.loads((copy / MANIFEST).read_text())
        whole["files"][name] = FileDigest.from_file(copy / name).model_dump()
        (copy / MANIFEST).write_text(json.dumps(whole))
        assert problems_of(copy)[0] == [f"no part of the export: {name}"]

    def test_digest_of_the_manifest_is_printed_and_compared(self, copy, files_alone, capsys):
        digest = hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest()
        for expected in ([], ["--expect", digest.upper()]):
            assert main(["--verify", str(copy), *expected]) == 0
            assert f"manifest.json has the SHA-256 {digest}\n" in capsys.readouterr().out
        # A file and its line are changed together.
        (copy / TEXT_NAME).write_text("# other\n")
        whole = json.loads((copy / MANIFEST).read_text())
        whole["files"][TEXT_NAME] = FileDigest.from_file(copy / TEXT_NAME).model_dump()
        (copy / MANIFEST).write_text(json.dumps(whole))
        assert main(["--verify", str(copy)]) == 0
        capsys.readouterr()
        assert main(["--verify", str(copy), "--expect", digest]) == EXIT_REFUSED
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"expected {digest}" in err

    def test_name_of_an_unknown_file_is_printed_in_one_line_without_escapes(self, copy, files_alone, capsys):
        (copy / "onnx" / "a\nb\x1b[2J").touch()
        assert main(["--verify", str(copy)]) == EXIT_REFUSED
        assert capsys.readouterr().err.endswith(": unknown: onnx/a b\\x1b[2J\n")

    def test_many_problems_are_the_first_five_and_a_count_in_one_line(self, copy, files_alone, capsys):
        for number in range(173):
            (copy / f"{number:03}").touch()
        assert main(["--verify", str(copy)]) == EXIT_REFUSED
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "173 problems: " in err and "unknown: 004; and 168 more" in err
        assert "unknown: 005" not in err

    @pytest.mark.parametrize("started", [True, False])
    def test_what_did_not_run_is_named_and_not_said_to_answer(self, copy, capsys, monkeypatch, started):
        # Nobody here can open the files of one part, and one of the other part's runtimes does not start.
        whole = json.loads((copy / MANIFEST).read_text().replace("savedmodel/1", "litert"))
        (copy / MANIFEST).write_text(json.dumps(whole))
        (copy / "savedmodel" / "1").rename(copy / "litert")
        (copy / "savedmodel").rmdir()
        monkeypatch.setattr(Manifest, "find_stray_files", lambda *_: [])
        find = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "litert" in name else find(name))
        providers = ["CUDAExecutionProvider", "AzureExecutionProvider", *(["CPUExecutionProvider"] if started else [])]
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
        asked = []

        def run(runtime, folder, vectors, options, report):
            asked.append(options["provider"])
            return Report(notes={"unavailable": asked[-1]} if "CUDA" in asked[-1] else {})

        monkeypatch.setattr(verify, "compare_in_process", run)
        assert main(["--verify", str(copy)]) == 0
        out = capsys.readouterr().out
        onnx_part = "onnx by CUDAExecutionProvider" if started else "onnx"
        assert out.endswith(f"{copy} is as it was exported; answers were not checked of litert, {onnx_part}\n")
        assert "litert: ai-edge-litert is not installed here: not checked" in out
        assert asked == [name for name in providers if "Azure" not in name]
        assert "onnx: AzureExecutionProvider computes on a server elsewhere: not checked" in out
        assert "onnx: CUDAExecutionProvider is installed but cannot be started here: not checked" in out

    def test_answers_are_compared_even_where_digests_agree(self, copy, monkeypatch, capsys):
        # Whoever can change a file can change the manifest.
        path = copy / "onnx" / "decoder.onnx"
        model = onnx.load(path)
        tensor = next(one for one in model.graph.initializer if one.dims and one.data_type == onnx.TensorProto.FLOAT)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
        onnx.save(model, path)
        whole = json.loads((copy / MANIFEST).read_text())
        whole["files"]["onnx/decoder.onnx"] = FileDigest.from_file(path).model_dump()
        (copy / MANIFEST).write_text(json.dumps(whole))

        def run(runtime, folder, vectors, options, report):
            return compare_files(runtime, folder, read_vectors(copy), **options) if runtime == "onnx" else Report()

        monkeypatch.setattr(verify, "compare_in_process", run)
        assert main(["--verify", str(copy)]) == EXIT_REFUSED
        err = capsys.readouterr().err
        assert "onnx: CPUExecutionProvider: weight decoder.onnx: " in err and err.count("\n") == 1

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_provider_that_cannot_start_does_not_pass_as_another(self, exported, tiny_run):
        names = list_onnx_names(open_run(tiny_run)[0].config)
        provider = "CUDAExecutionProvider"
        report = compare_files("onnx", exported / "onnx", read_vectors(exported), names, provider)
        assert report.notes["unavailable"] == provider and report.parity == {}


@pytest.mark.usefixtures("quick")
class TestWhatIsPublished:
    def test_page_is_verified_with_its_own_models(self, tiny_run, runtime, tmp_path, monkeypatch):
        export(ExportConfig(run=tiny_run, to=tmp_path / "to", formats=("web",), web_runtime=runtime), ignore_message)
        seen = []

        def run(runtime, folder, vectors, options, report):
            seen.append((runtime, folder.name, sorted(f"{name}.onnx" for name in options["names"].values())))
            return Report()

        monkeypatch.setattr(verify, "compare_in_process", run)
        assert problems_of(tmp_path / "to")[0] == []
        assert seen == [("web", "model", sorted(ON_PAGE))]

    def test_second_export_keeps_the_digests_of_the_first(self, tiny_run, tmp_path, files_alone):
        to = tmp_path / "to"
        for _ in range(2):
            export(ExportConfig(run=tiny_run, to=to), ignore_message)
            assert problems_of(to)[0] == []
        assert {*json.loads((to / MANIFEST).read_text())["parts"]} == {"savedmodel/1", "savedmodel/2", "onnx"}
        assert len(list((to / VECTORS).iterdir())) == 1

    def test_what_was_removed_is_left_out_of_the_next_manifest(self, tiny_run, tmp_path, files_alone):
        to = tmp_path / "to"
        export(ExportConfig(run=tiny_run, to=to), ignore_message)
        for name in ("savedmodel/1", "onnx"):
            shutil.rmtree(to / name)
        (to / "client.py").unlink()
        (to / TEXT_NAME).unlink()
        export(ExportConfig(run=tiny_run, to=to, formats=("savedmodel",), version=2), ignore_message)
        assert problems_of(to)[0] == []
        assert {*load_manifest(to).parts} == {"savedmodel/2"}
