"""The gate of an export: files that are wrong are refused, and nothing of them is published.

The checks run as always, in processes of their own that know nothing of the tests. What is sabotaged are the builders:
they hand over files that were built right, with one thing changed.
"""

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import helper, numpy_helper
from tensorflow.core.protobuf import saved_model_pb2

from export import pipeline
from export.card import card_text, make_card
from export.cli import EXIT_REFUSED, main
from export.endpoints import endpoints
from export.folding import fold
from export.gate import check_saved_model
from export.gate.arrays import BATCHES, BORDERLINE, DRAWN, TOLERANCE, Report, difference
from export.gate.cases import keeps_extreme_images, make_cases, real_images
from export.gate.run import RefusedError, pass_gate
from export.origin import open_run
from export.saved_model import save_saved_model

SIGNATURES = ("encode", "decode")


@pytest.fixture(scope="module")
def opened(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def model(opened):
    return opened[0]


@pytest.fixture(scope="module")
def origin(opened):
    return opened[1]


@pytest.fixture(scope="module")
def cases(model, origin):
    """The real cases of the gate; to compute them anew for every sabotage would take most of the time."""
    images, _ = real_images(origin.config)
    return make_cases(model, images)


@pytest.fixture(scope="module")
def small_saved_model(model, tmp_path_factory):
    """A right SavedModel of two signatures: fewer are loaded faster."""
    folder = tmp_path_factory.mktemp("small") / "savedmodel"
    chosen = [endpoint for endpoint in endpoints(model.config) if endpoint.name in SIGNATURES]
    save_saved_model(fold(model), chosen, folder)
    return folder


def contents(folder):
    """Everything in a folder, hidden or not: files with their bytes."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def earlier(exported, tmp_path):
    """A folder that an earlier export filled."""
    return shutil.copytree(exported, tmp_path / "to")


@pytest.fixture
def built(model, origin, cases, exported, small_saved_model, monkeypatch):
    """Replaces what takes long by its results, so that only the sabotage and the gate are left."""

    def build_onnx(folded, endpoint, metadata):
        return onnx.load(exported / "onnx" / f"{endpoint.onnx}.onnx")

    def save_saved_model(folded, chosen, folder, progress):
        shutil.copytree(small_saved_model, folder)

    monkeypatch.setattr(pipeline, "open_run", lambda run, name: (model, origin))
    monkeypatch.setattr(pipeline, "real_images", lambda config: (None, "test images"))
    monkeypatch.setattr(pipeline, "make_cases", lambda model, images: cases)
    monkeypatch.setattr(pipeline, "fold", lambda model, layout="NHWC": None)
    monkeypatch.setattr(pipeline, "build_onnx", build_onnx)
    monkeypatch.setattr(pipeline, "save_saved_model", save_saved_model)


@pytest.fixture
def refusal(built, earlier, tiny_run, capsys):
    """Runs an export that must be refused, and returns what it says; what was published before must stay as it was."""

    def run(*arguments):
        before = contents(earlier)
        assert main(["--run", str(tiny_run), "--to", str(earlier), *arguments]) == EXIT_REFUSED == 4
        assert contents(earlier) == before
        err = capsys.readouterr().err
        assert err.startswith("error: not published: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def sabotage_onnx(monkeypatch, refusal):
    """Changes one of the ONNX models after its conversion, and returns what the refused export says."""

    def run(name, change, *arguments):
        build = pipeline.build_onnx

        def sabotaged(folded, endpoint, metadata):
            model = build(folded, endpoint, metadata)
            if endpoint.onnx == name:
                change(model)
            return model

        monkeypatch.setattr(pipeline, "build_onnx", sabotaged)
        return refusal("--format", "onnx", *arguments)

    return run


@pytest.fixture
def sabotage_saved_model(monkeypatch, refusal):
    """Changes a SavedModel after it was written, and returns what the refused export says."""

    def run(change):
        save = pipeline.save_saved_model

        def sabotaged(folded, chosen, folder, progress):
            save(folded, chosen, folder, progress)
            change(folder)

        monkeypatch.setattr(pipeline, "save_saved_model", sabotaged)
        return refusal("--format", "savedmodel", "--endpoints", *SIGNATURES)

    return run


def change_weight(name, change):
    """Returns a sabotage that puts `change(array)` in place of a weight."""

    def sabotage(model):
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        changed = change(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return sabotage


def scaled(factor):
    return lambda array: array * factor


def one_entry_moved(array):
    array = array.copy()
    array.flat[0] += 0.1
    return array


def one_entry_not_a_number(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


COUPLING = "flow/level_1_part_0_step_0/coupling_continuous_first"


class TestOnnx:
    @pytest.mark.parametrize(
        ("file", "weight", "change", "message"),
        [
            ("encoder", f"{COUPLING}/last", one_entry_moved, "encode: v differs from the model by "),
            ("encoder", "encoder/top", one_entry_moved, "encode: z differs from the model by "),
            ("encoder", "flow/level_0_part_0_step_0/mix", scaled(1.001), "encode: v differs from the model by "),
            ("encoder", "encoder/last", scaled(1.001), "encode: z differs from the model by "),
            ("encoder", "encoder/last", one_entry_not_a_number, "encode: z differs from the model by nan"),
            # Of the decoder only pixels are seen: a change must move some of them by half a level to be one.
            ("decoder", f"{COUPLING}/last", one_entry_moved, " of the subpixels of images differ from the model"),
            ("decoder", "flow/level_0_part_0_step_0/unmix", scaled(1.01), "decode: "),
            ("sampler", "flow/level_0_part_0_step_0/unmix", scaled(1.001), "sample: "),
            ("sampler", "prior/step_0/unmix_bias", one_entry_moved, "sample: "),
        ],
    )
    def test_changed_weight_is_found_and_its_effect_stated(self, sabotage_onnx, file, weight, change, message):
        line = sabotage_onnx(file, change_weight(weight, change))
        assert message in line
        assert "; allowed " in line

    def test_decoder_that_is_off_by_less_than_half_a_level_is_found_on_drawn_codes(self, sabotage_onnx):
        # Codes of images decode to the middles of levels and hide it.
        line = sabotage_onnx("decoder", change_weight("flow/level_0_part_0_step_0/unmix", scaled(1.001)))
        assert DRAWN in line and "%" in line

    @pytest.mark.parametrize("domain", ["", "somewhere.else"])
    def test_operation_that_the_runtime_lacks_is_found(self, sabotage_onnx, domain):
        def plant(model):
            # The checker knows all operations of ONNX itself, and lets those of other domains pass to the runtime.
            node = next(node for node in model.graph.node if node.op_type == "Conv")
            node.op_type, node.domain = "Convolute", domain
            if domain:
                model.opset_import.append(helper.make_opsetid(domain, 1))

        line = sabotage_onnx("decoder", plant)
        assert "decoder.onnx" in line and "Convolute" in line

    def test_batch_axis_of_one_size_is_found(self, sabotage_onnx):
        def fix(model):
            for value in [*model.graph.input, *model.graph.output]:
                value.type.tensor_type.shape.dim[0].dim_value = 1

        assert "sampler.onnx has z_noise as float32 [1, 4]" in sabotage_onnx("sampler", fix)

    def test_batch_axis_that_is_free_in_name_only_is_found(self, sabotage_onnx):
        def fix(model):
            # A reshape to one image somewhere in the middle: right for one image, wrong for three.
            name = model.graph.output[0].name
            producer = next(node for node in model.graph.node if name in node.output)
            producer.output[0] = "whole"
            model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
            model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
            model.graph.node.append(helper.make_node("Slice", ["whole", "zero", "one", "zero"], [name]))

        line = sabotage_onnx("decoder", fix)
        assert "decode returns images as uint8 [3, 8, 8, 3] where the model has uint8 [21, 8, 8, 3]" in line

    def test_missing_output_is_found(self, sabotage_onnx):
        def drop(model):
            del model.graph.output[0]

        assert "encoder.onnx has ['v'] where encode has ['v', 'z']" in sabotage_onnx("encoder", drop)

    def test_missing_metadata_is_found(self, sabotage_onnx):
        def drop(model):
            del model.metadata_props[:]

        assert "decoder.onnx does not say where it comes from" in sabotage_onnx("decoder", drop)

    def test_missing_file_is_found(self, monkeypatch, refusal):
        save = pipeline.save_onnx
        monkeypatch.setattr(pipeline, "save_onnx", lambda m, path: path.stem == "sampler" or save(m, path))
        assert "sampler.onnx" in refusal("--format", "onnx")

    def test_smaller_variant_that_returns_no_numbers_is_found(self, monkeypatch, refusal):
        smaller = pipeline.with_smaller_weights

        def sabotaged(model, precision):
            model = smaller(model, precision)
            if model.graph.name == "encode":
                change_weight("flow/level_0_part_0_step_0/mix_bias", one_entry_not_a_number)(model)
            return model

        monkeypatch.setattr(pipeline, "with_smaller_weights", sabotaged)
        line = refusal("--format", "onnx", "--precision", "int8")
        assert "the int8 encoder returns codes that are not finite" in line


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


def rewrite_signatures(folder, change):
    """Rewrites the graph file of a SavedModel: `change` is given its signatures to edit."""
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(message.meta_graphs[0].signature_def)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())


class TestSavedModel:
    def test_right_one_passes_and_a_folded_array_that_is_altered_is_found(
        self, monkeypatch, refusal, model, small_saved_model, cases, tmp_path
    ):
        # The same rewriting without a change passes: what is found below is the change and not the way it was made.
        right = shutil.copytree(small_saved_model, tmp_path / "right")
        rewrite_variables(right, lambda arrays: None)
        pipeline.save_cases(cases, tmp_path / "cases.npz")
        report = pass_gate("check_saved_model", right, tmp_path / "cases.npz", exact=True, endpoints=list(SIGNATURES))
        assert report.parity["encode"]["v"]["max"] < 1e-5

        # By so little that every image still comes back.
        def altered(folded, chosen, folder, progress):
            shutil.copytree(small_saved_model, folder)
            rewrite_variables(folder, alter)

        def alter(arrays):
            target = fold(model).arrays["flow/level_0_part_0_step_0/mix"]
            keys = [key for key, array in arrays.items() if np.array_equal(array, target)]
            assert keys
            arrays.update({key: arrays[key] * np.float32(1.001) for key in keys})

        monkeypatch.setattr(pipeline, "save_saved_model", altered)
        line = refusal("--format", "savedmodel", "--endpoints", *SIGNATURES)
        assert "encode: v differs from the model by " in line and "; allowed 1e-04" in line

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
        with pytest.raises(RefusedError, match="encode fails at batch 1: .*pyfunc"):
            pass_gate(
                "check_saved_model", tmp_path / "savedmodel", tmp_path / "cases.npz", exact=True, endpoints=["encode"]
            )


class TestSavedModelInThisProcess:
    """What the check finds, without the seconds that a process takes to import TensorFlow."""

    @pytest.fixture
    def problems(self, small_saved_model, cases, tmp_path):
        def check(change):
            folder = shutil.copytree(small_saved_model, tmp_path / "savedmodel")
            change(folder)
            return check_saved_model.check(folder, cases, exact=True, endpoints=list(SIGNATURES)).problems

        return check

    def test_variable_that_the_loader_cannot_find(self, problems):
        def lose(arrays):
            del arrays[next(key for key in arrays if key.endswith("VARIABLE_VALUE"))]

        (problem,) = problems(lambda folder: rewrite_variables(folder, lose))
        assert problem.startswith("the SavedModel cannot be loaded: NotFoundError: ")
        assert "not found in checkpoint" in problem and "\n" not in problem

    def test_missing_output_and_fixed_batch_axis(self, problems):
        def change(signatures):
            del signatures["encode"].outputs["z"]
            signatures["decode"].inputs["v"].tensor_shape.dim[0].size = 1

        assert problems(lambda folder: rewrite_signatures(folder, change)) == [
            "encode has no output z",
            "decode has v of shape [1, 8, 8, 3]; only the first axis may be free",
        ]

    def test_default_signature_that_is_another(self, problems):
        def change(signatures):
            signatures["serving_default"].CopyFrom(signatures["decode"])

        (problem,) = problems(lambda folder: rewrite_signatures(folder, change))
        assert problem == "serving_default takes ['v', 'z']; it should be encode"


class TestProcess:
    def test_that_crashes_refuses_in_one_line(self, monkeypatch, refusal):
        monkeypatch.setattr(pipeline, "save_cases", lambda cases, path: path.write_bytes(b"no archive"))
        line = refusal("--format", "onnx")
        assert "check_onnx ended with status 1: " in line

    def test_that_is_killed_refuses_in_one_line(self, monkeypatch, refusal, tmp_path):
        # As the kernel does where memory runs out.
        (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert "check_onnx ended with status -9: no message" in refusal("--format", "onnx")

    def test_that_is_refused_leaves_no_folder_where_there_was_none(self, monkeypatch, built, tiny_run, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.exit(9)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        request = pipeline.Request(run=tiny_run, to=tmp_path / "a" / "b", formats=("onnx",))
        with pytest.raises(RefusedError, match="^not published: check_onnx ended with status "):
            pipeline.export(request, say=lambda text: None)
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize(("alpha", "kept", "exact"), [(0.8, True, True), (0.8, False, False), (1.0, True, False)])
    def test_is_told_whether_every_image_must_come_back(
        self, monkeypatch, built, model, origin, tiny_run, tmp_path, alpha, kept, exact
    ):
        config = dataclasses.replace(origin.config, model=dataclasses.replace(origin.config.model, alpha=alpha))
        other = dataclasses.replace(origin, config=config)
        told = []

        def ask(check, folder, cases, **options):
            told.append(options["exact"])
            return Report()

        monkeypatch.setattr(pipeline, "open_run", lambda run, name: (model, other))
        monkeypatch.setattr(pipeline, "pass_gate", ask)
        monkeypatch.setattr(pipeline, "keeps_extreme_images", lambda model, cases: kept)
        request = pipeline.Request(run=tiny_run, to=tmp_path / "to", endpoints=SIGNATURES)
        pipeline.export(request, say=lambda text: None)
        assert told == [exact, exact]

    @pytest.mark.parametrize("loses", [False, True])
    def test_knows_whether_the_model_keeps_extreme_images(self, loses):
        images = {"black": np.zeros((1, 8, 8, 3), np.uint8), "noise": PIXELS[:4]}

        class Model:
            def encode(self, images):
                return None, images

            def decode(self, z, v):
                return np.where(loses & (np.arange(len(v)) == 3)[:, None, None, None], 7, v).astype(np.uint8)

        cases = {"real": PIXELS, **{f"extreme/{kind}": array for kind, array in images.items()}}
        assert keeps_extreme_images(Model(), cases) is not loses


def parity(right, found, endpoint="encode", name="v"):
    """The report of an endpoint that gives `found` where the model gives `right`."""
    cases = {f"in/{endpoint}/number": np.arange(len(right)), f"out/{endpoint}/{name}": right}
    report = Report()
    report.check_parity(endpoint, lambda _, inputs: {name: found[inputs["number"]]}, cases)
    return report


COUNT = sum(BATCHES)
FLOATS = np.linspace(-2, 4, COUNT * 10, dtype=np.float32).reshape(COUNT, 10)
PIXELS = np.random.default_rng(0).integers(1, 255, (COUNT, 8, 8, 3), dtype=np.uint8)


class TestParity:
    def test_equal_arrays_pass_with_figures_of_zero(self):
        assert parity(FLOATS, FLOATS) == Report(parity={"encode": {"v": {"max": 0, "mean": 0}}})
        figures = {"max": 0, "mean": 0, "differing": 0}
        assert parity(PIXELS, PIXELS, "decode", "images") == Report(parity={"decode": {"images": figures}})

    def test_is_tried_at_batches_of_several_sizes(self):
        sizes = []

        def call(_, inputs):
            sizes.append(len(inputs["number"]))
            return {"v": FLOATS[inputs["number"]]}

        Report().check_parity("encode", call, {"in/encode/number": np.arange(COUNT), "out/encode/v": FLOATS})
        assert sizes == list(BATCHES) and len(set(sizes)) == len(sizes) > 1 and 1 in sizes

    @pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False)])
    def test_tolerance_is_a_share_of_the_largest_value(self, share, passes):
        found = FLOATS.astype(np.float64)
        found[3, 7] += share * TOLERANCE * 4
        assert (not parity(FLOATS, found.astype(np.float32)).problems) == passes

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_no_number_is_a_problem(self, value):
        found = FLOATS.copy()
        found[-1, -1] = value
        (problem,) = parity(FLOATS, found).problems
        assert problem.startswith("encode: v differs from the model by ")

    def test_values_that_are_no_numbers_on_both_sides_are_a_problem(self):
        right = FLOATS.copy()
        right[0, 0] = np.nan
        assert parity(right, right).problems

    def test_other_type_is_a_problem(self):
        (problem,) = parity(FLOATS, FLOATS.astype(np.float64)).problems
        assert problem == "encode returns v as float64 [21, 10] where the model has float32 [21, 10]"

    def test_other_shape_is_a_problem_where_it_would_broadcast(self):
        (problem,) = parity(FLOATS, FLOATS[:, :1]).problems
        assert problem == "encode returns v as float32 [21, 1] where the model has float32 [21, 10]"

    def test_output_that_is_missing_or_too_many_is_a_problem(self):
        cases = {"in/encode/number": np.arange(COUNT), "out/encode/v": FLOATS}
        report = Report()
        report.check_parity("encode", lambda _, inputs: {"w": FLOATS[inputs["number"]]}, cases)
        assert report.problems == [
            "encode returns w as well, which the model does not",
            "encode has no output v",
        ]

    def test_one_subpixel_of_a_decoded_image_that_is_off_by_one_is_a_problem(self):
        found = PIXELS.copy()
        found[20, 7, 7, 2] += 1
        (problem,) = parity(PIXELS, found, "decode", "images").problems
        assert (
            problem == "decode: 0.02% of the subpixels of images differ from the model, by up to 1 levels; allowed 0.0%"
        )

    @pytest.mark.parametrize(("share", "passes"), [(0.8, True), (1.3, False)])
    def test_few_subpixels_of_a_sample_may_lie_on_the_border_of_a_level(self, share, passes):
        found = PIXELS.copy()
        found.reshape(-1)[: round(share * BORDERLINE * PIXELS.size)] += 1
        assert (not parity(PIXELS, found, "sample", "images").problems) == passes

    def test_subpixel_of_a_sample_that_is_off_by_many_levels_is_a_problem(self):
        found = PIXELS.copy()
        found[0, 0, 0, 0] ^= 128
        assert parity(PIXELS, found, "sample", "images").problems
        # In a model of 5 bits one level is 8.
        found = PIXELS // 8 * 8
        found[0, 0, 0, 0] += 8
        assert not parity(PIXELS // 8 * 8, found, "sample", "images").problems

    def test_endpoint_that_fails_is_named_with_its_batch(self):
        def call(_, inputs):
            if len(inputs["number"]) == 3:
                raise ValueError("shapes differ\n  in line 7")
            return {"v": FLOATS[inputs["number"]]}

        report = Report()
        report.check_parity("encode", call, {"in/encode/number": np.arange(COUNT), "out/encode/v": FLOATS})
        assert report.problems == ["encode fails at batch 3: ValueError: shapes differ"]


class TestDifference:
    def test_of_floats_is_relative_to_the_largest_value(self):
        right = np.array([0, -8, 4], np.float32)
        assert difference(right + np.float32([0, 2, 0]), right) == {"max": 0.25, "mean": pytest.approx(0.25 / 3)}

    def test_of_floats_that_are_all_zero_is_no_division_by_zero(self):
        zeros = np.zeros(3, np.float32)
        assert difference(zeros, zeros) == {"max": 0, "mean": 0}
        assert difference(zeros + np.float32(1e-3), zeros)["max"] > TOLERANCE

    def test_of_pixels_is_in_levels_and_does_not_wrap_round(self):
        found, right = np.array([0, 255, 7, 9], np.uint8), np.array([254, 255, 8, 9], np.uint8)
        assert difference(found, right) == {"max": 254, "mean": (254 + 1) / 4, "differing": 0.5}

    def test_with_a_value_that_is_no_number_is_no_number(self):
        right = np.ones(3, np.float32)
        assert np.isnan(difference(np.float32([1, np.nan, 1]), right)["max"])


class TestRoundTrip:
    CASES = {
        "real": PIXELS,
        "extreme/white": np.full((1, 8, 8, 3), 255, np.uint8),
        "extreme/noise": PIXELS[:4],
    }

    def report(self, exact, lost=lambda images: np.zeros(len(images), bool)):
        """The report of a model whose images come back but for those that `lost` picks."""
        report = Report()

        def call(endpoint, arrays):
            if endpoint == "encode":
                return {"v": arrays["images"].astype(np.float32)}
            images = arrays["v"].astype(np.uint8)
            images[lost(images), 0, 0, 0] ^= 1
            return {"images": images}

        report.check_round_trip(call, self.CASES, exact)
        return report

    def test_counts_every_image_of_every_kind(self):
        report = self.report(exact=True)
        assert report.problems == []
        assert report.round_trip == {
            "real": {"images": COUNT, "identical": COUNT},
            "white": {"images": 1, "identical": 1},
            "noise": {"images": 4, "identical": 4},
        }

    def test_extreme_image_that_is_lost_is_a_problem_with_alpha_below_one(self):
        report = self.report(exact=True, lost=lambda images: (images[:, 1] == 255).all((1, 2)))
        assert report.problems == ["decode(encode): 1 of 1 white images differ"]

    def test_extreme_image_that_is_lost_is_only_stated_with_alpha_of_one(self, origin):
        report = self.report(exact=False, lost=lambda images: (images[:, 1] == 255).all((1, 2)))
        assert report.problems == []
        assert report.round_trip["white"] == {"images": 1, "identical": 0}
        model = dataclasses.replace(origin.config.model, alpha=1.0)
        lossy = dataclasses.replace(origin, config=dataclasses.replace(origin.config, model=model))
        entry = pipeline._entry(lossy, report, ["savedmodel/1"])
        card = make_card(lossy, endpoints(model), "test images", {"savedmodel": entry})
        assert card["exact"]["promised"] is False
        assert "an extreme image can be lost" in card_text(card)
        assert "real 21 of 21, white 0 of 1, noise 4 of 4" in card_text(card)

    def test_real_image_that_is_lost_is_a_problem_with_any_alpha(self):
        lost = {tuple(PIXELS[17].reshape(-1))}
        for exact in (True, False):
            report = self.report(
                exact, lost=lambda images: np.array([tuple(image.reshape(-1)) in lost for image in images])
            )
            assert report.problems == ["decode(encode): 1 of 21 real images differ"]
