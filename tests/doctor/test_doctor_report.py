"""What doctor reports: judgements of a machine, the recommendation, the report, and the command's mistakes."""

import dataclasses
import json

import pytest

from tfdecouple.cli import main
from tfdecouple.config import load_preset, override
from tfdecouple.doctor import checks, installation, measurements
from tfdecouple.doctor.report import Recommendation, as_json, as_text, device_memory, recommend
from tfdecouple.doctor.result import VARIANTS, Request, Result
from tfdecouple.networks.costs import activations, fewest_micro_batches
from tfdecouple.runtime import settings
from tfdecouple.runtime.settings import Settings

FACTS = {
    "versions": {"tensorflow": "2.21.0"},
    "unfitting": [],
    "processor": "a processor",
    "cores": 2,
    "instructions": ["avx2"],
    "memory_bytes": 8 * 2**30,
    "nvidia_smi": [],
    "gpus": [],
    "cuda": "12.5",
    "cudnn": "9",
    "environment": {},
    "tf32_by_default": True,
    "devices": ["CPU:0"],
}
GPU = {"driver_version": "570.1", "name": "a GPU", "memory.total": "16384 MiB"}


def of_machine(**changes):
    return {one.what: one for one in installation.judge_machine({**FACTS, **changes})}


class TestBuild:
    def test_versions_that_fit_hold(self):
        assert installation.judge_versions(FACTS).holds
        wrong = installation.judge_versions({**FACTS, "unfitting": ["keras is 2.0, and must be >=3.13"]})
        assert wrong.holds is False and "keras is 2.0" in wrong.message and "pip install" in wrong.advice

    def test_what_is_installed_here_fits(self):
        assert list(installation.unfitting()) == []

    def test_a_gpu_that_tensorflow_does_not_see_is_a_failure_unless_the_user_hides_it(self):
        assert of_machine()["GPUs in use"].holds is None
        assert of_machine(nvidia_smi=[GPU], gpus=[{}])["GPUs in use"].holds is True
        unseen = of_machine(nvidia_smi=[GPU])
        assert unseen["GPUs in use"].holds is False and ".[gpu]" in unseen["GPUs in use"].advice
        assert "driver_version 570.1" in unseen["GPU"].message
        assert of_machine(nvidia_smi=[GPU], environment={"CUDA_VISIBLE_DEVICES": ""})["GPUs in use"].holds is not False

    @pytest.mark.parametrize(
        ("visible", "seen", "holds"),
        [
            ("0", 0, False),
            ("0", 1, True),
            ("0,1", 1, False),
            ("1, 0", 2, True),
            ("0,1,2,3", 2, True),
            ("0,-1,1", 1, True),
            ("GPU-1,MIG-2", 1, False),
            ("", 0, None),
            ("-1", 0, None),
            ("NoDevFiles", 0, None),
        ],
    )
    def test_gpus_that_the_user_leaves_visible_are_to_be_seen(self, visible, seen, holds):
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        found = of_machine(nvidia_smi=[GPU, GPU], gpus=[{}] * seen, environment=environment)["GPUs in use"]
        assert found.holds is holds and f"CUDA_VISIBLE_DEVICES={visible} leaves" in found.message
        assert holds is not False or "CUDA_VISIBLE_DEVICES" in found.advice

    def test_a_variable_that_rounds_on_the_cpu_is_a_failure(self):
        assert "float32 of the CPU" not in of_machine(environment={"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"})
        found = of_machine(environment={"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"})["float32 of the CPU"]
        assert found.holds is False and found.advice == "unset ONEDNN_DEFAULT_FPMATH_MODE"

    @pytest.mark.parametrize(
        ("devices", "asked", "used"),
        [(["CPU:0", "CPU:1"], None, 1), (["CPU:0", "CPU:1"], 2, 2), (["GPU:0", "GPU:1"], None, 2), (["GPU:0"], 1, 1)],
    )
    def test_says_which_devices_compute(self, devices, asked, used):
        facts = {**FACTS, "devices": devices, "gpus": [{}] * len(devices) if "GPU:0" in devices else []}
        results = [Result("versions", True, "", figures=facts)]
        assert installation.used_devices(Request(devices=asked), results) == tuple(devices[:used])


def timed(variant, rate, batch=16, devices=1):
    figures = {"phase": "train", "variant": variant, "batch": batch, "devices": devices, "images_per_s": rate}
    return Result(f"train, {variant}", None, f"{rate} images/s", figures=figures)


# All variants compared, and right.
RIGHT = tuple(Result(f"CPU:0, {each.name}", True, "", figures={"variant": each.name}) for each in VARIANTS)


def recommended(*rows, numerics=RIGHT, request=None, facts=FACTS):
    found = {"build": [Result("versions", True, "", figures=facts)], "numerics": numerics, "speed": rows}
    return recommend(request or Request(), found)


class TestRecommendation:
    def test_takes_the_fastest_precision_that_is_worth_it(self):
        rows = [timed("float32", 100.0), timed("tf32", 150.0), timed("bfloat16 nets", 160.0), timed("recompute", 80.0)]
        found = recommended(*rows)
        assert found.settings == ("training.precision=mixed_bfloat16",)
        assert found.options() == "--set training.precision=mixed_bfloat16"
        override(load_preset("quickstart"), list(found.settings))
        assert any("1.50 times" in line and "not taken" in line for line in found.why)
        assert recommended(rows[0], timed("tf32", 102.0)).settings == ()

    def test_goes_by_the_largest_batch_and_one_device(self):
        rows = [
            timed("float32", 10.0, 1),
            timed("float32", 100.0, 64),
            timed("tf32", 90.0, 1),
            timed("tf32", 101.0, 64),
        ]
        assert recommended(*rows, timed("tf32", 500.0, 128, 2)).settings == ()

    def test_takes_no_precision_whose_numbers_are_wrong(self):
        rows = [timed("float32", 100.0), timed("tf32", 150.0), timed("bfloat16 nets", 160.0)]
        wrong = Result("GPU:0", False, "", "do not", {"variant": "bfloat16 nets"})
        found = recommended(*rows, numerics=[*RIGHT, wrong])
        assert found.settings == ("training.precision=tf32",)
        assert any("numbers are wrong" in line for line in found.why)
        # Where numbers were not measured at all, nothing but the default is safe.
        assert recommended(*rows, numerics=[*RIGHT, Result("GPU:0", False, "", "see")]).settings == ()

    def test_takes_nothing_whose_numbers_nobody_compared(self):
        rows = [timed("float32", 100.0), timed("tf32", 150.0), timed("bfloat16 nets", 160.0)]
        found = recommended(*rows, numerics=())
        assert found.settings == () and any(
            "1.60 times as fast, but its numbers were not" in line for line in found.why
        )
        pack = [timed("float32", 100.0, devices=2), timed("one pack", 150.0, devices=2)]
        found = {"build": [Result("versions", True, "", figures=FACTS)], "numerics": RIGHT[:1], "speed": pack}
        assert recommend(Request(), found).settings == ()
        compared = Result("weights", True, "", figures={"variant": "one pack"})
        assert recommend(Request(), {**found, "devices": [compared]}).settings == ("training.bytes_per_pack=0",)
        # Where the devices do not add up, what concerns one alone is as right as before.
        for figures in ({}, {"variant": "float32"}):
            failed = {"build": found["build"], "numerics": RIGHT, "speed": [*rows[:2], *pack]}
            failed["devices"] = [compared, Result("sums", False, "", "do not", figures)]
            assert recommend(Request(), failed).settings == ("training.precision=tf32",)
        # Of two, the one that was compared.
        assert recommended(*rows, numerics=RIGHT[1:2]).settings == ("training.precision=tf32",)

    def test_says_so_where_nothing_was_timed(self):
        assert recommended().settings == () and "not timed" in recommended().why[0]

    def test_divides_a_batch_that_does_not_fit(self):
        config = load_preset("cifar10")
        request, each = Request(preset="cifar10"), activations(config.model).total
        found = recommended(timed("float32", 10.0), request=request)
        (setting,) = found.settings
        count = int(setting.removeprefix("training.micro_batches="))
        assert config.training.batch_size % count == 0
        assert config.training.batch_size / count * each < 8 * 2**30
        assert "XLA" not in found.why[-1]
        compiled = Request(preset="cifar10", settings=("training.jit_compile=true",))
        assert "what XLA needs" in recommended(timed("float32", 10.0), request=compiled).why[-1]
        gpu = {**FACTS, "gpus": [{}], "devices": ["GPU:0"], "nvidia_smi": [{"memory.total": "81559 MiB"}]}
        assert fewest_micro_batches(config, 1, device_memory(gpu)) < count

    def test_logical_cpus_share_the_memory_of_the_machine(self):
        facts = {**FACTS, "devices": ["CPU:0", "CPU:1"]}
        whole, half = (
            recommended(timed("float32", 10.0), request=Request(preset="cifar10", devices=2), facts=each).settings
            for each in (facts, {**facts, "memory_bytes": FACTS["memory_bytes"] // 2})
        )
        one = recommended(timed("float32", 10.0), request=Request(preset="cifar10")).settings
        # The images of a step are divided, too.
        assert whole == one and half != whole

    def test_saves_memory_where_not_even_one_image_fits(self):
        request = Request(preset="celeba_hq_256")
        found = recommended(timed("float32", 1.0), request=request, facts={**FACTS, "memory_bytes": 4 * 2**30})
        assert "training.memory=recompute" in found.settings
        found = recommended(timed("float32", 1.0), request=request, facts={**FACTS, "memory_bytes": 2**30})
        assert found.settings == () and "not even one image" in found.why[-1]


class TestVariants:
    def test_every_one_is_an_option_that_there_is(self):
        names = [variant.name for variant in VARIANTS]
        assert len(set(names)) == len(names) and not VARIANTS[0].settings
        for variant in VARIANTS:
            override(load_preset("quickstart"), list(variant.settings))

    # Variables that no variant changes, and why.
    NOT_TRIED = {
        settings.THREAD_COUNT: "counts in one mode alone, and that one is tried",
        settings.SHARDS: "of CPUs, where the number follows from the threads that were measured",
    }

    def test_every_variable_of_the_machine_is_tried_or_is_not_for_a_reason(self):
        variables = {value for name, value in vars(settings).items() if name.isupper() and isinstance(value, str)}
        assert len(variables) >= len(dataclasses.fields(Settings))
        tried = [variant.environment for variant in VARIANTS if variant.environment]
        assert {*self.NOT_TRIED, *(name for each in tried for name in each)} == variables
        for environment in tried:
            assert not self.NOT_TRIED.keys() & environment
            assert Settings.chosen(1, 32, environment) != Settings.chosen(1, 32, {}), environment

    def test_every_option_of_training_that_is_for_gpus_is_tried(self):
        options = {setting.partition("=")[0] for variant in VARIANTS for setting in variant.settings}
        assert options == {f"training.{name}" for name in ("precision", "memory", "jit_compile", "bytes_per_pack")}

    def test_memory_that_is_off_by_more_than_a_third_does_not_hold(self):
        for measured, holds in ((100.0, True), (140.0, False), (70.0, False)):
            judged = measurements.judge_memory(VARIANTS[0], measured, 103.0)
            assert judged.holds is holds and "training.micro_batches" in judged.advice
        assert measurements.judge_memory(dataclasses.replace(VARIANTS[0], is_calculated=False), 9.0, 1.0).holds is None


class TestReport:
    @staticmethod
    def report(*results, settings=()):
        request = Request(preset="cifar10", settings=settings)
        return request, {"speed": list(results)}, Recommendation(("a.b=1",), (), ("so",))

    def test_says_that_all_holds(self):
        text = as_text(*self.report(Result("one", True, "well"), Result("two", None, "5 images/s")))
        assert "All 1 promises that were tried hold here." in text
        assert "python train.py --preset cifar10 --set a.b=1" in text

    def test_its_command_has_the_users_own_settings(self):
        text = as_text(*self.report(settings=("model.steps=[1,1]", "a.c=1")))
        assert "train.py --preset cifar10 --set 'model.steps=[1,1]' --set a.c=1 --set a.b=1\n" in text

    def test_says_of_each_failure_what_to_do(self):
        text = as_text(*self.report(Result("one", False, "off by much", "take another"), Result("two", True, "well")))
        assert "FAILS  one  off by much" in text
        assert "speed, one: off by much. What to do: take another" in text
        assert "1 of 2 promises do not hold" in text

    def test_is_plain_json(self):
        plain = json.loads(json.dumps(as_json(*self.report(Result("one", True, "well", figures={"a": 1.5})))))
        assert plain["holds"] is True and plain["checks"]["speed"][0]["figures"] == {"a": 1.5}
        assert plain["request"]["preset"] == "cifar10" and plain["recommendation"]["settings"] == ["a.b=1"]


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--only", "numeric"], "there is no check 'numeric'; there are build, numerics"),
            (["--preset", "cifar11"], "there is no preset 'cifar11'"),
            (["--set", "training.batchsize=1"], "there is no option 'training.batchsize'"),
            (["--devices", "0"], "--devices is 0"),
            (["--timeout", "0"], "--timeout is 0"),
            (["--out", "/proc/nothing"], "/proc/nothing"),
        ],
    )
    def test_mistakes_are_one_line_before_anything_is_measured(self, arguments, says, capsys):
        assert main(["doctor", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1

    @pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 5)])
    def test_the_status_says_whether_all_holds(self, holds, status, monkeypatch, tmp_path, capsys):
        result = Result("one", holds, "said", "" if holds else "do this")
        monkeypatch.setattr(checks, "run_apart", lambda name, task: [result])
        assert main(["doctor", "--out", str(tmp_path / "new"), "--recommend", "--only", "numerics"]) == status
        output = capsys.readouterr()
        assert output.out == "\n" and "said" in output.err
        plain = json.loads((tmp_path / "new" / "doctor.json").read_text())
        assert plain["holds"] is holds and list(plain["checks"]) == ["build", "numerics"]
        assert "said" in (tmp_path / "new" / "doctor.txt").read_text()
