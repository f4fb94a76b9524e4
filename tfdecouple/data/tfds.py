"""The data sources of TensorFlow Datasets (TFDS): functions that find, prepare, split and decode a data set."""

import functools
import importlib.util
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow as tf

from tfdecouple.config.shapes import ImageShape
from tfdecouple.data.image_file import crop_and_resize_tensor
from tfdecouple.data.image_formats import PILLOW_MODES
from tfdecouple.data.sources import Source, SourceKind
from tfdecouple.data.splits import ImagesAndLabels, MemorySplit, RecordSplit, Split, Tensors
from tfdecouple.errors import DataError, nearest, one_line
from tfdecouple.storage.files import count_records
from tfdecouple.system.requirements import describe_missing_package

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Encoded images are shuffled in memory within windows of about `_WINDOW_BYTES` bytes, but at least `_LEAST_WINDOW`
# images. This suffices, because TFDS stores the images in random order.
_WINDOW_BYTES = 2**27
_LEAST_WINDOW = 1024


class TensorFlowDatasets(SourceKind):
    """The data sources `tfds:NAME`, of TensorFlow Datasets; the names of the paper's data sets need no "tfds:"."""

    rights: ClassVar[dict[str, str]] = {
        "cifar10": "CIFAR-10: its authors state no licence; they ask to cite Krizhevsky, 2009.",
        "downsampled_imagenet": "ImageNet: its terms allow non-commercial research and education; the images have "
        "owners.",
        "lsun": "LSUN: its authors state no licence; the images have owners.",
        "celeb_a_hq": "CelebA-HQ: for non-commercial research only; the images have owners.",
        "": "Images of the TFDS data set {name}: see its own page for their licence.",
    }

    def open(self, image_shape: ImageShape, download: bool) -> Source:
        """Opens the TFDS data set that `config.source` names; returns a `Source` with images of `image_shape`.

        If all decoded images take at most `data.cache_gib` GiB, the source holds them in memory. Otherwise each pass
        reads encoded images from disk. DataError is raised if TFDS lacks the data set, the data are not prepared, the
        download fails, or the images do not fit the model.
        """
        config = self.config
        builder = _find_builder(config.source, config.data_dir)
        if not builder.is_prepared():
            # This check comes first, because TFDS would start a download to read a data set that is not prepared.
            _prepare(builder, config.source, config.data_dir, download)
        info = builder.info
        sizes = {name: split.num_examples for name, split in info.splits.items()}
        chosen = choose_tfds_splits(config.source, sizes, config.validation_examples)
        image_key, label_key = find_feature_keys(config.source, info.features, image_shape[-1])
        splits: dict[str, Split] = {
            name: _make_record_split(builder, notation, image_key, label_key, image_shape, config.centre_crop)
            for name, notation in chosen.items()
        }
        if sum(split.size for split in splits.values()) * math.prod(image_shape) <= config.cache_gib * 2**30:
            for name, split in splits.items():
                load = functools.partial(_load_decoded_images, split, image_shape)
                splits[name] = MemorySplit(split.size, split.description, load)
        return Source(
            name=config.source,
            title=f"TFDS {info.full_name}",
            image_shape=image_shape,
            label_names=tuple(info.features[label_key].names) if label_key else (),
            splits=splits,
        )


def choose_tfds_splits(source: str, sizes: Mapping[str, int], held_out: int) -> dict[str, str]:
    """Returns {split: its images in TFDS notation, such as "train[:-1000]"} for "train", "validation" and "test".

    `sizes` is {split: count of its images} for the splits that the data set `source` has. If the data set has no test
    split, its validation split becomes the test split, as in the paper. Each split that is still missing gets
    `held_out` images from the end of the training split. DataError is raised if there is no training split, or if it
    has too few images.
    """
    if "train" not in sizes:
        raise DataError(f"the data set {source} has no split train (it has {', '.join(sizes) or 'none'}); use another")
    if "test" in sizes and "validation" in sizes:
        return {name: name for name in ("train", "validation", "test")}
    if "test" in sizes or "validation" in sizes:
        test = "test" if "test" in sizes else "validation"
        needed, held = held_out, {"validation": f"train[-{held_out}:]", "test": test}
    else:
        needed = 2 * held_out
        held = {"validation": f"train[-{needed}:-{held_out}]", "test": f"train[-{held_out}:]"}
    if needed >= sizes["train"]:
        raise DataError(
            f"data.validation_examples is {held_out}, but {source} has {sizes['train']} training images, of which "
            f"{needed} would be held out; use a smaller number"
        )
    return {"train": f"train[:-{needed}]", **held}


def _find_builder(source: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    # The builder's class always comes from TFDS. The function `tfds.builder` is not called, because it would import a
    # class that the metadata of an untrusted folder names.
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise DataError(describe_missing_package("tensorflow_datasets", f"data.source={source}"))
    import tensorflow_datasets as tfds

    name = source.removeprefix("tfds:")
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    try:
        parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
        if parsed.namespace or not set(options) <= {"config", "version"}:
            raise ValueError("write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION")
        return tfds.builder_cls(parsed.name)(data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError:
        raise DataError(
            f"TensorFlow Datasets has no data set {name!r}{nearest(name, tfds.list_builders())}; a prepared folder "
            "without an installed class is not read, because its metadata name code that would run"
        ) from None
    # TFDS raises exceptions of several classes for a wrong config or version, so each of them becomes DataError.
    except Exception as error:
        base = name.partition("/")[0]
        configs = tfds.builder_cls(base).builder_configs if base in tfds.list_builders() else ()
        hint = nearest(name, [f"{base}/{config}" for config in configs])
        raise DataError(f"cannot open the data set {name!r}{hint}: {one_line(error)}") from error


def _prepare(builder: "tfds.core.DatasetBuilder", source: str, data_dir: str | None, download: bool) -> None:
    if not download:
        option = f" --data_dir {data_dir}" if data_dir else ""
        raise DataError(
            f"the data set {source} is not prepared in {builder.data_path}; name the right folder with --data-dir, or "
            f"prepare it by adding --download or with: tfds build {source.removeprefix('tfds:')}{option}"
        )
    try:
        builder.download_and_prepare()
    # TFDS raises exceptions of many classes if network, disk or checksums fail, so each of them becomes DataError.
    except Exception as error:
        raise DataError(f"cannot prepare the data set {source}: {one_line(error)}") from error


def find_feature_keys(source: str, features: Mapping[str, Any], channels: int) -> tuple[str, str | None]:
    """Returns (name of the TFDS feature with the images, name of the feature with the labels or None).

    If several features are images, the function chooses "image", and if several are labels, "label". Several label
    features without this name count as none. DataError is raised if no feature is an image, or several are and none is
    called "image"; or if the images are not uint8 or have a channel count that cannot be converted to `channels`.
    """
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if "image" in images:
        images = ["image"]
    if len(images) != 1:
        raise DataError(f"the data set {source} has the features {', '.join(features)}; exactly one must be an image")
    shape, dtype = features[images[0]].shape, np.dtype(features[images[0]].np_dtype)
    # A model of grey or RGB images accepts both grey and RGB images, because Pillow converts one to the other.
    accepted = tuple(PILLOW_MODES) if channels in PILLOW_MODES else (channels,)
    if shape[-1] not in accepted or dtype != np.uint8:
        raise DataError(
            f"the data set {source} has images of shape {tuple(shape)} and type {dtype.name}; "
            f"they must be uint8 with {' or '.join(map(str, accepted))} channels"
        )
    classes = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if "label" in classes:
        return images[0], "label"
    return images[0], classes[0] if len(classes) == 1 else None


def _make_record_split(
    builder: "tfds.core.DatasetBuilder",
    notation: str,
    image_key: str,
    label_key: str | None,
    image_shape: ImageShape,
    centre_crop: int,
) -> RecordSplit:
    import tensorflow_datasets as tfds

    # Other features are left out, because shuffling stacks records, and these features can vary in shape.
    used = dict.fromkeys([image_key, label_key] if label_key else [image_key], True)
    try:
        split = builder.info.splits[notation]
        records = builder.as_dataset(
            split=notation,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(used, {image_key: tfds.decode.SkipDecoding()}),
            # TFDS must read one file after another, because interleaved files would give the images in another order.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    # TFDS raises exceptions of many classes for wrong metadata and other formats of files.
    except Exception as error:
        raise DataError(f"cannot read {notation} of {builder.info.full_name}: {one_line(error)}") from error
    feature = builder.info.features[image_key]

    def decode(record: Mapping[str, tf.Tensor]) -> Tensors:
        image = crop_and_resize_tensor(decode_tfds_image(record[image_key], feature), image_shape, centre_crop)
        return image, tf.cast(record[label_key], tf.int32) if label_key else tf.constant(-1, tf.int32)

    # The files are checked once, and only those of a split that is used.
    @functools.cache
    def check() -> None:
        for part in split.file_instructions:
            try:
                count = count_records(part.filename)
                if count != part.examples_in_shard:
                    raise ValueError(f"it has {count:,} records, and should have {part.examples_in_shard:,}")
            except (OSError, ValueError) as error:
                text = f"cannot read {part.filename}: {one_line(error)}; prepare the data set again"
                raise DataError(text) from error

    train = builder.info.splits["train"]
    mean_bytes = max(train.num_bytes // max(train.num_examples, 1), 1)
    window = min(max(_WINDOW_BYTES // mean_bytes, _LEAST_WINDOW), split.num_examples)
    return RecordSplit(split.num_examples, notation, check=check, records=records, decode=decode, window=window)


def decode_tfds_image(encoded: tf.Tensor, feature: "tfds.features.FeatureConnector") -> tf.Tensor:
    """Decodes an image file, a string tensor, to the pixels that Pillow gives, uint8 [H, W, channels]."""
    pixels = tf.cond(
        tf.io.is_jpeg(encoded),
        # With the default `dct_method` of TensorFlow, pixel values would differ from Pillow's by up to 7.
        lambda: tf.io.decode_jpeg(encoded, feature.shape[-1], dct_method="INTEGER_ACCURATE"),
        lambda: feature.decode_example(encoded),
    )
    return tf.ensure_shape(pixels, feature.shape)


def _load_decoded_images(split: Split, image_shape: ImageShape) -> ImagesAndLabels:
    split.load_split_arrays()
    images = np.empty((split.size, *image_shape), np.uint8)
    labels = np.empty(split.size, np.int32)
    for batch in split.decode_examples().batch(256).prefetch(4).as_numpy_iterator():
        images[batch["index"]], labels[batch["index"]] = batch["image"], batch["label"]
    return images, labels
