"""The command `train`, which `python train.py` runs, too."""

import json
import os
import pathlib
import sys

from tfdecouple.cli.options import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_LOST, Devices, Settings
from tfdecouple.system import process


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
) -> int:
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
    from tfdecouple.config import Config, preset_config

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
    except training.InterruptedRunError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except (training.DivergedError, training.LostWorkerError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, training.LostWorkerError):
            sys.stdout.flush()
            # An ordinary exit would wait half a minute or more for the lost worker.
            os._exit(EXIT_LOST)
        return EXIT_DIVERGED
    if outcome.is_chief:
        print()
        # Only folders that exist are named: training.pictures=0 and training.loggers=[] leave them out.
        for title, program, folder in (("Pictures:", "", IMAGES), ("Curves:", "tensorboard --logdir ", "tensorboard")):
            if (workdir / folder).is_dir():
                print(f"{title:10} {program}{workdir / folder}")
        print(f"In Python: import tfdecouple; model = tfdecouple.load_model({str(workdir)!r}); model.sample(16)")
    return 0
