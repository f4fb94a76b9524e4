"""How a model runs: traced functions, shards (parts of a batch), convolution kernels, precision, process settings."""
