"""The three shapes: decoder, encoder-decoder, encoder. Each is embeddings, one or two towers, and a way to logits."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.kernels.cross_entropy import Projection
from pathways_lm.kernels.zigzag import cut
from pathways_lm.layers.dropout import dropout, site
from pathways_lm.layers.embed import Embedding, Head, MaskedHead, Order, Pooler
from pathways_lm.layers.mask import Places, in_order
from pathways_lm.layers.norm import Norm
from pathways_lm.layers.position import Table
from pathways_lm.models.batch import Batch
from pathways_lm.models.block import Out
from pathways_lm.models.tower import Layers, Tower
from pathways_lm.sharding import Rules


class Output(NamedTuple):
    """What a model says of a batch."""

    projection: Projection
    """What logits are made of. In the order of the text where devices have whole sequences, else as `Transformer.lay`
    lays it."""
    decoder: Out | None = None
    """What the decoder's layers tell."""
    encoder: Out | None = None
    pooled_BD: Array | None = None
    """An encoder's first position, pooled."""
    order_B2: Array | None = None
    """Logits of whether the second sentence follows the first."""

    @property
    def logits_BLV(self) -> Array:  # noqa: N802
        """fp32, cut along the vocabulary."""
        return self.projection.logits()


class Stream(NamedTuple):
    """What goes through a tower's blocks."""

    x_BLD: Array
    memory_BSD: Array | None = None
    """The encoder's output, for the decoder's blocks to look at."""


class Transformer(nnx.Module):
    """What the shapes have in common: embeddings, the way through the towers, and the head.

    The way is cut into `enter`, a tower's blocks, and `leave`, so that a pipeline may run the parts at their times.
    """

    towers: ClassVar[tuple[str, ...]]
    decoder: Tower

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

    @jax.named_scope("embedding")
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

    def places(self, tower: str, batch: Batch) -> Places:
        """Where the tokens stand that a tower reads."""
        return in_order(batch.tokens.shape[1], batch.segments, batch.prefix)

    def enter(self, tower: str, batch: Batch, key: Array | None, before_BSD: Array | None) -> Stream:
        """What enters a tower's blocks, from the batch and what left the blocks of the tower before."""
        raise NotImplementedError

    def leave(self, x_BLD: Array, key: Array | None) -> Projection:
        """The way to logits from what left the last tower's blocks."""
        raise NotImplementedError

    def memory(self, tower: str, batch: Batch, stream: Stream) -> tuple[Array, Places] | None:
        """What a tower's blocks look at besides their own tokens."""
        return None if stream.memory_BSD is None else (stream.memory_BSD, self.places("encoder", batch))

    def tower_key(self, tower: str, key: Array | None) -> Array | None:
        """The key of a tower's blocks."""
        return site(key, 1 if tower == self.towers[0] else 4)

    def through(self, batch: Batch, key: Array | None, show: bool) -> tuple[Output, Array]:
        """The output, and what left the last blocks."""
        batch = self.whole(batch)
        told: dict[str, Out] = {}
        x_BLD = None
        for name in self.towers:
            places, tower = self.places(name, batch), getattr(self, name)
            stream = self.enter(name, batch, key, x_BLD)
            memory = self.memory(name, batch, stream)
            x_BLD, told[name] = tower(stream.x_BLD, places, places, memory, key=self.tower_key(name, key), show=show)
        assert x_BLD is not None
        return Output(self.leave(x_BLD, key), decoder=told.get("decoder"), encoder=told.get("encoder")), x_BLD

    def __call__(self, batch: Batch, key: Array | None = None, show: bool = False) -> Output:
        """Logits of the token after each of `batch.tokens`."""
        return self.through(batch, key, show)[0]

    def project(self, x_BLD: Array, key: Array | None = None) -> Projection:
        """The way to logits from normalised outputs."""
        x_BLD = dropout(x_BLD, self.config.hidden_dropout, key, self.rules)
        return self.embedding.decode(x_BLD) if self.config.tied_head else self.head(x_BLD)

    def extend(
        self,
        tokens_BL: Array,
        positions_BL: Array,
        key_positions_BS: Array,
        layers: Layers,
        memory: tuple[Array | None, Places] | None = None,
        both_ways: bool = False,
    ) -> tuple[Array, Out | list[Out]]:
        """The decoder's way for tokens that follow the cached positions.

        Args:
          tokens_BL, positions_BL: the new tokens and where they stand; position -1 is padding.
          key_positions_BS: where the cached tokens stand, and behind them the new ones unless `layers` store them among
            those; -1 is an empty slot.
          memory: what `read` gave for the encoder's text; without its output where `layers` have keys and values of it.
          both_ways: the new tokens see all others, whatever stands before what.

        Returns:
          What `project` makes logits of, [B, L, D], and the keys and values of the new tokens (`Out.fresh`) and of the
          memory (`Out.remembered`) of every layer.
        """
        queries = Places(positions_BL)
        keys = Places(key_positions_BS, None, key_positions_BS >= 0 if both_ways else None)
        x_BLD = self.embed(tokens_BL, queries, None)
        x_BLD, told = self.decoder.extend(x_BLD, queries, keys, memory, layers)
        return self.decoder.close(x_BLD), told


class Decoder(Transformer):
    """A causal language model."""

    towers = ("decoder",)

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        self.decoder = Tower(config, config.num_layers, rngs, rules, causal=True)

    def enter(self, tower: str, batch: Batch, key: Array | None, before_BSD: Array | None) -> Stream:
        return Stream(self.embed(batch.tokens, self.places(tower, batch), site(key, 0)))

    def leave(self, x_BLD: Array, key: Array | None) -> Projection:
        return self.project(self.decoder.close(x_BLD), site(key, 2))


class EncoderDecoder(Transformer):
    """An encoder that reads a text both ways, and a decoder that writes another, looking at it (T5)."""

    towers = ("encoder", "decoder")

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        encoder_layers = config.num_encoder_layers or config.num_layers
        self.encoder = Tower(config, encoder_layers, rngs, rules, causal=False)
        self.decoder = Tower(config, config.num_layers, rngs, rules, causal=True, cross=True)

    def places(self, tower: str, batch: Batch) -> Places:
        if tower == "decoder":
            return in_order(batch.tokens.shape[1], batch.segments)
        return in_order(batch.encoder_tokens.shape[1], batch.encoder_segments)

    def enter(self, tower: str, batch: Batch, key: Array | None, before_BSD: Array | None) -> Stream:
        if tower == "encoder":
            return Stream(self.embed(batch.encoder_tokens, self.places(tower, batch), site(key, 0)))
        assert before_BSD is not None
        memory = dropout(self.encoder.close(before_BSD), self.config.hidden_dropout, site(key, 2), self.rules)
        return Stream(self.embed(batch.tokens, self.places(tower, batch), site(key, 3)), memory)

    def leave(self, x_BLD: Array, key: Array | None) -> Projection:
        return self.project(self.decoder.close(x_BLD), site(key, 5))

    def read(self, tokens_BS: Array, segments_BS: Array) -> tuple[Array, Places]:
        """The encoder's output for texts with padding (segment 0) behind them, and the places it has."""
        batch = Batch(tokens_BS[:, :1], None, encoder_tokens=tokens_BS, encoder_segments=segments_BS)
        places = self.places("encoder", batch)
        x_BSD, _ = self.encoder(self.enter("encoder", batch, None, None).x_BLD, places, places)
        positions_BS = jnp.where(segments_BS > 0, places.positions_BL, -1)
        return self.encoder.close(x_BSD), Places(positions_BS)


class Encoder(Transformer):
    """A text read both ways, to fill in what is masked (BERT)."""

    towers = ("encoder",)

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        super().__init__(config, rngs, rules)
        self.encoder = Tower(config, config.num_layers, rngs, rules, causal=False)
        self.mlm = MaskedHead(config, rngs, rules)
        if config.pooler:
            self.pooler = Pooler(config, rngs, rules)
            self.order = Order(config, rngs, rules)

    def enter(self, tower: str, batch: Batch, key: Array | None, before_BSD: Array | None) -> Stream:
        return Stream(self.embed(batch.tokens, self.places(tower, batch), site(key, 0), batch.token_types))

    def leave(self, x_BLD: Array, key: Array | None) -> Projection:
        return self.mlm(self.encoder.close(x_BLD), self.embedding)

    def __call__(self, batch: Batch, key: Array | None = None, show: bool = False) -> Output:
        """Logits of the token that stood in place of each of `batch.tokens`, and of the order of two sentences."""
        output, x_BLD = self.through(batch, key, show)
        if not self.config.pooler:
            return output
        pooled = self.pooler(self.encoder.close(x_BLD))
        return output._replace(pooled_BD=pooled, order_B2=self.order(pooled))


SHAPES: dict[str, type[Transformer]] = {"decoder": Decoder, "encoder_decoder": EncoderDecoder, "encoder": Encoder}
