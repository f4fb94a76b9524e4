"""`python -m tfdecouple publish`: publishes the weights of a run in a folder or on the Hugging Face Hub."""

import argparse
from typing import Any

from tfdecouple.cli import options as arguments
from tfdecouple.runtime.process import start_tensorflow


def add_parser(commands: Any) -> None:
    """Adds the command `publish` and its options to `commands`, the argparse sub-parsers of `tfdecouple`."""
    parser = arguments.add_command(
        commands,
        "publish",
        "publish the weights of a run, in a folder or on the Hugging Face Hub",
        "Writes the config, the best weights, a manifest with digests of the files, and a model card. "
        "The account on the Hub is that of `hf auth login` or of the variable HF_TOKEN.",
    )
    parser.add_argument("--run", required=True, metavar="RUN", help=arguments.RUN_HELP)
    text = "a folder, new or empty; or hf://OWNER/NAME or hf://OWNER/NAME@BRANCH"
    parser.add_argument("--to", required=True, metavar="PLACE", help=text)
    text = "licence of the weights, as the Hub names it: apache-2.0, cc-by-4.0, other; default that of their card"
    parser.add_argument("--licence", metavar="ID", help=text)
    parser.add_argument("--name", metavar="NAME", help="name of the model; default the last part of --to")
    text = "data set that commands use with the published weights if the user names none: photographs, or a TFDS name; "
    text += "default that of the training, which the model card states in any case"
    parser.add_argument("--data", metavar="NAME", help=text)
    text = "sentence on the rights in the training images, for the model card; default what is known of the data set"
    parser.add_argument("--rights", metavar="TEXT", help=text)
    parser.add_argument("--private", action="store_true", help="make a new repository on the Hub private")


def run(options: argparse.Namespace) -> int:
    """Runs the command `publish`: writes the weights of --run to the folder or Hub repository --to; returns 0."""
    start_tensorflow()
    from tfdecouple.runs.publishing import publish

    names = ("licence", "name", "data", "rights", "private")
    place = publish(options.run, options.to, **{name: getattr(options, name) for name in names})
    print(f"{place}: config, weights, card and manifest")
    print(f"  import tfdecouple; model = tfdecouple.load_{'pretrained' if '://' in place else 'model'}({place!r})")
    return 0
