"""The model of the benchmark in PyTorch: the architecture of `jaxlm.model` in the words of torch, nothing left out or added.

Pre-norm RMSNorm, rotary positions (halves), SwiGLU, the head tied to the embedding, AdamW with decay on the same leaves and
clipping by the global norm. Attention is `scaled_dot_product_attention`, causal: the fused kernel of the device.

Axes: B batch, T position, D model, N head, H head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from jaxlm.config.schema import ModelConfig, OptimConfig


def rotated(x_BNTH: torch.Tensor, cos_TH: torch.Tensor, sin_TH: torch.Tensor) -> torch.Tensor:
    """Rotary positions, component j paired with j + H/2."""
    a, b = x_BNTH.chunk(2, -1)
    return torch.cat([a * cos_TH - b * sin_TH, b * cos_TH + a * sin_TH], -1)


class Layer(nn.Module):
    """One block."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width = cfg.n_heads * cfg.head_width
        self.heads, self.head_width = cfg.n_heads, cfg.head_width
        self.attn_norm, self.mlp_norm = (nn.RMSNorm(cfg.d_model, eps=cfg.norm_eps) for _ in range(2))
        self.qkv, self.out = nn.Linear(cfg.d_model, 3 * width, bias=False), nn.Linear(width, cfg.d_model, bias=False)
        self.gate, self.up = (nn.Linear(cfg.d_model, cfg.ff_width, bias=False) for _ in range(2))
        self.down = nn.Linear(cfg.ff_width, cfg.d_model, bias=False)

    def forward(self, x_BTD: torch.Tensor, cos_TH: torch.Tensor, sin_TH: torch.Tensor) -> torch.Tensor:
        """Activations to activations of the same shape."""
        B, T, _ = x_BTD.shape
        parts = self.qkv(self.attn_norm(x_BTD)).view(B, T, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        q, k = rotated(q, cos_TH, sin_TH), rotated(k, cos_TH, sin_TH)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(out.transpose(1, 2).reshape(B, T, -1))
        h_BTD = self.mlp_norm(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(h_BTD)) * self.up(h_BTD))


class Model(nn.Module):
    """Ids and labels to the mean loss in nats."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.embed = nn.Embedding(cfg.padded_vocab, cfg.d_model)
        nn.init.normal_(self.embed.weight, std=cfg.init_std)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.n_layers))
        self.final_norm = nn.RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        frequencies = cfg.rope_theta ** (-torch.arange(0, cfg.head_width, 2).float() / cfg.head_width)
        angles = torch.arange(cfg.context_length).float()[:, None] * frequencies[None, :]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, float32."""
        x = self.embed(tokens)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.final_norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class Trainer:
    """A model, its optimizer and a step. compiled: through torch.compile. bfloat16 is autocast, weights stay float32."""

    def __init__(self, cfg: ModelConfig, optim: OptimConfig, *, precision: str, compiled: bool, device: str):
        torch.manual_seed(0)
        self.device, self.precision, self.clip = device, precision, optim.clip_norm
        self.model = Model(cfg).to(device)
        self.function = torch.compile(self.model) if compiled else self.model
        named = list(self.model.named_parameters())
        whole = [p for name, p in named if "norm" in name or "embed" in name]
        groups = [
            {
                "params": [p for name, p in named if "norm" not in name and "embed" not in name],
                "weight_decay": optim.weight_decay,
            },
            {"params": whole, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True)

    def step(self, tokens: Any, labels: Any) -> torch.Tensor:
        """One update on a batch of NumPy ids; the loss, not waited for."""
        ids, wanted = (torch.from_numpy(x).long().to(self.device) for x in (tokens, labels))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.function(ids, wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
