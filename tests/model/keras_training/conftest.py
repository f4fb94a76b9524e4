import keras
import numpy as np
import pytest
from helpers.models import give_effect, random_images
from helpers.variants import SMALLEST

from tfdecouple.execution.runner import run_functions_eagerly
from tfdecouple.model import DecoupledModel

IMAGES = random_images(20, size=4)


@pytest.fixture(autouse=True)
def eagerly(eager):
    """Traces nothing, which would take most of the time; a test that wants it asks for `traced`."""


@pytest.fixture
def images():
    return IMAGES


def make_model(optimizer=None, config=SMALLEST, start=True, **options):
    keras.utils.set_random_seed(1)
    model = DecoupledModel(config)
    if start:
        model.initialize(IMAGES)
        give_effect(model)
    # Without moments, whose update takes an eager step as long as all else.
    model.compile(optimizer or keras.optimizers.SGD(1e-6), **options)
    return model


@pytest.fixture
def make():
    return make_model


@pytest.fixture(scope="module")
def model():
    """A compiled model that several tests train on: do not count on its weights."""
    with run_functions_eagerly():
        return make_model()


@pytest.fixture
def snapshot():
    return lambda model: [np.array(variable) for variable in (*model.weights, *model.optimizer.variables)]
