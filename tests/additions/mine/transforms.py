"""Two transforms of couplings: one of a bijector of TFP, and one of a bijector with formulas of its own."""

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import ClosedForm, Transform


def make_skewed(shift, skewness, tails, alpha):
    return tfb.Shift(tf.tanh(shift))(tfb.SinhArcsinh(alpha / 4 * tf.tanh(skewness), tf.exp(alpha / 4 * tf.tanh(tails))))


SKEWED = Transform(make_skewed, parameters=3)


class SignedPower(ClosedForm):
    """y = sign(x) ((|x| + 1)^p - 1), elementwise; with p = 1 the identity."""

    parameter_ndims = {"log_p": 0}

    def __init__(self, log_p):
        super().__init__(0, is_constant_jacobian=False, log_p=log_p)

    def _forward(self, x):
        return tf.sign(x) * (tf.exp(tf.exp(self.log_p) * tf.math.log(tf.abs(x) + 1)) - 1)

    def _inverse(self, y):
        return tf.sign(y) * (tf.exp(tf.exp(-self.log_p) * tf.math.log(tf.abs(y) + 1)) - 1)

    def _forward_log_det_jacobian(self, x):
        return self.log_p + (tf.exp(self.log_p) - 1) * tf.math.log(tf.abs(x) + 1)


POWER = Transform(lambda log_p, alpha: SignedPower(alpha * tf.tanh(log_p)), parameters=1)
