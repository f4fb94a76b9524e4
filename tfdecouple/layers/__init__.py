"""The invertible Keras layers of the flow, and the neural nets inside couplings (paper section 2.2, appendix A)."""

from tfdecouple.layers.base import InvertibleComposite, InvertibleLayer, InvertibleSequence
from tfdecouple.layers.colour_map import ColourMap
from tfdecouple.layers.conditioners import MLP, ConvNet
from tfdecouple.layers.coupling import Coupling
from tfdecouple.layers.elementary_layers import (
    ActNorm,
    ConditionalWhitening,
    InvertibleConv1x1,
    InvertibleLinear,
    Sigmoid,
    Squeeze,
)

__all__ = [
    "MLP",
    "ActNorm",
    "ColourMap",
    "ConditionalWhitening",
    "ConvNet",
    "Coupling",
    "InvertibleComposite",
    "InvertibleConv1x1",
    "InvertibleLayer",
    "InvertibleLinear",
    "InvertibleSequence",
    "Sigmoid",
    "Squeeze",
]
