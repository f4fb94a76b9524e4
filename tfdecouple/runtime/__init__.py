"""How the model is run: traced functions, shards of a batch, kernels, precision, and the settings of a process."""
