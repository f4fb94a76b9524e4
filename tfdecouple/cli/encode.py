"""The commands `encode` and `encode-beam`, which write the codes (z, with --v also v) of images into files."""

import pathlib
import types
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tfdecouple.cli.options import DataSet, Folder, RunName, within
from tfdecouple.errors import EXIT_FAILED, UserError
from tfdecouple.system import process
from tfdecouple.system.progress import Counter, format_count
from tfdecouple.system.requirements import require_packages

if TYPE_CHECKING:
    from tfdecouple.corpus.code_files import Field
    from tfdecouple.runs.opened_run import Run

# Largest number of images, and largest size in bytes, of one file of codes. Files are small, because a killed program
# loses its work on the file that it was writing.
_MOST_IMAGES, _SHARD_BYTES = 5000, 2**27
_Format = Literal["tfrecord", "parquet"]
_FAR = "far from what the model was trained on and may not decode to the very same pixels"


def encode(
    *,
    out: Folder,
    run: RunName | None = None,
    source: DataSet = DataSet(),
    format: _Format = "tfrecord",
    v: bool = False,
    z_std: bool = False,
    scores: bool = False,
    images_per_shard: Annotated[int | None, within(1)] = None,
    batch_size: Annotated[int | None, within(1)] = None,
    limit: Annotated[int | None, within(1)] = None,
    on_bad_image: Literal["stop", "skip"] | None = None,
    verify: bool = False,
) -> int:
    """Write the codes of all images of a data set, or of --split, into files.

    The same command resumes where it stopped. docs/data.md says what is in the files.

    Args:
        out: folder for the codes.
        format: format of the files.
        v: write v beside z: as many numbers as the image has.
        z_std: write the standard deviation of the posterior of z.
        scores: write how unlike the training images each image is, as `evaluate --outliers` does.
        images_per_shard: images per file; default 5000, fewer where they are large.
        batch_size: images at a time; default as in evaluations.
        limit: only the first N images of each split.
        on_bad_image: stop or skip; default as the run's data.on_bad_image.
        verify: encode nothing: check that each file of --out is what was written; else status 5.
    """
    if verify:
        return _verify_codes(out)
    if run is None:
        raise UserError("encode needs --run RUN, the run folder whose model encodes")
    if format == "parquet":
        require_packages("pyarrow", what="--format parquet")
    process.start_tensorflow()
    from tfdecouple.corpus import encoding
    from tfdecouple.corpus.code_files import CodesManifest, DataFacts, ModelFacts
    from tfdecouple.data.sources import replace_source
    from tfdecouple.runs.opened_run import Run, hash_weights

    opened = Run.open(run)
    fields = _choose_fields(opened, v, z_std, scores)
    # The images are not cached in memory, because each image is needed once.
    data = opened.open_source(source.data, source.data_dir, source.download, on_bad_image=on_bad_image, cache_gib=0.0)
    if opened.config.model.has_label_codes:
        opened.require_labels(data)
    splits = ("train", "validation", "test") if source.split in (None, "all") else (source.split,)
    most = max(1, min(_MOST_IMAGES, _SHARD_BYTES // (64 + sum(4 * field.size for field in fields))))
    weights = hash_weights(opened.model)
    job = CodesManifest(
        format=format,
        fields=fields,
        model=ModelFacts(run=opened.folder.name, step=opened.step, averaged=opened.averaged, weights_sha256=weights),
        data=DataFacts(
            title=data.title,
            image_shape=data.image_shape,
            centre_crop=replace_source(opened.config.data, source.data).centre_crop,
            descriptions={split: data.descriptions[split] for split in splits},
            keys_sha256=encoding.hash_image_keys(data, splits),
        ),
        label_names=data.label_names,
        splits={split: min(data.sizes[split], limit or data.sizes[split]) for split in splits},
        images_per_shard=images_per_shard or most,
    )
    batch_size = batch_size or opened.config.training.evaluation_batch_size
    with encoding.open_codes_folder(out, job, opened) as folder:
        shards = folder.manifest.list_shard_ranges()
        with Counter("checking what is there", len(shards), unit="files") as counter:
            missing = folder.find_missing_shards(print, counter)
        if len(missing) < len(shards):
            print(f"{out}: {len(shards) - len(missing)} of {len(shards)} files are there already")
        encoder = encoding.make_image_encoder(opened.model, fields, batch_size)
        with Counter("encoding", sum(shard.stop - shard.start for shard in missing)) as counter:
            far = encoding.encode_shards(folder, missing, data, encoder, batch_size, counter)
        if far:
            print(f"{len(far):,} of the images, such as {far[0].decode()}, are {_FAR}")
        manifest = folder.finish()
    skipped = f", {manifest.totals['skipped']} unreadable skipped" if manifest.totals["skipped"] else ""
    written = f"{manifest.totals['images']:,} images in {len(shards)} {manifest.format} files{skipped}"
    print(f"{out}: {written}; key, label, {', '.join(map(str, manifest.fields))}")
    return 0


def _verify_codes(out: pathlib.Path) -> int:
    process.start_tensorflow()
    from tfdecouple.corpus.code_files import CodesManifest
    from tfdecouple.corpus.encoding import verify_codes

    manifest = CodesManifest.read_manifest(out)
    if manifest is None:
        raise UserError(f"{out} holds no codes to verify; name with --out a folder that encode wrote")
    total = len(manifest.list_shard_names())
    with Counter("verifying", total, unit="files") as counter:
        problems = verify_codes(out, manifest, counter)
    if not problems:
        print(f"{out}: all {total} files are what was written")
        return 0
    hint = "" if manifest.model.weights_sha256 is None else "; the command that wrote them makes bad files anew"
    print(*problems, f"{out}: {format_count(len(problems), 'thing')} not as written{hint}", sep="\n")
    return EXIT_FAILED


def _choose_fields(opened: "Run", v: bool, z_std: bool, scores: bool) -> tuple["Field", ...]:
    from tfdecouple.corpus.code_files import Field
    from tfdecouple.model.outlier_scores import SCORES

    model, run = opened.config.model, opened.folder.run
    if z_std and model.has_label_codes:
        raise UserError(f"--z-std: z of {run} is a function of the label and has no standard deviation")
    if not model.has_latent and (z_std or not (v or scores)):
        wanted = "--z-std needs one" if z_std else "its code is v: add --v"
        raise UserError(f"the model of {run} has no z (model.conditioning is 'none'); {wanted}")
    shapes = {"z": (model.latent_dim,), "z_std": (model.latent_dim,), "v": model.image_shape}
    stored = {"z": model.has_latent, "z_std": z_std, "v": v, **dict.fromkeys(SCORES, scores)}
    stored["prior_nats"] &= model.has_encoder
    return tuple(Field(name=name, shape=shapes.get(name, ())) for name in stored if stored[name])


def encode_beam(
    *beam: Annotated[str, Parameter(allow_leading_hyphen=True)],
    model: str,
    images: str,
    out: str,
    format: _Format = "tfrecord",
    v: bool = False,
    batch_size: Annotated[int, within(1)] = 32,
    shards: Annotated[int, within(0)] = 0,
    threads: Annotated[int, within(1)] = 1,
) -> None:
    """Encode a folder of images on a cluster, with Apache Beam.

    Needs an export (`tfdecouple export`) and the extra beam. What follows `--` goes to Beam: `-- --runner=DirectRunner
    --direct_num_workers=2 --direct_running_mode=multi_processing`.

    Args:
        beam: after `--`, options of Beam and its runner.
        model: export folder, or an encoder.onnx.
        images: folder of images; sub-folders are labels.
        out: folder for the codes, new or empty.
        format: format of the files.
        v: write v beside z: as many numbers as the image has.
        batch_size: images at a time.
        shards: number of files; 0 for the runner's choice.
        threads: threads of each worker.
    """
    require_packages("apache_beam", what="the command encode-beam")
    process.start_tensorflow()
    from tfdecouple.corpus.beam import encode_with_beam

    options = types.SimpleNamespace(
        model=model, images=images, out=out, format=format, v=v, batch_size=batch_size, shards=shards, threads=threads
    )
    manifest, far = encode_with_beam(options, beam)
    skipped, written = manifest.totals["skipped"], f"{manifest.totals['images']:,} images in {len(manifest.shards)}"
    unreadable = f", {skipped} unreadable, named in _unreadable.txt" if skipped else ""
    if far:
        print(f"{far:,} of the images are {_FAR}")
    print(f"{out}: {written} {manifest.format} files{unreadable}")
