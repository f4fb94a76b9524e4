"""A density of images in closed form, which stands in for a model, so that tests know the exact value of a metric."""

import math
from types import SimpleNamespace

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfdecouple.model.quantizer import Quantizer

SHAPE = (1, 1, 3)


class LinearGaussian:
    """A linear Gaussian model of images with one pixel and three channels.

    p(z) = N(0, I), p(x|z) = N(weights z_0, noise^2 I), q(z_0|x) = N(slopes x, stddev^2).

    z_0, the first entry of z, is the only one in use. With `centres`, x is the centre of a pixel's bin; otherwise the
    noise u places x in the bin.
    """

    weights = np.array([0.5, 0.3, -0.2])
    noise = 0.25

    def __init__(self, latent_dim=1, prior="normal", *, slopes=None, stddev=None, centres=True):
        latent = {"latent_dim": latent_dim, "has_latent": latent_dim > 0, "prior": prior}
        self.config = SimpleNamespace(**latent, image_shape=SHAPE, has_dequantizer=False)
        self.quantizer = Quantizer(8)
        precision = 1 + self.weights @ self.weights / self.noise**2
        self.exact_slopes = self.weights / self.noise**2 / precision
        self.exact_stddev = precision**-0.5
        self.slopes = self.exact_slopes if slopes is None else np.asarray(slopes, np.float64)
        self.stddev = self.exact_stddev if stddev is None else stddev
        self.centres = centres

    # --- Exact values, computed in NumPy, with which tests compare metrics. ---

    def x(self, images):
        return (np.asarray(images, np.float64).reshape(-1, 3) + 0.5) / 128 - 1

    def log_marginal(self, images):
        """Returns the exact log p(x) of uint8 images under this linear Gaussian density, in nats, float64 `[n]`."""
        covariance = np.outer(self.weights, self.weights) + self.noise**2 * np.eye(3)
        x = self.x(images)
        squares = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
        return -(squares + np.linalg.slogdet(2 * math.pi * covariance)[1]) / 2

    def gap(self, images):
        """Returns KL(q(z|x) || p(z|x)) of uint8 images, in nats, float64 `[n]`; it equals log p(x) - E[ELBO]."""
        difference = self.x(images) @ (self.slopes - self.exact_slopes)
        ratio = self.stddev**2 / self.exact_stddev**2
        return (ratio - 1 - math.log(ratio) + difference**2 / self.exact_stddev**2) / 2

    # --- Stand-ins for the methods of `DecoupledModel` that metrics call. ---

    def bound(self, images, noise):
        z_noise, u_noise = noise
        u = 0.5 if self.centres else tf.cast(tf.reshape(u_noise, [-1, 3]), tf.float64)
        pixels = tf.reshape(tf.cast(images, tf.float64), [-1, 3])
        z = tf.linalg.matvec((pixels + 0.5) / 128 - 1, self.slopes)
        noise = tf.cast(z_noise[:, 0], tf.float64)
        z += self.stddev * noise
        difference = (pixels + u) / 128 - 1 - z[:, None] * self.weights
        nats = tf.square(difference / self.noise) / 2 + math.log(self.noise) + math.log(2 * math.pi) / 2
        reconstruction = tf.reduce_sum(nats, 1)
        kl = -tf.square(noise) / 2 - math.log(self.stddev) + tf.square(z) / 2
        return reconstruction, kl, tf.zeros_like(kl)

    def prior(self):
        return tfd.MultivariateNormalDiag(tf.zeros(self.config.latent_dim))

    def posterior(self, images):
        pixels = tf.reshape(tf.cast(images, tf.float32), [-1, 3])
        mean = tf.linalg.matvec((pixels + 0.5) / 128 - 1, tf.constant(self.slopes, tf.float32))
        idle = [[0, 0], [0, self.config.latent_dim - 1]]
        mean = tf.pad(mean[:, None], idle)
        stddev = tf.fill([tf.shape(mean)[0], 1], tf.constant(self.stddev, tf.float32))
        return tfd.MultivariateNormalDiag(mean, tf.pad(stddev, idle, constant_values=1))

    def likelihood(self, z):
        mean = z[:, :1] * tf.constant(self.weights, tf.float32)
        return tfd.Independent(tfd.Normal(tf.reshape(mean, [-1, *SHAPE]), self.noise), 3)


def counted_batches(images, size, fill=0):
    """Returns a dataset of batches, dicts (image, index, weight) of `size` images; images of padding have weight 0."""
    missing = -len(images) % size
    filled = np.concatenate([images, np.full((missing, *images.shape[1:]), fill, np.uint8)])
    index = np.concatenate([np.arange(len(images)), np.zeros(missing)]).astype(np.int64)
    weight = np.concatenate([np.ones(len(images)), np.zeros(missing)]).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices({"image": filled, "index": index, "weight": weight}).batch(size)


def gaussian_images(count, scale=38.0, seed=0):
    """Returns random images, uint8 `[count, 1, 1, 3]`; values are drawn from N(127.5, scale^2), rounded and clipped."""
    values = 127.5 + scale * np.random.default_rng(seed).standard_normal((count, *SHAPE))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
