"""Initialisation of a model from images, and its diagnosis: visits of all layers."""

import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import ArrayLike, as_images
from tfdecouple.errors import DataError, UserError
from tfdecouple.layers import Coupling, InvertibleLinear
from tfdecouple.layers.base import InvertibleLayer, Visit, disable_autograph
from tfdecouple.model.base_model import BaseModel
from tfdecouple.numerics.kernels import use_kernels


@disable_autograph
class Initialization(BaseModel):
    """The method that sets a model's weights from images."""

    def initialize(self, images: ArrayLike, seed: int = 0, force: bool = False) -> None:
        """Initialises the weights from images, once, before training (paper section 2.1 and the paper's code).

        Every actnorm gets the scale and shift for which its output has mean 0 and standard deviation 1 on these images,
        without dequantisation noise. Every coupling starts as the identity, the posterior as N(0, I), and a learned
        q(u|x) as nearly uniform.

        Args:
            images: uint8 `[batch, height, width, channels]`, a few hundred or more training images.
            seed: seed of the noise that initialises the flows of the prior and of the dequantisation.
            force: whether to overwrite weights that were initialised or loaded before; False raises UserError then.
        """
        bins = self.quantizer.find_bins(as_images(images, self.config.image_shape))
        if bins.shape[0] == 0:
            raise DataError("initialize got no images; it needs one at least, and some hundreds for a good start")
        if not tf.executing_eagerly():
            raise UserError("initialize was called within a tf.function; call it outside, once, before training")
        if self._has_weights():
            if not force:
                raise UserError(
                    "this model has weights already, initialised or loaded, and initialize would overwrite them; pass "
                    "force=True to start anew"
                )
            new = type(self).from_config(self.get_config()).named_variables()
            for name, variable in self.named_variables().items():
                variable.assign(new[name])

        x = self.quantizer.place_at_edges(bins)
        z, labels = None, _make_labels_in_turn(self, bins.shape[0])
        if self.prior_affine is not None:
            self.prior_affine.reset_to_zero()
        if self.encoder is not None:
            self.encoder.reset_to_zero()
            shape = [bins.shape[0], self.config.latent_dim]
            z = tf.random.stateless_normal(shape, randomness.derive_seed(seed, "initialize"))
            # Without colours in z, the reset has made q(z|x) N(0, I) for every image.
            if self.config.colour_map:
                mean, log_variance = self.encoder.run_inference(x)
                z = mean + tf.exp(log_variance / 2) * z
        elif self.code_net is not None:
            # Couplings start as the identity for every z, so the initialisation does not depend on the labels.
            z = self.code_net(labels)
        with use_kernels(self.flow.runner.mode.kernels):
            _visit_flows(self, x, z, labels, lambda layer, *inputs: layer.initialize(*inputs))
            if self.dequantizer is not None:
                self.dequantizer.flow.initialize_from_noise(randomness.derive_seed(seed, "dequantize"))
        self.initialized.assign(True)


def diagnose_model(model: BaseModel, images: ArrayLike) -> dict[str, float]:
    """Returns {"smallest_scale": s, "worst_condition": c}, which show whether training is about to diverge.

    The float s is the smallest scale that any coupling applies for these images; the inverse divides by the scales.
    The float c is the largest condition number of any 1x1 convolution or linear layer.
    The images are uint8 `[batch, height, width, channels]`. If the model has labels, image i gets the label i
    modulo `classes`.
    """
    bins = model.quantizer.find_bins(as_images(images, model.config.image_shape))
    if bins.shape[0] == 0:
        raise DataError("diagnose_model got no images; it needs at least one")
    scales, conditions = [tf.constant(1.0)], [tf.constant(1.0, tf.float64)]

    def visit(layer: InvertibleLayer, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        if isinstance(layer, Coupling):
            scales.append(tf.reduce_min(layer.compute_slopes(x, condition)))
        elif isinstance(layer, InvertibleLinear):
            conditions.append(layer.compute_condition_number())
        return layer.forward_and_log_det(x, condition)[0]

    inputs = model.quantizer.place_at_edges(bins)
    z = None if model.encoder is None else model.encoder.run_inference(inputs)[0]
    labels = _make_labels_in_turn(model, bins.shape[0])
    if model.code_net is not None:
        z = model.code_net(labels)
    with use_kernels(model.flow.runner.mode.kernels):
        _visit_flows(model, model.quantizer.place_at_centres(bins), z, labels, visit)
        if model.dequantizer is not None:
            noise = tf.random.stateless_normal(tf.shape(bins), randomness.derive_seed(0, "diagnose"))
            model.dequantizer.flow.visit_layers(noise, model.dequantizer.encoder.run_inference(inputs), visit)
    return {
        "smallest_scale": float(tf.reduce_min(tf.stack(scales))),
        "worst_condition": float(tf.reduce_max(tf.stack(conditions))),
    }


def _make_labels_in_turn(model: BaseModel, count: int) -> tf.Tensor:
    return tf.range(count) % max(model.config.classes, 1)


def _visit_flows(model: BaseModel, x: tf.Tensor, z: tf.Tensor | None, labels: tf.Tensor | None, visit: Visit) -> None:
    if z is not None and model.prior_flow is not None:
        shifted = z
        if model.prior_affine is not None:
            shifted = tf.gather(model.prior_affine(z)[0], labels, batch_dims=1)
        model.prior_flow.visit_layers(shifted, None, visit)
    model.flow.visit_layers(x, z, visit)
