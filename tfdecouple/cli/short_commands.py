"""Commands that need few lines: presets, explain, curves, import-wolf, publish, doctor, completion."""

import json
import pathlib
import textwrap
import time
from typing import Annotated, Literal

from cyclopts import Parameter

from tfdecouple.cli.options import EXIT_FAILED, Devices, Out, RunName, Settings, within
from tfdecouple.system import process
from tfdecouple.system.requirements import require_packages


def presets(name: str | None = None, /) -> None:
    """List the presets, or show one.

    Args:
        name: show all options of this preset.
    """
    from tfdecouple.config import preset_config, preset_names

    if not name:
        names = preset_names()
        width = max(map(len, names))
        print(*(f"{name:{width}} {preset_config(name).description}" for name in names), sep="\n")
        return
    config = preset_config(name)
    process.start_tensorflow()
    from tfdecouple.networks.architecture import count_parameters

    print(f"{config.name} {count_parameters(config.model)['total']:,} parameters  {config.description}")
    values = {name: value for name, value in config.to_dict().items() if name not in ("description", "notes")}
    print(f"\n{config.notes}\n\nWhat each option means: tfdecouple explain\n")
    print(json.dumps(values, indent=2))


def explain(*names: str) -> None:
    """Explain the options of a training, which `train --set` changes.

    The values are the defaults; presets have others.

    Args:
        names: only options whose names contain this text.
    """
    from tfdecouple.config import Config, describe_options, list_option_names
    from tfdecouple.config.run import make_unknown_option_error

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


def curves(
    *,
    run: Annotated[tuple[str, ...], Parameter(consume_multiple=False, required=True)],
    out: Out = None,
) -> None:
    """Draw bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs.

    Args:
        run: run folder, or bundled weights; give it again to compare runs.
    """
    require_packages("matplotlib", what="the command curves")
    process.start_tensorflow()
    from tfdecouple.cli.results import Results
    from tfdecouple.runs.run_folder import PICTURES, RunFolder
    from tfdecouple.visualization.plots import Curves, plot_curves, render_figure

    names = [RunFolder(path).name for path in run]
    drawn, facts = [], []
    for path, name in zip(run, names, strict=True):
        # In the legend, runs that share a name are called by their paths.
        entry = Curves(name if names.count(name) == 1 else path, **RunFolder(path).read_curves())
        last = max(steps[-1] for lines in (entry.train, entry.validation) for steps, _ in lines.values())
        drawn.append(entry)
        facts.append({"run": path, "name": entry.name, "last_step": last})
    results = Results(RunFolder(run[0]).find_results_folder(PICTURES, out), {"command": "curves"})
    summary = "; ".join(f"{entry['name']} to update {entry['last_step']:,}" for entry in facts)
    results.write("curves", render_figure(plot_curves(drawn)), summary, {"runs": facts})


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
    from tfdecouple.doctor.check_runner import CHECKS, Task, make_doctor_config, make_json, make_text, run_checks
    from tfdecouple.storage.files import write_json, write_text

    task = Task(preset, settings, quick, timeout, devices)
    # A wrong preset, option or --out raises its error here, before the checks take minutes.
    make_doctor_config(task)
    if out is not None:
        write_text(out / "doctor.txt", "not done yet\n")
    start = time.monotonic()
    results = run_checks(
        task, only or CHECKS, lambda text: print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)
    )
    text, report = "\n".join(make_text(results)), make_json(task, results)
    print(text, flush=True)
    if out is not None:
        write_json(out / "doctor.json", report)
        write_text(out / "doctor.txt", text + "\n")
    return 0 if report["holds"] else EXIT_FAILED


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script with which a shell completes commands and options.

    It completes the command `tfdecouple`, in bash after: `source <(tfdecouple completion bash)`.

    Args:
        shell: the shell.
    """
    from tfdecouple.cli import app

    print(app.generate_completion(shell=shell, prog_name="tfdecouple"))
