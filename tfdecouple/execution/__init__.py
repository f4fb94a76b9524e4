"""How networks run: run modes, traces that layers share, shards (parts of a batch), convolutions."""
