"""The three networks of the paper: the invertible decoder (flow), the encoder, and the prior over z."""
