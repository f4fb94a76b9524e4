"""The commands of `python -m tfdecouple`.

Each module of a command offers `add_parser(commands)`, which describes its arguments, and `run(options)`, which returns
the exit status. TensorFlow is imported by `run`, so that help and mistakes in the arguments are answered at once.
"""
