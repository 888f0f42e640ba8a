"""An encoder and a ResNet-50 of random weights in plain torch, for timing static batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from calibrate.device.case import encoder_widths, resnet50_convolutions
from catalogs.schema import Model

Tensor = torch.Tensor


class Encoder(torch.nn.Module):
    """A BERT-like encoder (post-norm, GELU) of a model's shape."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

        def weights(n: int, k: int) -> Tensor:
            return torch.randn(n, k, device=device, dtype=dtype).mul_(k**-0.5)

        self.embed = weights(model.vocab_size, model.hidden_size)
        self.layers_weights = [[weights(n, k) for n, k in encoder_widths(model)] for _ in range(model.num_layers)]
        self.ones = torch.ones(model.hidden_size, device=device, dtype=dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(batch, tokens) ids to (batch, tokens, hidden)."""
        model, width = self.model, (self.model.hidden_size,)
        batch, tokens = token_ids.shape
        x = F.embedding(token_ids, self.embed)
        for qkv, out, up, down in self.layers_weights:
            q, k, v = F.linear(x, qkv).view(batch, tokens, 3, model.num_attention_heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
            x = F.layer_norm(x + F.linear(attended, out), width, self.ones, self.ones)
            x = F.layer_norm(x + F.linear(F.gelu(F.linear(x, up)), down), width, self.ones, self.ones)
        return x


class ResNet50(torch.nn.Module):
    """ResNet-50 v1.5 for inference: batch norms folded into the convolutions, channels last."""

    def __init__(self, image_size: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.strides: list[int] = []
        self.kernels: list[Tensor] = []
        self.biases: list[Tensor] = []
        for _, cin, cout, kernel, stride in resnet50_convolutions(image_size):
            weight = torch.randn(cout, cin, kernel, kernel, device=device, dtype=dtype) * (cin * kernel**2) ** -0.5
            self.kernels.append(weight.to(memory_format=torch.channels_last))
            self.biases.append(torch.zeros(cout, device=device, dtype=dtype))
            self.strides.append(stride)
        self.classify = torch.randn(1000, 2048, device=device, dtype=dtype) * 0.02

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, size, size) to (batch, 1000) logits."""
        x = F.max_pool2d(F.relu(self._conv(0, images)), 3, 2, 1)
        at = 1
        for blocks in (3, 4, 6, 3):
            for block in range(blocks):
                shortcut = self._conv(at + 3, x) if block == 0 else x
                y = F.relu(self._conv(at, x))
                y = F.relu(self._conv(at + 1, y))
                x = F.relu(self._conv(at + 2, y) + shortcut)
                at += 4 if block == 0 else 3
        return F.linear(x.mean((2, 3)), self.classify)

    def _conv(self, index: int, x: Tensor) -> Tensor:
        weight = self.kernels[index]
        return F.conv2d(x, weight, self.biases[index], stride=self.strides[index], padding=weight.shape[-1] // 2)
