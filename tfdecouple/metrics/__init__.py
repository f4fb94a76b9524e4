"""The metrics of `evaluate`, a module each, and what they share: classifiers, drawn images, directions in z."""
