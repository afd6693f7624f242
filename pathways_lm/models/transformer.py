"""The three shapes: decoder, encoder-decoder, encoder. Each is embeddings, one or two towers, and a way to logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.zigzag import cut
from pathways_lm.layers.attention import KeyValue
from pathways_lm.layers.dropout import dropout, site
from pathways_lm.layers.embed import Embedding, Head, MaskedHead, Order, Pooler
from pathways_lm.layers.mask import Places, in_order
from pathways_lm.layers.norm import Norm
from pathways_lm.layers.position import Table
from pathways_lm.models.batch import Batch
from pathways_lm.models.block import Out
from pathways_lm.models.tower import Tower
from pathways_lm.sharding import Rules


class Output(NamedTuple):
    """What a model says of a batch."""

    logits_BLV: Array
    """Cut along the vocabulary. In the order of the text where devices have whole sequences, else as
    `Transformer.lay` lays it."""
    decoder: Out | None = None
    """What the decoder's layers tell."""
    encoder: Out | None = None
    pooled_BD: Array | None = None
    """An encoder's first position, pooled."""
    order_B2: Array | None = None
    """Logits of whether the second sentence follows the first."""


class Transformer(nnx.Module):
    """What the shapes have in common: embeddings and the head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        self.embedding = Embedding(config, rngs, rules)
        if config.positions == "learned":
            self.positions = Table(config.max_length, config, rngs, rules)
        if config.token_types:
            self.token_types = Table(config.token_types, config, rngs, rules)
        if config.block == "post_norm":
            self.embedding_norm = Norm(config, rules)
        if not config.tied_head:
            self.head = Head(config, rngs, rules)
        self.config = config
        self.rules = rules

    def whole(self, batch: Batch) -> Batch:
        """The batch's rows whole along their length: where a token stands depends on those before it."""
        return jax.tree.map(lambda leaf: reshard(leaf, self.rules("batch", None)), batch)

    def lay(self, rows_BL: Array) -> Array:
        """Whole rows in the order of the embeddings and logits, each device with its part."""
        return cut(rows_BL, self.rules)

    def embed(self, tokens_BL: Array, places: Places, key: Array | None, types_BL: Array | None = None) -> Array:
        """Tokens, positions and types of whole rows, [B, L, D], laid on devices and cut as the residual stream."""
        x_BLD = self.embedding.encode(self.lay(tokens_BL))
        if self.config.positions == "learned":
            x_BLD = x_BLD + self.positions(self.lay(places.positions_BL))
        if self.config.token_types:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            x_BLD = x_BLD + self.token_types(self.lay(types_BL))
        if self.config.block == "post_norm":
            x_BLD = self.embedding_norm(x_BLD)
        return dropout(x_BLD, self.config.dropout, key, self.rules)

    def logits(self, x_BLD: Array, key: Array | None = None) -> Array:
        """[B, L, V], cut along the vocabulary."""
        x_BLD = dropout(x_BLD, self.config.hidden_dropout, key, self.rules)
        return self.embedding.decode(x_BLD) if self.config.tied_head else self.head(x_BLD)


class Decoder(Transformer):
    """A causal language model."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        self.decoder = Tower(config, config.num_layers, rngs, rules, causal=True)

    def __call__(self, batch: Batch, key: Array | None = None, show: bool = False) -> Output:
        """Logits of the token after each of `batch.tokens`."""
        batch = self.whole(batch)
        places = in_order(batch.tokens.shape[1], batch.segments, batch.prefix)
        x = self.embed(batch.tokens, places, site(key, 0))
        x, told = self.decoder(x, places, places, key=site(key, 1), show=show)
        return Output(self.logits(x, site(key, 2)), decoder=told)

    def extend(
        self, tokens_BL: Array, positions_BL: Array, cached: KeyValue, cached_positions_BS: Array
    ) -> tuple[Array, KeyValue]:
        """Logits after each of `tokens_BL`, which follow the cached positions.

        Args:
          tokens_BL, positions_BL: the new tokens and where they stand; position -1 is padding.
          cached: keys and values of every layer, each [layers, B, S, K, H].
          cached_positions_BS: where the cached tokens stand; -1 is an empty slot.

        Returns:
          Logits [B, L, V], and the keys and values of the new tokens, each [layers, B, L, K, H].
        """
        queries = Places(positions_BL)
        keys = Places(jnp.concatenate([cached_positions_BS, positions_BL], axis=1))
        x = self.embed(tokens_BL, queries, None)
        x, told = self.decoder(x, queries, keys, cached=cached)
        assert told.fresh is not None
        return self.logits(x), told.fresh


class EncoderDecoder(Transformer):
    """An encoder that reads a text both ways, and a decoder that writes another, looking at it (T5)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        encoder_layers = config.num_encoder_layers or config.num_layers
        self.encoder = Tower(config, encoder_layers, rngs, rules, causal=False)
        self.decoder = Tower(config, config.num_layers, rngs, rules, causal=True, cross=True)

    def __call__(self, batch: Batch, key: Array | None = None, show: bool = False) -> Output:
        """Logits of the token after each of `batch.tokens`, given `batch.encoder_tokens`."""
        assert batch.encoder_tokens is not None
        batch = self.whole(batch)
        read = in_order(batch.encoder_tokens.shape[1], batch.encoder_segments)
        memory = self.embed(batch.encoder_tokens, read, site(key, 0))
        memory, encoded = self.encoder(memory, read, read, key=site(key, 1), show=show)
        memory = dropout(memory, self.config.hidden_dropout, site(key, 2), self.rules)
        places = in_order(batch.tokens.shape[1], batch.segments)
        x = self.embed(batch.tokens, places, site(key, 3))
        x, decoded = self.decoder(x, places, places, (memory, read), key=site(key, 4), show=show)
        return Output(self.logits(x, site(key, 5)), decoder=decoded, encoder=encoded)


class Encoder(Transformer):
    """A text read both ways, to fill in what is masked (BERT)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        self.encoder = Tower(config, config.num_layers, rngs, rules, causal=False)
        self.mlm = MaskedHead(config, rngs, rules)
        if config.pooler:
            self.pooler = Pooler(config, rngs, rules)
            self.order = Order(config, rngs, rules)

    def __call__(self, batch: Batch, key: Array | None = None, show: bool = False) -> Output:
        """Logits of the token that stood in place of each of `batch.tokens`."""
        batch = self.whole(batch)
        places = in_order(batch.tokens.shape[1], batch.segments)
        x = self.embed(batch.tokens, places, site(key, 0), batch.token_types)
        x, told = self.encoder(x, places, places, key=site(key, 1), show=show)
        pooled = order = None
        if self.config.pooler:
            pooled = self.pooler(x)
            order = self.order(pooled)
        return Output(self.mlm(x, self.embedding), encoder=told, pooled_BD=pooled, order_B2=order)


SHAPES: dict[str, type[Transformer]] = {"decoder": Decoder, "encoder_decoder": EncoderDecoder, "encoder": Encoder}
