"""The corpus as seqio Tasks and Mixtures.

seqio turns documents into token ids; `packing` and `cache` take them from there.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pathways_lm.data.examples import TRAIN, Example, Pair
from pathways_lm.data.pairs import METRICS
from pathways_lm.data.quiet_tensorflow import seqio, tf
from pathways_lm.data.sources import MIXTURES, sampling_rates
from pathways_lm.data.vocabulary import Vocabulary

Splits = Mapping[str, Sequence[Example]]
INPUTS, TARGETS = "inputs", "targets"


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

    Each task maps 'train' and 'validation' to documents, which become 'targets', or to pairs. A mixture draws from its
    tasks in proportion to the bytes they train on, so that no document is seen more often than another. What was
    registered under these names before is replaced.
    """
    feature = seqio.Feature(SeqioVocabulary(vocabulary), dtype=tf.int32)
    for name, splits in tasks.items():
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                functools.partial(_dataset, splits),
                splits=tuple(splits),
                num_input_examples={split: len(examples) for split, examples in splits.items()},
            ),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=dict.fromkeys(_texts(splits), feature),
            metric_fns=[_METRICS[metric] for metric in METRICS.get(name, ())],
        )
    rates = sampling_rates({name: splits[TRAIN] for name, splits in tasks.items()})
    for name, members in MIXTURES.items():
        if set(members) <= set(tasks):
            seqio.MixtureRegistry.remove(name)
            seqio.MixtureRegistry.add(name, [(member, rates[member]) for member in members])


def tokens(task: str, split: str) -> Iterator[np.ndarray]:
    """Token ids, int32, of each document of a registered task, in order and with its end-of-document token."""
    for example in _examples(task, split):
        yield example[TARGETS]


def pair_tokens(task: str, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of each pair's inputs and targets."""
    for example in _examples(task, split):
        yield example[INPUTS], example[TARGETS]


def _examples(task: str, split: str) -> Iterator[Mapping[str, np.ndarray]]:
    dataset = seqio.TaskRegistry.get(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False
    )
    return dataset.as_numpy_iterator()


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """The percentage of predictions that are their target."""
    from t5.evaluation import metrics  # late: it takes seconds, and only evaluation needs it

    return metrics.accuracy(targets, predictions)


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """sacrebleu's BLEU of all predictions, 0 to 100."""
    from t5.evaluation import metrics

    return metrics.bleu(targets, predictions)


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """ROUGE-1, -2 and -Lsum, 0 to 100."""
    from t5.evaluation import metrics

    return metrics.rouge(targets, predictions)


def edit_distance(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
    """Words to change, add or leave out, from a prediction to its target: their least, most, mean, median and sum."""
    from t5.evaluation import metrics

    return metrics.edit_distance(targets, predictions)


_METRICS: Mapping[str, Callable] = {"accuracy": accuracy, "bleu": bleu, "rouge": rouge, "edit_distance": edit_distance}


def _texts(splits: Splits) -> dict[str, Callable[[Example], str]]:
    """Feature -> its text of an example."""
    if isinstance(splits[TRAIN][0], Pair):
        return {INPUTS: lambda pair: pair.texts[0], TARGETS: lambda pair: pair.texts[1]}
    return {TARGETS: lambda document: document.text}


def _dataset(splits: Splits, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed  # the documents' order is fixed; packed sequences are shuffled
    features = _texts(splits).items()
    return tf.data.Dataset.from_tensor_slices(
        {name: [text(example).encode() for example in splits[split]] for name, text in features}
    )
