"""Make checkpoints to measure with: a base and fine-tunes of it, Llama shapes, bfloat16.

`python -m benchmarks.make_models --size 1.1 --fine-tunes 3 FOLDER` writes `FOLDER/base` and
`FOLDER/ft1` ... in seconds, tile by tile, so that memory does not grow with the size. Nothing is
trained: weights are normal numbers of a usual scale, and a fine-tune is the base plus independent
normal updates, so small that bfloat16 swallows a chosen share of them, as it does in real
supervised fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO

import torch

from benchmarks.llama import LLAMA_SHAPES, LlamaShape, config_json, tensor_shapes
from benchmarks.model_job import (
    BF16_BYTES,
    Job,
    add_model_arguments,
    already_made,
    job_from,
    model_names,
)

TILE = 1 << 18
"""Elements made at a time: small enough that a tile's buffers stay in the cache."""

POOL = 1 << 21
"""Normal numbers in each of the two blocks that all noise is made of."""


class Noise:
    """Normal numbers at the price of one addition.

    The sum of two blocks of normal numbers, each read from a place drawn anew for every tile: two
    tiles share neither their values nor their order, and the sum is normal again.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._blocks = [
            torch.randn(POOL, generator=generator).mul_(math.sqrt(0.5)) for _ in range(2)
        ]

    def fill(self, out: torch.Tensor, places: random.Random) -> torch.Tensor:
        """Fill `out` (1-d float32, at most `TILE` elements) with numbers of variance 1."""
        count = out.numel()
        first, second = (
            block.narrow(0, places.randrange(POOL - TILE), count) for block in self._blocks
        )
        return torch.add(first, second, out=out)


def tensor_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of the base's elements: gains around 1, matrices by fan-in."""
    if len(shape) == 1:
        return 1.0, 0.1
    if "embed_tokens" in name:
        return 0.0, 0.02
    return 0.0, 0.6 / math.sqrt(shape[1])


def update_scale(mean: float, std: float, unchanged: float, noise: Noise, seed: int) -> float:
    """Return the standard deviation of updates of which bfloat16 swallows the share `unchanged`.

    Found by bisection on one tile of weights of the given mean and standard deviation.
    """
    places = random.Random(f"{seed}/scale/{mean}/{std}")
    base = (noise.fill(torch.empty(TILE), places) * std + mean).bfloat16()
    wide, update = base.float(), noise.fill(torch.empty(TILE), places)
    low, high = -40.0, 10.0  # powers of two, relative to `std`
    for _ in range(30):
        middle = (low + high) / 2
        tuned = torch.add(wide, update, alpha=std * 2.0**middle).bfloat16()
        if int((tuned == base).sum()) > unchanged * TILE:
            low = middle
        else:
            high = middle
    return float(std * 2.0**low)


def split_shards(
    shapes: dict[str, tuple[int, ...]], shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Share the tensors out to files in their order, at most `shard_bytes` of tensors in each."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * BF16_BYTES
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def header_bytes(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return a safetensors file's length field and header for bfloat16 tensors in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_names(count: int) -> list[str]:
    """Return the usual file names of `count` shards; a single one is `model.safetensors`."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def write_config(
    folder: Path, shape: LlamaShape, shards: Sequence[dict[str, tuple[int, ...]]]
) -> None:
    """Write config.json, generation_config.json and, for several shards, the index."""
    texts: dict[str, dict[str, object]] = {
        "config.json": config_json(shape),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }
    if len(shards) > 1:
        names = shard_names(len(shards))
        total = sum(math.prod(s) * BF16_BYTES for shard in shards for s in shard.values())
        texts["model.safetensors.index.json"] = {
            "metadata": {"total_size": total},
            "weight_map": {
                tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard
            },
        }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class Maker:
    """Makes one tensor of the base and all fine-tunes at a time, tile by tile."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.noise = Noise(job.seed)
        self.scales: dict[tuple[float, float], float] = {}
        self.elements = 0
        """Elements of fine-tunes written."""
        self.equal = 0
        """Of these, elements that equal the base."""

    def update_scale(self, mean: float, std: float) -> float:
        """Return the scale of the updates for tensors of this mean and standard deviation."""
        key = (mean, std)
        if key not in self.scales:
            job = self.job
            self.scales[key] = update_scale(mean, std, job.unchanged, self.noise, job.seed)
        return self.scales[key]

    def write_tensor(
        self, name: str, shape: tuple[int, ...], base: IO[bytes], tuned: Sequence[IO[bytes]]
    ) -> None:
        """Append the tensor to the base's file and to each fine-tune's."""
        mean, std = tensor_scale(name, shape)
        update = self.update_scale(mean, std)
        places = [random.Random(f"{self.job.seed}/{name}/{i}") for i in range(len(tuned) + 1)]
        for count in tile_counts(math.prod(shape)):
            buffer = torch.empty(count)
            stored = self.noise.fill(buffer, places[0]).mul_(std).add_(mean).bfloat16()
            base.write(raw(stored))
            wide = stored.float()
            for file, place in zip(tuned, places[1:], strict=True):
                moved = torch.add(wide, self.noise.fill(buffer, place), alpha=update).bfloat16()
                self.elements += count
                self.equal += int(torch.count_nonzero(moved == stored))
                file.write(raw(moved))


def tile_counts(elements: int) -> Iterator[int]:
    """Yield the sizes of a tensor's tiles, in elements."""
    for start in range(0, elements, TILE):
        yield min(TILE, elements - start)


def raw(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous bfloat16 tensor's bytes, without a copy."""
    return tensor.view(torch.int16).numpy().data.cast("B")


def make_models(job: Job, folder: Path) -> float:
    """Write the models of `job` into `folder`; return the share of unchanged elements met."""
    shape = LLAMA_SHAPES[job.size]
    shards = split_shards(tensor_shapes(shape), job.shard_bytes)
    models = [folder / name for name in model_names(job.fine_tunes)]
    (folder / "made.json").unlink(missing_ok=True)
    for model in models:
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir(parents=True)
        write_config(model, shape, shards)
    maker = Maker(job)
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with ExitStack() as stack:
            files = [stack.enter_context((model / file_name).open("wb")) for model in models]
            for file in files:
                file.write(header_bytes(shard))
            for name, tensor_shape in shard.items():
                maker.write_tensor(name, tensor_shape, files[0], files[1:])
    made = json.dumps(asdict(job), indent=2) + "\n"
    (folder / "made.json").write_text(made, encoding="utf-8")
    return maker.equal / max(maker.elements, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the models that the command line asks for, unless they are there already."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_models", description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--force", action="store_true", help="make them even if they are there")
    parser.add_argument("folder", type=Path, help="where the models go")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # tiles are too small for more, and threads wait on a busy machine
    job = job_from(args)
    if not args.force and already_made(job, args.folder):
        print(f"{args.folder}: already made")
        return 0
    start = time.perf_counter()
    share = make_models(job, args.folder)
    print(
        f"{args.folder}: base and {job.fine_tunes} fine-tunes of {job.size} B parameters, "
        f"{share:.1%} of elements unchanged, {time.perf_counter() - start:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
