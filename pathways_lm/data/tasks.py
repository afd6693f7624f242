"""The corpus as seqio Tasks and Mixtures. The one file that imports seqio and tensorflow (about 8 s).

seqio turns documents into token ids; `packing` and `cache` take them from there.
"""

import os

# Read by tensorflow as it loads: without them it writes to the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from pathways_lm.data.sources import MIXTURES, Document, sampling_rates
from pathways_lm.data.vocabulary import Vocabulary

# tensorflow would take an accelerator's whole memory away from JAX.
tf.config.set_visible_devices([], "GPU")

Splits = Mapping[str, Sequence[Document]]
FEATURE = "targets"


class SeqioVocabulary(seqio.Vocabulary):
    """Our vocabulary, as seqio asks for one."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> None:
        return None

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eod_id

    @property
    def unk_id(self) -> int:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """Ids, int32 [tokens], of one string."""

        def encode(text: bytes | np.ndarray) -> np.ndarray:
            data = text if isinstance(text, bytes) else text.item()  # an array where tensorflow runs eagerly
            return np.array(self._encode(data.decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Strings, one for each row of ids [..., tokens]."""

        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self._decode(row).encode() for row in rows.reshape(-1, rows.shape[-1]).tolist()]
            return np.array(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.vocabulary.fingerprint == other.vocabulary.fingerprint

    def __hash__(self) -> int:
        return hash(self.vocabulary.fingerprint)


def register(tasks: Mapping[str, Splits], vocabulary: Vocabulary) -> None:
    """Puts the tasks into seqio's registry, and the mixtures whose members are all there.

    Each task maps 'train' and 'validation' to documents. A mixture draws from its tasks in proportion to the
    bytes they train on, so that no document is seen more often than another. What was registered under these
    names before is replaced.
    """
    for name, splits in tasks.items():
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                functools.partial(_dataset, splits),
                splits=tuple(splits),
                num_input_examples={split: len(documents) for split, documents in splits.items()},
            ),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={FEATURE: seqio.Feature(SeqioVocabulary(vocabulary), dtype=tf.int32)},
        )
    rates = sampling_rates({name: splits["train"] for name, splits in tasks.items()})
    for name, members in MIXTURES.items():
        if set(members) <= set(tasks):
            seqio.MixtureRegistry.remove(name)
            seqio.MixtureRegistry.add(name, [(member, rates[member]) for member in members])


def tokens(task: str, split: str) -> Iterator[np.ndarray]:
    """Token ids, int32, of each document of a registered task, in order and with its end-of-document token."""
    dataset = seqio.TaskRegistry.get(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
    )
    for example in dataset.as_numpy_iterator():
        yield example[FEATURE]


def _dataset(splits: Splits, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed  # the documents' order is fixed; packed sequences are shuffled
    return tf.data.Dataset.from_tensor_slices({FEATURE: [document.text.encode() for document in splits[split]]})
