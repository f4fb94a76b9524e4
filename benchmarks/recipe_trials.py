"""Runs train.py with one change of the recipe, named by environment variables; the changes are no options of a config.

    CONSIST=0.1 python benchmarks/recipe_trials.py --preset cifar10_small ...
    PARTS=1600 python benchmarks/recipe_trials.py --preset cifar10_small ...

CONSIST is the weight, per nat, of KL(q(z|x) || q(z|Tx)), for an image x and a changed image Tx. With VIEW, z of Tx
conditions the flow of x, for this share of the images. T mirrors and shifts (or with CROPS=1 cuts and resizes) an
image, and changes its colours by the strength COLOUR. In the first PARTS updates the flow gets a part of 16 x 16
pixels of each image, and the encoder the whole image.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tfdecouple.cli import train_main
from tfdecouple.runtime.process import start_tensorflow

CONSIST, VIEW, PARTS = (float(os.environ.get(name, "0")) for name in ("CONSIST", "VIEW", "PARTS"))
COLOUR, CROPS = float(os.environ.get("COLOUR", "1")), os.environ.get("CROPS", "")


def patch() -> None:
    """Replaces functions of the model and of the training step by the functions of the trial."""
    import tensorflow as tf

    from tfdecouple import randomness
    from tfdecouple.model import networks, objective
    from tfdecouple.training import step as step_module

    state = {"seed": None, "parts": False}

    def recolour(x, seed):
        g = tf.random.stateless_normal([tf.shape(x)[0], 1, 1, 8], seed) * COLOUR
        p = tf.clip_by_value((x + 1) / 2, 1e-3, 1.0) ** tf.exp(0.35 * g[..., :1])
        p = p * tf.exp(0.25 * g[..., 1:2] + 0.1 * g[..., 2:5])
        grey = tf.reduce_mean(p, -1, keepdims=True)
        p = grey + (p - grey) * tf.exp(0.4 * g[..., 5:6])
        mean = tf.reduce_mean(p, [1, 2, 3], keepdims=True)
        p = mean + (p - mean) * tf.exp(0.2 * g[..., 6:7]) + 0.08 * g[..., 7:8]
        return tf.clip_by_value(p, 0.0, 1.0) * 2 - 1

    def move(x, seed, by=4):
        n, side = x.shape[0], x.shape[1]
        x = tf.where(tf.random.stateless_uniform([n, 1, 1, 1], seed) < 0.5, x[:, :, ::-1], x)
        padded = tf.pad(x, [[0, 0], [by, by], [by, by], [0, 0]], "REFLECT")
        o = tf.random.stateless_uniform([n, 2], seed + 1, 0, 2 * by + 1, tf.int32)
        return tf.stack([tf.slice(padded[i], [o[i, 0], o[i, 1], 0], [side, side, 3]) for i in range(n)])

    def crop(x, seed, least=0.4):
        r = tf.random.stateless_uniform([x.shape[0], 4], seed)
        side = tf.sqrt(least + (1 - least) * r[:, 0])
        top, left = r[:, 1] * (1 - side), r[:, 2] * (1 - side)
        boxes = tf.stack([top, left, top + side, left + side], -1)
        out = tf.image.crop_and_resize(x, boxes, tf.range(x.shape[0]), x.shape[1:3])
        return tf.where(r[:, 3][:, None, None, None] < 0.5, out, out[:, :, ::-1])

    def change(x, seed):
        x = crop(x, seed) if CROPS else move(x, seed)
        return recolour(x, seed + 7) if COLOUR else x

    def negative_elbo(nets, bins, z_noise, u_noise, *, labels=None, encoder_bins=None, training=False):
        if not training or nets.encoder is None:
            return original(nets, bins, z_noise, u_noise, labels=labels, encoder_bins=encoder_bins, training=training)
        seed, q, gap, scale = state["seed"], nets.quantizer, 0.0, 1.0
        inputs, n = q.place_at_edges(bins), bins.shape[0]
        if CONSIST:
            mean, log_variance = nets.encoder(tf.concat([inputs, change(inputs, seed)], 0), training=True)
            m, lv, m2, lv2 = mean[:n], log_variance[:n], mean[n:], log_variance[n:]
            gap = 0.5 * tf.reduce_sum(lv2 - lv + (tf.exp(lv) + (m - m2) ** 2) / tf.exp(lv2) - 1, -1)
        else:
            unchanged = tf.random.stateless_uniform([n, 1, 1, 1], seed + 3) >= VIEW
            m, lv = nets.encoder(tf.where(unchanged, inputs, change(inputs, seed)) if VIEW else inputs, training=True)
        z = m + tf.exp(lv / 2) * z_noise
        log_posterior = -0.5 * tf.reduce_sum(lv + tf.square(z_noise) + math.log(2 * math.pi), -1)
        prior_noise, log_prior = objective._evaluate_prior(nets, z, labels)
        if state["parts"]:
            o = 8 * tf.random.stateless_uniform([n, 2], seed + 5, 0, 3, tf.int32)
            bins, u_noise = (
                tf.stack([tf.slice(each[i], [o[i, 0], o[i, 1], 0], [16, 16, 3]) for i in range(n)])
                for each in (bins, u_noise)
            )
            scale = 4.0
        u, dequantization = objective.dequantize(nets, bins, u_noise, training)
        v, log_det = nets.flow.forward_and_log_det(q.place_in_bins(bins, u), z)
        # The consistency is added to the reconstruction, so logged training bits/dim include it.
        reconstruction = scale * (-objective.standard_normal_log_prob(v) - log_det) + CONSIST * gap
        kl = log_posterior - log_prior
        bits = q.convert_to_bits_per_dim(reconstruction + kl + dequantization, 3072.0)
        return objective.Elbo(reconstruction, kl, dequantization, bits), objective.Latents(prior_noise, log_prior, v)

    original, networks.negative_elbo = objective.negative_elbo, negative_elbo
    differentiate = step_module.differentiate_bound

    def differentiate_bound(*args, seed, **kwargs):
        state["seed"] = tf.cast(randomness.derive_seed(seed, "trial"), tf.int64)
        return differentiate(*args, seed=seed, **kwargs)

    step_module.differentiate_bound = differentiate_bound
    step_class = step_module.TrainStep
    start, call = step_class.__init__, step_class.__call__

    def new_start(self, *args):
        start(self, *args)
        self._later, self._early = self._whole, tf.function(self._take_undivided_step, autograph=False)

    def new_call(self, micro_batches, step, stop=False):
        state["parts"] = step < PARTS
        self._whole = self._early if state["parts"] else self._later
        return call(self, micro_batches, step, stop)

    step_class.__init__, step_class.__call__ = new_start, new_call


if __name__ == "__main__":
    start_tensorflow()
    patch()
    sys.exit(train_main())
