"""Deployed weights are those of the model, by formulas that share nothing with the fold."""

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.variants import ODD, OF_CLASSES, VARIANTS, fresh

from export.deployed.deployed_model import DeployedModel
from export.pipeline import ExportConfig, export
from export.verification.comparison import RefusedError
from export.verification.folded_weights import compare_weights

ODD_ONE = {"odd": ODD}


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", [*VARIANTS, *OF_CLASSES, *ODD_ONE])
@pytest.mark.usefixtures("eager")
def test_every_weight_of_every_kind_of_model_is_known_and_held(name, layout):
    model = fresh((VARIANTS | OF_CLASSES | ODD_ONE)[name])
    deployed = DeployedModel(model, layout)
    assert list(compare_weights(model, deployed)) == []
    # One number of each array, by so little that no pixel need move.
    rng = np.random.default_rng(0)

    def off(path, array):
        array = array.copy()
        number = rng.choice(np.flatnonzero(array)) if array.any() else 0
        array.flat[number] = array.flat[number] * np.float32(1.001) or 1e-3
        return array

    arrays = deployed.arrays()
    problems = list(compare_weights(model, deployed.with_arrays(off)))
    assert [one.partition("deployed weight ")[2].split()[0] for one in problems] == sorted(arrays)


class OffByAThousandth(DeployedModel):
    """A model as it is deployed, with a fault in one number of one weight."""

    def __init__(self, model, order="NHWC"):
        super().__init__(model, order)
        name = "flow/level_1_part_0_step_0/coupling_continuous_first/first"
        (layer,) = (one for one in self.layers() if one.name == name)
        layer.kernel[1, 1, 0, 0] += np.float32(1e-3)


@pytest.mark.parametrize(
    ("run", "formats"),
    [("photographs", ("savedmodel",)), (ROOT / "docs" / "results" / "conditional", ("onnx",))],
    ids=["photographs", "conditional"],
)
def test_fold_that_is_wrong_by_a_thousandth_in_one_weight_is_refused(run, formats, tmp_path, monkeypatch):
    # The weights are compared before anything is built.
    monkeypatch.setattr("export.pipeline.DeployedModel", OffByAThousandth)
    monkeypatch.setattr("export.pipeline.make_vectors", lambda model, images, report: {})
    with pytest.raises(
        RefusedError, match="1 of [0-9]* numbers of deployed weight flow/level_1_part_0_step_0/coupling"
    ):
        export(ExportConfig(run=run, to=tmp_path / "to", formats=formats), str)
    assert not (tmp_path / "to").exists()
