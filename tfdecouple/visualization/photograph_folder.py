"""A function that decodes all photographs of a folder with z of one reference, and writes them at their own size."""

import pathlib
from typing import NamedTuple

import numpy as np

from tfdecouple.data.image_folder import list_image_files
from tfdecouple.data.image_formats import MOST_FILE_SIDE
from tfdecouple.errors import DataError, UserError, make_printable
from tfdecouple.model import DecoupledModel
from tfdecouple.model.codes import interpolate_codes
from tfdecouple.runs.opened_run import hash_weights
from tfdecouple.storage.files import Facts, hash_file, read_json, write_json
from tfdecouple.system.progress import Counter
from tfdecouple.visualization.full_size import find_result_name, read_photograph
from tfdecouple.visualization.guided_filter import shrink_photograph

# Name of the file in the results' folder that records the reference and the model.
MANIFEST = "switch.json"


class SwitchedFolder(NamedTuple):
    """The result of `switch_folder`."""

    written: list[pathlib.Path]
    kept: list[pathlib.Path]  # written by an earlier call
    errors: list[DataError]  # for each photograph that cannot be read, with its path
    notes: list[str]  # on what a user may not expect, such as a limited change of colours


def switch_folder(
    model: DecoupledModel,
    reference: str | pathlib.Path,
    folder: str | pathlib.Path,
    out: str | pathlib.Path,
    strength: float,
    max_side: int = MOST_FILE_SIDE,
    unlimited: bool = False,
) -> SwitchedFolder:
    """Writes each photograph of a folder and its sub-folders, with z of one reference, into the folder `out`.

    The model computes the change of colours at its own size, and `change_at_full_size` applies the change to the
    photograph. A result has the photograph's path below the folder and its file format, but PNG for a format such as
    GIF. Photographs that cannot be read are skipped, and results of an earlier call with the same arguments are kept.

    `strength` goes from 0, z of the photograph itself, to 1, z of the image `reference`. Photographs with a side of
    more than `max_side` pixels are shrunk. DataError is raised if `folder` has no images or the reference cannot be
    read, UserError, before anything is written, if `out` is inside `folder`, has results of other arguments, or two
    photographs would be written to the same file, and OSError if a result cannot be written.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name a folder of photographs")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"results in {out} would be read as photographs of {folder}; name a folder outside of it")
    files = list_image_files(folder, 1)
    shape = model.config.image_shape
    original = read_photograph(str(reference), shape[-1], MOST_FILE_SIDE)
    z = model.posterior(shrink_photograph(original.pixels, *shape[:2])[None]).mean()
    result, noted = SwitchedFolder([], [], [], []), dict[str, list[str]]()
    photographs: dict[pathlib.Path, str] = {}
    for file in files:
        path = out / pathlib.PurePath(file.key).with_name(find_result_name(file.path))
        if path in photographs:
            raise UserError(f"{photographs[path]} and {file.path} would both be written to {path}; rename one of them")
        photographs[path] = file.path
    result.kept.extend(path for path in photographs if path.exists())
    job: Facts = {"folder": str(folder.resolve()), "reference": pathlib.PurePath(reference).name}
    job |= {"reference_sha256": hash_file(pathlib.Path(reference)), "weights_sha256": hash_weights(model)}
    job |= {"strength": float(strength), "max_side": max_side, "unlimited": unlimited}
    _begin_job(out / MANIFEST, job, bool(result.kept))
    for path in result.kept:
        del photographs[path]
    with Counter("switching", len(photographs)) as counter:
        for done, (path, source) in enumerate(photographs.items(), 1):
            try:
                photograph = read_photograph(source, shape[-1], max_side)
            except DataError as error:
                result.errors.append(error)
            else:
                small = shrink_photograph(photograph.pixels, *shape[:2])[None]
                before = np.asarray(model.quantizer.quantize_pixels(small))
                codes = model.encode(before)
                wanted = interpolate_codes(codes.z, z, [strength])[:, 0]
                after = model.decode(model.match_z(wanted, codes.v), codes.v)
                notes = photograph.write_changed(path, before[0], np.asarray(after)[0], unlimited)
                result.written.append(path)
                for what, details in notes.items():
                    noted.setdefault(what, []).append(f"{path}{details}")
            counter(done)
    for what, texts in noted.items():
        result.notes.append(make_printable(f"{what}: {len(texts)} photographs, such as {texts[0]}"))
    return result


def _begin_job(manifest: pathlib.Path, job: Facts, has_results: bool) -> None:
    """Writes `job` as the JSON file `manifest`; raises UserError if the folder has results of another job."""
    try:
        earlier = read_json(manifest)
    except FileNotFoundError:
        earlier = {} if has_results else job
    except ValueError:
        earlier = {}
    if earlier != job:
        what = "another folder, reference, model, --strength, --max-side or --unlimited"
        raise UserError(f"{manifest.parent} holds images of {what}; name another folder for the results")
    write_json(manifest, job)
