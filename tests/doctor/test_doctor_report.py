"""What doctor reports: judgements of a machine, the recommendation, the report, and the command's mistakes."""

import json

import pytest

from tfdecouple.cli import main
from tfdecouple.config import load_preset, override
from tfdecouple.doctor import check_runner, installation
from tfdecouple.doctor.report import VARIANTS, Request, Result, format_settings, make_text, recommend_settings

FACTS = {
    "versions": {"tensorflow": "2.21.0"},
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
GPU = "570.1, a GPU, 16384 MiB"


def of_machine(**changes):
    return {one.what: one for one in installation.check_machine({**FACTS, **changes})}


class TestBuild:
    @pytest.mark.parametrize(
        ("visible", "present", "seen", "holds"),
        [
            (None, 0, 0, None),
            (None, 2, 1, False),
            ("0", 2, 1, True),
            ("GPU-1,MIG-2", 2, 0, False),
            ("-1", 2, 0, None),
            ("NoDevFiles", 2, 0, None),
        ],
    )
    def test_gpus_that_the_user_leaves_visible_are_to_be_seen(self, visible, present, seen, holds):
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        found = of_machine(nvidia_smi=[GPU] * present, gpus=[{}] * seen, environment=environment)
        assert found["GPUs in use"].holds is holds
        assert not present or "570.1, a GPU" in found["GPU"].message
        if visible is not None:
            assert (
                "CUDA_VISIBLE_DEVICES" in found["GPUs in use"].message and "names GPUs" in found["GPUs in use"].advice
            )

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
        assert installation.find_used_devices(Request(devices=asked), results) == tuple(devices[:used])


def timed(variant, rate, batch=16, devices=1):
    figures = {"phase": "train", "variant": variant, "batch": batch, "devices": devices, "images_per_s": rate}
    return Result(f"train, {variant}", None, f"{rate} images/s", figures=figures)


# All variants compared, and right.
RIGHT = tuple(Result(f"CPU:0, {each.name}", True, "", figures={"variant": each.name}) for each in VARIANTS)


def recommended(*rows, numerics=RIGHT):
    found = recommend_settings({"numerics": numerics, "speed": rows})
    return found["settings"], found["why"]


class TestRecommendation:
    ROWS = (timed("float32", 100.0), timed("tf32", 150.0), timed("bfloat16 nets", 160.0), timed("recompute", 80.0))

    def test_takes_the_fastest_precision_that_is_worth_it(self):
        settings, why = recommended(*self.ROWS)
        assert format_settings(settings) == "--set training.precision=mixed_bfloat16"
        override(load_preset("quickstart"), settings)
        assert any("tf32: 1.50 times" in line for line in why)
        assert recommended(self.ROWS[0], timed("tf32", 102.0))[0] == []
        assert recommended() == ([], ["training was not timed: nothing to choose from"])

    def test_takes_no_precision_whose_numbers_are_wrong_or_were_not_compared(self):
        wrong = Result("GPU:0", False, "", "do not", {"variant": "bfloat16 nets"})
        settings, why = recommended(*self.ROWS, numerics=[*RIGHT, wrong])
        assert settings == ["training.precision=tf32"]
        assert any("numbers are wrong" in line for line in why)
        # Where the process of the check failed, nothing but the default is safe.
        assert recommended(*self.ROWS, numerics=[*RIGHT, Result("GPU:0", False, "", "see")])[0] == []
        settings, why = recommended(*self.ROWS, numerics=())
        assert settings == [] and any("1.60 times as fast as float32; its numbers were not" in line for line in why)
        assert recommended(*self.ROWS, numerics=RIGHT[1:2])[0] == ["training.precision=tf32"]


def test_every_variant_is_an_option_that_there_is():
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) and not VARIANTS[0].settings
    for variant in VARIANTS[1:]:
        override(load_preset("quickstart"), list(variant.settings))
        assert len(variant.settings) == 1


class TestReport:
    @staticmethod
    def report(*results, settings=()):
        request, found = Request(preset="cifar10", settings=settings), {"settings": ["a.b=1"], "why": ["so"]}
        return "\n".join(make_text(request, {"speed": results}, {"speed": "how fast it is"}, found))

    def test_its_command_has_the_users_own_settings(self):
        text = self.report(settings=("model.steps=[1,1]", "a.c=1"))
        assert "train.py --preset cifar10 --set 'model.steps=[1,1]' --set a.c=1 --set a.b=1\n" in text

    def test_says_of_each_failure_what_to_do(self):
        text = self.report(Result("one", False, "off by much", "take another"), Result("two", True, "well"))
        assert "FAILS  one  off by much" in text
        assert "speed, one: off by much. What to do: take another" in text
        assert "1 of 2 promises do not hold" in text


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
        monkeypatch.setattr(check_runner, "run_in_process", lambda name, task: [result])
        assert main(["doctor", "--out", str(tmp_path / "new"), "--recommend", "--only", "numerics"]) == status
        output = capsys.readouterr()
        assert output.out == "\n" and "said" in output.err
        plain = json.loads((tmp_path / "new" / "doctor.json").read_text())
        assert plain["holds"] is holds and list(plain["checks"]) == ["build", "numerics"]
        assert "said" in (tmp_path / "new" / "doctor.txt").read_text()
