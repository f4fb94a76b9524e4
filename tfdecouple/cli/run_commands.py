"""Commands that draw no pictures: train, presets, explain, import-wolf, publish, export, doctor, completion."""

import json
import os
import pathlib
import textwrap
import time
from collections.abc import Callable
from typing import Annotated, Literal

from tfdecouple.cli.options import Devices, RunName, Settings, within
from tfdecouple.config import Config, describe_options, list_option_names, preset_config, preset_names
from tfdecouple.config.run import make_unknown_option_error
from tfdecouple.doctor.check_runner import CHECKS, Task, make_doctor_config, make_json, make_text, run_checks
from tfdecouple.errors import EXIT_FAILED, UserError
from tfdecouple.storage.files import hash_file, write_json, write_text
from tfdecouple.system import process
from tfdecouple.system.requirements import require_packages


def train(
    *,
    preset: str = "quickstart",
    config: pathlib.Path | None = None,
    settings: Settings = (),
    steps: int | None = None,
    seed: int | None = None,
    init_from: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    workdir: pathlib.Path | None = None,
    devices: Devices = None,
) -> None:
    """Train a model: `python train.py`.

    The same command again resumes where the run stopped. Ctrl-C, SIGTERM and SIGHUP save first.

    The quickstart: photographs that come with the installation, minutes on a CPU:

        python train.py

    The paper's CIFAR-10 run, on all GPUs of this machine:

        python train.py --preset cifar10 --data-dir ~/tensorflow_datasets

    Your own images (sub-folders are labels), with one option changed:

        python train.py --data folder:/my/images --set model.latent_dim=32 --workdir runs/mine

    Exit status: 0 done; 2 a mistake in the command or the data; 3 diverged; 4 another worker of the cluster has ended:
    run the command again on all of them; 75 stopped by a signal, saved: run the command again.

    Args:
        preset: a set of options that `presets` lists.
        config: take the options from a JSON file, as in a run folder, instead of a preset.
        steps: number of updates (training.steps).
        seed: seed of all draws (training.seed).
        init_from: start from the weights of another run or import (training.init_from).
        data: photographs, folder:PATH, or the name of a TFDS data set (data.source).
        data_dir: folder of prepared TFDS data sets (data.data_dir).
        download: download and prepare the TFDS data set if it is missing.
        workdir: the run folder; default runs/PRESET.
    """
    shortcuts = {"training.steps": steps, "training.seed": seed, "training.init_from": init_from}
    shortcuts |= {"data.source": data, "data.data_dir": data_dir}
    changes = [f"{name}={json.dumps(value)}" for name, value in shortcuts.items() if value is not None]
    options = (Config.from_json(str(config)) if config else preset_config(preset)).override([*settings, *changes])
    workdir = workdir or pathlib.Path("runs", options.name)

    process.start_tensorflow()
    from tfdecouple import training
    from tfdecouple.runs.run_folder import IMAGES

    try:
        outcome = training.train(options, workdir, devices=devices, download=download)
    except training.LostWorkerError as error:
        # An ordinary exit would wait half a minute or more for the lost worker.
        os._exit(process.print_error(str(error), error.status))
    if outcome.is_chief:
        print()
        # Only folders that exist are named: training.pictures=0 and training.loggers=[] leave them out.
        for title, program, folder in (("Pictures:", "", IMAGES), ("Curves:", "tensorboard --logdir ", "tensorboard")):
            if (workdir / folder).is_dir():
                print(f"{title:10} {program}{workdir / folder}")
        print(f"In Python: import tfdecouple; model = tfdecouple.load_model({str(workdir)!r}); model.sample(16)")


def presets(name: str | None = None, /) -> None:
    """List the presets, or show one.

    Args:
        name: show all options of this preset.
    """
    if not name:
        names = preset_names()
        width = max(map(len, names))
        print(*(f"{name:{width}} {preset_config(name).description}" for name in names), sep="\n")
        return
    config = preset_config(name)
    process.start_tensorflow()
    from tfdecouple.networks.architecture import Architecture

    print(f"{config.name} {Architecture(config.model).count_parameters()['total']:,} parameters  {config.description}")
    values = {name: value for name, value in config.to_dict().items() if name not in ("description", "notes")}
    print(f"\n{config.notes}\n\nWhat each option means: tfdecouple explain\n")
    print(json.dumps(values, indent=2))


def explain(*names: str) -> None:
    """Explain the options of a training, which `train --set` changes.

    The values are the defaults; presets have others.

    Args:
        names: only options whose names contain this text.
    """
    for name in names:
        if not any(name in option for option in list_option_names()):
            raise make_unknown_option_error(name)
    defaults = Config().flatten_options()
    texts = [
        f"{name} = {json.dumps(defaults[name])}\n{textwrap.indent(textwrap.fill(meaning, 96), '    ')}"
        for name, meaning in describe_options().items()
        if not names or any(part in name for part in names)
    ]
    print("\n\n".join(texts))


def import_wolf(
    *,
    config: str,
    weights: str,
    image_shape: Annotated[tuple[int, int, int], within(1)],
    workdir: str,
    n_bits: Annotated[int, within(1)] = 8,
) -> None:
    """Turn a checkpoint of the paper's PyTorch code (wolf) into a run folder.

    Args:
        config: the JSON config of the PyTorch code.
        weights: its state dict, .npz or .pt (needs torch).
        image_shape: height, width and channels of the images, such as 32 32 3.
        n_bits: bits per colour channel.
        workdir: the run folder to make.
    """
    process.start_tensorflow()
    from tfdecouple.interop import wolf

    model = wolf.import_wolf(config, weights, image_shape=image_shape, n_bits=n_bits, workdir=workdir)
    print(f"{workdir}: {model.parameter_count()['total']:,} parameters imported; open it with")
    print(f"  import tfdecouple; model = tfdecouple.load_model({workdir!r})")


def publish(
    *,
    run: RunName,
    to: str,
    licence: str | None = None,
    name: str | None = None,
    data: str | None = None,
    trained_on: str | None = None,
    rights: str | None = None,
    private: bool = False,
) -> None:
    """Publish the weights of a run, in a folder or on the Hugging Face Hub.

    Writes the config, the best weights, a manifest with digests of the files, and a model card. The account on the Hub
    is that of `hf auth login` or of the variable HF_TOKEN.

    Args:
        to: a folder, new or empty; or hf://OWNER/NAME or hf://OWNER/NAME@BRANCH.
        licence: licence as the Hub names it: apache-2.0, cc-by-4.0, other; default the card's.
        name: name of the model; default the last part of --to.
        data: default data set of commands with the published weights; default that of the training.
        trained_on: description of the training images, for the card; default the data set.
        rights: sentence on rights in the training images, for the card; default the data set's.
        private: make a new repository on the Hub private.
    """
    process.start_tensorflow()
    from tfdecouple.runs import publishing

    place = publishing.publish(
        run, to, licence=licence, name=name, data=data, trained_on=trained_on, rights=rights, private=private
    )
    print(f"{place}: config, weights, card and manifest")
    print(f"  import tfdecouple; model = tfdecouple.load_model({place!r})")


def export(
    *,
    run: str | None = None,
    to: pathlib.Path | None = None,
    verify: pathlib.Path | None = None,
    expect: str | None = None,
    format: tuple[str, ...] = ("savedmodel", "onnx"),
    endpoints: tuple[str, ...] = (),
    any_size: bool = False,
    version: int | None = None,
    name: str | None = None,
    web_runtime: pathlib.Path | None = None,
    web_gpu: bool = False,
) -> None:
    """Write a run for other programs, which use the files without this project.

    Every file is loaded and compared with the model in a process of its own before the export folder is made. A
    SavedModel for TensorFlow Serving, ONNX files for ONNX Runtime, and files to start a server:

        tfdecouple export --run runs/quickstart --to exported/quickstart

    The same checks again, on the machine where the files are used; without the run:

        tfdecouple export --verify exported/quickstart

    Exit status: 0 published, or verified; 2 a mistake in the command or a full disk; 5 a file did not pass its check,
    nothing published, or with --verify, something is changed or wrong; 130 interrupted, nothing published.

    Args:
        run: run folder; bundled weights such as photographs; or published ones, hf://OWNER/NAME.
        to: export folder, which must not exist yet.
        verify: check an export folder again, here, without the run: digests of all files, and their answers.
        expect: with --verify: the SHA-256 of manifest.json that the export has printed.
        format: one or several of savedmodel, onnx, litert (for phones), and web (a page for browsers).
        endpoints: signatures of the SavedModel; default all.
        any_size: files that encode and decode images of any height and width, instead of the model's.
        version: version of the SavedModel, for TensorFlow Serving; default 1.
        name: name of the model; default the name of the run folder.
        web_runtime: folder of the npm package onnxruntime-web, for the format web; default: npm fetches it.
        web_gpu: give the web page the runtime for graphics cards, too: 27 MB more, used where it is exact and faster.
    """
    require_packages("onnx", "tf2onnx", "onnxruntime", "tensorflow_serving", what="the export")
    if verify and not (run or to):
        _verify_export(verify, expect)
        return
    if not run or not to or verify or expect:
        raise UserError("export needs --run RUN and --to DIR, or --verify DIR, which --expect DIGEST can follow")

    process.start_tensorflow()
    from export import pipeline, show_progress
    from export.export_folder import MANIFEST

    with show_progress(_make_timed_print()):
        published = pipeline.export(
            run, to, tuple(dict.fromkeys(format)), any_size=any_size, name=name, endpoints=endpoints, version=version,
            web_runtime=web_runtime, web_gpu=web_gpu,
        )  # fmt: skip
    print()
    for path in published:
        print(path)
    digest = hash_file(to / MANIFEST)
    print(f"\n{MANIFEST} has the SHA-256 {digest}; keep it elsewhere, for --verify DIR --expect DIGEST")


def _verify_export(folder: pathlib.Path, expected: str | None) -> None:
    """Raises RefusedError if an export folder is changed, or its manifest's SHA-256 is not `expected` (None: any)."""
    from export import show_progress
    from export.export_folder import MANIFEST, load_manifest
    from export.verification.verify import RefusedError, join_problems, verify_folder

    load_manifest(folder)
    digest = hash_file(folder / MANIFEST)
    if expected is not None and digest != expected.lower():
        raise RefusedError(f"{folder / MANIFEST} has the SHA-256 {digest}; expected {expected}")
    with show_progress(lambda text: print(text, flush=True)):
        problems, not_compared = verify_folder(folder)
    print(f"{MANIFEST} has the SHA-256 {digest}", flush=True)
    if problems:
        raise RefusedError(f"{folder} is not as it was exported: {join_problems(problems)}")
    unchecked = f"outputs were not checked of {', '.join(not_compared)}"
    agreed = "and all outputs agree with the stored ones"
    print(f"{folder}: all files are unchanged{'; ' + unchecked if not_compared else ', ' + agreed}")


def doctor(
    *,
    out: pathlib.Path | None = None,
    quick: bool = False,
    preset: str | None = None,
    settings: Settings = (),
    devices: Devices = None,
    only: tuple[Literal["build", "numerics", "exactness", "devices", "speed"], ...] = (),
    timeout: Annotated[int, within(1, 10**6)] = 900,
) -> int:
    """Test whether this machine computes correctly, and how fast it is.

    Each check runs in a process of its own. The exit status is 0 if every test passes, and 5 if one fails; the report
    says what to do (docs/exactness.md).

    Args:
        out: write doctor.json and doctor.txt there.
        quick: run only what takes some minutes on two CPU cores.
        preset: time this preset; default a small model.
        only: run these checks only.
        timeout: seconds without a result after which a check is ended.
    """
    task = Task(preset, settings, quick, timeout, devices)
    # A wrong preset, option or --out raises its error here, before the checks take minutes.
    make_doctor_config(task)
    if out is not None:
        write_text(out / "doctor.txt", "not done yet\n")
    results = run_checks(task, only or CHECKS, _make_timed_print())
    text, report = "\n".join(make_text(results)), make_json(task, results)
    print(text, flush=True)
    if out is not None:
        write_json(out / "doctor.json", report)
        write_text(out / "doctor.txt", text + "\n")
    return 0 if report["holds"] else EXIT_FAILED


def _make_timed_print() -> Callable[[str], None]:
    start = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script with which a shell completes commands and options.

    It completes the command `tfdecouple`, in bash after: `source <(tfdecouple completion bash)`.

    Args:
        shell: the shell.
    """
    from tfdecouple.cli import app

    print(app.generate_completion(shell=shell, prog_name="tfdecouple"))
