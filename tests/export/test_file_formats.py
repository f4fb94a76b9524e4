"""The SavedModel on a phone: TensorFlow's own converter makes LiteRT (TensorFlow Lite) models of encode and decode."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import random_images

# Operations that only an interpreter with TensorFlow's kernels, or with kernels of its own, would run.
_FOREIGN = ("Flex", "CUSTOM")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_encode_and_decode_convert_with_built_in_operations_and_give_images_back(exported) -> None:
    run = {}
    for name in ("encode", "decode"):
        folder = str(exported / "savedmodel" / "1")
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name])
        # The converter itself refuses what the built-in operations cannot say.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        interpreter = tf.lite.Interpreter(model_content=converter.convert())
        used = {operation["op_name"] for operation in interpreter._get_ops_details()}
        assert "CONV_2D" in used and not [name for name in used if name.startswith(_FOREIGN)]
        run[name] = interpreter.get_signature_runner()
    images = random_images(64)
    for batch in (1, 16):
        back = [
            run["decode"](**run["encode"](images=images[start : start + batch]))["images"]
            for start in range(0, 64, batch)
        ]
        np.testing.assert_array_equal(np.concatenate(back), images)
