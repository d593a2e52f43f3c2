"""A small UNet with diffusers' names, to be run without diffusers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHANNELS = (8, 16)
TIME, TEXT, GROUPS = 16, 12, 4
CONFIG = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.35.0", "in_channels": 4,
    "out_channels": 4, "block_out_channels": list(CHANNELS), "layers_per_block": 1,
    "cross_attention_dim": TEXT, "norm_num_groups": GROUPS, "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


class Resnet(nn.Module):
    """Two convolutions with the time between them, and a shortcut."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.time_emb_proj = nn.Linear(TIME, outer)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outer), nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class CrossAttention(nn.Module):
    """Attention of pixels to the text."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(other, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the values that each pixel looks at."""
        scores = self.to_q(x) @ self.to_k(other).transpose(1, 2) / math.sqrt(x.shape[-1])
        return self.to_out[0](scores.softmax(-1) @ self.to_v(other))


class Attentions(nn.Module):
    """One transformer block over the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 1)
        block = nn.Module()
        block.norm1, block.attn1 = nn.LayerNorm(width), CrossAttention(width, width)
        block.norm2, block.attn2 = nn.LayerNorm(width), CrossAttention(width, TEXT)
        block.norm3, block.ff = nn.LayerNorm(width), nn.Module()
        gate = nn.Module()
        gate.proj = nn.Linear(width, 2 * width)
        block.ff.net = nn.ModuleList([gate, nn.Dropout(0.0), nn.Linear(width, width)])
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the pixels, changed by the text."""
        hidden = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        (block,) = self.transformer_blocks
        normed = block.norm1(hidden)
        hidden = hidden + block.attn1(normed, normed)
        hidden = hidden + block.attn2(block.norm2(hidden), text)
        values, gate = block.ff.net[0].proj(block.norm3(hidden)).chunk(2, -1)
        hidden = hidden + block.ff.net[2](values * functional.gelu(gate))
        return x + self.proj_out(hidden.transpose(1, 2).reshape(x.shape))


def _block(resnets: list[Resnet], attentions: list[Attentions], **sampler: nn.Conv2d) -> nn.Module:
    block = nn.Module()
    block.resnets, block.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
    for name, convolution in sampler.items():
        inner = nn.Module()
        inner.conv = convolution
        setattr(block, name, nn.ModuleList([inner]))
    return block


class UNet(nn.Module):
    """Down, through the middle and up again."""

    def __init__(self) -> None:
        super().__init__()
        low, high = CHANNELS
        self.conv_in = nn.Conv2d(4, low, 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(low, TIME)
        self.time_embedding.linear_2 = nn.Linear(TIME, TIME)
        down = nn.Conv2d(low, low, 3, stride=2, padding=1)
        up = nn.Conv2d(high, high, 3, padding=1)
        self.down_blocks = nn.ModuleList([
            _block([Resnet(low, low)], [Attentions(low)], downsamplers=down),
            _block([Resnet(low, high)], []),
        ])  # fmt: skip
        self.mid_block = _block([Resnet(high, high), Resnet(high, high)], [Attentions(high)])
        self.up_blocks = nn.ModuleList([
            _block([Resnet(high + high, high)], [], upsamplers=up),
            _block([Resnet(high + low, low)], [Attentions(low)]),
        ])  # fmt: skip
        self.conv_norm_out = nn.GroupNorm(GROUPS, low)
        self.conv_out = nn.Conv2d(low, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the noise in a picture."""
        steps = torch.arange(CHANNELS[0], dtype=x.dtype)
        time = self.time_embedding.linear_1(torch.sin(time[:, None] / 10**steps))
        time = self.time_embedding.linear_2(functional.silu(time))
        first, second = self.down_blocks
        top = first.attentions[0](first.resnets[0](self.conv_in(x), time), text)
        low = second.resnets[0](first.downsamplers[0].conv(top), time)
        mid = self.mid_block.attentions[0](self.mid_block.resnets[0](low, time), text)
        mid = self.mid_block.resnets[1](mid, time)
        first, second = self.up_blocks
        up = first.resnets[0](torch.cat([mid, low], 1), time)
        up = first.upsamplers[0].conv(functional.interpolate(up, scale_factor=2.0))
        up = second.attentions[0](second.resnets[0](torch.cat([up, top], 1), time), text)
        return self.conv_out(functional.silu(self.conv_norm_out(up)))


def new_unet(variant: int) -> UNet:
    """Return a UNet with random weights, others for each variant."""
    torch.manual_seed(variant)
    return UNet().eval()


def write_unet(model: UNet, folder: Path, dtype: torch.dtype) -> Path:
    """Write a UNet as diffusers does."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def run(state: dict[str, Any]) -> torch.Tensor:
    """Return what a UNet with these weights, and all of them, gives for a fixed input."""
    model = UNet().eval()
    model.load_state_dict({name: value.float() for name, value in state.items()})
    generator = torch.Generator().manual_seed(5)
    picture = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 3, TEXT, generator=generator)
    with torch.no_grad():
        return model(picture, torch.tensor([3.0, 40.0]), text)
