"""The commands of `tfdecouple`: each is a function whose signature has its options, and whose docstring is its help."""

from collections.abc import Callable, Sequence

from cyclopts import App, CycloptsError, Parameter

from tfdecouple import __version__
from tfdecouple.cli import encode, picture_commands, run_commands
from tfdecouple.errors import UserError
from tfdecouple.system.process import get_arguments, run_program

# The help lists the commands in this order. The module of `evaluate`, whose options come from the metrics, is imported
# when the command is used.
COMMANDS: list[Callable[..., int | None] | str] = [
    run_commands.train, run_commands.presets, run_commands.explain,
    picture_commands.sample, picture_commands.reconstruct, picture_commands.switch, picture_commands.interpolate,
    picture_commands.directions, picture_commands.edit, picture_commands.neighbours, picture_commands.project,
    picture_commands.curves, "tfdecouple.cli.evaluate:evaluate", encode.encode, encode.encode_beam,
    run_commands.import_wolf, run_commands.publish, run_commands.doctor, run_commands.export, run_commands.completion,
]  # fmt: skip

app = App(
    name="tfdecouple",
    help="Trains and uses models that encode an image into a global code z (the image as a whole) and a local code v "
    "(all its detail). `tfdecouple COMMAND --help` explains a command.",
    version=f"tfdecouple {__version__}",
    help_format="markdown",
    # A flag has no opposite, an option takes several values in a row, and the help shows defaults that say something.
    default_parameter=Parameter(negative=(), consume_multiple=True, show_default=lambda value: value or None),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _number, _command in enumerate(COMMANDS):
    _help = "Measure bits/dim and other metrics of a run." if isinstance(_command, str) else None
    app.command(_command, help=_help, sort_key=_number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program with `arguments`, by default the command line's; returns its exit status."""
    return run_program(lambda: _run_command(get_arguments(arguments)))


def _run_command(arguments: list[str]) -> int:
    try:
        return app(arguments, print_error=False, exit_on_error=False, verbose=False) or 0
    except CycloptsError as error:
        # The message names the mistake and the nearest name, but not always the command.
        program = " ".join([*app.name, *(error.command_chain or ())])
        # For an unknown command it also has a list of commands, which it cuts off in the middle.
        message = str(error).partition(" Available commands:")[0].rstrip(".")
        raise UserError(f"{message}; {program} --help lists the options") from error
