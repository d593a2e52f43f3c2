"""Which models a measurement wants: the job that `make_models` carries out, and its options.

Without torch, so that `speed` can read the options and stay small itself.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.llama import LLAMA_SHAPES, tensor_shapes

FORMAT = 1
"""Raised when the same parameters would make other bytes, so that old models are made anew."""

BF16_BYTES = 2
"""Bytes of one element in the files."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to make; written to `made.json` when all of it is there."""

    size: str
    """Billions of parameters, a key of `LLAMA_SHAPES`."""
    fine_tunes: int
    """Fine-tunes beside the base."""
    unchanged: float
    """Share of a fine-tune's elements that equal the base in bfloat16, above 0 and below 1."""
    shard_bytes: int
    """Most bytes of tensors in one file, except that every file holds at least one tensor."""
    seed: int
    """Where all randomness comes from."""
    format: int = FORMAT
    """Version of the way of making."""


def model_names(fine_tunes: int) -> list[str]:
    """Return the names of the folders: the base first."""
    return ["base", *(f"ft{index}" for index in range(1, fine_tunes + 1))]


def already_made(job: Job, folder: Path) -> bool:
    """Tell whether `folder` holds the finished models of exactly this job."""
    try:
        found = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == asdict(job))


def parse_size(text: str) -> int:
    """Return bytes from `500MB`, `5GB` (powers of 1000) or `512MiB`, `1GiB` (powers of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: not a size such as 500MB or 1GiB")
    power = " KMG".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_share(text: str) -> float:
    """Return a share above 0 and below 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a share above 0 and below 1")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which models to make."""
    parser.add_argument(
        "--size", choices=list(LLAMA_SHAPES), default="0.1", help="billions of parameters"
    )
    parser.add_argument("--fine-tunes", type=int, default=3, help="number of fine-tunes (3)")
    parser.add_argument(
        "--unchanged",
        type=parse_share,
        default=0.12,
        help="share of elements equal to the base in bfloat16 (0.12)",
    )
    parser.add_argument(
        "--shard-size", type=parse_size, help="as 500MB; default a quarter of the model, up to 4GB"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")


def job_from(args: argparse.Namespace) -> Job:
    """Return the job that the options of `add_model_arguments` ask for."""
    shard_bytes = args.shard_size or min(model_bytes(args.size) // 4, 4 * 10**9)
    return Job(args.size, args.fine_tunes, args.unchanged, shard_bytes, args.seed)


def model_bytes(size: str) -> int:
    """Return the bytes of all tensors of one model."""
    return sum(math.prod(s) for s in tensor_shapes(LLAMA_SHAPES[size]).values()) * BF16_BYTES


def job_arguments(job: Job) -> list[str]:
    """Return the command line options that ask `make_models` for this job."""
    return [
        f"--size={job.size}",
        f"--fine-tunes={job.fine_tunes}",
        f"--unchanged={job.unchanged}",
        f"--shard-size={job.shard_bytes}",
        f"--seed={job.seed}",
    ]
