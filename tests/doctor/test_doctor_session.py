"""What doctor and the benchmarks repeat under a clock."""

import pytest
from helpers.models import SMALL_SETTINGS

from tfdecouple.config import load_preset, override
from tfdecouple.doctor.session import Session, as_timed, open_images, timed

BATCH = 2


@pytest.fixture(scope="module")
def session(eager_file):
    """A tiny model and random images, of which it holds out four batches."""
    return Session(override(as_timed(load_preset("quickstart"), BATCH), SMALL_SETTINGS), "random")


def test_steps_of_training_are_begun_without_waiting_for_them(session):
    work = session.work("train", BATCH)
    assert work.begin is not None
    before = int(session.state.updates.numpy())
    assert work.begin().read().applied
    timed(work.call, 1, 3, work.begin)
    assert int(session.state.updates.numpy()) == before + 4


def test_a_model_of_other_labels_than_the_photographs_gets_random_images():
    for classes, images in ((6, "crops of photographs (photographs)"), (3, "random uint8")):
        settings = [*SMALL_SETTINGS, f"model.classes={classes}", "data.photograph_crops=8"]
        assert open_images(override(as_timed(load_preset("quickstart"), BATCH), settings), None)[1] == images


def test_a_batch_may_be_larger_than_what_is_held_out(session):
    count = session.source.sizes["test"] + 1
    assert session.work("encode", count).call().shape == (count, 8, 8, 3)
    images, _ = session._some_images(count)
    assert (images[-1] == images[0]).all()
