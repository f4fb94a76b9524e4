"""The folder of a run, and what is no fault of it."""

import pytest
from helpers.models import LEAST
from helpers.runs import run_config

from tfdecouple.errors import DataError
from tfdecouple.training import train


def test_images_that_cannot_be_opened_are_no_fault_of_the_run_folder(tmp_path):
    with pytest.raises(DataError, match="cannot open data.source=folder:/x.*: File name too long") as error:
        train(run_config(f"/{'x' * 300}", model=LEAST), tmp_path / "run")
    assert "\n" not in str(error.value)
