import hashlib
import json
import os
import shutil
import types
from functools import partial

import numpy as np
import pytest
from helpers.exporting import ON_PAGE, list_onnx_names, read_vectors
from helpers.program_inputs import write_onnx_models
from helpers.refusals import refused
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from export import show_progress
from export.export_folder import MANIFEST, TEXT_NAME, load_manifest
from export.formats.runtimes import WARMUP_FILE, SavedModel
from export.pipeline import export
from export.verification import verify
from export.verification.comparison import Report, compare_files
from tfdecouple.cli import main
from tfdecouple.errors import EXIT_FAILED
from tfdecouple.storage.files import FileDigest

NOT_CHECKED = "its answers were not checked, since files of it are not as they were exported"


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "exported")


@pytest.fixture
def files_alone(monkeypatch):
    monkeypatch.setattr(verify, "compare_in_process", lambda *_, **__: Report())


def refuse(capsys, folder, *options, status=2):
    return refused(capsys, lambda: main(["export", "--verify", str(folder), *options]), begun=True, status=status)


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def list_in_manifest(folder, *names):
    """Gives files their lines in the manifest, as anybody can who changes a file."""
    digests = {name: FileDigest.from_file(folder / name).model_dump() for name in names}
    edit_manifest(folder, lambda manifest: manifest["files"].update(digests))


class TestManifest:
    def test_manifest_has_the_digest_of_every_file(self, exported):
        listed = json.loads((exported / MANIFEST).read_text())["files"]
        there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
        assert {*listed} == there - {MANIFEST}
        assert all(FileDigest.from_file(exported / name).model_dump() == digest for name, digest in listed.items())

    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", '{"format": 2}', '{"format": 1, "parts": [], "files": {}}',
            '{"format": 1, "parts": {"onnx": {"encode": "../x"}}, "files": {}}',
            '{"format": 1, "parts": {"savedmodel": {}}, "files": {}}',
            '{"format": 1, "parts": {}, "files": {"../../etc/passwd": {"sha256": "0", "bytes": 1}}}',
            "[" * 100_000, '{"format": "\\ud800"}', b"\xff\xfe\x00",
        ],
    )  # fmt: skip
    def test_damaged_manifest_is_refused_in_one_line(self, tmp_path, capsys, text):
        (tmp_path / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        line = refuse(capsys, tmp_path)
        assert line.startswith(f"error: {tmp_path / MANIFEST} is no manifest")

    def test_missing_manifest_or_folder_is_refused_in_one_line(self, tmp_path, capsys):
        for folder in (tmp_path, tmp_path / "none"):
            assert refuse(capsys, folder).startswith(f"error: there is no {folder / MANIFEST}; ")

    def test_digest_of_the_manifest_is_printed_and_compared(self, copy, files_alone, capsys):
        digest = hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest()
        for expected in ([], ["--expect", digest.upper()]):
            assert main(["export", "--verify", str(copy), *expected]) == 0
            assert f"manifest.json has the SHA-256 {digest}\n" in capsys.readouterr().out
        (copy / TEXT_NAME).write_text("# other\n")
        list_in_manifest(copy, TEXT_NAME)
        assert main(["export", "--verify", str(copy)]) == 0
        capsys.readouterr()
        assert f"expected {digest}" in refuse(capsys, copy, "--expect", digest, status=EXIT_FAILED)


# Changes of an export folder.


def change_byte(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[100] ^= 1
    (folder / name).write_bytes(content)


def add_file(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")


def replace_by_link(folder, name):
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def list_new_file(folder, name):
    add_file(folder, name)
    list_in_manifest(folder, name)


def drop_part(folder):
    edit_manifest(folder, lambda manifest: manifest["parts"].pop("savedmodel/1"))


def drop_part_and_files(folder):
    drop_part(folder)
    shutil.rmtree(folder / "savedmodel")
    names = [name for name in load_manifest(folder).files if name.startswith("savedmodel/")]
    edit_manifest(folder, lambda manifest: [manifest["files"].pop(name) for name in names])


def edit_settings(folder, old, new):
    path = folder / "models.config"
    path.write_text(path.read_text().replace(old, new, 1))


VARIABLES = "savedmodel/1/variables/variables.data-00000-of-00001"
CHANGES = [
    (lambda folder: os.truncate(folder / "onnx/encoder.onnx", 1000), "changed: onnx/encoder.onnx"),
    (partial(change_byte, name=VARIABLES), f"changed: {VARIABLES}"),
    (lambda folder: (folder / TEXT_NAME).unlink(), "missing: MODEL_CARD.md"),
    (lambda folder: (folder / "onnx/sampler.onnx").unlink(), "missing: onnx/sampler.onnx"),
    *((partial(replace_by_link, name=name), f"link: {name}") for name in ("onnx/encoder.onnx", MANIFEST, "onnx")),
    # Hidden files, and a whole version that another export has made.
    *(
        (partial(add_file, name=name), f"unknown: {name}")
        for name in (".exports.sh", "onnx/.export", "onnx/more.onnx", "savedmodel/2/saved_model.pb")
    ),
    # A server takes an empty folder for a version.
    (lambda folder: (folder / "savedmodel/2/a").mkdir(parents=True), "unknown: savedmodel/2/a"),
    # Files that no export writes, even if the manifest lists them.
    *(
        (partial(list_new_file, name=name), f"no part of the export: {name}")
        for name in (
            *("install.sh", "numpy.py", "Models.config", "onnx/weights.bin", "onnx/deep/encoder.onnx", "more.npz"),
            *("savedmodel/1/assets/vocabulary.txt", "savedmodel/1/saved_model.pbtxt", "savedmodel/2/saved_model.pb"),
        )
    ),
    # A part that is dropped with its lines, and perhaps with its files, while another part is left.
    (drop_part, "no part of the export: savedmodel/1/saved_model.pb"),
    (drop_part_and_files, "no part of the export: savedmodel/1"),
    (
        partial(edit_settings, old='name: "tiny"', new='name: "other"'),
        "models.config names other and not the model tiny",
    ),
    (partial(edit_settings, old="config {", new="config { port: 8500"), "models.config cannot be read: "),
]


class TestFiles:
    @pytest.mark.parametrize(("change", "problem"), CHANGES, ids=[problem for _, problem in CHANGES])
    def test_changed_file_is_found_and_its_part_does_not_run(self, copy, monkeypatch, change, problem):
        ran = []
        monkeypatch.setattr(verify, "compare_in_process", lambda *given: ran.append(given[1].name) or Report())
        change(copy)
        problems = verify.verify_folder(copy)[0]
        assert any(line.startswith(problem) for line in problems), problems
        parts = [] if "link: manifest" in problem else load_manifest(copy).parts
        changed = [part for part in parts if problem.partition(": ")[2].startswith(f"{part}/")]
        assert all(f"{part}: {NOT_CHECKED}" in problems and part.rpartition("/")[2] not in ran for part in changed)

    def test_settings_of_a_server_may_be_edited(self, copy, files_alone):
        (copy / "batching.config").write_text("max_batch_size { value: 8 }\n")
        said = []
        with show_progress(said.append):
            assert verify.verify_folder(copy) == ([], [])
        assert "changed: batching.config (settings of a server, which are yours to edit)" in said
        count = len(load_manifest(copy).files)
        assert f"{count - 1} of {count} files are as they were exported" in said


@pytest.mark.usefixtures("forked")
class TestAnswers:
    def test_unchanged_export_passes_verification(self, exported, capsys):
        assert main(["export", "--verify", str(exported)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "onnx: CPUExecutionProvider\n" in out and "savedmodel/1: tensorflow\n" in out
        assert out.endswith(f"{exported}: all files are unchanged, and all outputs agree with the stored ones\n")

    def test_endpoint_that_the_manifest_leaves_out_is_missed(self, copy):
        edit_manifest(copy, lambda manifest: manifest["parts"]["onnx"].pop("decode"))
        edit_manifest(copy, lambda manifest: manifest["parts"]["savedmodel/1"].pop("decode"))
        problems = "\n".join(verify.verify_folder(copy)[0])
        assert "the files are decoder.onnx, encoder.onnx, sampler.onnx; expected encoder.onnx, sa" in problems
        assert "savedmodel/1" in problems

    @pytest.mark.usefixtures("quick")
    def test_page_is_verified_with_its_own_models(self, tiny_run, runtime, tmp_path, monkeypatch):
        export(run=tiny_run, to=tmp_path / "to", formats=("web",), web_runtime=runtime)
        calls = []
        monkeypatch.setattr(verify, "compare_in_process", lambda *given: calls.append(given) or Report())
        assert verify.verify_folder(tmp_path / "to")[0] == []
        ((name, folder, _, options),) = calls
        assert (name, folder.name) == ("web", "model")
        assert {f"{name}.onnx" for name in options["names"].values()} == {*ON_PAGE}

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_provider_that_cannot_start_does_not_pass_as_another(self, exported, model):
        names, provider = list_onnx_names(model.config), "CUDAExecutionProvider"
        report = compare_files("onnx", exported / "onnx", read_vectors(exported), names, provider)
        assert report.notes["unavailable"] == provider and report.parity == {}


ENDLESS = """
    encoder (float[n, 2] images) => (float[n, 2] z) {
        times = Constant <value = int64 {4611686018427387904}> ()
        go = Constant <value = bool {1}> ()
        z = Loop <body = body (int64 i, bool on, float[n, 2] z_in) => (bool more, float[n, 2] z_out) {
            more = Identity (on)
            z_out = Identity (z_in)
        }> (times, go, images)
    }
"""
OPTIONS = {"names": {"encode": "encoder"}}


def test_file_with_an_endless_loop_ends_its_verification(tmp_path, monkeypatch, forked):
    write_onnx_models(tmp_path / "onnx", {"encoder": ENDLESS})
    values = {f"out/encode/z/{name}": np.zeros((1, 2), np.float32) for name in ("values", "bound", "n_bins")}
    values |= {"in/encode/images": np.zeros((1, 2), np.float32), "weights/NCHW": np.zeros(0, "U64")}
    np.savez_compressed(tmp_path / "vectors.npz", batches=np.array([1]), **values)
    monkeypatch.setattr(verify, "PATIENCE", 4)
    (problem,) = verify.compare_in_process("onnx", tmp_path / "onnx", tmp_path / "vectors.npz", OPTIONS).problems
    assert "no progress for too long" in problem


def test_warm_up_requests_of_a_terabyte_are_refused_before_tensorflow_reads_them(tmp_path):
    header = (2**40).to_bytes(8, "little")
    (tmp_path / WARMUP_FILE).parent.mkdir()
    (tmp_path / WARMUP_FILE).write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + bytes(64))
    with pytest.raises(ValueError, match="record 0 claims 1,099,511,627,776 bytes"):
        SavedModel.check_attachments(types.SimpleNamespace(folder=tmp_path), {})


def test_test_vectors_that_expand_to_gigabytes_are_a_problem(tmp_path, forked):
    np.savez_compressed(tmp_path / "vectors.npz", zeros=np.zeros(2**29, np.uint8))
    (problem,) = verify.compare_in_process("onnx", tmp_path, tmp_path / "vectors.npz", OPTIONS).problems
    assert "its arrays would take 536,871,040 bytes" in problem
