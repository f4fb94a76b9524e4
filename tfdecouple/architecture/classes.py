"""What a model has for each label: a code z, or the shift and scale of the prior over z."""

from __future__ import annotations

import dataclasses

from tfdecouple.architecture.weights import Weights

# The two hidden layers of the net behind the embedding are so many times as wide as z, as in the paper's code.
WIDENING = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCodesPlan:
    """z as a function of the label: an embedding, and an MLP of two hidden layers.

    Attributes:
        classes: how many labels there are.
        latent_dim: size of z, and of the embedding.
    """

    classes: int
    latent_dim: int

    @property
    def hidden(self) -> int:
        """Width of the hidden layers."""
        return WIDENING * self.latent_dim

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return {
            "embedding": (self.classes, self.latent_dim),
            "first": (self.latent_dim, self.hidden),
            "first_bias": (self.hidden,),
            "second": (self.hidden, self.hidden),
            "second_bias": (self.hidden,),
            "last": (self.hidden, self.latent_dim),
            "last_bias": (self.latent_dim,),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassAffinePlan:
    """The shift and scale of z for each label, before the flow of the prior.

    Attributes:
        classes: how many labels there are.
        latent_dim: size of z.
    """

    classes: int
    latent_dim: int

    def weights(self) -> Weights:
        """Returns `{name: shape}` of its weights."""
        return dict.fromkeys(("log_scale", "shift"), (self.classes, self.latent_dim))
