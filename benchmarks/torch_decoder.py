"""The same decoder in plain PyTorch, eager, as somebody would write it: what `train_step.py` measures against."""

from typing import Any

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


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, D: int, F: int):
        super().__init__()
        self.gate = nn.Linear(D, F, bias=False)
        self.up = nn.Linear(D, F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))

    def load(self, params: dict[str, Any]) -> None:
        """Copies one layer's kernels, which are stored transposed here."""
        for name in ("gate", "up", "down"):
            put(getattr(self, name).weight, params[name].T)


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
        self.mlp: nn.Module = MLP(D, F)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, L, _ = x.shape
        N, H = self.heads
        h = self.norm(x)
        q = rotate(self.query(h).view(B, L, N, H).transpose(1, 2), cos, sin)
        k = rotate(self.key(h).view(B, L, 1, H).transpose(1, 2), cos, sin)
        v = self.value(h).view(B, L, 1, H).transpose(1, 2)
        a = functional.scaled_dot_product_attention(q, k.expand(B, N, L, H), v.expand(B, N, L, H), is_causal=True)
        a = self.out(a.transpose(1, 2).reshape(B, L, N * H))
        return x + a + self.mlp(h)

    def load(self, params: dict[str, Any]) -> None:
        """Copies one layer's norm and attention, and its MLP where it has one."""
        D = params["norm"]["scale"].shape[0]
        put(self.norm.scale, params["norm"]["scale"])
        for name in ("query", "key", "value"):
            put(getattr(self, name).weight, params["attention"][name].reshape(D, -1).T)
        put(self.out.weight, params["attention"]["out"].reshape(-1, D).T)
        if "mlp" in params:
            self.mlp.load(params["mlp"])


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
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=tokens.device) / config.head_dim
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * config.rope_base**-half
        cos, sin = angles.cos(), angles.sin()
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return functional.linear(self.norm(x) * config.embed_dim**-0.5, self.table.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the halves of each head."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def put(target: nn.Parameter, value: Any) -> None:
    """Copies an array into a parameter."""
    target.data.copy_(torch.tensor(value))


def load(model: Decoder, params: dict[str, Any]) -> None:
    """Copies this project's parameters into the PyTorch model, whose kernels are stored transposed."""
    put(model.table.weight, params["embedding"]["table"])
    put(model.norm.scale, params["decoder"]["norm"]["scale"])
    for index, block in enumerate(model.blocks):
        block.load(layer(params["decoder"]["blocks"]["layers"], index))


def layer(stacked: dict[str, Any], index: int) -> dict[str, Any]:
    """One layer of parameters that are stacked."""
    return {name: layer(of, index) if isinstance(of, dict) else of[index] for name, of in stacked.items()}
