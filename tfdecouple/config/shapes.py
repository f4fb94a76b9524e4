"""The shapes of images, and of the feature maps in flows, level by level.

The config uses these functions for its checks, and the networks are built from the functions' results.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

# Type of an image's shape: height, width and channels.
ImageShape = tuple[int, int, int]
# The sizes of an array's axes; None for a size that is not known, such as that of a batch.
Shape = tuple[Any, ...]

RGB_CHANNELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The plan of a stage: flow steps on feature maps of one shape, after which some channels may leave the flow.

    Attributes:
        name: prefix of the names of the stage's layers, such as `level_0_part_0`.
        reduction: ratio of the height of the image to the height of the stage's feature maps.
        height, width, channels: shape of the stage's feature maps.
        hidden: channels of the hidden maps of the coupling nets.
        steps: number of flow steps.
        dropped: number of channels that leave the flow at the end of the stage.
    """

    name: str
    reduction: int
    height: int
    width: int
    channels: int
    hidden: int
    steps: int
    dropped: int

    @property
    def positions(self) -> int:
        """The count of positions in a feature map of this stage, height times width."""
        return self.height * self.width

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of this stage's flow steps, such as `level_0_part_0_step_0`, in the forward direction (x to v)."""
        return name_flow_steps(self.steps, f"{self.name}_")


def is_square_of_rgb(image_shape: ImageShape) -> bool:
    """Returns whether images of this shape are square and have three channels."""
    height, width, channels = image_shape
    return height == width and channels == RGB_CHANNELS


def is_squeezed_first(channels: int) -> bool:
    """Returns whether a flow squeezes images with this count of channels (2 x 2 pixels to channels) before level 0."""
    # A coupling cannot split one channel, and successive couplings would split two channels in the same way.
    return channels <= 2


def plan_flow_levels(
    image_shape: ImageShape,
    steps: Sequence[int | Sequence[int]],
    hidden_channels: Sequence[int],
    factors: Sequence[int],
) -> tuple[tuple[StagePlan, ...], ...]:
    """Returns a tuple of `StagePlan`s for each level of the flow, the highest resolution first (paper Figure 3c).

    A squeeze before every level but the first multiplies the channels by four and halves height and width; images of
    one or two channels are squeezed before the first level, too. An inner level has one or more stages; after each
    stage the same number of channels leaves the flow. `ModelConfig` describes the other arguments.

    >>> for level in plan_flow_levels((8, 8, 3), (1, (2, 2), 1), (4, 5, 6), (4,)):
    ...     print([(stage.name, stage.height, stage.channels, stage.dropped) for stage in level])
    [('level_0_part_0', 8, 3, 0)]
    [('level_1_part_0', 4, 12, 3), ('level_1_part_1', 4, 9, 3)]
    [('level_2_part_0', 2, 24, 0)]
    """
    levels = []
    height, width, channels = image_shape
    first = int(is_squeezed_first(channels))
    channels *= 4**first
    for level, (counts, hidden) in enumerate(zip(steps, hidden_channels, strict=True)):
        channels *= 4 if level else 1
        reduction = 2 ** (level + first)
        step_counts = (counts,) if isinstance(counts, int) else counts
        dropped = 0 if isinstance(counts, int) else channels // factors[min(level, len(factors)) - 1]
        stages = []
        for number, count in enumerate(step_counts):
            stages.append(
                StagePlan(
                    name=f"level_{level}_part_{number}",
                    reduction=reduction,
                    height=height // reduction,
                    width=width // reduction,
                    channels=channels,
                    hidden=hidden,
                    steps=count,
                    dropped=dropped,
                )
            )
            channels -= dropped
        levels.append(tuple(stages))
    return tuple(levels)


def name_flow_steps(count: int, prefix: str = "") -> tuple[str, ...]:
    """Returns the names of `count` flow steps, each with `prefix` before it, in the forward direction (x to v).

    >>> name_flow_steps(2)
    ('step_0', 'step_1')
    """
    return tuple(f"{prefix}step_{number}" for number in range(count))


def count_colour_numbers(channels: int) -> int:
    """Returns how many numbers describe mean and covariance of colours with this count of channels.

    >>> count_colour_numbers(3)
    9
    """
    return channels * (channels + 3) // 2
