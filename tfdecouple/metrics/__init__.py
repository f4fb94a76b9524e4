"""The metrics of the command `evaluate`, a module each, and their tools: classifiers, image draws, directions."""
