"""Faults around a run: no memory, damaged files, signals during evaluations, weights that are not finite."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST
from helpers.runs import call_before_steps, read_checkpoint, read_log_without_timing, run_config

from tfdecouple.errors import DataError, RunError
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.training import DivergedError, InterruptedRunError, train


def test_first_step_without_memory_leaves_no_run_folder(image_folder, tmp_path, monkeypatch):
    def act(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    call_before_steps(monkeypatch, act)
    with pytest.raises(RunError, match="out of memory; start again with a smaller training.batch_size"):
        train(run_config(image_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_summary_of_a_run_is_detected(tmp_path):
    for content in (
        b"", b'{"steps": 10, "te', b"[1]", b"\xff", b'{"steps": 10}', b'{"test": 3}', b'{"test": {}}',
        b'{"test": {"bits_per_dim": "3.5", "images": 4}}', b'{"test": {"bits_per_dim": 3.5, "images": "four"}}',
        b'{"test": null, "data": ["faces"]}', b'{"imported_from": 3}', b'{"imported_from": "x", "test": {}}',
    ):  # fmt: skip
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(ValueError):
            RunFolder(tmp_path).read_summary()


def test_signal_amid_the_test_evaluation_keeps_all_steps_and_says_so(finished_run, image_folder, tmp_path, stand_ins):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "summary.json").unlink()

    def measure(split):
        assert split == "test"
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the run continued")

    stand_ins(measure)
    with pytest.raises(InterruptedRunError) as error:
        train(run_config(image_folder), run)
    assert str(error.value) == (
        "stopped by SIGTERM while the test images were measured; all 10 steps and the best weights are saved, "
        "the same command measures them again"
    )


@pytest.mark.usefixtures("fake_step")
def test_run_resumes_with_the_evaluation_amid_which_a_signal_ended_it(image_folder, tmp_path, stand_ins):
    best, config = {5: 8.0, 10: 7.0}, run_config(image_folder, model=LEAST, pictures=0)

    def train_measuring(folder, *steps):
        """Trains while evaluations give the bits/dim of these steps; a signal comes amid the next one."""
        measured = iter(steps)

        def measure(split):
            if step := next(measured, 0):
                return best[step]
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the run continued")

        stand_ins(measure)
        train(config, tmp_path / folder)

    train_measuring("whole", 5, 10, 10)
    for step, measured in ((5, []), (10, [5])):
        message = f"while the validation images were measured at step {step} of 10, sav"
        with pytest.raises(InterruptedRunError, match=message):
            train_measuring("run", *measured)
    train_measuring("run", 10, 10)
    assert read_log_without_timing(tmp_path / "run") == read_log_without_timing(tmp_path / "whole")
    assert RunFolder(tmp_path / "run").read_summary() == RunFolder(tmp_path / "whole").read_summary()
    assert RunFolder(tmp_path / "run").read_summary()["best_step"] == 10


@pytest.mark.usefixtures("fake_step")
def test_run_with_damaged_summary_and_log_is_measured_again(image_folder, tmp_path, stand_ins, capsys):
    seen, run = [], tmp_path / "run"
    stand_ins(lambda split: seen.append(split) or 8.0)
    config = run_config(image_folder, model=LEAST, steps=2, evaluate_every=2)
    summary, whole = train(config, run).summary, read_log_without_timing(run)
    os.truncate(run / "summary.json", 20)
    lost = {**whole, ("validation", 2): {"step": 2, "kind": "validation", "bits_per_dim": None}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lost.values()))
    assert train(config, run).summary == summary
    assert seen == ["validation", "test"] * 2 and read_log_without_timing(run) == whole
    out = capsys.readouterr().out
    assert "summary.json is damaged; the best weights are measured on the test images again" in out
    assert "metrics.jsonl: 1 damaged rows are left out" in out


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("bad", [(), range(7, 99)], ids=["unnoticed", "skipped"])
def test_weights_that_are_not_finite_are_never_saved(image_folder, tmp_path, monkeypatch, fake_step, bad):
    def act(step_function, step):
        if step == 7:
            weight = next(iter(step_function.state.trainable.values()))
            weight.assign(tf.fill(weight.shape, np.nan))

    monkeypatch.setattr(fake_step, "bad", bad)
    call_before_steps(monkeypatch, act, of=fake_step)
    config = run_config(image_folder, model=LEAST, checkpoint_every=2, keep_checkpoints=3, evaluate_every=100)
    with pytest.raises(DivergedError, match="weights are not finite at step 8, which is not saved"):
        train(config, tmp_path / "run")
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").list_checkpoint_steps() == [6, 4, 2]
    values = read_checkpoint(tmp_path / "run", "step-000000006")
    assert all(np.isfinite(value).all() for key, value in values.items() if key.startswith("model/"))


@pytest.mark.usefixtures("fake_step", "stand_ins")
def test_run_folder_that_is_deleted_amid_a_run_is_not_made_again(image_folder, tmp_path, monkeypatch, fake_step):
    call_before_steps(monkeypatch, lambda _, step: step == 7 and shutil.rmtree(tmp_path / "run"), of=fake_step)
    with pytest.raises(RunError, match="cannot write to the run folder .*: No such file") as error:
        train(run_config(image_folder, model=LEAST), tmp_path / "run")
    assert "last checkpoint" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_training_refuses_images_that_cannot_be_opened_in_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot open data.source=folder:/x.*: File name too long") as error:
        train(run_config(f"/{'x' * 300}", model=LEAST), tmp_path / "run")
    assert "\n" not in str(error.value)
