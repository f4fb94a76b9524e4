"""Traced functions of layers and networks."""

import logging

import keras
import tensorflow as tf

from tfdecouple.runtime.execution import Execution


class Twice(keras.layers.Layer):
    def run(self, x, condition):
        return (2 * x,)


def test_many_networks_and_shapes_are_no_warning(caplog):
    networks = [(Execution(), Twice()) for _ in range(4)]
    logging.getLogger("tensorflow").addHandler(caplog.handler)
    try:
        for execution, network in networks:
            for size in range(1, 5):
                execution.trace_network(network, "run", network.run, tf.ones([1, size]))()
    finally:
        logging.getLogger("tensorflow").removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
