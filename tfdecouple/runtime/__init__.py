"""Everything about running a model: traced functions, shards of a batch, kernels, precision, process settings."""
