"""The networks of a model: the invertible decoder (flow), the encoder, the prior over z, and the dequantizer."""
