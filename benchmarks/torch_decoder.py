"""The same decoder in plain PyTorch, eager, as somebody would write it: what `train_step.py` measures against."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathways_lm.config import ModelConfig


class Norm(nn.Module):
    """Layer norm with a scale and no bias."""

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.scale.to(x.dtype), None, self.epsilon)


class Block(nn.Module):
    """PaLM's parallel block with multi-query attention through PyTorch's own fused kernel."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, N, H, F = config.embed_dim, config.num_heads, config.head_dim, config.mlp_dim
        self.heads = (N, H)
        self.norm = Norm(D, config.norm_epsilon)
        self.query = nn.Linear(D, N * H, bias=False)
        self.key = nn.Linear(D, H, bias=False)
        self.value = nn.Linear(D, H, bias=False)
        self.out = nn.Linear(N * H, D, bias=False)
        self.gate = nn.Linear(D, F, bias=False)
        self.up = nn.Linear(D, F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, L, _ = x.shape
        N, H = self.heads
        h = self.norm(x)
        q = rotate(self.query(h).view(B, L, N, H).transpose(1, 2), cos, sin)
        k = rotate(self.key(h).view(B, L, 1, H).transpose(1, 2), cos, sin)
        v = self.value(h).view(B, L, 1, H).transpose(1, 2)
        a = functional.scaled_dot_product_attention(q, k.expand(B, N, L, H), v.expand(B, N, L, H), is_causal=True)
        a = self.out(a.transpose(1, 2).reshape(B, L, N * H))
        return x + a + self.down(functional.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Tied embeddings, blocks, a last norm, logits scaled by 1/sqrt(D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.vocab_size, config.embed_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = Norm(config.embed_dim, config.norm_epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        config = self.config
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        angles = torch.arange(tokens.shape[1])[:, None] * config.rope_base**-half
        cos, sin = angles.cos(), angles.sin()
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return functional.linear(self.norm(x) * config.embed_dim**-0.5, self.table.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the halves of each head."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def load(model: Decoder, params: dict) -> None:
    """Copies this project's parameters into the PyTorch model, whose kernels are stored transposed."""
    layers = params["decoder"]["blocks"]["layers"]

    def put(target: nn.Parameter, value) -> None:
        target.data.copy_(torch.tensor(value))

    put(model.table.weight, params["embedding"]["table"])
    put(model.norm.scale, params["decoder"]["norm"]["scale"])
    for i, block in enumerate(model.blocks):
        D = model.config.embed_dim
        put(block.norm.scale, layers["norm"]["scale"][i])
        put(block.query.weight, layers["attention"]["query"][i].reshape(D, -1).T)
        put(block.key.weight, layers["attention"]["key"][i].reshape(D, -1).T)
        put(block.value.weight, layers["attention"]["value"][i].reshape(D, -1).T)
        put(block.out.weight, layers["attention"]["out"][i].reshape(-1, D).T)
        for name in ("gate", "up", "down"):
            put(getattr(block, name).weight, layers["mlp"][name][i].T)
