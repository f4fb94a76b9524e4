"""A metric of the command `evaluate`."""

import numpy as np

from tfdecouple.metrics.metric import Estimate, Metric, Result


class Brightness(Metric):
    name = "brightness"
    help = "also how bright the images and their reconstructions are"

    def compute(self, evaluation):
        model, values = evaluation.opened.model, []
        for batch in evaluation.make_image_batches():
            images = batch["image"][batch["weight"] > 0]
            decoded = model.decode(*model.encode(images))
            values.append([np.mean(x, (1, 2, 3)) for x in (images, decoded)])
        before, after = map(Estimate.from_values, np.concatenate(values, 1))
        line = f"brightness {before.to_text(1)}, reconstructed {after.to_text(1)}"
        return Result({"brightness": before.mean, "reconstructed": after.mean}, [line])
