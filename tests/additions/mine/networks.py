"""A layer of flow steps, a conditioner, a prior and an encoder."""

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple import full_float32
from tfdecouple.layers.base import InvertibleLayer, Weight
from tfdecouple.layers.conditioners import (
    CouplingNet,
    StartsAtZero,
    declare_weight_norm,
    make_kernel_initializer,
)
from tfdecouple.networks.encoder import ImageNetwork
from tfdecouple.numerics.kernels import normalize_kernel


@keras.saving.register_keras_serializable(package="mine")
class Reflection(InvertibleLayer):
    """Reflects the channels at a learned hyperplane, by a Householder matrix."""

    def declare(self, x_shape, condition_shape=None):
        return {"axis": Weight(x_shape[-1:])}  # the normal of the hyperplane, minus a vector of ones

    def bijector(self, weights, condition=None):
        return tfb.Householder(1 + weights["axis"])


@keras.saving.register_keras_serializable(package="mine")
class FarNet(CouplingNet):
    """conv5x5 + FC(z) - ELU - conv3x3: fewer layers than the paper's net."""

    def declare(self, x_shape, condition_shape=None):
        weights = {"first": Weight((5, 5, x_shape[-1], self.hidden), make_kernel_initializer)}
        if self.condition_size:
            weights["of_z"] = Weight((self.condition_size, self.hidden), make_kernel_initializer)
        return weights | declare_weight_norm((3, 3, self.hidden, self.outputs))

    def output(self, weights, x, condition):
        h = tf.nn.conv2d(x, weights["first"], 1, "SAME")
        if self.condition_size:
            h += tf.matmul(condition, weights["of_z"])[:, None, None]
        kernel = normalize_kernel(weights["last_direction"], weights["last_gain"])
        return tf.nn.conv2d(tf.nn.elu(h), kernel, 1, "SAME") + weights["last_bias"]


@keras.saving.register_keras_serializable(package="mine")
class GaussianPrior(InvertibleLayer):
    """A learned mean and standard deviation for each number of z."""

    def declare(self, x_shape, condition_shape=None):
        return {"shift": Weight(x_shape[-1:]), "log_scale": Weight(x_shape[-1:])}

    def bijector(self, weights, condition=None):
        return tfb.Chain([tfb.Scale(log_scale=weights["log_scale"]), tfb.Shift(weights["shift"])])


def make_gaussian_prior(config, name):
    return GaussianPrior(name=name)


@keras.saving.register_keras_serializable(package="mine")
class PatchEncoder(StartsAtZero, ImageNetwork):
    """FC of each patch of 4 x 4 pixels - ELU - mean over the patches - FC."""

    def __init__(self, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim = latent_dim

    def declare(self, x_shape, condition_shape=None):
        patches = Weight((4, 4, x_shape[-1], 32), make_kernel_initializer)
        return {"patches": patches} | declare_weight_norm((32, 2 * self.latent_dim))

    def compute_output_shape(self, x_shape):
        return ((x_shape[0], self.latent_dim),) * 2

    @full_float32()
    def call(self, x, training=False):
        h = tf.nn.elu(tf.nn.conv2d(x, tf.convert_to_tensor(self.patches), 4, "VALID"))
        weights = self.read_tensors()
        kernel = normalize_kernel(weights["last_direction"], weights["last_gain"])
        return tf.split(tf.matmul(tf.reduce_mean(h, [1, 2]), kernel) + weights["last_bias"], 2, -1)


def make_patch_encoder(config, name):
    return PatchEncoder(config.latent_dim, name=name)
