"""The commands of `tfdecouple` as a table: help, options, and the functions that do the work."""

import argparse
import dataclasses
import pathlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from tfdecouple.cli.options import AddOption, choice, flag, group, number, option
from tfdecouple.config.shapes import MOST_FILE_SIDE
from tfdecouple.data.sources import list_source_kinds
from tfdecouple.errors import UserError, make_printable
from tfdecouple.registry import METRICS
from tfdecouple.runs.pretrained import DEFAULT, HUB
from tfdecouple.runtime.devices import MOST_DEVICES
from tfdecouple.runtime.option_types import make_number_type
from tfdecouple.runtime.process import start_tensorflow
from tfdecouple.runtime.requirements import require_packages

SPLITS = ("train", "validation", "test")
# Largest value of --temperature and --temperatures, the factors by which v is multiplied.
MOST_TEMPERATURE = 1000
RUN_HELP = f"run folder, also one in training; the bundled weights, {DEFAULT}; or weights on the Hub, {HUB}OWNER/NAME"
# The list --amounts has at most MOST_AMOUNTS multiples of a direction in z, from -MOST_AMOUNT to MOST_AMOUNT.
MOST_AMOUNTS, MOST_AMOUNT = 50, 1000.0


def load_object(name: str) -> Any:
    """Imports and returns the object `name`, "MODULE:NAME", such as a function, of a module in `tfdecouple/cli/`."""
    return pkgutil.resolve_name(f"tfdecouple.cli.{name}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `tfdecouple`; its functions are named as "MODULE:FUNCTION" of a module in `tfdecouple/cli/`.

    Attributes:
        summary: what the command does, without a full stop, for the list of commands.
        details: sentences for the command's help.
        work: the function that does the work. It takes the parsed options and returns the exit status; if `draws` is
            true, it takes an opened run and the options, and yields drawings (see `drawings`) or returns the status.
        options: a function that returns the command's options.
        draws: whether the command opens --run and writes pictures, each with a JSON file of facts.
        needs_z: whether a command that draws refuses models without z.
        package: an optional package that the command needs, or "".
        check: the function that checks the parsed options before TensorFlow starts, or "".
        starts_tensorflow: whether TensorFlow starts before the work; otherwise the work starts it if needed.
    """

    name: str
    summary: str
    details: str
    work: str
    options: Callable[[], Sequence[AddOption]]
    draws: bool = False
    needs_z: bool = False
    package: str = ""
    check: str = ""
    starts_tensorflow: bool = True

    def add_parser(self, commands: Any) -> None:
        """Adds the command and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
        description = f"{self.summary[0].upper()}{self.summary[1:]}. {self.details}".strip()
        parser = commands.add_parser(self.name, help=self.summary, description=description)
        parser.set_defaults(get_default=parser.get_default)
        for add_option in self.options():
            add_option(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Runs the command: checks options, starts TensorFlow, does the work; returns the exit status."""
        if self.package:
            require_packages(self.package, what=f"the command {self.name}")
        if self.check:
            load_object(self.check)(options)
        if self.starts_tensorflow:
            start_tensorflow()
        work = load_object(self.work)
        if not self.draws:
            return int(work(options))
        from tfdecouple.cli.run_images import write_picture
        from tfdecouple.runs.opened_run import Run
        from tfdecouple.runs.run_folder import PICTURES, RunFolder

        opened = Run.open(options.run, z_for=self.name if self.needs_z else "")
        drawings = work(opened, options)
        if isinstance(drawings, int):
            return drawings
        folder = RunFolder(options.run).find_results_folder(PICTURES, options.out)
        for name, picture, summary, facts in drawings:
            path = folder / f"{name}.png"
            write_picture(path, picture, {"command": self.name, **opened.facts(), **facts})
            # The summary can have names from untrusted files.
            print(make_printable(f"{path}: {summary}"), flush=True)
        return 0


RUN = option("--run RUN", f"{RUN_HELP} (default {DEFAULT})", default=DEFAULT)
REQUIRED_RUN = option("--run RUN", RUN_HELP, required=True)
SEED = number("--seed", 0, "seed of all draws")
DEVICES = number("--devices", None, "use N GPUs instead of all; without GPUs, N logical CPU devices", 1, MOST_DEVICES)
DOWNLOAD = flag("--download", "download and prepare the TFDS data set if missing")
WRITE_V = flag("--v", "write v beside z: as many numbers as the image has")
FORMAT = choice("--format", ("tfrecord", "parquet"), "tfrecord or parquet")
PAIRS = [
    option("files FILE", "your own pairs, not the data set's, of any size: a.png b.png [c.png ...]", nargs="*"),
    choice("--pairing", ("auto", "within", "across", "any"), "pairs of the data set: within a class, across classes or "
        "any; auto: within and across if there are classes"),
]  # fmt: skip


def out_option(what: str = "pictures", names: str = "--out") -> AddOption:
    """Returns the option --out (all `names`): a folder for results, by default the folder `what` of the run."""
    text = f"folder for the {what}; default RUN/{what}, or ./{what} where RUN is no folder"
    return option(f"{names} DIR", text, type=parse_results_folder)


def parse_results_folder(text: str) -> pathlib.Path:
    """Returns the path of a folder for results; raises UserError, before anything is computed, if it is a file."""
    path = pathlib.Path(text)
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"cannot write into {path}: {existing} is no folder; name another folder with --out")
    return path


def data_options(split: str | None = None, splits: Sequence[str] = (*SPLITS, "all")) -> list[AddOption]:
    """Returns the options that choose images: --split (by default `split`), --data, --data-dir and --download."""
    default = split or "test, but all images of a folder without sub-folder train that the model was not trained on"
    return [
        option(
            "--split NAME", f"part of the data: {', '.join(splits)}; default {default}", choices=splits, default=split
        ),
        option("--data SOURCE", f"data set: {list_source_kinds()}; default that of the run"),
        option("--data-dir DIR", "folder of prepared TFDS data sets; default that of the run"),
        DOWNLOAD,
    ]


def drawing_options(count: int, what: str) -> list[AddOption]:
    """Returns the options --count, the number of `what` in a picture, by default `count`, and --seed."""
    return [number("--count", count, f"number of {what}", 1, 100_000), SEED]


SIZES = [
    choice("--size", ("own", "model"), "own: also write each result at your photograph's own size, where a guided "
        "filter repeats the change of colours that the model made at its size; model: only the picture at the "
        "model's size, whose pixels are exact"),
    number("--max-side", MOST_FILE_SIDE, "shrink larger photographs until both sides have at most N pixels", 1,
        MOST_FILE_SIDE),
    flag("--unlimited", "at a photograph's own size, let differences of colours grow more than twofold, and clip "
        "values at black and white"),
]  # fmt: skip


def parse_amounts(text: str) -> list[float]:
    """Converts the text of --amounts, "A,B,...", to a list of floats; raises UserError for more than `MOST_AMOUNTS`."""
    amounts = [make_number_type(float, -MOST_AMOUNT, MOST_AMOUNT)(part) for part in text.split(",")]
    if len(amounts) > MOST_AMOUNTS:
        raise UserError(f"--amounts has {len(amounts)} numbers; a picture shows at most {MOST_AMOUNTS}")
    return amounts


AMOUNTS = option(
    "--amounts A,B,...", "multiples of the direction that are added to z, in standard deviations of its property over "
    "images; 0 gives the image itself (default --amounts=-1,-0.5,0,0.5,1)", type=parse_amounts,
    default="-1,-0.5,0,0.5,1")  # fmt: skip


# The help lists the commands in this order. Options are made by functions, so that a command imports its own alone.
COMMANDS = {command.name: command for command in (
    Command("train", "train a model: python train.py", "", "train:run", lambda: load_object("train:list_options")(),
        starts_tensorflow=False),
    Command("presets", "list the presets, or show one", "", "short_commands:run_presets", lambda: [
            option("name", "show all options of this preset", nargs="?")], starts_tensorflow=False),
    Command("explain", "explain the options of a training, which --set changes",
        "The values are the defaults; presets have others.", "short_commands:run_explain", lambda: [
            option("names NAME", "only options whose names contain this text", nargs="*")], starts_tensorflow=False),
    Command("sample", "draw new images at several temperatures",
        "The temperature multiplies v: below 1 samples are smoother. A column shares z and the direction of v.",
        "drawings:draw_sample", lambda: [
            RUN, out_option(), *drawing_options(10, "samples at each temperature"),
            option("--temperatures T ...", "temperatures (default 0.5 0.7 0.8 0.9 1.0)",
                type=make_number_type(float, 0, MOST_TEMPERATURE), default=(0.5, 0.7, 0.8, 0.9, 1.0)),
            option("--labels NAME ...", "draw a row of samples for each of these labels of the model, or for all"),
        ], draws=True),
    Command("reconstruct", "encode images, decode their codes and count the images that are equal to the last pixel",
        "", "drawings:draw_reconstruct", lambda: [
            RUN, out_option(), *data_options(), *drawing_options(20, "images"),
            flag("--own-size", "write each image at its own size, uncropped (only data sets folder and photographs)"),
        ], draws=True),
    Command("switch", "exchange the global codes z of pairs of images (paper Figure 1)",
        "With your own photographs: python -m tfdecouple switch a.jpg b.jpg, or, for z of one image in a folder of "
        "photographs, switch --reference R.jpg FOLDER --to OUT. Without files, pairs come from the data set; where it "
        "has labels, one picture shows pairs within classes and another pairs across classes.",
        "drawings:switch", lambda: [
            RUN, out_option(names="--out/--to"), *data_options(), *PAIRS, *drawing_options(10, "pairs"),
            *SIZES,
            option("--reference R", "decode all photographs of the folder FILE with z of the image R, at their own "
                "size, into the folder --to"),
            number("--strength", 0.9, "z of a result at its own size: from 0, z of the photograph itself, to 1, z of "
                "the other photograph", 0, 1),
        ], draws=True, needs_z=True, check="options:require_switch"),
    Command("interpolate", "go from one image to another in z and v apart (paper Figure 5)",
        "In the picture z changes downwards and v to the right; two corners have the images themselves.",
        "drawings:draw_interpolate", lambda: [
            RUN, out_option(), *data_options(), *PAIRS, *drawing_options(1, "pairs, one below another"),
            *SIZES,
            number("--steps", 6, "images in a row and in a column", 2),
            choice("--path", ("lerp", "slerp", "both"), "path of v: lerp, a line as in the paper; slerp, an arc; both"),
        ], draws=True, check="options:require_image_pairs"),
    Command("directions", "find directions in z for labels, for numbers such as an age, or for brightness and colour",
        "Each direction is found in training images and measured on held-out images; the result is printed. The file "
        "directions.json in the run folder keeps all directions, for `edit` and the exported web page. A picture shows "
        "steps along each direction.", "drawings:draw_directions", lambda: [
            # The bundled weights, the default of other commands, have no folder to write directions.json into.
            option("--run RUN", "run folder, into which directions.json is written", required=True),
            out_option(), *data_options("validation", ("validation", "test")), AMOUNTS,
            *drawing_options(3, "images in a picture, of --split"),
            group("",
                option("--labels NAME ...", "use these labels only"),
                option("--attributes FILE", "find a direction for each column of a CSV file instead: a line of names, "
                    "then for each image a line that begins with the image's path below the data folder. A column with "
                    "two values counts as a label"),
                flag("--statistics", "find the directions brighter, warmer, more contrast and more saturated instead, "
                    "which need no labels: each changes that property of decoded images, and the other three as little "
                    "as the model allows"),
            ),
            number("--images", 0, "number of training images, drawn at random, and of images of --split; 0 means at "
                "most 10,000, or 500 with --statistics"),
        ], draws=True, needs_z=True),
    Command("edit", "change images along a direction in z",
        "v of each image does not change. The command `directions` finds the directions of a run.",
        "drawings:draw_edit", lambda: [
            RUN, out_option(), AMOUNTS, *SIZES,
            option("files FILE ...", "images of any size"),
            option("--direction NAME", "name of the direction", required=True),
            option("--method NAME", "how the direction was found: means, classifier or decoded; default the first that "
                "the run has", choices=("means", "classifier", "decoded")),
        ], draws=True, needs_z=True, check="options:require_image_files"),
    Command("neighbours", "show samples beside the training images nearest to them",
        "Distances are Euclidean, between pixels and, where the model has z, between z. A model that repeats its "
        "training images gives samples equal to their neighbours.", "drawings:draw_neighbours", lambda: [
            RUN, out_option(), *data_options("train", SPLITS), *drawing_options(6, "samples"),
            number("--temperature", 0.8, "factor of v", 0, MOST_TEMPERATURE),
            number("--search", 1000, "number of images to search, drawn at random; 0 for all"),
        ], draws=True),
    Command("project", "show the global codes z of images in the plane, coloured by label",
        "Images with similar z lie close together.", "drawings:draw_project", lambda: [
            RUN, out_option(), *data_options(), *drawing_options(1000, "images"),
            choice("--method", ("pca", "tsne"), "pca, principal components, or tsne, t-SNE"),
        ], draws=True, needs_z=True, package="matplotlib"),
    Command("curves", "draw bits/dim, KL, log q(u|x) and learning rate over the updates of one or several runs",
        "", "short_commands:run_curves", lambda: [
            out_option(), option("--run RUN", "run folder, or bundled weights; give it again to compare runs",
                required=True, action="append"),
        ], package="matplotlib"),
    Command("evaluate", "measure bits/dim and other metrics of a run",
        "Bits/dim is always measured, and each option of the second group adds a metric. The best weights of the run "
        "are used. Each result is printed, and written as a JSON file into the folder --out. To choose between models "
        "use --split validation: RUN/evaluation/test_evaluations.log counts the evaluations of test images. `encode "
        "--scores` writes bits/dim of each image.",
        "evaluate:run", lambda: [
            RUN, out_option("evaluation"), *data_options(),
            number("--images", 0, "number of images, drawn with --seed; 0 for all, see --probe"),
            group("what to measure", *(metric.add_options for metric in METRICS.values())),
            group("how", SEED,
                number("--batch-size", None, "images at once: changes memory and speed only (default the run's)", 1)),
        ], starts_tensorflow=False),
    Command("encode", "write the codes of all images of a data set into files",
        "The same command resumes where it stopped. docs/encoding.md says what is in the files.",
        "encode:run", lambda: [
            option("--run RUN", RUN_HELP),
            option("--out DIR", "folder for the codes", required=True, type=parse_results_folder),
            *data_options("all"), FORMAT, WRITE_V,
            flag("--z-std", "write the standard deviation of the posterior of z"),
            flag("--scores", "write how unlike the training images each image is, as `evaluate --outliers` does"),
            number("--images-per-shard", None, "images per file (default 5000, fewer where they are large)", 1),
            number("--batch-size", None, "images at a time (default as in evaluations)", 1),
            number("--limit", None, "only the first N images of each split", 1),
            option("--on-bad-image HOW", "stop or skip; default as the run's data.on_bad_image"),
            flag("--verify", "encode nothing: check that each file of --out is what was written; else status 1"),
        ], check="options:require_encode_arguments"),
    Command("encode-beam", "encode a folder of images on a cluster, with Apache Beam",
        "Needs an export (python -m export) and the extra beam. What follows -- goes to Beam: -- --runner=DirectRunner "
        "--direct_num_workers=2 --direct_running_mode=multi_processing", "short_commands:run_encode_beam", lambda: [
            option("--model DIR", "export folder, or an encoder.onnx", required=True),
            option("--images DIR", "folder of images; sub-folders are labels", required=True),
            option("--out DIR", "folder for the codes, new or empty", required=True),
            FORMAT, WRITE_V,
            number("--batch-size", 32, "images at a time", 1),
            number("--shards", 0, "number of files; 0 for the runner's choice"),
            number("--threads", 1, "threads of each worker", 1),
            option("beam -- OPTION", "options of Beam and its runner", nargs="*"),
        ], package="apache_beam"),
    Command("import-wolf", "turn a checkpoint of the paper's PyTorch code (wolf) into a run folder",
        "", "short_commands:run_import_wolf", lambda: [
            option("--config FILE", "the JSON config of the PyTorch code", required=True),
            option("--weights FILE", "its state dict, .npz or .pt (needs torch)", required=True),
            option("--image-shape", "shape of the images, such as 32 32 3", required=True,
                type=make_number_type(int, 1), nargs=3, metavar=("HEIGHT", "WIDTH", "CHANNELS")),
            number("--n-bits", 8, "bits per colour channel", 1),
            option("--workdir DIR", "the run folder to make", required=True),
        ]),
    Command("publish", "publish the weights of a run, in a folder or on the Hugging Face Hub",
        "Writes the config, the best weights, a manifest with digests of the files, and a model card. The account on "
        "the Hub is that of `hf auth login` or of the variable HF_TOKEN.", "short_commands:run_publish", lambda: [
            REQUIRED_RUN,
            option("--to PLACE", "a folder, new or empty; or hf://OWNER/NAME or hf://OWNER/NAME@BRANCH", required=True),
            option("--licence ID", "licence as the Hub names it: apache-2.0, cc-by-4.0, other; default the card's"),
            option("--name NAME", "name of the model; default the last part of --to"),
            option("--data NAME", "data set that commands use with the published weights if the user names none: "
                "photographs, or a TFDS name; default that of the training, which the model card states in any case"),
            option("--trained-on TEXT", "description of the training images, for the card; default the data set"),
            option("--rights TEXT", "sentence on rights in the training images, for the card; default the data set's"),
            flag("--private", "make a new repository on the Hub private"),
        ]),
    Command("doctor", "test whether this machine computes correctly, and how fast it is",
        "Each check runs in a process of its own. Nothing is written but temporary files and the report of --out. The "
        "exit status is 0 if every test passes, and 5 if one fails; the report says what to do. docs/gpu.md explains "
        "it.", "short_commands:run_doctor", lambda: [
            option("--out DIR", "write doctor.json and doctor.txt there", type=pathlib.Path),
            flag("--quick", "run only what takes some minutes on two CPU cores"),
            option("--preset NAME", "time this preset; default a small model"),
            option("--set NAME=VALUE", "change an option, as for train.py", action="append", default=[]), DEVICES,
            option("--only NAME ...", "run these checks only, such as numerics", default=[]),
            number("--timeout", 900, "seconds after which a check is ended", 1, 10**6),
        ], starts_tensorflow=False),
    Command("completion", "print a script with which bash or zsh completes commands and options",
        "It completes the command `tfdecouple`, in bash after: source <(tfdecouple completion bash)",
        "short_commands:run_completion", lambda: [
            option("shell SHELL", "bash or zsh", choices=("bash", "zsh"))], package="shtab", starts_tensorflow=False),
)}  # fmt: skip
