"""What an export of large images takes the time for: nothing is asked, traced or tried twice."""

import random

import numpy as np
import pytest
from helpers.models import SMALL
from helpers.variants import fresh
from tensorflow.core.protobuf import saved_model_pb2

from export import client
from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoint, endpoints
from export.formats.saved_model import save_saved_model
from export.verification import cases, reference
from export.verification.cases import make_cases

# What the counts of this file are of; an endpoint that joins them may ask for more.
KNOWN = {"encode", "encode_global", "decode", "sample", "switch", "interpolate", "edit", "score"}


@pytest.fixture(scope="module")
def model():
    random.seed(0)
    return fresh(SMALL)


class TestAnswers:
    @pytest.fixture
    def counted(self, model, monkeypatch, eager):
        """The cases of the batches of large images, and the rows that the flow decodes each time."""
        monkeypatch.setattr(cases, "batches", lambda side: (1, 2, 1))
        known = tuple(one for one in endpoints(model.config) if one.name in KNOWN)
        assert len(known) == len(KNOWN)
        monkeypatch.setattr(cases, "endpoints", lambda config: known)
        monkeypatch.setattr(cases, "_LARGE", 4)
        rows = []

        class Counted(reference.KerasReference):
            def _decoded(self, z, v):
                rows.append(len(v))
                return super()._decoded(z, v)

        monkeypatch.setattr(cases, "KerasReference", Counted)
        images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
        return make_cases(model, images), rows

    def test_are_asked_for_once(self, counted):
        found, rows = counted
        assert all(len(array) == 1 for name, array in found.items() if name.startswith("extreme/"))
        # Once as they are and once moved: codes of 9 images, of 4 switched pairs, mixtures, edits and samples,
        # of which an edit by 0 is known, and 2 images of codes beside borders.
        assert sum(rows) == 2 * (9 + 4 + 4 + 2 + 4)

    def test_of_samples_are_those_of_their_codes(self, counted):
        found, _ = counted
        for part in ("right", "below", "above", "bound"):
            decoded, sampled = (found[f"out/{case}/images/{part}"] for case in ("decode of drawn codes", "sample"))
            np.testing.assert_array_equal(decoded, sampled)
        assert len(np.unique(found["in/sample/temperature"])) == 4

    def test_of_images_say_which_come_back_and_which_also_from_codes_that_are_moved(self, model, monkeypatch, eager):
        images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
        asked = reference.KerasReference(model, images, np.random.default_rng(0))
        plain, moved = asked._values(asked.codes(images)[0])
        assert [each.tolist() for each in asked.kept(images)] == [[True] * 3] * 2
        # The first image is lost, and the second where its codes are moved.
        lost = np.arange(3) == [[0], [1]]
        shifted = [each + one[:, None, None, None] for each, one in zip([plain, moved], lost, strict=True)]
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
            asked = Shifted(model, images, np.random.default_rng(0))
            asked.change = np.float32(change)
            answers = endpoint(model.config, name).answer(asked, given)
            bounds.append(np.stack([answer.bound for answer in answers.values()]))
        assert np.all(bounds[1] > 20 * bounds[0])

    def test_each_pair_is_of_two_images_of_no_batch_together(self, counted):
        found, _ = counted
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
