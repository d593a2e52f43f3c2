"""Runs inside mergekit's environment: `mergekit-yaml` on the recipe of every folder in a folder.

    python worker.py FOLDER

`FOLDER/name/recipe.yaml` gives a checkpoint in `FOLDER/name/theirs`; where mergekit fails,
`FOLDER/name/error` holds the type and message of its exception instead. A recipe of several
documents goes to `mergekit-multi`, whose last merge has to be the one without a name.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mergekit.scripts.multimerge import main as mergekit_multi
from mergekit.scripts.run_yaml import main as mergekit_yaml

OPTIONS = ["--quiet", "--no-write-model-card", "--lora-merge-cache", "lora"]


def run(folder: Path) -> None:
    """Merge the recipe of every folder, with names of models relative to it."""
    for place in sorted(folder.iterdir()):
        os.chdir(place)
        several = re.search(r"^---", Path("recipe.yaml").read_text(), re.MULTILINE)
        try:
            if several:
                arguments = ["recipe.yaml", "--out-path", "theirs", "-I", "between", *OPTIONS]
                mergekit_multi.main(arguments, standalone_mode=False)
            else:
                mergekit_yaml.main(["recipe.yaml", "theirs", *OPTIONS], standalone_mode=False)
        except (Exception, SystemExit) as error:
            Path("error").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
