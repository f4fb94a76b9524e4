import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, random_images
from helpers.numbered import write_images
from helpers.refusals import message_of
from helpers.runs import call_before_steps, read_checkpoint, read_log_without_timing, run_config

from tfdecouple.errors import DataError, RunError
from tfdecouple.loggers import MetricsLog
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.system.signals import StopRequest
from tfdecouple.training import DivergedError, InterruptedRunError, train


class TestFaults:
    def test_first_step_without_memory_leaves_no_run_folder(self, image_folder, tmp_path, monkeypatch):
        def act(*_):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

        call_before_steps(monkeypatch, act)
        with pytest.raises(RunError, match="out of memory; start again with a smaller training.batch_size"):
            train(run_config(image_folder, model=LEAST), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_damaged_summary_of_a_run_is_detected(self, tmp_path):
        for content in (
            b"", b'{"steps": 10, "te', b"[1]", b"\xff", b'{"steps": 10}', b'{"test": 3}', b'{"test": {}}',
            b'{"test": {"bits_per_dim": "3.5", "images": 4}}', b'{"test": {"bits_per_dim": 3.5, "images": "four"}}',
            b'{"test": null, "data": ["faces"]}', b'{"imported_from": 3}', b'{"imported_from": "x", "test": {}}',
        ):  # fmt: skip
            (tmp_path / "summary.json").write_bytes(content)
            with pytest.raises(ValueError):
                RunFolder(tmp_path).read_summary()

    def test_run_resumes_with_the_evaluation_amid_which_a_signal_ended_it(self, fake_run):
        def train_measuring(folder, *values):
            """Trains while evaluations give these bits/dim; a signal comes amid the next evaluation."""
            values, fake_run.path = iter(values), fake_run.path.with_name(folder)
            fake_run.measure(lambda split: next(values, None) or os.kill(os.getpid(), signal.SIGTERM))
            fake_run.train()
            return fake_run.read_log(), fake_run.read_summary()

        whole = train_measuring("whole", 8.0, 7.0, 7.0)
        for message, *values in (
            ("validation images were measured at step 5 of 10, saved",),
            ("validation images were measured at step 10 of 10, saved", 8.0),
            ("test images were measured; all 10 steps and the best weights are", 7.0),
        ):
            with pytest.raises(InterruptedRunError, match=f"^stopped by SIGTERM while the {message}"):
                train_measuring("run", *values)
        assert fake_run.list_checkpoint_steps() == [10, 5]
        assert train_measuring("run", 7.0) == whole and whole[1]["best_step"] == 10

    def test_run_with_damaged_summary_and_log_is_evaluated_again(self, fake_run, capsys):
        options = {"steps": 2, "evaluate_every": 2}
        summary, whole = fake_run.train(**options), fake_run.read_log()
        os.truncate(fake_run.path / "summary.json", 20)
        lost = {**whole, ("validation", 2): {"step": 2, "kind": "validation", "bits_per_dim": None}}
        (fake_run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lost.values()))
        assert fake_run.train(**options) == summary
        assert fake_run.measured == ["validation", "test"] * 2 and fake_run.read_log() == whole
        out = capsys.readouterr().out
        assert "summary.json is damaged; the best weights are measured on the test images again" in out
        assert "metrics.jsonl: 1 damaged rows are left out" in out

    @pytest.mark.parametrize("bad", [(), range(7, 99)], ids=["unnoticed", "skipped"])
    def test_weights_that_are_not_finite_are_never_saved(self, fake_run, fake_step, monkeypatch, bad):
        def act(step_function, step):
            if step == 7:
                weight = next(iter(step_function.state.trainable.values()))
                weight.assign(tf.fill(weight.shape, np.nan))

        fake_run.skip_steps(bad)
        call_before_steps(monkeypatch, act, of=fake_step)
        with pytest.raises(DivergedError, match="weights are not finite at step 8, which is not saved"):
            fake_run.train(checkpoint_every=2, keep_checkpoints=3, evaluate_every=100)
        assert fake_run.list_checkpoint_steps() == [6, 4, 2]
        values = read_checkpoint(fake_run.path, "step-000000006")
        assert all(np.isfinite(value).all() for key, value in values.items() if key.startswith("model/"))

    def test_run_folder_that_is_deleted_amid_a_run_is_not_made_again(self, fake_run, fake_step, monkeypatch):
        call_before_steps(monkeypatch, lambda _, step: step == 7 and shutil.rmtree(fake_run.path), of=fake_step)
        with pytest.raises(RunError, match="cannot write to the run folder .*: No such file") as error:
            fake_run.train()
        assert "last checkpoint" not in str(error.value) and not fake_run.path.exists()

    @pytest.mark.usefixtures("stand_ins", "fake_step")
    @pytest.mark.parametrize("readable", [3, 0])
    def test_unreadable_test_images_are_left_out_and_only_such_images_end_the_run(self, tmp_path, readable):
        for split, count in {"train": 8, "validation": 3, "test": 4}.items():
            write_images(tmp_path / split, random_images(count))
            for number in range(4 - readable if split == "test" else 1):
                (tmp_path / split / f"{number:03d}.png").write_text("no image")
        config = run_config(tmp_path, model=LEAST, steps=1, pictures=0, init_images=4)
        # The images do not fit into the cache, so that the run does not know which ones can be read.
        data = dataclasses.replace(config.data, on_bad_image="skip", cache_gib=0.0)
        config = dataclasses.replace(config, data=data)
        if not readable:
            message = message_of(DataError, lambda: train(config, tmp_path / "run"))
            assert "none of the 4 images can be read" in message
            return
        summary = train(config, tmp_path / "run").summary
        assert summary["lossless_codecs_images"] == 3
        assert summary["reconstruction"] == "3 of 3 images identical to the last pixel"

    def test_metrics_that_are_not_finite_are_null_in_a_complete_summary(self, fake_run, capsys):
        fake_run.measure(lambda split: math.nan)
        fake_run.train(steps=1)
        summary = fake_run.read_summary()
        assert summary["validation_bits_per_dim"] is None and summary["best_step"] == 1
        assert summary["test"]["bits_per_dim"] is None
        assert "no validation gave a finite result: those of step 1 are measured instead\n" in capsys.readouterr().out
        assert fake_run.train(steps=1) == summary
        assert "is complete at step 1" in capsys.readouterr().out

    def test_summary_names_the_measured_step_if_the_best_weights_are_lost(self, fake_run, capsys):
        values, options = iter([2.0, 3.0]), {"steps": 2, "evaluate_every": 1, "evaluation_samples": 0}
        fake_run.measure(lambda split: next(values))
        summary = fake_run.train(**options)
        assert (summary["best_step"], summary["validation_bits_per_dim"]) == (1, 2.0)
        (data,) = (fake_run.path / "checkpoints").glob("best-*")
        os.truncate(data, 20)
        (fake_run.path / "summary.json").unlink()
        summary = fake_run.train(**options)
        assert (summary["best_step"], summary["validation_bits_per_dim"]) == (2, None)
        line = "the best weights, of step 1, cannot be read: those of step 2 are measured instead\n"
        assert line in capsys.readouterr().out
        assert Run.open(fake_run.path).step == 2

    def test_training_under_nohup_ignores_hangups(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with StopRequest() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.reason is None
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_signal_before_an_evaluation_lets_it_not_begin(self):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(InterruptedRunError, match="SIGTERM in a test"), stop.stop_at_once("in a test"):
                pytest.fail("the evaluation begins")


ROWS = [{"step": 1, "kind": "train", "a": 1.0}, {"step": 2, "kind": "train", "a": 2.0}]
NO_ROWS = [b'{"kind": "train"}', b'{"step": "1", "kind": "train"}', b'{"step": 1}']
NO_ROWS += [b"[1, 2]", b"7", b"\xff", b"[" * 9999]


class TestLog:
    @pytest.mark.parametrize("is_last", [False, True])
    def test_log_drops_rows_after_the_checkpoint_and_a_row_cut_short(self, tmp_path, is_last):
        log = MetricsLog(tmp_path)
        log.open(0)
        for kind, step in (("train", 1), ("train", 2), ("train", 3), ("test", 2), ("test", 3)):
            log.write(kind, step, {"bits_per_dim": float(step)})
        log.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "ki')
        MetricsLog(tmp_path).open(2, is_last)
        # The evaluation of test images counts while the run continues; after the last step it is repeated.
        expected = [("train", 1), ("train", 2), *([] if is_last else [("test", 2)])]
        rows = {(kind, step): {"step": step, "kind": kind, "bits_per_dim": float(step)} for kind, step in expected}
        assert read_log_without_timing(tmp_path) == rows

    def test_damaged_rows_of_the_log_are_counted_and_removed(self, tmp_path):
        first, second = (json.dumps(row).encode() for row in ROWS)
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, *NO_ROWS, second, b'{"step": 3, "ki']))
        # A crash leaves a last line cut short, which is no damage.
        assert MetricsLog(tmp_path).open(2) == len(NO_ROWS)
        assert list(read_log_without_timing(tmp_path).values()) == ROWS
        assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == len(ROWS)
