"""Kinds of data sources, and the registry in which they are found by what `data.source` says.

The one file to edit for a new kind: a subclass of `SourceKind`, and its place in `KINDS`. Training, evaluation and all
commands take it from there; what is heavy is imported where a source is opened, so that help comes without TensorFlow.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import os
from typing import TYPE_CHECKING, ClassVar

from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import DataError, nearest, one_line

if TYPE_CHECKING:
    from tfdecouple.data.source import Source


class SourceKind(abc.ABC):
    """A kind of data source: how `data.source` names it, how it is opened, and what is said of it.

    Attributes:
        names: data sets of this kind with names of their own, such as "cifar10".
        pattern: how any other is named, such as "folder:PATH"; "" where there is none. One that ends with ":PATH" names
            a file or folder; a run keeps it as a whole path, so that it goes on from any working folder.
        title: what it is called in a list of all kinds.
        help: the same at more length; "" where there is no more to say.
        like_own: whether a user's own images are treated as its images are, which `data.centre_crop` says; otherwise
            that says where the subjects of the data set are, and nothing of other images.
        rights: what is known of the rights in its images, by the name up to a "/"; "" is for all others.
    """

    names: ClassVar[tuple[str, ...]] = ()
    pattern: ClassVar[str] = ""
    title: ClassVar[str]
    help: ClassVar[str] = ""
    like_own: ClassVar[bool] = False
    rights: ClassVar[dict[str, str]] = {"": "Images of {name}: their rights are not recorded here."}

    @property
    def prefix(self) -> str:
        """What the names of the pattern begin with, such as "folder:"; "" where there is no pattern."""
        return self.pattern[: self.pattern.find(":") + 1]

    def takes(self, source: str) -> bool:
        """Whether a `data.source` is of this kind."""
        return source in self.names or bool(self.prefix and source.startswith(self.prefix))

    def data_set(self, source: str) -> str:
        """Returns one name of a data set for all that it is known by."""
        return source

    def images_at(self, config: DataConfig) -> tuple[str, str] | None:
        """Returns the option that says where the images lie, and the place; None where the config says nothing."""
        if self.pattern.endswith(":PATH"):
            return "data.source", os.path.expanduser(config.source.removeprefix(self.prefix))
        return ("data.data_dir", os.path.expanduser(config.data_dir)) if config.data_dir else None

    def located(self, config: DataConfig) -> DataConfig:
        """Returns the config with its paths named from the root, so that they are found from any working folder."""
        path = config.source.removeprefix(self.prefix)
        if self.pattern.endswith(":PATH") and path:
            config = dataclasses.replace(config, source=self.prefix + _from_root(path))
        if not config.data_dir:
            return config
        return dataclasses.replace(config, data_dir=_from_root(config.data_dir))

    def meant(self, source: str) -> str | None:
        """Returns how a `data.source` that no kind takes is rightly named if it was meant for this one; None if not."""
        return None

    def rights_in(self, config: DataConfig) -> str:
        """Returns what is known of the rights in the images of a config."""
        name = config.source.removeprefix(self.prefix).partition("/")[0]
        return self.rights.get(name, self.rights[""]).format(name=name)

    @abc.abstractmethod
    def open(self, config: DataConfig, image_shape: Shape, download: bool) -> Source:
        """Opens the data set; see `open_source`."""


class Photographs(SourceKind):
    """The embedded photographs, which come with the installation."""

    names = ("photographs",)
    title = "photographs"

    def images_at(self, config: DataConfig) -> None:
        """Returns None: no config says where they lie."""

    def rights_in(self, config: DataConfig) -> str:
        """Returns authors and licences of those that the config names."""
        from tfdecouple.data.sample_images import rights

        return f"Photographs that come with scikit-image and scikit-learn: {rights(config)}."

    def open(self, config: DataConfig, image_shape: Shape, download: bool) -> Source:
        """See `open_photographs`."""
        from tfdecouple.data.sample_images import open_photographs

        return open_photographs(config, image_shape)


class TensorFlowDatasets(SourceKind):
    """Data sets of TensorFlow Datasets; the paper's need no "tfds:" before their names."""

    names = ("cifar10", "downsampled_imagenet/64x64", "lsun/bedroom", "celeb_a_hq/256")
    pattern = "tfds:NAME"
    title = "a TFDS name"
    help = "the name of a TFDS data set such as cifar10, tfds:NAME"
    rights: ClassVar[dict[str, str]] = {
        "cifar10": "CIFAR-10: its authors state no licence; they ask to cite Krizhevsky, 2009.",
        "downsampled_imagenet": "ImageNet: its terms allow non-commercial research and education; the images have "
        "owners.",
        "lsun": "LSUN: its authors state no licence; the images have owners.",
        "celeb_a_hq": "CelebA-HQ: for non-commercial research only; the images have owners.",
        "": "Images of the TFDS data set {name}: see its own page for their licence.",
    }

    def open(self, config: DataConfig, image_shape: Shape, download: bool) -> Source:
        """See `open_tfds`."""
        from tfdecouple.data.tfds import open_tfds

        return open_tfds(config, image_shape, download)

    def data_set(self, source: str) -> str:
        """Returns the name without "tfds:" and without a version."""
        return source.removeprefix(self.prefix).partition(":")[0]

    def meant(self, source: str) -> str | None:
        """Returns tfds:NAME for the name of a data set that TFDS knows."""
        if not source or importlib.util.find_spec("tensorflow_datasets") is None:
            return None
        import tensorflow_datasets as tfds

        name = source.partition("/")[0].partition(":")[0].lower()
        known = name in tfds.list_builders(with_community_datasets=False)
        return f"{self.prefix}{source.lower()}" if known else None


class ImageFolder(SourceKind):
    """A folder of image files."""

    pattern = "folder:PATH"
    title = "folder:PATH"
    like_own = True
    rights: ClassVar[dict[str, str]] = {
        "": "Images from a folder: their rights are known to whoever trained on them, and not recorded here."
    }

    def meant(self, source: str) -> str | None:
        """Returns folder:PATH for what is a folder, or looks like the path of one."""
        is_path = os.path.isdir(os.path.expanduser(source)) or source.startswith(("/", "./", "../", "~/"))
        return self.prefix + source if is_path else None

    def open(self, config: DataConfig, image_shape: Shape, download: bool) -> Source:
        """See `open_folder`."""
        from tfdecouple.data.image_folder import open_folder

        return open_folder(config, image_shape)


# In the order in which they are listed to users; the first that takes a name opens it.
KINDS: tuple[SourceKind, ...] = (
    Photographs(),
    TensorFlowDatasets(),
    ImageFolder(),
)


def find_kind(source: str) -> SourceKind | None:
    """Returns the kind of a `data.source`, None where there is none.

    >>> find_kind("tfds:mnist").title, find_kind("nothing")
    ('a TFDS name', None)
    """
    return next((kind for kind in KINDS if kind.takes(source)), None)


def kinds_listed(at_length: bool = False) -> str:
    """Returns what `data.source` may be.

    >>> kinds_listed()
    'photographs, a TFDS name...folder:PATH...'
    >>> kinds_listed(at_length=True)
    'photographs, the name of a TFDS data set such as cifar10, tfds:NAME,...folder:PATH...'
    """
    *others, last = ((at_length and kind.help) or kind.title for kind in KINDS)
    return f"{', '.join(others)}{',' if at_length else ''} or {last}"


def _from_root(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def located(config: DataConfig) -> DataConfig:
    """Returns a config whose folders are named from the root, however the user, who may be anywhere, named them."""
    kind = find_kind(config.source)
    return config if kind is None else kind.located(config)


def images_at(config: DataConfig) -> tuple[str, str] | None:
    """Returns the option that says where a config's images lie, and the folder; None where it says nothing."""
    kind = find_kind(config.source)
    return None if kind is None else kind.images_at(config)


def crop_of_own_images(config: DataConfig) -> int:
    """Returns the side in pixels of the centre square that a user's own images keep; 0 for the largest."""
    kind = find_kind(config.source)
    return config.centre_crop if kind is not None and kind.like_own else 0


def with_source(config: DataConfig, source: str) -> DataConfig:
    """Returns the config for images of another source: where the subjects of a data set are says nothing of others'.

    >>> bedrooms = DataConfig(source="lsun/bedroom", centre_crop=256)
    >>> [with_source(bedrooms, name).centre_crop for name in ("folder:mine", "cifar10", "tfds:lsun/bedroom:3.0.0")]
    [0, 0, 256]
    """
    crop = config.centre_crop if _data_set(source) == _data_set(config.source) else crop_of_own_images(config)
    return dataclasses.replace(config, source=source, centre_crop=crop)


def _data_set(source: str) -> str:
    kind = find_kind(source)
    return source if kind is None else kind.data_set(source)


def rights_in(config: DataConfig) -> str:
    """Returns what is known of the rights in the images of a config.

    >>> rights_in(DataConfig(source="tfds:mnist"))
    'Images of the TFDS data set mnist: see its own page for their licence.'
    """
    kind = find_kind(config.source)
    return SourceKind.rights[""].format(name=config.source) if kind is None else kind.rights_in(config)


def open_source(config: DataConfig, image_shape: Shape, download: bool = False) -> Source:
    """Opens a data set; fails at once where its data are missing (paper appendix C.1).

    Args:
        config: which data set, where it lies and how it is split.
        image_shape: height, width and channels of the images.
        download: whether TFDS may download and prepare what is missing.

    Returns:
        The source, whose images are uint8 [height, width, channels].

    Raises:
        DataError: for an unknown name, missing, unreadable or unusable data.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise DataError(f"image_shape is {list(image_shape)}; it must be [height, width, channels], each at least 1")
    kind = find_kind(config.source)
    if kind is None:
        names = [name for kind in KINDS for name in kind.names]
        *others, last = [*names, *(kind.pattern for kind in KINDS if kind.pattern)]
        meant = next((name for kind in reversed(KINDS) if (name := kind.meant(config.source))), None)
        hint = f"; did you mean {meant}?" if meant else nearest(config.source, names)
        raise DataError(f"there is no data.source {config.source!r}{hint}; there are {', '.join(others)} and {last}")
    try:
        return kind.open(config, image_shape, download)
    except OSError as error:
        _, folder = kind.images_at(config) or ("", "")
        where = error.filename if isinstance(error.filename, str) else folder
        raise DataError(
            f"cannot open data.source={config.source}: {error.strerror or one_line(error)}"
            f"{f' ({where})' if where and where not in config.source else ''}; mend that or name other images"
        ) from error
