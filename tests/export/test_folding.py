import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import graphs
from helpers.exporting import find_endpoint
from helpers.models import random_images
from helpers.variants import VARIANTS

from export import folding
from export.exported_model import ExportedModel
from tfdecouple.errors import InversionError, NotInitializedError
from tfdecouple.model import DecoupledModel
from tfdecouple.numerics.kernels import Kernels

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("name", graphs.VARIANTS)
def test_codes_and_scores_are_the_models_and_images_decode_exactly(name):
    model, exported = graphs.get_model(name), graphs.get_exported_model(name)
    given = graphs.make_inputs(model.config)

    def call(endpoint_name, **codes):
        endpoint = find_endpoint(model.config, endpoint_name)
        made = graphs.call_endpoint(exported, endpoint, {**given, **codes})
        assert list(made) == [array.name for array in endpoint.outputs]
        assert all(made[array.name].dtype == array.dtype for array in endpoint.outputs)
        return made

    # If z is no function of the label, some images have none (-1).
    images, labels = given["images"], given.get("labels")
    codes = call("encode")
    right = model.encode(images, labels if model.config.has_label_codes else None)._asdict()
    graphs.assert_same(codes, {key: value for key, value in right.items() if value is not None})
    np.testing.assert_array_equal(call("decode", **codes)["images"], model.quantizer.quantize_pixels(images))
    scores = model.outlier_scores(images, labels, noise=(given.get("z_noise"), given["u_noise"]))
    graphs.assert_same(call("score"), scores.to_dict())


def change_weight(exported, name):
    """Changes one number of a weight by a thousandth, so little that no pixel need change; returns the right weight."""
    right, rng = exported.weights[name], np.random.default_rng(0)
    values = right.values.copy()
    # In a map of one pixel, only the middle of a kernel is multiplied by anything but padding.
    middle = np.zeros(values.shape, bool)
    middle[tuple(size // 2 for size in values.shape[:2]) if values.ndim == 4 else ...] = True
    number = rng.choice(np.flatnonzero(values * middle)) if values.any() else 0
    values.flat[number] = values.flat[number] * 1.001 or 1e-3
    exported.weights[name] = dataclasses.replace(right, values=values)
    return right


# Models with the layout of their maps: whether channels come first.
LAYOUTS = [("combined", True), ("dequantization", False)]
LAYOUTS += [pytest.param(*case, marks=pytest.mark.slow) for case in (("classes", True), ("odd", False))]


class TestCheck:
    @pytest.mark.parametrize(("name", "channels_first"), LAYOUTS)
    def test_any_weight_changed_by_a_thousandth_is_found(self, name, channels_first):
        """Weights of each kind, such as "first", in the first and in the last layer that has one."""
        exported = graphs.get_exported_model(name, channels_first)
        names = [*exported.weights]
        kinds = [{name.rpartition("/")[2].partition("#")[0]: name for name in way} for way in (names, names[::-1])]
        for weight in {weight for found in kinds for weight in found.values()}:
            right = change_weight(exported, weight)
            assert next(exported.find_faults(), None), weight
            exported.weights[weight] = right
        assert [*exported.find_faults()] == []

    def test_fault_of_a_kernel_is_found(self, monkeypatch):
        def interleave(self, even, odd, right=folding.ExportKernels.interleave_channels):
            return right(self, even, odd * 1.001 if even.shape.rank == 4 else odd)

        monkeypatch.setattr(folding.ExportKernels, "interleave_channels", interleave)
        other = graphs.get_exported_model("none")
        assert next(ExportedModel(graphs.get_model("none"), channels_first=True, other=other).find_faults(), None)


class TestFolding:
    def test_a_model_without_weights_is_refused(self):
        with pytest.raises(NotInitializedError):
            ExportedModel(DecoupledModel(graphs.VARIANTS["none"]))

    def test_what_cannot_be_inverted_is_refused_by_name(self):
        model = DecoupledModel(VARIANTS["none"])
        model.initialize(random_images(16, 4))
        kernel = model.flow.levels[1][0].steps[0].sequence[1].kernel
        for value in (0.0, np.nan):
            kernel.assign(np.full(kernel.shape, value))
            with pytest.raises(InversionError, match="level_1_part_0_step_0"):
                ExportedModel(model)

    def test_a_wrong_weight_is_found_where_the_models_result_is_zero(self):
        traced = folding.trace_network(
            lambda x: tf.linalg.matmul(x, tf.zeros([4, 4])), {}, [tf.TensorSpec([None, 4])], Kernels()
        )
        changed = {name: constant.values + 1e-3 for name, constant in traced.constants.items()}
        assert folding.find_difference(traced, traced, changed, [np.eye(4)]) > 1
