"""What an export of large images takes the time for: nothing is asked, traced or tried twice."""

import itertools
import random
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.models import SMALL
from helpers.places import PATIENCE
from helpers.variants import fresh
from tensorflow.core.protobuf import saved_model_pb2

from export import client, pipeline
from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoint, endpoints
from export.formats import onnx as onnx_format
from export.formats.saved_model import save_saved_model
from export.verification import cases, reference
from export.verification.arrays import Report
from export.verification.cases import make_cases
from export.verification.run import RefusedError
from tfdecouple.runtime import progress

# What the counts of this file are of; an endpoint that joins them may ask for more.
KNOWN = {"encode", "encode_global", "decode", "sample", "switch", "interpolate", "edit", "score"}


@pytest.fixture(scope="module")
def model():
    random.seed(0)
    return fresh(SMALL)


class TestAnswers:
    @pytest.fixture
    def counted(self, model, monkeypatch, eager):
        """The cases of the batches of large images, the rows that the flow maps each time, and what is told."""
        monkeypatch.setattr(cases, "batches", lambda side: (1, 2, 1))
        known = tuple(one for one in endpoints(model.config) if one.name in KNOWN)
        assert len(known) == len(KNOWN)
        monkeypatch.setattr(cases, "endpoints", lambda config: known)
        monkeypatch.setattr(progress, "INTERVAL", 0)
        for module in (cases, reference):
            monkeypatch.setattr(module, "_LARGE", 4)
        rows, told = [], []

        class Counted(reference.KerasReference):
            def _run(self, function, *arrays, counts=True):
                if counts:
                    rows.append(max(len(array) for array in arrays if array is not None))
                return super()._run(function, *arrays, counts=counts)

        monkeypatch.setattr(cases, "KerasReference", Counted)
        images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
        return make_cases(model, images, tell=told.append), rows, told

    def test_are_asked_for_once(self, counted):
        found, rows, told = counted
        assert all(len(array) == 1 for name, array in found.items() if name.startswith("extreme/"))
        # 9 images and their codes; of the 4 of parity their reaction, and what a mixture, an edit and a score ask for
        # beside that; both ways to switch 2 pairs; 2 images of codes beside borders, and 4 samples.
        encoded, decoded = 9 + 4 + 2 + 2 * 4, 2 * (9 + 4 + 4 + 2 + 4)
        assert sum(rows) == encoded + decoded
        # What is told beforehand counts an edit by an amount of 0 as known already, which it is not where images move.
        # The time that is left is told each time but the first, whose speed nobody knows, and the last.
        lines = [
            re.fullmatch(rf"  (\d+) of {sum(rows) - 2} images(, about \d+ (?:s|min) left)?", line) for line in told
        ]
        assert [int(line[1]) for line in lines] == list(itertools.accumulate(rows))[:-1]
        assert [line[2] is not None for line in lines] == [False] + [True] * (len(rows) - 2)

    def test_of_samples_are_those_of_their_codes(self, counted):
        found, *_ = counted
        for part in ("right", "near", "bound", "moved"):
            decoded, sampled = (found[f"out/{case}/images/{part}"] for case in ("decode of drawn codes", "sample"))
            np.testing.assert_array_equal(decoded, sampled)
        assert len(np.unique(found["in/sample/temperature"])) == 4

    def test_of_images_say_which_come_back_and_which_also_from_codes_that_are_moved(self, model, monkeypatch, eager):
        images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
        asked = reference.KerasReference(model, images, np.random.default_rng(0), str, 3, 0)
        plain, *moved = asked._values(asked.codes(images)[0])
        assert [each.tolist() for each in asked.kept(images)] == [[True] * 3] * 2
        # The first image is lost, and the second where its codes are moved.
        lost = np.arange(3) == [[0], [1], [0]]
        shifted = [each + one[:, None, None, None] for each, one in zip([plain, *moved], lost, strict=True)]
        monkeypatch.setattr(asked, "_values", lambda codes: shifted)
        assert [each.tolist() for each in asked.kept(images)] == [[False, True, True], [False, False, True]]

    @pytest.mark.parametrize("name", ["switch", "interpolate", "edit"])
    def test_of_images_made_of_codes_of_images_count_what_moved_images_do_to_their_codes(self, name, model, eager):
        images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
        given = {
            "images": images, "images_a": images, "images_b": images[::-1],
            "alpha": np.full(4, 0.3, np.float32), "beta": np.full(4, 0.6, np.float32),
            "amount": np.ones(4, np.float32), "direction": np.ones((4, model.config.latent_dim), np.float32),
        }  # fmt: skip

        class Shifted(reference.KerasReference):
            change = np.float32(0)

            def _react(self, images, labels):
                return [None if one is None else one + self.change for one in self._codes(images, labels)]

        bounds = []
        for change in (0, 1e-3):
            asked = Shifted(model, images, np.random.default_rng(0), str, 4, 0)
            asked.change = np.float32(change)
            answers = endpoint(model.config, name).answer(asked, given)
            bounds.append(np.stack([answer.bound for answer in answers.values()]))
        assert np.all(bounds[1] > 20 * bounds[0])

    def test_each_pair_is_of_two_images_of_no_batch_together(self, counted):
        found, *_ = counted
        a, b = (found[f"in/switch/images_{one}"] for one in "ab")
        for start, stop in ((0, 1), (1, 3), (3, 4)):
            together = np.concatenate([a[start:stop], b[start:stop]])
            assert len(np.unique(together.reshape(len(together), -1), axis=0)) == len(together)


def test_each_direction_of_the_flow_is_in_a_saved_model_once(model, tmp_path):
    def convolutions(*names):
        folder = tmp_path / "-".join(names)
        save_saved_model(DeployedModel.from_model(model), [endpoint(model.config, name) for name in names], folder)
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        functions = message.meta_graphs[0].graph_def.library.function
        return sum(node.op == "Conv2D" for function in functions for node in function.node_def)

    both = convolutions("encode", "decode")
    assert both > 10
    assert convolutions(*KNOWN - {"score"}) == both


@pytest.mark.parametrize(("side", "count"), [(8, 16), (128, 16), (256, 2)])
def test_a_client_tries_fewer_large_images(side, count):
    images = client.known_images(side, side, 3)
    assert len(images) == len(np.unique(images.reshape(count, -1), axis=0)) == count


class TestBeside:
    """ONNX files are made while the SavedModel is checked."""

    @pytest.fixture
    def checked(self, quick, monkeypatch):
        """A check of the SavedModel that waits for a process of ten minutes; lets it begin, then gives that process."""
        begun, processes = threading.Event(), []

        def pass_gate(check, folder, cases, tell, started=lambda process: None, **options):
            if check == "check_saved_model":
                process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                processes.append(process)
                started(process)
                begun.set()
                process.wait()
            return Report()

        monkeypatch.setattr(pipeline, "pass_gate", pass_gate)

        def wait():
            assert begun.wait(PATIENCE)
            return processes[0]

        return wait

    @pytest.mark.parametrize(
        ("failure", "status"), [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)], ids=repr
    )
    def test_what_fails_ends_the_check(self, checked, command, monkeypatch, tmp_path, failure, status):
        def fail(deployed, endpoint, metadata):
            checked()
            raise failure

        monkeypatch.setattr("export.formats.onnx.build_onnx", fail)
        found, _, err = command()
        assert found == status and err.count("\n") == 1, err
        assert checked().returncode == -signal.SIGKILL
        assert list(tmp_path.iterdir()) == []

    def test_a_check_that_fails_refuses_the_export(self, quick, command, monkeypatch, tmp_path):
        made = []

        def pass_gate(check, folder, cases, **options):
            made.append(check)
            raise RefusedError("not published: the SavedModel is wrong")

        monkeypatch.setattr(pipeline, "pass_gate", pass_gate)
        assert command()[::2] == (4, "error: not published: the SavedModel is wrong\n")
        assert made == ["check_saved_model"] and list(tmp_path.iterdir()) == []

    def test_calls_are_timed_when_the_files_are_made(self, quick, command, monkeypatch):
        """The check's process waits for the end of its stdin before it times calls."""
        events = []
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

        def pass_gate(check, folder, cases, started=None, **options):
            if check == "check_saved_model":
                started(process)
                process.wait(PATIENCE)
                events.append("timed")
            return Report()

        def build_onnx(deployed, endpoint, metadata):
            assert process.poll() is None
            events.append("made")
            return original(deployed, endpoint, metadata)

        original = onnx_format.build_onnx
        monkeypatch.setattr(onnx_format, "build_onnx", build_onnx)
        monkeypatch.setattr(pipeline, "pass_gate", pass_gate)
        assert command("--format", "savedmodel", "onnx")[0] == 0
        assert events[-1] == "timed" and set(events[:-1]) == {"made"}
