import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from helpers import runs
from helpers.models import LEAST, SMALL
from helpers.refusals import message_of

from tfdecouple.errors import ConfigError, RunError
from tfdecouple.registry import DIAGNOSTICS
from tfdecouple.runs.opened_run import load_model
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import write_json
from tfdecouple.training import DivergedError, evaluation, train
from tfdecouple.training.training_folder import TrainingFolder

pytestmark = pytest.mark.usefixtures("eager")


class FirstStepError(Exception):
    """Raised instead of the first step, where a test is about what comes before it."""


def train_until_step(config, run, number, look=lambda function: None):
    """Trains until before the first step, which must be `number`; `look` gets the function that takes the step."""

    def act(function, step):
        assert step == number
        look(function)
        raise FirstStepError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FirstStepError):
        runs.call_before_steps(patch, act)
        train(config, run)


class TestFolder:
    def test_log_and_summary_have_all_rows_and_the_final_metrics(self, finished_run):
        rows = runs.read_log_without_timing(finished_run)
        evaluations = {("validation", 5), ("validation", 10), ("test", 10)}
        assert set(rows) == {("train", step) for step in (2, 4, 6, 8, 10)} | evaluations
        assert all(math.isfinite(v) for row in rows.values() for v in row.values() if not isinstance(v, str))
        assert {"gradient_norm", "learning_rate", "skipped_steps"} <= rows["train", 2].keys()
        assert {"standard_error", "smallest_scale", "worst_condition"} <= rows["validation", 5].keys()
        summary = json.loads((finished_run / "summary.json").read_text())
        assert (summary["steps"], summary["test"]["images"], summary["averaged_weights"]) == (10, 5, True)
        assert summary["test"]["bits_per_dim"] == rows["test", 10]["bits_per_dim"]
        assert summary["validation_bits_per_dim"] == rows["validation", summary["best_step"]]["bits_per_dim"]
        assert summary["validation_bits_per_dim"] == min(rows["validation", step]["bits_per_dim"] for step in (5, 10))
        assert summary["reconstruction"] == "5 of 5 images identical to the last pixel"
        assert summary["lossless_codecs_images"] == 5
        assert set(summary["lossless_codecs_bits_per_dim"]) == {"webp", "png"}

    def test_training_reads_devices_only_at_rows_of_the_log(self, watched_run):
        # Evaluations are at 5 and 10, and the first step of a process is read.
        _, reads = watched_run
        assert {step for step, count in reads.items() if count} - {0} == {1, 2, 4, 5, 6, 8, 10}

    def test_tensorboard_has_the_metrics_pictures_and_config_of_the_run(self, finished_run):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2

        events = EventAccumulator(str(finished_run / "tensorboard"), size_guidance={"tensors": 0})
        events.Reload()
        rows = runs.read_log_without_timing(finished_run)
        tags = set(events.Tags()["tensors"])
        assert {"samples", "reconstructions", "switch", "interpolation"} <= tags
        config = "_hparams_/session_start_info"
        content = plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(config).plugin_data.content)
        options = content.session_start_info.hparams
        assert options["training.learning_rate"].number_value == 0.01
        assert (options["model.steps"].string_value, options["name"].string_value) == ("[1, 1]", "tiny")
        scalars = tags - {"samples", "reconstructions", "switch", "interpolation", config}
        assert {"train/bits_per_dim", "validation/bits_per_dim", "test/bits_per_dim"} <= scalars
        for tag in scalars - {f"train/{name}" for name in runs.TIMING}:
            kind, name = tag.split("/")
            shown = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
            logged = {step: row[name] for (of, step), row in rows.items() if of == kind}
            assert shown == pytest.approx(logged, rel=1e-6), tag


class TestResumption:
    def test_signal_stops_a_run_between_steps_and_the_same_command_resumes(self, fake_run, fake_step, capsys):
        with pytest.MonkeyPatch.context() as patch:
            runs.call_before_steps(patch, lambda _, step: step == 6 and os.kill(os.getpid(), signal.SIGTERM), fake_step)
            assert fake_run.call_train_program() == 75
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "stopped by SIGTERM at step 7 of 10, saved; the same command resumes" in err
        assert fake_run.list_checkpoint_steps()[0] == 7
        assert fake_run.call_train_program() == 0
        assert "resumes from step 7" in capsys.readouterr().out
        # This row averages two steps, one of each program.
        assert fake_run.read_log()["train", 8]["kl"] == np.mean([fake_step.kl(6), fake_step.kl(7)])

    def test_resumed_run_ends_bit_for_bit_as_an_unbroken_one(
        self, finished_run, image_folder, tmp_path, traced, monkeypatch
    ):
        # A program that was killed amid its log's window would have left this folder.
        run = shutil.copytree(finished_run, tmp_path / "run")
        for left in [run / "summary.json", *(run / "checkpoints").glob("*-000000010.*")]:
            left.unlink()
        monkeypatch.setattr(evaluation, "draw_pictures", lambda inputs, *_: ({}, len(inputs.images)))
        train(runs.run_config(image_folder), run)
        runs.assert_same_checkpoint(run, finished_run, "step-000000010")
        for read in (runs.read_log_without_timing, lambda run: RunFolder(run).read_summary()):
            assert read(run) == read(finished_run)

    def test_resumption_skips_a_damaged_checkpoint(self, finished_run, image_folder, tmp_path, capsys):
        run = shutil.copytree(finished_run, tmp_path / "run")
        checkpoints = CheckpointFolder(run / "checkpoints")
        data = checkpoints.path / "step-000000010.safetensors"
        os.truncate(data, data.stat().st_size // 2)
        # The best weights are of a step that the run has then not reached.
        for file in checkpoints.path.glob("best-*"):
            file.rename(file.with_name("best-000000010.safetensors"))
        train_until_step(runs.run_config(image_folder), run, 5)
        out = capsys.readouterr().out
        assert "not used: the checkpoint" in out and "step-000000010.safetensors is damaged" in out
        assert "resumes from step 5" in out
        assert (checkpoints.list_checkpoint_steps(), checkpoints.list_checkpoint_steps("best")) == ([5], [])
        assert max(step for _, step in runs.read_log_without_timing(run)) == 5

    def test_resumption_without_any_whole_checkpoint_is_refused_in_one_line(self, finished_run, image_folder, tmp_path):
        shutil.copytree(finished_run, tmp_path / "run")
        for data in (tmp_path / "run" / "checkpoints").glob("step-*"):
            os.truncate(data, 100)
        message = message_of(RunError, lambda: train(runs.run_config(image_folder), tmp_path / "run"))
        assert "no checkpoint in" in message and "can be read" in message and "move the folder away" in message


class TestImageFolders:
    def test_complete_run_accepts_any_spelling_of_its_images(self, finished_run, image_folder, monkeypatch, capsys):
        def files():
            return {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}

        before = files()
        monkeypatch.chdir(image_folder.parent)
        for spelled in (image_folder, f"./{image_folder.name}/"):
            assert train(runs.run_config(spelled), finished_run).summary["steps"] == 10
            assert "is complete at step 10" in capsys.readouterr().out
        assert files() == before

    def test_resumption_accepts_a_moved_image_folder(self, finished_run, image_folder, tmp_path, capsys):
        shutil.copytree(finished_run, tmp_path / "run")
        write_json(tmp_path / "run" / "config.json", runs.run_config(tmp_path / "gone").to_dict())
        config = runs.run_config(image_folder, steps=11, loggers=())
        train_until_step(config, tmp_path / "run", 10)
        assert f"images are read from {image_folder}; {tmp_path / 'gone'}, where" in capsys.readouterr().out
        assert RunFolder(tmp_path / "run").read_config() == config
        # Two existing folders hold different images.
        (tmp_path / "other").mkdir()
        with pytest.raises(RunError, match="data.source was .* and is now"):
            train(runs.run_config(tmp_path / "other"), finished_run)


def test_run_of_5_bits_without_pictures_ends_and_reports_that_tf32_needs_a_gpu(fake_run, capsys):
    model = dataclasses.replace(LEAST, n_bits=5)
    summary = fake_run.train(model, steps=2, pictures=0, precision="tf32")
    out = capsys.readouterr().out
    assert re.search(r"reconstruction: (\d) of \1 images identical", out)
    assert re.match(r"(\d) of \1 images", summary["reconstruction"]) and not summary["lossless_codecs_bits_per_dim"]
    assert not (fake_run.path / "images").exists()
    assert "training.precision=tf32 changes nothing here: no GPU has TF32" in out


class TestRefusals:
    def test_resumption_names_changed_options_with_both_values(self, finished_run, image_folder):
        config = runs.run_config(image_folder, learning_rate=0.5, batch_size=4)
        message = message_of(RunError, lambda: train(config, finished_run))
        for words in ("training.learning_rate was 0.01 and is now 0.5", "training.batch_size was 8 and is now 4"):
            assert words in message

    def test_training_refuses_a_folder_in_use_or_with_other_files_but_not_leftovers(self, tmp_path, image_folder):
        config = runs.run_config(image_folder)
        with (tmp_path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "another program is training in" in message_of(RunError, lambda: train(config, tmp_path))
        # A killed start leaves these.
        (tmp_path / ".config.json.123.tmp").write_text("{")
        TrainingFolder(tmp_path, config).require_same_run()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "diary.txt").write_text("dear diary")
        assert "exists and is no run folder" in message_of(RunError, lambda: train(config, tmp_path / "other"))
        assert [path.name for path in (tmp_path / "other").iterdir()] == ["diary.txt"]


class TestWarmStart:
    def test_init_from_loads_the_best_weights_of_another_run(self, finished_run, image_folder, tmp_path, monkeypatch):
        expected = load_model(finished_run).named_variables()

        def look(function):
            averages = function.state.optimizer.averages
            assert averages
            for values in (function.state.model.named_variables(), averages):
                for name, variable in values.items():
                    np.testing.assert_array_equal(variable.numpy(), expected[name], err_msg=name)

        monkeypatch.chdir(finished_run.parent)
        train_until_step(runs.run_config(image_folder, init_from=finished_run.name), tmp_path / "run", 0, look)

    def test_init_from_names_a_different_architecture(self, finished_run, image_folder, tmp_path):
        model = dataclasses.replace(SMALL, latent_dim=6)
        config = runs.run_config(image_folder, model=model, init_from=str(finished_run))
        message = message_of(ConfigError, lambda: train(config, tmp_path / "run"))
        assert "model.latent_dim is 4 there and 6 here" in message
        assert f"that of --config {finished_run / 'config.json'}:" in message


class TestBestStep:
    def test_run_without_test_evaluation_is_complete(self, fake_run):
        for _ in range(2):
            summary = fake_run.train(steps=2, evaluate_every=2, evaluation_samples=0)
            assert fake_run.measured == ["validation"] and summary["test"] is None
        assert "lossless_codecs_bits_per_dim" not in summary and summary["validation_bits_per_dim"] == 8.0
        assert {kind for kind, _ in fake_run.read_log()} == {"train", "validation"}

    def test_best_step_of_a_prolonged_run_includes_its_former_last_step(self, fake_run, capsys):
        # The values at the steps 2, 3 and 4.
        values = iter([3.0, 2.0, 2.5])
        fake_run.measure(lambda split: next(values))
        for steps in (3, 4):
            summary = fake_run.train(steps=steps, evaluate_every=2, evaluation_samples=0)
        assert (summary["steps"], summary["best_step"], summary["validation_bits_per_dim"]) == (4, 3, 2.0)
        assert fake_run.list_checkpoint_steps("best") == [3]
        assert "measured instead" not in capsys.readouterr().out

    def test_best_checkpoint_is_chosen_by_validation_and_test_images_are_seen_once(self, fake_run):
        values = iter([3.0, 2.0, 2.5, 2.2])
        fake_run.measure(lambda split: next(values, 1.0))
        summary = fake_run.train(steps=4, evaluate_every=1, keep_checkpoints=4)
        assert fake_run.measured == ["validation"] * 4 + ["test"]
        assert (summary["best_step"], summary["validation_bits_per_dim"]) == (2, 2.0)
        assert (fake_run.list_checkpoint_steps("best"), fake_run.list_checkpoint_steps()) == ([2], [4, 3, 2, 1])
        names = ("best-000000002", "step-000000002", "step-000000004")
        best, state, later = (runs.read_checkpoint(fake_run.path, name) for name in names)
        averages = [key for key in state if key.startswith("averages/")]
        assert averages and all(np.any(state[key] != later[key]) for key in averages)
        for key in averages:
            np.testing.assert_array_equal(best[key.replace("averages/", "model/", 1)], state[key], err_msg=key)


def test_evaluation_names_metrics_that_are_out_of_range(fake_run, capsys, monkeypatch):
    fake_run.measure(lambda split: 9.0)
    fake_run.skip_steps({1})
    diagnostics = {"smallest_scale": 0.0012, "worst_condition": 23456.0}
    monkeypatch.setitem(DIAGNOSTICS.entries, "model", lambda model, images: diagnostics)
    monkeypatch.setattr(evaluation, "draw_pictures", lambda inputs, *_: ({}, len(inputs.images) - 1))
    fake_run.train()
    first, second = [line for line in capsys.readouterr().out.splitlines() if "out of range" in line]
    assert all(
        words in first for words in ("0.0012", "2.3e+04", "since step 0: 1", "bits/dim more than", "5 of 6 images")
    )
    # The second evaluation counts only the steps since the first.
    assert "since step" not in second and "0.0012" in second


class TestDivergence:
    def test_diverged_run_saves_finite_weights_and_resumes(self, fake_run, capsys):
        # Two skipped steps in a row are allowed; the second series is one step too long.
        fake_run.skip_steps({1, 2, 5, 6, 7})
        options = {"max_skipped_steps": 3, "keep_checkpoints": 9}
        assert fake_run.call_train_program(**options) == 3
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and "kl" in err
        assert "training diverged: 3 steps in a row were not applied (at step 8:" in err
        assert "step 2 was not applied: bits per dim, kl, gradient norm not finite" in out
        row = fake_run.read_log()["train", 4]
        assert row["skipped_steps"] == 2 and math.isfinite(row["bits_per_dim"])
        good, last = (runs.read_checkpoint(fake_run.path, f"step-{step:09d}") for step in (5, 8))
        for key, value in good.items():
            if not key.startswith("counters/"):
                np.testing.assert_array_equal(last[key], value, err_msg=key)
        fake_run.skip_steps(())
        assert fake_run.call_train_program(**options) == 0
        row = fake_run.read_log()["train", 10]
        assert row["skipped_steps"] == 5 and math.isfinite(row["bits_per_dim"])

    def test_diverged_run_ends_at_its_diverged_step_even_if_results_are_read_late(self, fake_run, capsys):
        # Results are read after the steps 1 and 10.
        fake_run.skip_steps({4, 5, 6})
        rare = {"log_every": 99, "evaluate_every": 99, "checkpoint_every": 99}
        with pytest.raises(DivergedError, match=r"3 steps in a row were not applied \(at step 7: "):
            fake_run.train(max_skipped_steps=3, **rare)
        assert "3 of the steps 2 to 7 were not applied: " in capsys.readouterr().out
        saved = runs.read_checkpoint(fake_run.path, "step-000000007")
        names = {"step": 7, "updates": 4, "skipped": 3}
        assert names == {name: saved[f"counters/{name}"] for name in names}
