"""`python train.py`, or `python -m tfdecouple train`: trains a model."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tfdecouple.cli import make_parser
from tfdecouple.cli.command_table import DEVICES, DOWNLOAD
from tfdecouple.cli.options import AddOption, get_program_name, group, option
from tfdecouple.config import Config, preset_config
from tfdecouple.data.sources import list_source_kinds
from tfdecouple.runtime.option_types import make_number_type
from tfdecouple.runtime.process import Program, get_arguments, start_tensorflow

EXIT_INTERRUPTED = 75
EXIT_DIVERGED = 3
EXIT_LOST = 4

_HELP = """\
Trains the model of "Decoupling Global and Local Representations via Invertible
Generative Flows": an encoder that compresses an image to a small global code z,
and an invertible flow, conditioned on z, that keeps all the rest in a local code v.

  python train.py
      the quickstart: photographs that come with the installation, minutes on a CPU
  python train.py --preset cifar10 --data-dir ~/tensorflow_datasets
      the paper's CIFAR-10 run, on all GPUs of this machine
  python train.py --data folder:/my/images --set model.latent_dim=32 --workdir runs/mine
      your own images (sub-folders are labels), with one option changed

The same command again resumes where the run stopped. Ctrl-C, SIGTERM and
SIGHUP save first.
"""

_EPILOG = f"""\
exit status:
  0 done   2 a mistake in the command or the data, said in one line
  {EXIT_DIVERGED} diverged   {EXIT_INTERRUPTED} stopped by a signal, saved: run the same command again
  {EXIT_LOST} another worker of the cluster has ended: run the same command again on all of them
"""


def describe_program(parser: Any) -> None:
    """Sets the name and the help of the command's `parser` to those of the program, as the user called it."""
    is_script = pathlib.PurePath(sys.argv[0]).name == "train.py"
    parser.prog = "python train.py" if is_script else f"{get_program_name()} train"
    parser.description, parser.epilog = _HELP.replace("python train.py", parser.prog), _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def list_options() -> list[AddOption]:
    """Returns the options of the command `train`."""
    repeated = "change an option; can be repeated: --set model.alpha=0.5 --set 'model.steps=[1,[2,2],2]'; see "
    whole = make_number_type(int, -(2**63), 2**63 - 1)
    return [
        describe_program,
        group(
            "what to train",
            group(
                "",
                option("--preset NAME", "see `python -m tfdecouple presets`; default quickstart", default="quickstart"),
                option("--config FILE", "take the options from a JSON file, as in a run folder"),
            ),
            option("--set NAME=VALUE", f"{repeated}`python -m tfdecouple explain`", action="append", default=[]),
            shortcut("--steps N", "training.steps", "number of updates", type=whole),
            shortcut("--seed N", "training.seed", "seed of all draws", type=whole),
            shortcut("--init-from RUN", "training.init_from", "start from the weights of another run or import"),
        ),
        group(
            "images",
            shortcut("--data SOURCE", "data.source", list_source_kinds()),
            shortcut("--data-dir DIR", "data.data_dir", "folder of prepared TFDS data sets"),
            DOWNLOAD,
        ),
        group("where", option("--workdir DIR", "the run folder; default runs/PRESET"), DEVICES),
    ]


def shortcut(usage: str, config_option: str, text: str, **settings: Any) -> AddOption:
    """Returns a command-line option, such as --seed, that sets an option of the config, such as "training.seed"."""
    return option(usage, f"{text} ({config_option})", dest=config_option, default=None, **settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program `python train.py` with `arguments`, by default the command line's; returns the exit status."""
    with Program() as program:
        program.status = run(make_parser(["train"]).parse_args(["train", *get_arguments(arguments)]))
    return program.status


def run(options: argparse.Namespace) -> int:
    """Runs the command `train`: trains a model, prints where its pictures are; returns 0 or an `EXIT_` constant."""
    config = Config.from_json(options.config) if options.config else preset_config(options.preset)
    shortcuts = {name: value for name, value in vars(options).items() if "." in name and value is not None}
    assignments = [f"{name}={json.dumps(value)}" for name, value in shortcuts.items()]
    config = config.override([*options.set, *assignments])
    workdir = pathlib.Path(options.workdir or f"runs/{config.name}")

    start_tensorflow()
    from tfdecouple.runs.run_folder import IMAGES
    from tfdecouple.training import DivergedError, InterruptedRunError, LostWorkerError, train

    try:
        outcome = train(config, workdir, devices=options.devices, download=options.download)
    except (InterruptedRunError, DivergedError, LostWorkerError) as error:
        prefix = "" if isinstance(error, InterruptedRunError) else "error: "
        print(f"{prefix}{error}", file=sys.stderr, flush=True)
        if isinstance(error, LostWorkerError):
            sys.stdout.flush()
            # An ordinary exit would wait half a minute or more for the lost worker.
            os._exit(EXIT_LOST)
        return EXIT_INTERRUPTED if isinstance(error, InterruptedRunError) else EXIT_DIVERGED
    if not outcome.is_chief:
        return 0
    print()
    # Only folders that exist are named: training.pictures=0 and training.loggers=[] leave them out.
    for title, command, folder in (("Pictures:", "", IMAGES), ("Curves:", "tensorboard --logdir ", "tensorboard")):
        if (workdir / folder).is_dir():
            print(f"{title:10} {command}{workdir / folder}")
    print(f"In Python: import tfdecouple; model = tfdecouple.load_model({str(workdir)!r}); model.sample(16)")
    return 0
