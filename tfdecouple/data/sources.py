"""Opened data sets (`Source`), and the base class of the kinds of data sources, chosen by `data.source`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tfdecouple.config import DataConfig
from tfdecouple.config.shapes import ImageShape
from tfdecouple.errors import DataError, nearest, one_line
from tfdecouple.registry import SOURCES

if TYPE_CHECKING:
    from tfdecouple.data.splits import Split

_LOGGER = logging.getLogger(__name__)


class BadImages:
    """The unreadable images of a data set; `data.on_bad_image` decides whether they raise errors or are skipped.

    tf.data reports an exception of a Python function only as text inside a TensorFlow error. This class therefore
    stores the exceptions, and `find_image_error` returns the stored exception that the text quotes.

    Attributes:
        skipped: set of the paths of the skipped images.
    """

    def __init__(self, rule: str) -> None:
        self.skipped: set[str] = set()
        self._skips = rule == "skip"
        self._errors: dict[str, DataError] = {}

    def store_image_error(self, error: DataError, quoted: str = "") -> DataError:
        """Stores and returns `error`, which `find_image_error` finds by `quoted`, or else by the error's message."""
        return self._errors.setdefault(quoted or str(error), error)

    def find_image_error(self, text: str) -> DataError | None:
        """Returns the stored DataError that `text`, the message of a TensorFlow error, quotes, or None."""
        return next((error for quoted, error in list(self._errors.items()) if quoted in text), None)

    def skip_or_raise(self, path: str, error: DataError) -> None:
        """Adds the unreadable image file `path` to `skipped`, or raises `error` if `data.on_bad_image` is "stop"."""
        if not self._skips:
            advice = "repair or remove it, or skip unreadable images with data.on_bad_image=skip"
            raise self.store_image_error(DataError(f"{error}; {advice}")) from error
        if path not in self.skipped:
            self.skipped.add(path)
            _LOGGER.warning("skipped: %s", error)


@dataclasses.dataclass(kw_only=True)
class Source:
    """An opened data set with three splits that have no image in common.

    Attributes:
        name: the value of `data.source`, such as "cifar10".
        title: what messages call the data set, such as "sample photographs".
        label_names: names of the labels; a label is an index into this tuple, which is empty for images without labels.
        image_shape: height, width and channels of the images, after cropping and resizing.
        splits: {"train": `Split`, "validation": `Split`, "test": `Split`}; `open_split("all")` adds
            `all_images`.
        all_images: a split of all images, or None.
        note: a sentence on how the splits differ, which a training prints beside its results, or "".
        bad_images: the record of unreadable images, and the rule whether to skip them.
    """

    name: str
    title: str
    label_names: tuple[str, ...]
    image_shape: ImageShape
    splits: Mapping[str, Split]
    all_images: Split | None = None
    note: str = ""
    bad_images: BadImages = dataclasses.field(default_factory=lambda: BadImages("stop"))

    @property
    def sizes(self) -> dict[str, int]:
        """{split: count of its images}, a new dict, for the splits of this data set."""
        return {name: split.size for name, split in self.splits.items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """{split: text that describes its images, such as "train[-1000:]"}, for the splits of this data set."""
        return {name: split.description for name, split in self.splits.items()}

    @property
    def skipped(self) -> int:
        """The count of this data set's images that were unreadable and skipped (`data.on_bad_image=skip`) until now."""
        return len(self.bad_images.skipped)

    def open_split(self, name: str) -> Split:
        """Returns the `Split` called `name`, such as "train", ready to decode images; raises DataError if unknown."""
        if name == "all" and self.all_images is not None:
            self.splits = {**self.splits, name: self.all_images}
        if name not in self.splits:
            raise DataError(f"there is no split {name!r}; use one of {', '.join(self.splits)}")
        with self.guard():
            self.splits[name].load_split_arrays()
        return self.splits[name]

    def find_image_key(self, split: str, index: int) -> str:
        """Returns the unique key of an image: its path below the folder, or "SPLIT/INDEX" if images are not files."""
        keys = self.splits[split].keys
        return f"{split}/{index}" if keys is None else keys[index]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Returns a context for reading images, in which unreadable images and records raise a DataError."""
        from tfdecouple.tensorflow_internals import READ_ERRORS

        try:
            yield
        except READ_ERRORS as error:
            # tf.data reads files ahead, so the latest stored error can be about a later image than the message.
            cause = self.bad_images.find_image_error(str(error))
            if cause is None and (isinstance(error, UnicodeDecodeError) or "IteratorGetNext" in str(error)):
                cause = DataError(f"cannot read {self.title}: {one_line(error, first=True)}; prepare it again")
            if cause is None:
                raise
            raise cause from None


class SourceKind:
    """The base class of the kinds of data sources, such as TFDS or folders, each with its way to open a data set.

    The registry `SOURCES` has the names that a kind opens. `config` names the data set.

    Attributes:
        takes_path: whether the text behind the colon of `data.source` is a path, whose absolute form a run stores.
        crops_user_images: whether `data.centre_crop` also crops image files that a user passes to a command. It does
            not if the crop fits only the images of one data set, such as CelebA.
        rights: {name of a data set: sentence on the copyright of its images}. Names are without TFDS configs; the
            sentence for "" holds for all other data sets.
    """

    takes_path: ClassVar[bool] = False
    crops_user_images: ClassVar[bool] = False
    rights: ClassVar[dict[str, str]] = {"": "Images of {name}: their rights are not recorded here."}

    def __init__(self, config: DataConfig):
        self.config = config

    def locate_images(self) -> tuple[str, str] | None:
        """Returns (option that holds the path of the images, path), such as ("data.data_dir", "/data"), or None."""
        if self.takes_path:
            return "data.source", os.path.expanduser(self.config.source.partition(":")[2])
        return ("data.data_dir", os.path.expanduser(self.config.data_dir)) if self.config.data_dir else None

    def describe_image_rights(self) -> str:
        """Returns a sentence on the copyright of the images in the data set."""
        name = self.config.source.rpartition(":")[2].partition("/")[0]
        return self.rights.get(name, self.rights[""]).format(name=name)

    def open(self, image_shape: ImageShape, download: bool) -> Source:
        """Opens the data set; returns a `Source`; for the arguments see `open_source`."""
        source = self.config.source
        is_path = os.path.isdir(os.path.expanduser(source)) or source.startswith(("/", ".", "~"))
        hint = f"; did you mean folder:{source}?" if is_path else nearest(source, SOURCES)
        raise DataError(f"there is no data.source {source!r}{hint}; there are {list_source_kinds()}")


def find_source_kind(config: DataConfig | str) -> SourceKind:
    """Returns the `SourceKind` that opens the data set of a config, or of a value of `data.source`.

    For an unknown value, it is an object of the base class.

    >>> type(find_source_kind("folder:mine")).__name__, type(find_source_kind("nothing")).__name__
    ('ImageFolder', 'SourceKind')
    """
    config = DataConfig(source=config) if isinstance(config, str) else config
    prefix, colon, _ = config.source.partition(":")
    names = (f"{prefix}:PATH", f"{prefix}:NAME") if colon else (config.source,)
    return next((SOURCES[name] for name in names if name in SOURCES), SourceKind)(config)


def list_source_kinds() -> str:
    """Returns a text that lists the values of `data.source`, for help texts and messages.

    >>> list_source_kinds()
    'photographs, cifar10, ..., tfds:NAME or folder:PATH...'
    """
    *others, last = SOURCES
    return f"{', '.join(others)} or {last}"


def resolve_image_paths(config: DataConfig) -> DataConfig:
    """Returns a copy of the config in which all paths are absolute, so that they hold in any working directory."""
    kind = find_source_kind(config)
    prefix, _, path = config.source.partition(":")
    if kind.takes_path and path:
        path = os.path.abspath(os.path.expanduser(path))
        config = dataclasses.replace(config, source=f"{prefix}:{path}")
    if config.data_dir:
        config = dataclasses.replace(config, data_dir=os.path.abspath(os.path.expanduser(config.data_dir)))
    return config


def hide_image_path(text: str, config: DataConfig) -> str:
    """Returns `text` with the path of the config's image folder (if it has one) replaced by the folder's name.

    >>> hide_image_path("images in /home/me/photos", DataConfig(source="folder:/home/me/photos"))
    'images in photos'
    """
    option, folder = find_source_kind(config).locate_images() or ("", "")
    return text.replace(folder, pathlib.Path(folder).name) if option == "data.source" else text


def choose_user_crop(config: DataConfig) -> int:
    """Returns the `centre_crop`, in pixels, for image files that a user passes to a command; 0 for the largest crop."""
    return config.centre_crop if find_source_kind(config).crops_user_images else 0


def replace_source(config: DataConfig, source: str | None, **others: Any) -> DataConfig:
    """Returns a copy of the config with another `source`; a `centre_crop` that fits only the old source becomes 0.

    `others` are new values of other options. The copy keeps the config's value for None.

    >>> bedrooms = DataConfig(source="lsun/bedroom", centre_crop=256)
    >>> [replace_source(bedrooms, name).centre_crop for name in ("folder:mine", "cifar10", "tfds:lsun/bedroom")]
    [0, 0, 256]
    """
    source = source or config.source
    is_same = source.removeprefix("tfds:") == config.source.removeprefix("tfds:")
    crop = config.centre_crop if is_same else choose_user_crop(config)
    changes = {name: value for name, value in others.items() if value is not None}
    return dataclasses.replace(config, source=source, centre_crop=crop, **changes)


def open_source(config: DataConfig, image_shape: ImageShape, download: bool = False) -> Source:
    """Opens the data set that `config.source` names; returns a `Source` with images of `image_shape` (appendix C.1).

    If `download` is true, TFDS (TensorFlow Datasets) downloads and prepares missing data. DataError is raised if the
    name is unknown, or the data are missing, unreadable or unusable.
    """
    try:
        return find_source_kind(config).open(image_shape, download)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DataError(f"cannot open data.source={config.source}: {reason}; fix this or use other images") from error
