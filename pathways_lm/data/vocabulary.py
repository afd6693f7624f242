"""Text to token ids and back, without loss: a SentencePiece vocabulary by PaLM's rules.

arXiv:2204.02311, section 3.1 (Vocabulary): whitespace is kept exactly, characters outside the vocabulary become
their UTF-8 bytes, and numbers are always split into single digits.
"""

import codecs
import functools
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import sentencepiece

from pathways_lm.errors import DataError

PAD_ID = 0
"""Padding: never text, never scored."""

# SentencePiece writes a space as this character, and so cannot tell the two apart by itself.
_META_SPACE = "\u2581"

_SPECIAL_TOKENS, _BYTES = 3, 256

# What a vocabulary learns from: every n-th stretch of lines, so that they add up to about this much.
_SAMPLE_CHARACTERS = 4_000_000
_CHUNK_CHARACTERS = 1_000

# BPE against unigram for 4,096 pieces, two cores: 1.4 s against 11 s to train on 4 MB, both 3.4 bytes a token.
_OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "byte_fallback": True,
    "character_coverage": 1.0,  # of the alphabet chosen here
    "required_chars": _META_SPACE,  # a space spelled in bytes would come back as U+2581
    "pad_id": PAD_ID,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "pad_piece": "<pad>",
    "eos_piece": "<eod>",
    "unk_piece": "<unk>",
    "hard_vocab_limit": False,
    "max_sentence_length": 1 << 30,
    "num_threads": 2,
    "minloglevel": 4,
}
_CHARACTER_COVERAGE = 0.9999

# Characters that mean something to SentencePiece's trainer; as text they are spelled in bytes.
_RESERVED = {_META_SPACE, "\u2585", "\x00"}

_WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]")

# Everything that is known to get lost in vocabularies made for other ends.
_PROBE = f" a\u00a0 b  c\r\n\t\n\x00 \ufb01 \uff21 e\u0301 12 {_META_SPACE} \U0001f600 <unk> "


class Vocabulary:
    """A SentencePiece model that keeps every text exactly.

    `size` pieces; id 0 is padding, `eod_id` ends a document; `fingerprint` is the SHA-256 of the model file.
    """

    def __init__(self, model: bytes):
        """Raises ValueError saying why `model` cannot be used."""
        if not model:
            raise ValueError("is empty")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("is not a SentencePiece model") from error
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.size: int = self._processor.get_piece_size()
        self.eod_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        if self._processor.pad_id() != PAD_ID:
            raise ValueError(
                f"has padding id {self._processor.pad_id()}; it must be {PAD_ID} (train it with pad_id={PAD_ID})"
            )
        if self.eod_id < 0:
            raise ValueError("has no end-of-document token (train it with eos_id=1)")
        self._bytes = [self._piece_bytes(token) for token in range(self.size)]
        self._meta_space_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                "does not keep text exactly (train it with normalization_rule_name=identity, "
                "add_dummy_prefix=false, remove_extra_whitespaces=false, byte_fallback=true)"
            )

    def _piece_bytes(self, token: int) -> bytes:
        processor = self._processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return b""
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(_META_SPACE, " ").encode()

    @functools.cached_property
    def word_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each piece, bool [size]: whether it begins inside a word, and whether it ends inside one.

        Letters, digits, underscores and the bytes of rare characters are the inside of words.
        """
        words = [_WORD.sub(b"x", text) for text in self._bytes]
        first = np.array([text.startswith(b"x") for text in words])
        last = np.array([text.endswith(b"x") for text in words])
        return first, last

    def encode(self, text: str) -> list[int]:
        """Token ids of any text without lone surrogates; no end-of-document token is added."""
        first, *others = text.split(_META_SPACE)
        ids: list[int] = self._processor.encode(first)
        for other in others:
            ids += self._meta_space_ids
            ids += self._processor.encode(other)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of `ids`. Special tokens and rows of the model beyond the vocabulary are no text."""
        return b"".join(self._bytes[token] for token in ids if 0 <= token < self.size)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; a character cut off at the end is left out."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text that each of `ids` completes, as they come: '' while a character's bytes are not all there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            yield decoder.decode(self.decode_bytes([token]))


def load_vocabulary(path: str, vocab_size: int) -> Vocabulary:
    """The vocabulary in the file `path`. Raises DataError when it cannot be used with `vocab_size` rows."""
    try:
        with open(path, "rb") as file:
            model = file.read()
    except OSError as error:
        raise DataError(f"data.vocabulary='{path}' cannot be read: {error.strerror}") from error
    try:
        vocabulary = Vocabulary(model)
    except ValueError as error:
        raise DataError(f"data.vocabulary='{path}' {error}") from error
    if vocabulary.size > vocab_size:
        raise DataError(
            f"data.vocabulary='{path}' has {vocabulary.size} pieces, more than model.vocab_size={vocab_size}; "
            f"set model.vocab_size={vocabulary.size} or above"
        )
    return vocabulary


def train_vocabulary(texts: Collection[str], size: int) -> bytes:
    """A SentencePiece model of up to `size` pieces, learned from `texts`; the same bytes each time.

    `texts` are gone through twice; of large ones a sample is kept.

    A small corpus offers fewer pieces than asked for: the vocabulary is then smaller, and the last rows of
    the model's embedding stay unused. Raises DataError when there is next to no text.
    """
    step = -(-sum(map(len, texts)) // _SAMPLE_CHARACTERS) or 1
    # No more than the sample is held, whatever the size of the texts.
    every = itertools.chain.from_iterable(map(_chunks, texts))
    chunks = list(itertools.islice(every, 0, None, step))
    foreign = re.compile(f"[^{re.escape(''.join(_alphabet(chunks, size)))}]+")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for chunk in chunks for part in foreign.split(chunk)),
            model_writer=model,
            vocab_size=size,
            **_OPTIONS,
        )
    except RuntimeError as error:
        raise DataError(
            f"the corpus holds too little text to learn a vocabulary from (model.vocab_size={size})"
        ) from error
    return model.getvalue()


def training_key(texts: Iterable[str], size: int) -> str:
    """A hash of everything that decides what `train_vocabulary` gives."""
    digest = hashlib.sha256(
        repr((sentencepiece.__version__, size, sorted(_OPTIONS.items()), _SAMPLE_CHARACTERS)).encode()
    )
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _chunks(text: str) -> Iterator[str]:
    """Stretches of whole lines, newlines kept: SentencePiece learns from what lies within one."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK_CHARACTERS) + 1 or len(text)
        yield text[start:end]
        start = end


def _alphabet(chunks: list[str], size: int) -> list[str]:
    """The characters that get pieces of their own; all others are spelled in bytes.

    They are the most frequent ones that make up nearly all of the text, but no more than half of the learned
    pieces (Chinese, say, in a small vocabulary).
    """
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(chunk)
    wanted = counts.total() * _CHARACTER_COVERAGE
    room = max((size - _SPECIAL_TOKENS - _BYTES) // 2, 1)
    alphabet, covered = [" "], counts.pop(" ", 0)
    for character, count in counts.most_common():
        if covered >= wanted or len(alphabet) == room:
            break
        if character not in _RESERVED:
            alphabet.append(character)
        covered += count
    return alphabet
