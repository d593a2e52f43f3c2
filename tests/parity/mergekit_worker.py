"""Runs inside mergekit's environment: `mergekit-yaml` on every recipe of a folder, in one process.

    python mergekit_worker.py FOLDER

`FOLDER/name.yaml` gives a checkpoint in `FOLDER/name`; where mergekit fails, `FOLDER/name.error`
holds the type and message of its exception instead. The command's own entry point is called, so a
merge is what the command does; only the start-up is shared.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from mergekit.scripts.run_yaml import main as mergekit_yaml


def run(folder: Path) -> None:
    """Merge every recipe of a folder."""
    (folder / "version").write_text(version("mergekit"))
    for recipe in sorted(folder.glob("*.yaml")):
        arguments = [str(recipe), str(recipe.with_suffix("")), "--quiet", "--no-copy-tokenizer"]
        try:
            mergekit_yaml.main(arguments, standalone_mode=False)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            recipe.with_suffix(".error").write_text(message)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
