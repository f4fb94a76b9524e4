"""The Apache Beam pipeline that encodes a folder of images on a cluster; it needs tfdecouple's extra `beam`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from tfdecouple.config.shapes import ImageShape
from tfdecouple.corpus import code_files
from tfdecouple.corpus.code_files import CodesManifest, DataFacts, Field, ModelFacts, Shard, encode_image_key
from tfdecouple.data.image_file import read_image
from tfdecouple.data.image_folder import SPLIT_FOLDERS, SUFFIXES
from tfdecouple.data.labels import NO_LABEL
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.model.codes import far_from_training

if TYPE_CHECKING:
    import onnxruntime

# Name of the only split of the codes, because the pipeline encodes the images of all splits alike.
SPLIT = "all"
UNREADABLE, FAR = "unreadable", "far"
_DIGESTS = "_digests.jsonl"


def encode_with_beam(options: SimpleNamespace, beam_arguments: Sequence[str]) -> tuple[CodesManifest, int]:
    """Encodes a folder of images, as `options` of the command `encode-beam` and of Beam and its runner say.

    Returns the manifest of the codes and, if v is among them, how many images are `far_from_training`, else 0.
    UserError is raised if the model or the images are missing, the output folder is not empty, or the pipeline fails.
    """
    # The user's options come last, because Beam uses the last value of an option.
    beam_options = PipelineOptions(["--default_sdk_harness_log_level=ERROR", *beam_arguments])
    runner = beam_options.view_as(StandardOptions).runner or ""
    if "dask" in runner.lower():
        raise UserError(f"--runner={runner} writes files without codes; take another runner of Beam")
    # Without these options, such as the address of a server, object storage cannot be read outside a pipeline.
    FileSystems.set_options(beam_options)
    out, root = _make_path_absolute(options.out), _make_path_absolute(options.images) + "/"
    with _convert_beam_errors(f"cannot read {options.model}, {options.images} or {options.out}", UserError):
        model = _find_encoder_file(options.model)
        session = open_encoder_session(model, options.threads)
        fields, image_shape = _choose_output_fields(session, options)
        facts = session.get_modelmeta().custom_metadata_map
        # `describe_cropping` wrote the text "crop" at export; its only number is the side of the centre crop.
        crop = int((re.findall(r"\d+", facts.get("crop", "")) or [0])[0])
        if FileSystems.match([f"{out}/*"], [1])[0].metadata_list:
            raise UserError(f"{options.out} is not empty; name a new folder with --out")
        paths = [file.path for file in FileSystems.match([f"{root}**"])[0].metadata_list]
        reader = make_folder_reader(root, paths, image_shape, crop)
    with _convert_beam_errors(f"the pipeline failed; remove {options.out} before the next run"):
        # The folder is made before the workers start, because workers that make one folder at the same time would fail.
        if not FileSystems.exists(out):
            FileSystems.mkdirs(out)
        pipeline = beam.Pipeline(options=beam_options)
        _add_pipeline_steps(pipeline, options, reader, (model, fields, options.threads), out)
        result = pipeline.run()
        result.wait_until_finish()
        counters = result.metrics().query(MetricsFilter().with_namespace("tfdecouple"))["counters"]
        counts = dict.fromkeys(("images", UNREADABLE, FAR), 0)
        counts |= {counter.key.metric.name: counter.result for counter in counters}
        shards = [Shard.model_validate_json(line) for line in _read_file_bytes(f"{out}/{_DIGESTS}").splitlines()]
        shards.sort(key=lambda shard: shard.name)
        digest = hashlib.sha256(_read_file_bytes(model)).hexdigest()
        manifest = CodesManifest.model_construct(
            format=options.format,
            fields=fields,
            model=ModelFacts(run=facts.get("run"), step=int(facts.get("step", 0)), onnx_sha256=digest),
            data=DataFacts(title=f"images in {options.images}", image_shape=image_shape, centre_crop=crop),
            label_names=reader.labels,
            splits={SPLIT: counts["images"] + counts[UNREADABLE]},
            images_per_shard=0,
        ).with_shards(shards, counts["images"])
        with FileSystems.create(f"{out}/{code_files.MANIFEST}") as file:
            file.write(json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2).encode())
    return manifest, counts[FAR]


@contextlib.contextmanager
def _convert_beam_errors(message: str, *unchanged: type[Exception]) -> Iterator[None]:
    """Returns a context that turns every error except `unchanged` into UserError: `message`, and the error's last line.

    Every exception is caught, because each storage system and each of Beam's runners has its own exception classes.
    """
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        # The last line of gRPC's errors is ">".
        text = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)] or [type(error).__name__]
        raise UserError(f"{message}: {text[-1][:400]}") from error


def _add_pipeline_steps(
    pipeline: beam.Pipeline, options: SimpleNamespace, reader: FolderReader, encoder: tuple, out: str
) -> None:
    text = functools.partial(beam.io.WriteToText, shard_name_template="", num_shards=1)
    read = (
        pipeline
        | "List files" >> fileio.MatchFiles(f"{reader.root}**")
        | "Keep images" >> beam.Filter(lambda metadata: reader.find_key_and_label(metadata.path) is not None)
        # Paths are passed on as bytes, because Beam encodes strings as UTF-8, and file names can be any bytes.
        | "Take paths" >> beam.Map(lambda metadata: os.fsencode(metadata.path))
        # Without this step, the worker that lists the images would also read all images.
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(reader.read_image_file).with_outputs(UNREADABLE, main="images")
    )
    # Beam cannot write an empty file to s3://.
    unreadable = text(f"{out}/_{UNREADABLE}", file_name_suffix=".txt", skip_if_empty=True)
    _ = read[UNREADABLE] | "Write unreadable" >> unreadable
    batches = beam.BatchElements(min_batch_size=options.batch_size, max_batch_size=options.batch_size)
    codes = read.images | "Batch" >> batches | "Encode" >> beam.Map(encode_batch, *encoder)
    files = {"file_name_suffix": f".{options.format}", "num_shards": options.shards}
    if options.format == "parquet":
        fields = encoder[1]
        schema = code_files.make_parquet_schema(fields)
        make_table = code_files.make_parquet_table
        codes = codes | "To tables" >> beam.Map(lambda batch: make_table(batch[0], batch[1], batch[2], fields))
        write: Any = beam.io.parquetio.WriteToParquetBatched(f"{out}/{SPLIT}", schema, **files)
    else:
        codes = codes | "To examples" >> beam.FlatMapTuple(code_files.serialize_examples)
        write = beam.io.WriteToTFRecord(f"{out}/{SPLIT}", **files)
    # Without the step "Spread files", the worker that lists the written files would also read all files.
    digests = codes | "Write codes" >> write | "Spread files" >> beam.Reshuffle() | "Read back" >> beam.Map(hash_shard)
    _ = digests | "Write digests" >> text(f"{out}/{_DIGESTS}")


class FolderReader(NamedTuple):
    """A reader of the image files below the folder `root`; keys and labels are those of the data set `folder:PATH`.

    `root` ends in "/"; `has_splits` says whether its sub-folders are splits, as they are if one is named "train". The
    arguments `image_shape` and `centre_crop` are as in `crop_and_resize`. `labels` are all labels' names, sorted.
    """

    root: str
    image_shape: ImageShape
    centre_crop: int
    has_splits: bool
    labels: tuple[str, ...] = ()

    def find_key_and_label(self, path: str) -> tuple[str, str] | None:
        """Returns an image's key, its path below the folder, and its label ("" for none); None for another file."""
        key = path.removeprefix(self.root)
        *folders, name = key.split("/")
        is_image = name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in (*folders, name))
        if not is_image or (self.has_splits and (not folders or folders[0] not in SPLIT_FOLDERS)):
            return None
        return key, next(iter(folders[self.has_splits :]), "")

    def read_image_file(self, name: bytes) -> Iterator[Any]:
        """Yields (key, label, pixels) of an image file; if the file is unreadable, a text with the tag `UNREADABLE`.

        `name` is the path of the file as bytes. The key is UTF-8, the label an integer (-1 for none), and the pixels
        are uint8 `[height, width, channels]`.
        """
        path = os.fsdecode(name)
        key, label = self.find_key_and_label(path) or ("", "")
        try:
            if "://" not in path and not os.path.isfile(path):
                # Only regular files are read, because reading from a pipe could block for ever.
                raise DataError("it is no regular file")
            pixels = read_image(path, self.image_shape, self.centre_crop, io.BytesIO(_read_file_bytes(path)))
        except DataError as error:
            Metrics.counter("tfdecouple", UNREADABLE).inc()
            line = f"{encode_image_key(key).decode()}: {one_line(error.__cause__ or error)}"
            yield beam.pvalue.TaggedOutput(UNREADABLE, line)
        else:
            yield encode_image_key(key), self.labels.index(label) if label else NO_LABEL, pixels


def make_folder_reader(root: str, paths: Sequence[str], image_shape: ImageShape, centre_crop: int) -> FolderReader:
    """Returns a reader of the images among `paths`, all files below the folder `root`; DataError if there is none."""
    has_splits = any(path.startswith(f"{root}train/") for path in paths)
    reader = FolderReader(root, image_shape, centre_crop, has_splits)
    images = [image for path in paths if (image := reader.find_key_and_label(path))]
    if not images:
        raise DataError(f"there are no images in {root}; --images takes a folder of image files")
    return reader._replace(labels=tuple(sorted({label for _, label in images if label})))


def encode_batch(
    batch: Sequence[tuple[bytes, int, np.ndarray]], model: str, fields: Sequence[Field], threads: int
) -> tuple[list[bytes], list[int], dict[str, np.ndarray]]:
    """Encodes n tuples (key, label, pixels) with the ONNX file `model`; returns n keys, labels and `[n, ...]` codes."""
    keys, labels, pixels = (list(column) for column in zip(*batch, strict=True))
    names = tuple(field.name for field in fields)
    arrays = open_encoder_session(model, threads, names).run(names, {"images": np.stack(pixels)})
    Metrics.counter("tfdecouple", "images").inc(len(keys))
    codes = dict(zip(names, arrays, strict=True))
    if "v" in codes:
        Metrics.counter("tfdecouple", FAR).inc(int(far_from_training(codes["v"]).sum()))
    return keys, labels, codes


@functools.lru_cache(maxsize=1)
def open_encoder_session(model: str, threads: int, names: tuple[str, ...] = ()) -> onnxruntime.InferenceSession:
    """Returns an ONNX Runtime session, shared by a process, that computes the outputs `names` (() for all) of a file.

    If "v" is not among `names`, the flow is removed from the graph, because ONNX Runtime would run the flow even if v
    is not requested. DataError is raised if the file cannot be opened.
    """
    import onnx.utils
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        # A model on remote storage is read as bytes, so a second file with weights would not be found.
        content: str | bytes = _read_file_bytes(model) if "://" in model else model
        if names and "v" not in names:
            whole = onnx.load(model) if isinstance(content, str) else onnx.load_model_from_string(content)
            content = onnx.utils.Extractor(whole).extract_model(["images"], list(names)).SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # Every exception is caught, because ONNX Runtime and storage systems raise many exception classes.
    except Exception as error:
        raise DataError(f"cannot open the encoder {model}: {one_line(error)}") from error


def hash_shard(path: str) -> str:
    """Returns the `Shard` of a code file, with the size and the SHA-256 of the file, as JSON."""
    file: Any
    with FileSystems.open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Shard(name=path.rpartition("/")[2], bytes=file.tell(), sha256=digest).model_dump_json()


def _find_encoder_file(model: str) -> str:
    base = _make_path_absolute(model)
    for path in [base] if base.endswith(".onnx") else [f"{base}/onnx/encoder.onnx", f"{base}/encoder.onnx"]:
        if FileSystems.exists(path):
            return path
    raise UserError(f"there is no encoder.onnx in {model}; tfdecouple export --run RUN --to {model} makes one")


def _choose_output_fields(
    session: onnxruntime.InferenceSession, options: SimpleNamespace
) -> tuple[tuple[Field, ...], ImageShape]:
    """Returns the fields to store and the shape of the images; UserError for an ONNX file that cannot be used."""
    outputs = {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
    inputs = {array.name: tuple(array.shape[1:]) for array in session.get_inputs()}
    if list(inputs) == ["images", "labels"]:
        missing = f"the encoder of {options.model} needs the label of each image, by the numbers of its run"
        raise UserError(f"{missing}; take tfdecouple encode, which knows their names")
    if list(inputs) != ["images"] or "v" not in outputs:
        raise UserError(f"{options.model} is no encoder of this project: it takes {', '.join(inputs)}")
    if "z" not in outputs and not options.v:
        raise UserError(f"the model {options.model} has no z; its code is v: add --v")
    names = [name for name in ("z", "v") if name in outputs and (name == "z" or options.v)]
    return tuple(Field(name=name, shape=outputs[name]) for name in names), inputs["images"]


def _read_file_bytes(path: str) -> bytes:
    with FileSystems.open(path) as file:
        return file.read()


def _make_path_absolute(path: str) -> str:
    """Returns a local path as an absolute path, and an address with a scheme, such as "gs://", without its last "/"."""
    return path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
