"""The process and its machine: settings of TensorFlow, errors, signals, progress, optional packages, memory."""
