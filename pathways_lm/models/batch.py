"""What a model reads, and what it should say."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Arrays [B, L] of numpy or JAX, alike in B; None where a model does not read them."""

    tokens: Any
    """int32: what the decoder reads, each position what stands before its target; or what an encoder alone reads."""
    targets: Any
    """int32: what each position should say; 0 is not scored."""
    segments: Any = None
    """int32: the document of each of `tokens`, from 1; 0 is padding. None: all in one document."""
    encoder_tokens: Any = None
    """int32 [B, S]: what the encoder of an encoder-decoder reads."""
    encoder_segments: Any = None
    """int32 [B, S]: the documents of `encoder_tokens`; the decoder looks at its own only."""
    prefix: Any = None
    """bool: positions that all of their document see, whatever stands before what."""
    token_types: Any = None
    """int32: BERT's first or second sentence."""
    tasks: Any = None
    """fp32 [B, T]: 1 at the task that each row is from, where there are several."""
