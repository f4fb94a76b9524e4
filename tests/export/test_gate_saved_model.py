"""The gate of an export: SavedModels that are wrong are refused."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers.exporting import SIGNATURES
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from export import pipeline
from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoints
from export.formats.saved_model import WARMUP_FILE, write_warmup
from export.verification import check_saved_model
from export.verification.run import RefusedError, pass_gate


@pytest.fixture
def sabotage_saved_model(monkeypatch, refusal):
    """Changes a SavedModel after it was written, and returns what the refused export says."""

    def run(change):
        save = pipeline.save_saved_model

        def sabotaged(deployed, chosen, folder, progress):
            save(deployed, chosen, folder, progress)
            change(folder)

        monkeypatch.setattr(pipeline, "save_saved_model", sabotaged)
        return refusal("--format", "savedmodel", "--endpoints", *SIGNATURES)

    return run


def rewrite_variables(folder, change):
    """Rewrites the variables of a SavedModel: `change` is given {key: array} to edit."""
    prefix = str(folder / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    arrays = {key: reader.get_tensor(key) for key in sorted(reader.get_variable_to_dtype_map())}
    change(arrays)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.convert_to_tensor(array) for array in arrays.values()],
    )
    write_fingerprint(str(folder))


def rewrite_signatures(folder, change):
    """Rewrites the graph file of a SavedModel: `change` is given its signatures to edit."""
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(message.meta_graphs[0].signature_def)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    write_fingerprint(str(folder))


@pytest.mark.usefixtures("forked")
class TestSavedModel:
    def test_right_one_passes_and_a_deployed_array_that_is_altered_is_found(
        self, monkeypatch, refusal, model, small_saved_model, cases, tmp_path
    ):
        # The same rewriting without a change passes: what is found below is the change and not the way it was made.
        right = shutil.copytree(small_saved_model, tmp_path / "right")
        rewrite_variables(right, lambda arrays: None)
        pipeline.save_cases(cases, tmp_path / "cases.npz")
        options = {"endpoints": list(SIGNATURES), "name": "tiny"}
        report = pass_gate("check_saved_model", right, tmp_path / "cases.npz", **options)
        assert report.parity["encode"]["v"]["max"] < 1e-5

        # By so little that every image still comes back.
        def altered(deployed, chosen, folder, progress):
            shutil.copytree(small_saved_model, folder)
            rewrite_variables(folder, alter)

        def alter(arrays):
            target = DeployedModel.from_model(model).arrays()["flow/level_0_part_0_step_0/mix/kernel"]
            keys = [key for key, array in arrays.items() if np.array_equal(array, target)]
            assert keys
            arrays.update({key: arrays[key] * np.float32(1.001) for key in keys})

        monkeypatch.setattr(pipeline, "save_saved_model", altered)
        line = refusal("--format", "savedmodel", "--endpoints", *SIGNATURES)
        assert "the SavedModel has other numbers in weight flow/level_0_part_0_step_0/mix/kernel than the run" in line
        assert "encode: v: image " in line and "; allowed " in line

    def test_missing_variables_are_found(self, sabotage_saved_model):
        line = sabotage_saved_model(lambda folder: shutil.rmtree(folder / "variables"))
        assert "the SavedModel cannot be loaded: " in line and "variables/variables" in line

    def test_signatures_that_are_others_are_found(self, sabotage_saved_model):
        def lose(signatures):
            signatures["decoder"].CopyFrom(signatures["decode"])
            del signatures["decode"]

        line = sabotage_saved_model(lambda folder: rewrite_signatures(folder, lose))
        assert "the signatures are ['decoder', 'encode', 'serving_default']; expected ['decode', 'encode']" in line

    def test_graph_that_needs_the_python_it_was_made_by_is_found(self, cases, tmp_path):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
        def encode(images):
            v = tf.numpy_function(lambda images: images.astype(np.float32), [images], tf.float32)
            return {"z": tf.zeros([tf.shape(images)[0], 4]), "v": tf.ensure_shape(v, [None, 8, 8, 3])}

        signatures = {"encode": encode, "serving_default": encode}
        tf.saved_model.save(tf.Module(), str(tmp_path / "savedmodel"), signatures=signatures)
        pipeline.save_cases(cases, tmp_path / "cases.npz")
        with pytest.raises(RefusedError, match="has the operation .*PyFunc, whose answers need not be the same"):
            pass_gate(
                "check_saved_model", tmp_path / "savedmodel", tmp_path / "cases.npz", endpoints=["encode"], name="tiny"
            )


class TestSavedModelInThisProcess:
    """What the check finds, without the seconds that a process takes to import TensorFlow."""

    @pytest.fixture
    def problems(self, small_saved_model, cases, tmp_path):
        def check(change):
            folder = shutil.copytree(small_saved_model, tmp_path / "savedmodel")
            change(folder)
            return check_saved_model.check(folder, cases, endpoints=list(SIGNATURES), name="tiny", tell=str).problems

        return check

    def test_variable_that_the_loader_cannot_find(self, problems):
        def lose(arrays):
            del arrays[next(key for key in arrays if key.endswith("VARIABLE_VALUE"))]

        (problem,) = problems(lambda folder: rewrite_variables(folder, lose))
        assert problem.startswith("the SavedModel cannot be loaded: NotFoundError: ")
        assert "not found in checkpoint" in problem and "\n" not in problem

    @pytest.mark.parametrize("when", ["called", "loaded"])
    def test_operation_that_writes_a_file_is_found_before_it_runs(self, cases, tmp_path, when):
        written = tmp_path / "written"

        class Writer(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
            def encode(self, images):
                tf.io.write_file(str(written), "here")
                return {"v": tf.cast(images, tf.float32)}

        writer, folder = Writer(), tmp_path / "savedmodel"
        tf.saved_model.save(writer, str(folder), signatures={"encode": writer.encode, "serving_default": writer.encode})
        if when == "loaded":
            message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
            collection = message.meta_graphs[0].signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"]
            collection.name = message.meta_graphs[0].signature_def["encode"].outputs["v"].name
            (folder / "saved_model.pb").write_bytes(message.SerializeToString())
        report = check_saved_model.check(folder, cases, endpoints=["encode"], name="tiny", tell=str)
        assert report.problems == [
            "the SavedModel has the operation WriteFile, whose answers need not be the same every time"
        ]
        assert not written.exists()

    @pytest.mark.parametrize("how", ["missing", "cut off", "of another"])
    def test_fingerprint_that_is_not_of_the_graph(self, problems, how):
        def change(folder):
            path = folder / "fingerprint.pb"
            if how == "missing":
                path.unlink()
            elif how == "cut off":
                os.truncate(path, path.stat().st_size - 3)
            else:
                message = FingerprintDef.FromString(path.read_bytes())
                message.saved_model_checksum += 1
                path.write_bytes(message.SerializeToString())

        (problem,) = problems(change)
        assert problem.startswith(
            "fingerprint.pb is of another" if how == "of another" else "fingerprint.pb is missing"
        )

    def test_missing_output_and_fixed_batch_axis(self, problems):
        def change(signatures):
            del signatures["encode"].outputs["z"]
            signatures["decode"].inputs["v"].tensor_shape.dim[0].size = 1

        assert problems(lambda folder: rewrite_signatures(folder, change))[:2] == [
            "encode returns ['v'] where the model has ['v', 'z']",
            "decode has v as float32 [1, 8, 8, 3]; expected float32 [-1, 8, 8, 3], only the first axis free",
        ]

    def test_method_that_no_server_asks_for_and_file_that_is_strange(self, problems):
        def change(folder):
            (folder / "assets").mkdir(exist_ok=True)
            (folder / "assets" / "words.txt").touch()
            rewrite_signatures(folder, lambda signatures: setattr(signatures["decode"], "method_name", "x"))

        assert problems(change)[:2] == [
            "the SavedModel holds assets/words.txt, which is compared with nothing",
            "decode is of method 'x'; servers ask for 'tensorflow/serving/predict'",
        ]

    @pytest.mark.parametrize("other", ["decode", "encode with z for v"])
    def test_default_signature_that_is_another(self, problems, other):
        def change(signatures):
            if other == "decode":
                signatures["serving_default"].CopyFrom(signatures["decode"])
            else:
                del signatures["serving_default"].outputs["z"]

        found = problems(lambda folder: rewrite_signatures(folder, change))
        if other == "decode":
            assert found[0] == "serving_default takes ['v', 'z']; it should be encode"
        else:
            assert found == ["serving_default does not answer as encode does"]

    def test_one_number_of_one_weight(self, problems):
        # The last bias of the sampler's prior has no part in encode and decode.
        def change(arrays):
            key = next(key for key in sorted(arrays) if key.endswith("VARIABLE_VALUE"))
            arrays[key].flat[0] = np.nextafter(arrays[key].flat[0], np.float32(9))

        found = problems(lambda folder: rewrite_variables(folder, change))
        assert [one for one in found if one.startswith("the SavedModel has other numbers in weight ")]

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_warm_up_file_that_is_cut_off(self, problems, share):
        def cut(folder):
            os.truncate(folder / WARMUP_FILE, int(share * (folder / WARMUP_FILE).stat().st_size))

        (problem,) = problems(cut)
        assert problem.startswith("assets.extra/tf_serving_warmup_requests ")
        assert "is damaged after" in problem or "has requests for " in problem

    def test_warm_up_file_without_a_signature_of_another_model_or_none(self, problems, model):
        chosen = [endpoint for endpoint in endpoints(model.config) if endpoint.name in SIGNATURES]
        found = problems(lambda folder: write_warmup(folder, "tiny", chosen[:1]))
        assert "has requests for serving_default, encode; expected one for each of" in found[0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda z: np.concatenate([z, z]),
            lambda z: z[:, 1:],
            lambda z: z.astype(np.float64),
            lambda z: np.full_like(z, np.nan),
            lambda z: None,
        ],
        ids=["two images", "shape", "type", "not a number", "left out"],
    )
    def test_warm_up_request_that_is_not_such_as_was_answered(self, problems, change):
        def rewrite(folder):
            path = str(folder / WARMUP_FILE)
            logs = [PredictionLog.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
            (request,) = (
                log.predict_log.request for log in logs if log.predict_log.request.model_spec.signature_name == "decode"
            )
            z = change(tf.make_ndarray(request.inputs["z"]))
            del request.inputs["z"]
            if z is not None:
                request.inputs["z"].CopyFrom(tf.make_tensor_proto(z))
            with tf.io.TFRecordWriter(path) as writer:
                for log in logs:
                    writer.write(log.SerializeToString())

        assert problems(rewrite) == [
            "assets.extra/tf_serving_warmup_requests has a request for decode that is not such as it takes"
        ]

    def test_warm_up_labels_are_those_that_were_tried(self):
        labels = np.arange(3, dtype=np.int32)
        assert check_saved_model.alike({"labels": labels[2:]}, {"labels": labels})
        assert not check_saved_model.alike({"labels": labels[2:] + 1}, {"labels": labels})

    @pytest.mark.parametrize("how", ["missing", "another model"])
    def test_warm_up_file_that_is_missing_or_another_models(self, problems, model, how):
        chosen = [endpoint for endpoint in endpoints(model.config) if endpoint.name in SIGNATURES]

        def change(folder):
            (folder / WARMUP_FILE).unlink()
            if how != "missing":
                write_warmup(folder, "other", chosen)

        (problem,) = problems(change)
        assert "is missing" in problem or "is for the model 'other'; this one is 'tiny'" in problem
