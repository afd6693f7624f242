"""tensorflow and what brings it along (about 8 s to import), without its chatter and without an accelerator."""

import os

# Read by tensorflow as it loads: without them it writes to the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

# tensorflow would take an accelerator's whole memory away from JAX.
tf.config.set_visible_devices([], "GPU")

__all__ = ["seqio", "tf", "tfds"]
