"""Documents of any length into sequences of one length (arXiv:2204.02311, section 5, "Sequence length").

Documents are laid end to end, each closed by its end-of-document token, and cut at every `length` tokens
wherever that falls. Nothing is padded but the end of a validation set.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pathways_lm.data.vocabulary import PAD_ID

Row = np.ndarray


def pack(documents: Iterable[Sequence[int] | np.ndarray], length: int, *, keep_tail: bool) -> Iterator[Row]:
    """Sequences, int32 [length], of the documents' tokens in order.

    Args:
      documents: token ids, each document's ending in the end-of-document token.
      length: tokens of a sequence.
      keep_tail: the tokens left at the end fill no sequence. True pads them (validation: each token is
        scored once), False drops them (training).
    """
    rest = np.empty(0, np.int32)
    for tokens in documents:
        rest = np.concatenate([rest, np.asarray(tokens, np.int32)])
        whole = rest.size // length * length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]
    if keep_tail and rest.size:
        yield np.pad(rest, (0, length - rest.size), constant_values=PAD_ID)
