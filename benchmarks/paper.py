"""Makes the tables of presets in docs/paper.md, docs/results/paper.md and docs/training.md.

    python benchmarks/paper.py            # makes the tables, in seconds
    python benchmarks/paper.py --check    # changes nothing: prints the lines of the page that differ from the presets

In a page each table stands between its lines `<!-- NAME -->` and `<!-- end NAME -->`.
"""

import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, make_table, update_page
from benchmarks.scaling import count_state_bytes
from benchmarks.training_cost import compute_ceiling, count_activation_bytes, count_multiply_adds
from tfdecouple.config import Config, preset_config, preset_names
from tfdecouple.storage.files import read_json
from tfdecouple.system.process import run_program

# Bits/dim in the paper's Tables 1 and 3, by preset.
BITS = {
    "cifar10": "3.27",
    "cifar10_glow": "3.33",
    "cifar10_base_conditioned": "3.31",
    "imagenet64": "3.72",
    "imagenet64_glow": "3.77",
    "lsun_bedroom_128_5bit": "1.14",
    "lsun_bedroom_128_glow_5bit": "1.19",
    "lsun_bedroom_128": "1.92",
    "lsun_bedroom_128_glow": "1.98",
    "celeba_hq_256_5bit": "0.97",
    "celeba_hq_256_glow_5bit": "1.02",
    "celeba_hq_256": "1.97",
    "celeba_hq_256_glow": "1.99",
}
# FID in Tables 2 and 3, by preset.
FID = {"cifar10": "37.52", "cifar10_glow": "46.50", "cifar10_base_conditioned": "43.34"}
# Accuracies in % in Table 4, by the features of the linear classifier.
PROBE = {"z": "59.53", "v": "17.16", "pixels": "35.32"}

# The share of an A100's calculated ceiling that the calculated hours assume.
SHARE = 0.3

# The presets in the table of docs/training.md; the other presets are variants of these.
MAIN_PRESETS = ["quickstart", "quickstart64", "cifar10_small", "cifar10_small_glow", "cifar10", "imagenet64"]
MAIN_PRESETS += ["lsun_bedroom_128", "celeba_hq_256"]
# Floating-point operations per second at which two CPU cores train quickstart (docs/results/scaling.md, 16 images).
CPU_RATE = 130e9

# The presets of the paper's models of 8-bit images, whose options the table "options" shows.
DATA_SETS = {"CIFAR-10": "cifar10", "ImageNet": "imagenet64", "LSUN": "lsun_bedroom_128", "CelebA-HQ": "celeba_hq_256"}
# {source: the options whose values it states}, in the order of the table.
SOURCES = {
    "Table 5: d_z": "model.latent_dim",
    "Table 5": "training.batch_size training.weight_decay training.warmup_steps",
    "C.2": "training.learning_rate training.decay_rate training.beta_1 training.beta_2 training.epsilon",
    "C.1": "data.horizontal_flip data.pad_and_crop",
    "C.1; 256: authors' code": "data.centre_crop",
    "section 3": "model.image_shape model.dequantization",
    "Table 1; 5 in 5-bit rows": "model.n_bits",
    "section 3; additive in 5-bit rows": "model.transform",
    "B.2": "model.alpha",
    "section 2.2; none: Glow, base: Table 3": "model.conditioning",
    "equation 7": "model.conditioner",
    "section 2.2: M": "model.factors",
    "B.3": "model.prior",
    "equation 2": "training.kl_weight",
    "authors' code": "model.steps model.hidden_channels model.encoder_channels model.encoder_out_channels "
    "model.prior_steps model.prior_hidden model.prior_alpha training.clip_norm training.ema_decay "
    "training.evaluation_samples",
    "CIFAR-10: authors' README; others: ours": "training.micro_batches training.init_images",
    "ours; 15,000 epochs in the authors' README for CIFAR-10": "training.steps",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing: print the lines that differ")
    options = parser.parse_args()
    return max(update_page(page, {name: render()}, options.check) for page, (name, render) in TABLES.items())


def compute_hours(config: Config) -> int:
    """Returns the hours, to two digits, that an A100 needs for all updates of a run, calculated at `SHARE` of its peak.

    The precision is TF32. Evaluations, and the multiply-adds of the prior over z, do not count.
    """
    rate = SHARE * compute_ceiling(config.override(["training.precision=tf32"]), "train", "A100")
    hours = config.training.steps * config.training.batch_size / rate / 3600
    return int(round(hours, 2 - len(str(int(hours)))))


def render_presets() -> str:
    """Returns a Markdown table of `MAIN_PRESETS`: images, parameters, memory, time and bits/dim of a training."""
    # `results` imports this module.
    from benchmarks.results import load_result, load_seeds
    from tfdecouple.networks.architecture import Architecture

    seeds = load_seeds()
    bits = {name: f"{value} (paper)" for name, value in BITS.items()}
    bits["quickstart"] = f"{load_result('quickstart/summary.json')['test']['bits_per_dim']:.2f}"
    bundled = read_json(ROOT / "tfdecouple" / "pretrained" / "photographs" / "summary.json")
    bits["quickstart64"] = f"{bundled['test']['bits_per_dim']:.2f} (bundled weights)"
    for name, run in (("cifar10_small", "conditional-kl0.3"), ("cifar10_small_glow", "glow")):
        mean = statistics.mean(metrics["bits"] for metrics in seeds[run, preset_config(name).training.steps].values())
        bits[name] = f"{mean:.2f} (JPEG re-encoded)"
    rows = []
    for name in MAIN_PRESETS:
        config = preset_config(name)
        training, architecture = config.training, Architecture(config.model)
        parameters = architecture.count_parameters()["total"]
        micro_batch = training.batch_size // training.micro_batches
        memory = count_state_bytes(parameters) + micro_batch * count_activation_bytes(config.model)
        if name in BITS:
            duration = f"{compute_hours(config)} h on an A100 with TF32"
        else:
            # Three forward passes, and two operations for each multiply-add.
            seconds = 6 * training.steps * training.batch_size * count_multiply_adds(config.model) / CPU_RATE
            duration = f"{max(seconds / 60, 1):.0f} min on two cores"
        images = config.description.partition(":")[0].partition(";")[0]
        rows.append([f"`{name}`", images, parameters, memory / 2**30, duration, bits[name]])
    return make_table(["preset", "images", "parameters", "memory, GiB", "time", "bits/dim"], rows)


def render_models() -> str:
    """Returns a Markdown table with a row for each preset at the paper's size: bits/dim, parameters, hours."""
    from tfdecouple.networks.architecture import Architecture

    rows, small = [], ("quickstart", "cifar10_small")
    # First the models of the paper, in the order of its rows.
    others = [name for name in preset_names() if name not in BITS and not name.startswith(small)]
    for name in [*BITS, *others]:
        config = preset_config(name)
        images = config.description.partition(":")[0]
        parameters = Architecture(config.model).count_parameters()["total"]
        model = describe_model(config)
        rows.append([images, model, f"`{name}`", BITS.get(name, ""), parameters, compute_hours(config)])
    header = ["images", "model", "preset", "bits/dim in the paper", "parameters", "A100 hours, TF32"]
    return make_table(header, rows)


def describe_model(config: Config) -> str:
    """Returns what the paper calls the model of a config, with the parts that the paper's model lacks."""
    model = config.model
    name = {"coupling": "our model", "none": "Glow: refined", "base": "baseline of Table 3"}[model.conditioning]
    name += ", variational dequantisation" if model.has_dequantizer else ""
    return name + (", z a function of the label" if model.has_label_codes else "")


def render_options() -> str:
    """Returns a Markdown table of the hyper-parameters: option, source, and the value in each preset of `DATA_SETS`."""
    presets = [preset_config(name).flatten_options() for name in DATA_SETS.values()]
    rows = [
        [f"`{option}`", source, *(json.dumps(preset[option]).strip('"') for preset in presets)]
        for source, options in SOURCES.items()
        for option in options.split()
    ]
    return make_table(["option", "source", *DATA_SETS], rows)


TABLES = {
    ROOT / "docs" / "paper.md": ("models", render_models),
    ROOT / "docs" / "results" / "paper.md": ("options", render_options),
    ROOT / "docs" / "training.md": ("presets", render_presets),
}

if __name__ == "__main__":
    sys.exit(run_program(main))
