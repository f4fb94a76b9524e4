"""The command lines: `python train.py` and `python -m tfdecouple`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tfdecouple import __version__
from tfdecouple.cli.options import Parser, program
from tfdecouple.config import Config, load_preset, override
from tfdecouple.data.sources import kinds_listed
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.extras import require
from tfdecouple.runtime.process import given_arguments, run_program, start_tensorflow

EXIT_INTERRUPTED = 75
EXIT_DIVERGED = 3
EXIT_LOST = 4

# Commands of `python -m tfdecouple`, in the order of the help; each is the module of that name in this folder.
COMMANDS = [
    "presets",
    "explain",
    "sample",
    "reconstruct",
    "switch",
    "interpolate",
    "directions",
    "edit",
    "neighbours",
    "project",
    "curves",
    "evaluate",
    "encode",
    "encode-beam",
    "import-wolf",
    "publish",
    "doctor",
]

_TRAIN_HELP = """\
Trains the model of "Decoupling Global and Local Representations via Invertible
Generative Flows": an encoder that compresses an image to a small global code z,
and an invertible flow, conditioned on z, that keeps all the rest in a local code v.

  python train.py
      the quickstart: photographs that come with the installation, minutes on a CPU
  python train.py --preset cifar10 --data-dir ~/tensorflow_datasets
      the paper's CIFAR-10 run, on all GPUs of this machine
  python train.py --data folder:/my/images --set model.latent_dim=32 --workdir runs/mine
      your own images (sub-folders are labels), with one option changed
  python train.py --preset cifar10 --steps 1000 --set training.batch_size=64
      a long run made short

The same command again goes on where the run stopped. Ctrl-C, SIGTERM and
SIGHUP save first.
"""

_TRAIN_EPILOG = f"""\
the run folder:
  config.json    all options: the run can be repeated from it
  metrics.jsonl  a row of figures every few steps; TensorBoard reads tensorboard/
  images/        samples, reconstructions, switches and interpolations at each evaluation
  checkpoints/   the last few, and the best by validation bits/dim
  summary.json   how it ended

exit status:
  0 done   2 a mistake in the command or the data, said in one line
  {EXIT_DIVERGED} diverged   {EXIT_INTERRUPTED} stopped by a signal, saved: run the same command again
  {EXIT_LOST} another worker of the cluster has ended: run the same command again on all of them
"""


# Programs of their own that are commands, too.
PROGRAMS = {"train": "train a model: python train.py", "export": "export a run: python -m export"}
SHELLS = ("bash", "zsh")


def train_main(arguments: Sequence[str] | None = None) -> int:
    """`python train.py`."""
    return run_program(lambda: _train(arguments, "python train.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tfdecouple`, and the command `tfdecouple` of an installation."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        return run_program(lambda: _train(given[1:], f"{program()} train"))
    if given[:1] == ["export"]:
        return int(_export_program().main(given[1:], f"{program()} export"))
    return run_program(lambda: _command(given))


def _export_program() -> Any:
    """Returns the module of `python -m export` that lies beside this package; any folder may have another `export`."""
    package = pathlib.Path(__file__).parents[2] / "export"
    spec = importlib.util.spec_from_file_location("export", package / "__init__.py")
    if "export" not in sys.modules and spec is not None and spec.loader is not None:
        sys.modules["export"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module("export.cli")


def train_parser(prog: str, **options: Any) -> argparse.ArgumentParser:
    """Returns the parser of `train`.

    Args:
        prog: how the user called it.
        **options: of the parser.
    """
    parser = Parser(
        prog=prog,
        description=_TRAIN_HELP.replace("python train.py", prog),
        epilog=_TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    what = parser.add_argument_group("what to train")
    choice = what.add_mutually_exclusive_group()
    choice.add_argument(
        "--preset",
        metavar="NAME",
        default="quickstart",
        help="where the options come from: quickstart (default), cifar10 and others; "
        "`python -m tfdecouple presets` describes them all",
    )
    choice.add_argument("--config", metavar="FILE", help="take the options from a JSON file, as in a run folder")
    what.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change an option, as often as needed: --set model.alpha=0.5 --set 'model.steps=[1,[2,2],2]'; "
        "`python -m tfdecouple explain` explains each",
    )
    what.add_argument("--steps", metavar="N", type=int, help="number of updates (training.steps)")
    what.add_argument("--seed", metavar="N", type=int, help="of everything drawn at random (training.seed)")
    what.add_argument(
        "--init-from", metavar="RUN", help="start from the weights of another run or import (training.init_from)"
    )
    what.add_argument(
        "--init-partial",
        action="store_true",
        default=None,
        help="take what fits of --init-from, and start the other layers from data (training.init_partial)",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data",
        metavar="SOURCE",
        help=f"{kinds_listed(at_length=True)} (data.source)",
    )
    images.add_argument("--data-dir", metavar="DIR", help="folder of prepared TFDS data sets (data.data_dir)")
    images.add_argument("--download", action="store_true", help="download and prepare the TFDS data set if missing")
    where = parser.add_argument_group("where")
    where.add_argument("--workdir", metavar="DIR", help="the run folder; default runs/PRESET")
    where.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="use N GPUs instead of all; without GPUs, try N logical CPU devices",
    )
    where.add_argument(
        "--cluster",
        choices=("auto", "tf-config", "slurm", "none"),
        default="auto",
        help="where the other workers are read from: TF_CONFIG, or several tasks of srun; auto (default) takes "
        "either, none neither. The same command on all of them",
    )
    return parser


def _train(arguments: Sequence[str] | None, prog: str) -> int:
    options = train_parser(prog).parse_args(given_arguments(arguments))
    config = Config.from_json(options.config) if options.config else load_preset(options.preset)
    given = {
        "training.steps": options.steps,
        "training.seed": options.seed,
        "training.init_from": options.init_from,
        "training.init_partial": options.init_partial,
        "data.source": options.data,
        "data.data_dir": options.data_dir,
    }
    assignments = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    config = override(config, [*options.set, *assignments])
    workdir = pathlib.Path(options.workdir or f"runs/{config.name}")

    start_tensorflow()
    from tfdecouple.training import DivergedError, InterruptedRunError, LostWorkerError, train

    try:
        outcome = train(config, workdir, devices=options.devices, download=options.download, cluster=options.cluster)
    except (InterruptedRunError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED if isinstance(error, InterruptedRunError) else EXIT_DIVERGED
    except LostWorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # An ordinary end would wait for the lost worker, half a minute and more.
        os._exit(EXIT_LOST)
    if not outcome.is_chief:
        return 0
    print()
    # Neither need be there: training.pictures=0, training.loggers=[].
    for what, command, folder in (("Pictures:", "", "images"), ("Curves:", "tensorboard --logdir ", "tensorboard")):
        if (workdir / folder).is_dir():
            print(f"{what:10} {command}{workdir / folder}")
    print(f"In Python: import tfdecouple; model = tfdecouple.load_model({str(workdir)!r}); model.sample(16)")
    return 0


def _command(given: Sequence[str]) -> int:
    given = given_arguments(given)
    name = given[0] if given else ""
    if given and not name.startswith("-") and name not in COMMANDS:
        names = [*PROGRAMS, *COMMANDS]
        raise UserError(f"there is no command {name!r}{nearest(name, names)} ({program()} --help lists them)")
    parser = _parser([name] if name in COMMANDS else COMMANDS)
    options = parser.parse_args(given)
    if options.completion:
        return _print_completion(options.completion)
    if options.command is None:
        parser.print_help()
        return 0
    return int(_module(options.command).run(options))


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser of commands; only their modules are imported."""
    parser = Parser(
        prog=program(),
        description="Works with models and runs. `python -m tfdecouple COMMAND --help` says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"tfdecouple {__version__}")
    parser.add_argument(
        "--completion", metavar="SHELL", choices=SHELLS, help=f"print what completes commands in {' and '.join(SHELLS)}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in PROGRAMS.items():
        commands.add_parser(name, help=summary)
    for name in names:
        _module(name).add_parser(commands)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"tfdecouple.cli.{name.replace('-', '_')}")


def _print_completion(shell: str) -> int:
    """Prints a shell's completion of all commands, their options, files and folders.

    Raises:
        MissingPackageError: without what writes it.
    """
    require("shtab", what="--completion")
    import shtab

    parser = _parser(COMMANDS)
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    commands["train"] = train_parser("tfdecouple train")
    commands["export"] = _export_program().export_parser("tfdecouple export")
    for command in commands.values():
        for action in command._actions:
            if action.metavar in ("FILE", "DIR", "RUN"):
                action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY
    parser.prog = "tfdecouple"
    print(shtab.complete(parser, shell))
    return 0
