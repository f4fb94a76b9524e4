"""`model.image_shape`: height, width and channels of the images."""

import json

import pytest

from tfdecouple.config import Config, load_preset, override
from tfdecouple.config.presets import describe_config
from tfdecouple.errors import ConfigError

QUICKSTART = load_preset("quickstart")


def test_grey_rectangles_are_written_and_read():
    grey = override(QUICKSTART, ["model.image_shape=[32,48,1]"])
    assert json.loads(grey.to_json())["model"]["image_shape"] == [32, 48, 1]
    assert Config.from_dict(json.loads(grey.to_json())) == grey
    assert describe_config(grey) == "quickstart with model.image_shape=[32, 48, 1]"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            "[28,28,1]",
            "is [28, 28, 1]; 4 levels halve height and width 4 times (model.steps, with a squeeze before",
        ),
        ("[28,28,1]", "the first), so both must be multiples of 16, such as [32, 32, 1], to which images are resized"),
        ("[48,60,3]", "halve height and width 3 times (model.steps), so both must be multiples of 8"),
        ("[32,32]", "is [32, 32]; it must be [height, width, channels], each at least 1"),
        ("[32,32,0]", "each at least 1"),
        ("32", "must be a list"),
    ],
)
def test_impossible_shapes_are_refused_in_a_line(shape, said):
    with pytest.raises(ConfigError) as refused:
        override(QUICKSTART, [f"model.image_shape={shape}"])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_images_of_few_channels_are_squeezed_before_the_first_level():
    grey, colour = (override(QUICKSTART, [f"model.image_shape=[32,48,{channels}]"]).model for channels in (1, 4))
    assert [(level[0].height, level[0].width, level[0].channels) for level in grey.levels] == [
        (16, 24, 4), (8, 12, 16), (4, 6, 32), (2, 3, 64)
    ]  # fmt: skip
    assert [(level[0].height, level[0].width, level[0].channels) for level in colour.levels] == [
        (32, 48, 4), (16, 24, 16), (8, 12, 32), (4, 6, 64)
    ]  # fmt: skip
