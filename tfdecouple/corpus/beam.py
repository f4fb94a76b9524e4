"""The encoding of a corpus as an Apache Beam pipeline, for clusters (extra `beam`)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from tfdecouple.corpus.checked import shard_entry
from tfdecouple.corpus.fields import Field
from tfdecouple.corpus.manifest import MANIFEST, Manifest
from tfdecouple.corpus.parquet import schema, to_table
from tfdecouple.corpus.tfrecord import to_example
from tfdecouple.corpus.worker import UNREADABLE, Encoder, Images, Reader, numbered, open_session
from tfdecouple.errors import DataError, UserError
from tfdecouple.image_shapes import Shape
from tfdecouple.image_shapes import facts as shape_facts

# All images come in one split: which of them train a model is no matter of their codes.
SPLIT = "all"
_LABELS = "_label_names.json"
_DIGESTS = "_digests.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode.

    Attributes:
        model: an export folder, its `onnx` folder or an encoder file.
        images: folder of image files, on whatever Beam reads.
        out: folder for the codes.
        format: "tfrecord" or "parquet".
        v: whether to write v beside z.
        centre_crop: see `read_image`; None for that of the model's own pictures, which its file says.
        batch_size: images at a time.
        shards: number of files; 0 lets the runner choose.
        threads: of ONNX Runtime in each worker.
    """

    model: str
    images: str
    out: str
    format: str = "tfrecord"
    v: bool = False
    centre_crop: int | None = None
    batch_size: int = 32
    shards: int = 0
    threads: int = 1


def encode_with_beam(job: Job, arguments: Sequence[str]) -> Manifest:
    """Runs the pipeline and waits for its end.

    Args:
        job: what to encode.
        arguments: options of Beam and its runner, such as `--runner=DirectRunner`.

    Returns:
        The manifest that was written.

    Raises:
        UserError: where the model or the images are missing, the output folder is not empty, or the pipeline fails.
    """
    from apache_beam import Pipeline
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    model = _model_file(job.model)
    session = open_session(model, job.threads)
    fields, image_shape = _offered(session, job)
    if job.centre_crop is None:
        job = dataclasses.replace(job, centre_crop=_crop_of(session))
    out = _absolute(job.out)
    _clear(out)
    if _matched(f"{out}/*", 1):
        raise UserError(f"{job.out} is not empty; name a new folder with --out")
    root = _absolute(job.images) + "/"
    images = Images(root, has_splits=bool(_matched(f"{root}train/**", 1)))
    if not _matched(f"{root}**", 1):
        raise DataError(f"there are no files in {job.images}; --images takes a folder of image files")
    # What each worker would otherwise make for itself in the folder's parent.
    if not FileSystems.exists(out):
        FileSystems.mkdirs(out)
    try:
        # The last of an option counts: a user who wants to hear more can say so.
        quiet = ["--default_sdk_harness_log_level=ERROR"]
        pipeline = Pipeline(options=PipelineOptions([*quiet, *arguments]))
        _add_steps(pipeline, job, images, Encoder(model, fields, job.threads), image_shape, out)
        result = pipeline.run()
        result.wait_until_finish()
    # A runner hands on whatever went wrong anywhere, as an error of its own with many traces.
    except Exception as error:
        _clear(out, _LABELS, _DIGESTS, f"_{UNREADABLE}.txt", f"{SPLIT}-*")
        # The cause comes last, after the traces.
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the pipeline failed: {text[-1][:400]}") from error
    manifest = _manifest(job, session, model, fields, image_shape, out, _counted(result))
    _write_manifest(manifest, out)
    return manifest


def _add_steps(pipeline: Any, job: Job, images: Images, encoder: Encoder, image_shape: Shape, out: str) -> None:
    import apache_beam as beam
    from apache_beam.io import fileio

    paths = (
        pipeline
        | "List files" >> fileio.MatchFiles(f"{images.root}**")
        | "Keep images" >> beam.Filter(lambda metadata: metadata.path in images)
        # As bytes: Beam hands on no text that is not UTF-8, and the name of a file may be none.
        | "Take paths" >> beam.Map(lambda metadata: os.fsencode(metadata.path))
    )
    labels = (
        paths
        | "Label names" >> beam.Map(lambda path: os.fsencode(images.label_name(os.fsdecode(path))))
        | "Distinct names" >> beam.Distinct()
        | "All names" >> beam.combiners.ToList()
        | "Number labels" >> beam.Map(numbered)
    )
    _ = (
        labels
        | "Label names as text" >> beam.Map(lambda numbers: json.dumps([os.fsdecode(name) for name in numbers]))
        | "Write label names"
        >> beam.io.WriteToText(f"{out}/{_LABELS}", shard_name_template="", num_shards=1, append_trailing_newlines=False)
    )
    read = (
        paths
        # Without it, whoever lists the files would also read them all.
        | "Spread" >> beam.Reshuffle()
        | "Read"
        >> beam.FlatMap(
            Reader(images, image_shape, job.centre_crop or 0).read, labels=beam.pvalue.AsSingleton(labels)
        ).with_outputs(UNREADABLE, main="images")
    )
    codes = (
        read.images
        | "Batch" >> beam.BatchElements(min_batch_size=job.batch_size, max_batch_size=job.batch_size)
        | "Encode" >> beam.Map(encoder.encode)
    )
    if job.format == "parquet":
        fields = encoder.fields
        codes = codes | "To tables" >> beam.Map(lambda batch: to_table(batch[0], batch[1], batch[2], fields))
        write: Any = beam.io.parquetio.WriteToParquetBatched(
            f"{out}/{SPLIT}", schema(fields), file_name_suffix=".parquet", num_shards=job.shards
        )
    else:
        codes = codes | "To examples" >> beam.FlatMap(to_examples)
        write = beam.io.WriteToTFRecord(f"{out}/{SPLIT}", file_name_suffix=".tfrecord", num_shards=job.shards)
    _ = (
        codes
        | "Write codes" >> write
        # Without it, whoever gives the files their names would also read them all.
        | "Spread files" >> beam.Reshuffle()
        | "Read back" >> beam.Map(digest_line)
        | "Write digests" >> beam.io.WriteToText(f"{out}/{_DIGESTS}", shard_name_template="", num_shards=1)
    )
    _ = read[UNREADABLE] | "Write unreadable" >> beam.io.WriteToText(
        f"{out}/_{UNREADABLE}", file_name_suffix=".txt", shard_name_template="", num_shards=1
    )


def to_examples(batch: tuple[list[bytes], list[int], dict[str, Any]]) -> Iterator[bytes]:
    """Yields the `tf.train.Example` of each image of a batch."""
    keys, labels, arrays = batch
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        yield to_example(key, label, {name: values[row] for name, values in arrays.items()})


def digest_line(path: str) -> str:
    """Returns the name, the size and the SHA-256 of a file that was written, as a line of JSON."""
    from apache_beam.io.filesystems import FileSystems

    digest, size = hashlib.sha256(), 0
    with FileSystems.open(path, compression_type="uncompressed") as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return json.dumps({"name": path.rpartition("/")[2], "bytes": size, "sha256": digest.hexdigest()})


def _clear(out: str, *written: str) -> None:
    """Removes what a pipeline that failed left half written; other storage than disks has rules for that.

    Args:
        out: the folder.
        written: patterns of the files that it wrote itself, which go, too.
    """
    if "://" not in out:
        for remains in pathlib.Path(out).glob("beam-temp-*"):
            shutil.rmtree(remains, ignore_errors=True)
        for file in (file for pattern in written for file in pathlib.Path(out).glob(pattern)):
            with contextlib.suppress(OSError):
                file.unlink()


def _model_file(model: str) -> str:
    from apache_beam.io.filesystems import FileSystems

    base = _absolute(model)
    candidates = [base] if base.endswith(".onnx") else [f"{base}/onnx/encoder.onnx", f"{base}/encoder.onnx"]
    for path in candidates:
        if FileSystems.exists(path):
            return path
    raise UserError(f"there is no encoder.onnx in {model}; python -m export --run RUN --to {model} makes one")


def _offered(session: Any, job: Job) -> tuple[tuple[Field, ...], Shape]:
    """Returns the fields that a model gives, of those that are asked for, and the shape of its images."""
    outputs = {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
    inputs = session.get_inputs()
    if [array.name for array in inputs] == ["images", "labels"]:
        raise UserError(
            f"the encoder of {job.model} needs the label of each image, by the numbers of its run; take "
            "python -m tfdecouple encode, which knows their names"
        )
    if [array.name for array in inputs] != ["images"] or "v" not in outputs:
        raise UserError(f"{job.model} is no encoder of this project: it takes {', '.join(a.name for a in inputs)}")
    if "z" not in outputs and not job.v:
        raise UserError(f"the model {job.model} has no z; its code is v: add --v")
    wanted = ("z", "v") if job.v else ("z",)
    return tuple(Field(name, outputs[name]) for name in wanted if name in outputs), tuple(inputs[0].shape[1:])


def _crop_of(session: Any) -> int:
    """Returns how many pixels a model's pictures keep of their centre, 0 for the largest that fits."""
    found = re.search(r"\d+", session.get_modelmeta().custom_metadata_map.get("crop", ""))
    return int(found[0]) if found else 0


def _counted(result: Any) -> dict[str, int]:
    from apache_beam.metrics import MetricsFilter

    counters = result.metrics().query(MetricsFilter().with_namespace("tfdecouple"))["counters"]
    return {counter.key.metric.name: counter.result for counter in counters}


def _manifest(
    job: Job, session: Any, model: str, fields: tuple[Field, ...], image_shape: Shape, out: str, counted: dict[str, int]
) -> Manifest:
    from apache_beam.io.filesystems import FileSystems

    facts = session.get_modelmeta().custom_metadata_map
    with FileSystems.open(model) as file:
        onnx_sha256 = hashlib.sha256(file.read()).hexdigest()
    with FileSystems.open(f"{out}/{_LABELS}") as file:
        label_names = tuple(json.loads(file.read()))
    with FileSystems.open(f"{out}/{_DIGESTS}") as file:
        shards = sorted((shard_entry(json.loads(line)) for line in file.read().splitlines()), key=itemgetter("name"))
    images, skipped = counted.get("images", 0), counted.get(UNREADABLE, 0)
    return Manifest(
        format=job.format,
        fields=fields,
        model={"run": facts.get("run"), "step": int(facts.get("step", 0)), "onnx_sha256": onnx_sha256},
        data={"title": f"images in {job.images}", **shape_facts(image_shape), "centre_crop": job.centre_crop},
        label_names=label_names,
        splits={SPLIT: images + skipped},
        images_per_shard=0,
        complete=True,
        totals={"images": images, "skipped": skipped, "bytes": sum(shard["bytes"] for shard in shards)},
        shards=tuple(shards),
    )


def _write_manifest(manifest: Manifest, out: str) -> None:
    from apache_beam.io.filesystems import FileSystems

    with tempfile.TemporaryDirectory() as folder:
        manifest.write(pathlib.Path(folder))
        content = (pathlib.Path(folder) / MANIFEST).read_bytes()
    with FileSystems.create(f"{out}/{MANIFEST}") as file:
        file.write(content)


def _matched(pattern: str, limit: int | None = None) -> list[Any]:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.match([pattern], None if limit is None else [limit])[0].metadata_list


def _absolute(path: str) -> str:
    """Returns a path as workers elsewhere see it; those with a scheme are so already."""
    return path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
