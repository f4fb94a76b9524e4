"""The work of commands that need few lines: they read options, call the library, and print what was done."""

import argparse
import json
import textwrap
import time

from tfdecouple.cli.options import get_program_name
from tfdecouple.config import Config, describe_options, list_option_names, preset_config, preset_names
from tfdecouple.config.run import make_unknown_option_error
from tfdecouple.errors import UserError, nearest
from tfdecouple.runtime.process import start_tensorflow

# Exit status of `doctor` if a check fails, for example because images are not reconstructed exactly on this machine.
EXIT_FAILS = 5


def run_presets(options: argparse.Namespace) -> int:
    """Runs the command `presets`: prints all presets' names and descriptions, or one preset's options; returns 0."""
    if not options.name:
        names = preset_names()
        width = max(map(len, names))
        print(*(f"{name:{width}} {preset_config(name).description}" for name in names), sep="\n")
        return 0
    config = preset_config(options.name)
    start_tensorflow()
    from tfdecouple.networks.architecture import count_parameters

    print(f"{config.name} {count_parameters(config.model)['total']:,} parameters  {config.description}")
    values = {name: value for name, value in config.to_dict().items() if name not in ("description", "notes")}
    print(f"\n{config.notes}\n\nWhat each option means: {get_program_name()} explain\n")
    print(json.dumps(values, indent=2))
    return 0


def run_explain(options: argparse.Namespace) -> int:
    """Runs the command `explain`: prints default and meaning of all or of the named config options; returns 0."""
    for name in options.names:
        if not any(name in option for option in list_option_names()):
            raise make_unknown_option_error(name)
    defaults = Config().flatten_options()
    texts = [
        f"{name} = {json.dumps(defaults[name])}\n{textwrap.indent(textwrap.fill(meaning, 96), '    ')}"
        for name, meaning in describe_options().items()
        if not options.names or any(part in name for part in options.names)
    ]
    print("\n\n".join(texts))
    return 0


def run_curves(options: argparse.Namespace) -> int:
    """Runs the command `curves`: writes curves.png, the runs' metrics over the updates, and curves.json; returns 0."""
    from tfdecouple.cli.run_images import write_picture
    from tfdecouple.runs.run_folder import PICTURES, RunFolder
    from tfdecouple.visualization.plots import Curves, plot_curves, render_figure

    names = [RunFolder(path).name for path in options.run]
    # In the legend, runs that share a name are called by their paths.
    shown = [name if names.count(name) == 1 else path for path, name in zip(options.run, names, strict=True)]
    curves = [Curves(name, **RunFolder(path).read_curves()) for path, name in zip(options.run, shown, strict=True)]
    runs = []
    for path, run in zip(options.run, curves, strict=True):
        last = max(steps[-1] for lines in (run.train, run.validation) for steps, _ in lines.values())
        runs.append({"run": path, "name": run.name, "last_step": last})
    summary = "; ".join(f"{run['name']} to update {run['last_step']:,}" for run in runs)
    path = RunFolder(options.run[0]).find_results_folder(PICTURES, options.out) / "curves.png"
    write_picture(path, render_figure(plot_curves(curves)), {"command": "curves", "runs": runs})
    print(f"{path}: {summary}", flush=True)
    return 0


def run_encode_beam(options: argparse.Namespace) -> int:
    """Runs the command `encode-beam`: encodes the images in --images into files in --out by Apache Beam; returns 0."""
    from tfdecouple.corpus.beam import encode_with_beam

    manifest = encode_with_beam(options)
    skipped, written = manifest.totals["skipped"], f"{manifest.totals['images']:,} images in {len(manifest.shards)}"
    unreadable = f", {skipped} unreadable, named in _unreadable.txt" if skipped else ""
    print(f"{options.out}: {written} {manifest.format} files{unreadable}")
    return 0


def run_import_wolf(options: argparse.Namespace) -> int:
    """Runs the command `import-wolf`: converts a checkpoint of the authors' code to a run folder; returns 0."""
    from tfdecouple.interop.wolf import import_wolf

    shape, folder = tuple(options.image_shape), options.workdir
    model = import_wolf(options.config, options.weights, image_shape=shape, n_bits=options.n_bits, workdir=folder)
    print(f"{folder}: {model.parameter_count()['total']:,} parameters imported; open it with")
    print(f"  import tfdecouple; model = tfdecouple.load_model({folder!r})")
    return 0


def run_publish(options: argparse.Namespace) -> int:
    """Runs the command `publish`: writes the weights of --run to the folder or Hub repository --to; returns 0."""
    from tfdecouple.runs.publishing import publish

    names = ("licence", "name", "data", "trained_on", "rights", "private")
    place = publish(options.run, options.to, **{name: getattr(options, name) for name in names})
    print(f"{place}: config, weights, card and manifest")
    print(f"  import tfdecouple; model = tfdecouple.load_model({place!r})")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Runs the command `doctor`: runs checks, prints and writes a report; returns 0, or EXIT_FAILS if a check fails."""
    from tfdecouple.doctor.check_runner import CHECKS, Task, make_doctor_config, make_json, make_text, run_checks
    from tfdecouple.storage.files import write_json, write_text

    for name in options.only:
        if name not in CHECKS:
            raise UserError(f"there is no check {name!r}; there are {', '.join(CHECKS)}{nearest(name, [*CHECKS])}")
    task = Task(options.preset, tuple(options.set), options.quick, options.timeout, options.devices)
    # A wrong preset, option or --out raises its error here, before the checks take minutes.
    make_doctor_config(task)
    if options.out is not None:
        write_text(options.out / "doctor.txt", "not done yet\n")
    start = time.monotonic()
    results = run_checks(
        task, options.only or CHECKS, lambda text: print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)
    )
    text, report = "\n".join(make_text(results)), make_json(task, results)
    print(text, flush=True)
    if options.out is not None:
        write_json(options.out / "doctor.json", report)
        write_text(options.out / "doctor.txt", text + "\n")
        print(f"\n{options.out / 'doctor.json'}")
    return 0 if report["holds"] else EXIT_FAILS


def run_completion(options: argparse.Namespace) -> int:
    """Runs the command `completion`: prints the script for the shell; returns 0."""
    import shtab

    from tfdecouple.cli import COMMANDS, import_export, make_parser

    parser = make_parser(list(COMMANDS), "tfdecouple")
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    commands.choices["export"] = import_export().make_export_parser("tfdecouple export")
    paths = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "RUN": shtab.DIRECTORY}
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in paths:
                action.complete = paths[action.metavar]
    print(shtab.complete(parser, options.shell))
    return 0
