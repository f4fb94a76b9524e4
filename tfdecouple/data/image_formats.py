"""Facts about image files, and texts that describe images and how to fit images to a model."""

from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape

# Pillow's name of the image mode for each number of channels that image files can have.
PILLOW_MODES = {1: "L", RGB_CHANNELS: "RGB"}
# All formats of image files can store sides of this many pixels.
MOST_FILE_SIDE = 16_383


def describe_channels(channels: int) -> str:
    """Returns "grey", "RGB" or a text such as "5 channels", for a number of channels."""
    return {1: "grey", RGB_CHANNELS: "RGB"}.get(channels, f"{channels} channels")


def describe_images(image_shape: ImageShape) -> str:
    """Returns a text that describes images by height, width and channels.

    >>> describe_images((28, 28, 1)), describe_images((32, 32, 3)), describe_images((48, 64, 5))
    ('grey images of 28 x 28 pixels', 'images of 32 x 32 pixels', 'images of 48 x 64 pixels and 5 channels')
    """
    height, width, channels = image_shape
    grey = "grey " if channels == 1 else ""
    more = "" if channels in PILLOW_MODES else f" and {channels} channels"
    return f"{grey}images of {height} x {width} pixels{more}"


def describe_resizing(image_shape: ImageShape) -> str:
    """Returns a text that says how to resize images for a model, for the metadata and the model card of an export."""
    channels = image_shape[-1]
    kind = describe_channels(channels) if channels in PILLOW_MODES else "pixels, each channel by itself"
    return (
        f"bilinear with antialiasing: Pillow's Image.resize(size, BILINEAR) on 8-bit {kind}; an image of the right "
        "size passes"
    )


def describe_cropping(image_shape: ImageShape, centre_crop: int) -> str:
    """Returns a text that says how to crop images for a model, for an export's metadata; programs read its digits."""
    centre, limit = "centre square", f" of {centre_crop} pixels"
    if image_shape[0] != image_shape[1]:
        centre = "centre in the proportions of the model's images"
        limit = f", {centre_crop} pixels along its shorter side"
    return f"{centre}{limit}, or the largest" if centre_crop else f"largest {centre}"
