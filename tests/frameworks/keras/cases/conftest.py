"""TensorFlow has two devices in these cases, so that two replicas can be asked for."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os

if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf  # pyright: ignore

    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
