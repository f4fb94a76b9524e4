"""Additions that take effect in a training: a schedule, a logger, and a number and a picture of each validation."""

import math

import numpy as np

from tfdecouple.loggers import Logger, select_numbers


def fall_by_cosine(left, config):
    import tensorflow as tf

    return (1 - tf.cos(math.pi * left)) / 2


class Lines(Logger):
    def write(self, kind, step, values):
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{step} {name} {value:g}\n" for name, value in select_numbers(kind, values).items())


def measure_largest_v(model, images):
    return {"largest_v": float(np.abs(model.encode(images).v).max())}


def draw_differences(inputs):
    from tfdecouple.visualization.grids import arrange_rows, draw_grid

    decoded, exact = inputs.reconstructed
    changed = np.where(inputs.images == decoded, 0, 255).astype(np.uint8)
    return draw_grid(arrange_rows(changed, 5), f"White: pixels that are not reconstructed. {exact} images are black.")
