"""Score the quickstart's models and merges: ``python -m benchmarks.score_quickstart``.

Run it from the root of the repository. A merge that is not there yet is left out, with a line that
says how to make it.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.data_order import score
from benchmarks.data_order.settings import Settings

MODELS = Path("recipes/models")
MERGES = (Path("merged/quickstart"), Path("merged/average"))
MEAN = "mean of the fine-tunes"


def main() -> None:
    """Prints one table of base, fine-tunes and merges."""
    parser = argparse.ArgumentParser(description="Score the quickstart's models and merges.")
    parser.add_argument(
        "merges", type=Path, nargs="*", default=MERGES, help="default: merged/quickstart, average"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several threads only get in each other's way in so small a model
    started = time.perf_counter()
    items = score.held_out(Settings(), arguments.split)
    tuned = sorted(MODELS.glob("order-*"))
    scores = {
        folder.name: score.score_folder(folder, items) for folder in (MODELS / "base", *tuned)
    }
    scores[MEAN] = score.mean_score(scores[folder.name] for folder in tuned)
    for folder in arguments.merges:
        if (folder / "config.json").is_file():
            scores[str(folder)] = score.score_folder(folder, items)
        else:
            print(f"{folder}: not there; make it: mergeconf run recipes/{folder.name}.yaml")
    print(score.table(scores, reference=scores[MEAN]))
    print(
        f"\n{len(items)} held-out items, 95 % confidence intervals over items; differences are "
        f"item by item\nfrom the {MEAN}. {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
