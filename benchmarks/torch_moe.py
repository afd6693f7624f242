"""The same decoder with experts in plain PyTorch, eager: what `moe_step.py` measures against.

Each expert gathers its tokens by index, computes, and adds its weighted output back by index, one expert after the
other, as the well-known eager implementations do; experts nobody chose cost nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_decoder import MLP, Decoder, layer, put
from pathways_lm.config import ModelConfig


class Experts(nn.Module):
    """The mixture, with a capacity for each sequence or, with none, serving all."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        moe = config.moe
        self.config = moe
        self.router = nn.Linear(config.embed_dim, moe.num_experts, bias=False)
        F = moe.mlp_dim or config.mlp_dim
        self.experts = nn.ModuleList(MLP(config.embed_dim, F) for _ in range(moe.num_experts))
        self.balance: Tensor | None = None

    def forward(self, h_BLD: Tensor) -> Tensor:
        config = self.config
        # The router is fp32 whatever the experts are.
        with torch.autocast("cpu", enabled=False):
            probabilities_BLE = self.router(h_BLD.float()).softmax(-1)
        gates_BLK, experts_BLK = probabilities_BLE.topk(config.top_k)
        if config.renormalise:
            gates_BLK = gates_BLK / gates_BLK.sum(-1, keepdim=True)
        one_hot_BLKE = functional.one_hot(experts_BLK, config.num_experts)
        chosen_BE = one_hot_BLKE.sum(2).float().mean(1)
        self.balance = config.balance_loss * config.num_experts * (chosen_BE * probabilities_BLE.mean(1)).sum(-1).mean()
        x_TD, gates_TK, experts_TK = (part.flatten(0, 1) for part in (h_BLD, gates_BLK, experts_BLK))
        if config.dispatch != "dropless":
            kept_TK = self._kept(one_hot_BLKE).flatten(0, 1)
            experts_TK = experts_TK.masked_fill(~kept_TK, -1)
        y_TD = torch.zeros_like(x_TD)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(experts_TK == number)
            if len(token):
                served = expert(x_TD.index_select(0, token)) * gates_TK[token, choice, None]
                y_TD = y_TD.index_add(0, token, served.to(y_TD.dtype))
        return y_TD.view_as(h_BLD)

    def load(self, params: dict[str, Any]) -> None:
        """Copies one layer's router and experts."""
        put(self.router.weight, params["router"].T)
        for number, expert in enumerate(self.experts):
            expert.load({name: params[name][number] for name in ("gate", "up", "down")})

    def _kept(self, one_hot_BLKE: Tensor) -> Tensor:
        """First choices take places before second ones, in the order of the text."""
        B, L, K, E = one_hot_BLKE.shape
        places = max(int(L * self.config.capacity_factor / E), self.config.min_capacity)
        first = one_hot_BLKE.transpose(1, 2).reshape(B, K * L, E)
        before = (first.cumsum(1) - first).view(B, K, L, E).transpose(1, 2)
        return (before * one_hot_BLKE).sum(-1) < places


class MoEDecoder(Decoder):
    """Every so many blocks' feed-forward is a mixture."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        every = config.moe.every
        for index, block in enumerate(self.blocks):
            if index % every == every - 1:
                block.mlp = Experts(config)

    def balance(self) -> Tensor:
        """What the routers of the last forward pass add to the loss."""
        return sum(block.mlp.balance for block in self.blocks if isinstance(block.mlp, Experts))


def load_moe(model: MoEDecoder, params: dict[str, Any]) -> None:
    """Copies this project's parameters, stacked by the place in the repeating pattern, into the PyTorch model."""
    layers, every = params["decoder"]["blocks"]["layers"], model.config.moe.every
    put(model.table.weight, params["embedding"]["table"])
    put(model.norm.scale, params["decoder"]["norm"]["scale"])
    for index, block in enumerate(model.blocks):
        own = layer(layers[f"block_{index % every}"], index // every)
        block.load(own)
        if "moe" in own:
            block.mlp.load(own["moe"])
