"""Makes a generation of golden files: `python tests/data/golden/make.py N`, which writes the new folder N beside this.

A generation is a small trained run, inputs, and the numbers that the model gave. tests/test_golden.py opens every
generation. Run this program only when a file format of the project changes and a generation in the new format shall
stand beside the old ones, which stay readable for ever. Never run it to make a failing test pass: a test that fails
says that a file which somebody has can no longer be read, or means something else than it did.

It takes about two minutes.
"""

import argparse
import pathlib
import shutil
import tempfile

import numpy as np

from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.runtime.process import start_tensorflow

HERE = pathlib.Path(__file__).parent
COUNT = 3
# Pixels of samples must not lie on the border of two levels, where the last digit of a runtime would choose.
MARGIN = 1e-3


def make_run(folder):
    from tfdecouple.runs.run_folder import RunFolder
    from tfdecouple.training import train

    # Both kinds of levels that every model has, with odd and even channel counts, and a learning rate with which every
    # coupling gets an effect in forty steps.
    config = RunFolder(HERE / "1" / "run").read_config()
    with tempfile.TemporaryDirectory() as scratch:
        whole = pathlib.Path(scratch) / "run"
        train(config, whole)
        shutil.copytree(whole / "checkpoints", folder / "checkpoints")
        for name in ("config.json", "summary.json"):
            shutil.copy(whole / name, folder)


def make_numbers(model):
    """Inputs and what the model answers, as `IN_...` and `OUT_...`."""
    from tfdecouple.config import DataConfig
    from tfdecouple.data.batches import load_images
    from tfdecouple.data.sources import open_source

    config = model.config
    images = np.asarray(load_images(open_source(DataConfig(), config.image_shape), "test", COUNT)[0])
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        z_noise = rng.standard_normal((COUNT, config.latent_dim)).astype("float32")
        v_noise = rng.standard_normal((COUNT, *config.image_shape)).astype("float32")
        temperature = np.linspace(0.5, 1.0, COUNT, dtype="float32")
        z, v = map_noise_to_z(model, z_noise), temperature[:, None, None, None] * v_noise
        x = model.flow.inverse_and_log_det(v, z)[0].numpy()
        levels = (x + 1) * config.n_bins / 2
        if np.abs(levels - np.round(levels)).min() > MARGIN:
            break
    else:
        raise SystemExit("no noise keeps clear of all borders")
    u_noise = rng.random(images.shape).astype("float32")
    codes, posterior = model.encode(images, verify=True), model.posterior(images)
    bound = model.bound(images, noise=(z_noise, u_noise))
    return {
        "IN_images": images,
        "IN_z_noise": z_noise,
        "IN_v_noise": v_noise,
        "IN_u_noise": u_noise,
        "IN_temperature": temperature,
        "OUT_z": codes.z,
        "OUT_v": codes.v,
        "OUT_z_log_variance": 2 * np.log(posterior.stddev()),
        "OUT_sample_z": z,
        "OUT_sample_x": x,
        "OUT_sample_images": model.decode(z, v),
        "OUT_reconstruction": bound.reconstruction,
        "OUT_kl": bound.kl,
        "OUT_bits_per_dim": bound.bits_per_dim,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", type=int, help="number of the new generation")
    folder = HERE / str(parser.parse_args().generation)
    if folder.exists():
        raise SystemExit(f"{folder} exists; golden files are never made again, see --help")
    start_tensorflow()
    from tfdecouple.runs.opened_run import load_model

    with tempfile.TemporaryDirectory(dir=HERE) as scratch:
        made = pathlib.Path(scratch) / "generation"
        run = made / "run"
        run.mkdir(parents=True)
        make_run(run)
        np.savez_compressed(made / "numbers.npz", **make_numbers(load_model(run)))
        made.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
