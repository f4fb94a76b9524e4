"""`python -m tfdecouple encode`: writes the codes (z, with --v also v) of a data set's images into files."""

import argparse
import pathlib

from tfdecouple.cli.command_table import SPLITS
from tfdecouple.corpus.code_files import CodesManifest, DataFacts, Field, ModelFacts
from tfdecouple.corpus.encoding import (
    encode_shards,
    hash_image_keys,
    make_image_encoder,
    open_codes_folder,
    verify_codes,
)
from tfdecouple.data.splits import Source
from tfdecouple.errors import UserError
from tfdecouple.metrics.metric import format_count
from tfdecouple.metrics.outliers import SCORES
from tfdecouple.runs.opened_run import Run, hash_weights
from tfdecouple.runtime.progress import Counter

# Largest number of images, and largest size in bytes, of one file of codes. Files are small, because a killed program
# loses its work on the file that it was writing.
_MOST_IMAGES, _SHARD_BYTES = 5000, 2**27


def run(options: argparse.Namespace) -> int:
    """Runs the command `encode`: writes files of codes, or with --verify checks them; returns the exit status."""
    if options.verify:
        return _verify_codes(options.out)
    opened = Run.open(options.run)
    _require_fields(opened, options)
    # The images are not cached in memory (cache_gib=0), because each image is needed once.
    data = {"on_bad_image": options.on_bad_image, "cache_gib": 0.0}
    source = opened.open_source(options.data, options.data_dir, options.download, **data)
    if opened.config.model.has_label_codes:
        opened.require_labels(source)
    job = _make_manifest(opened, source, options)
    batch_size = options.batch_size or opened.config.training.evaluation_batch_size
    with open_codes_folder(options.out, job, opened) as folder:
        shards, total = folder.manifest.list_shard_ranges(), sum(folder.manifest.splits.values())
        with Counter("checking what is there", len(shards), unit="files") as counter:
            missing = folder.find_missing_shards(print, counter)
        if len(missing) < len(shards):
            print(f"{options.out}: {len(shards) - len(missing)} of {len(shards)} files are there already")
        before = total - sum(shard.stop - shard.start for shard in missing)
        encoder = make_image_encoder(opened.model, job.fields, batch_size)
        with Counter("encoding", total, before=before) as counter:
            far = encode_shards(folder, missing, source, encoder, batch_size, lambda done: counter(before + done))
        if far:
            text = "far from what the model was trained on and may not decode to the very same pixels"
            print(f"{len(far):,} of the images, such as {far[0].decode()}, are {text}")
        manifest = folder.finish()
    skipped = f", {manifest.totals['skipped']} unreadable skipped" if manifest.totals["skipped"] else ""
    written = f"{manifest.totals['images']:,} images in {len(shards)} {manifest.format} files{skipped}"
    print(f"{options.out}: {written}; key, label, {', '.join(map(str, manifest.fields))}")
    return 0


def _verify_codes(out: pathlib.Path) -> int:
    manifest = CodesManifest.read_manifest(out)
    if manifest is None:
        raise UserError(f"{out} holds no codes to verify; name with --out a folder that encode wrote")
    total = len(manifest.list_shard_names())
    with Counter("verifying", total, unit="files") as counter:
        problems = verify_codes(out, manifest, counter)
    if not problems:
        print(f"{out}: all {total} files are what was written")
        return 0
    print(*problems, sep="\n")
    hint = "" if manifest.model.weights_sha256 is None else "; the command that wrote them makes bad files anew"
    print(f"{out}: {format_count(len(problems), 'thing')} not as written{hint}")
    return 1


def _require_fields(opened: Run, options: argparse.Namespace) -> None:
    if options.z_std and opened.config.model.has_label_codes:
        raise UserError(f"--z-std: z of {options.run} is a function of the label and has no standard deviation")
    if not opened.config.model.has_latent and (options.z_std or not (options.v or options.scores)):
        wanted = "--z-std needs one" if options.z_std else "its code is v: add --v"
        raise UserError(f"the model of {options.run} has no z (model.conditioning is 'none'); {wanted}")


def _make_manifest(opened: Run, source: Source, options: argparse.Namespace) -> CodesManifest:
    model = opened.config.model
    shapes = {"z": (model.latent_dim,), "z_std": (model.latent_dim,), "v": model.image_shape}
    stored = {"z": model.has_latent, "z_std": options.z_std, "v": options.v, **dict.fromkeys(SCORES, options.scores)}
    stored["prior_nats"] &= model.has_encoder
    fields = tuple(Field(name=name, shape=shapes.get(name, ())) for name in stored if stored[name])
    splits = SPLITS if options.split == "all" else (options.split,)
    image_bytes = 64 + sum(4 * field.size for field in fields)
    most, weights = max(1, min(_MOST_IMAGES, _SHARD_BYTES // image_bytes)), hash_weights(opened.model)
    return CodesManifest(
        format=options.format,
        fields=fields,
        model=ModelFacts(run=opened.folder.name, step=opened.step, averaged=opened.averaged, weights_sha256=weights),
        data=DataFacts(
            title=source.title,
            image_shape=source.image_shape,
            centre_crop=opened.make_data_config(options.data).centre_crop,
            descriptions={split: source.descriptions[split] for split in splits},
            keys_sha256=hash_image_keys(source, splits),
        ),
        label_names=source.label_names,
        splits={split: min(source.sizes[split], options.limit or source.sizes[split]) for split in splits},
        images_per_shard=options.images_per_shard or most,
    )
