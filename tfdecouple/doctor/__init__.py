"""The checks of the command `doctor`: whether a machine keeps this project's promises, and how fast a model runs."""
