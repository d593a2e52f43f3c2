"""Writes the README's table of methods from the registry: `python -m benchmarks.readme_tables`."""

from __future__ import annotations

import re
from pathlib import Path

from mergeconf.methods import all_methods

README = Path(__file__).parent.parent / "README.md"


def methods_table() -> str:
    """Return the table of methods in Markdown."""
    rows = ["| method | what it does | source |", "|---|---|---|"]
    for method in all_methods().values():
        source = method.source
        if source.startswith("arXiv:"):
            source = f"[{source}](https://arxiv.org/abs/{source.removeprefix('arXiv:')})"
        rows.append(f"| `{method.name}` | {method.summary} | {source} |")
    return "\n".join(rows)


def replace_section(text: str, name: str, content: str) -> str:
    """Return the text with what stands between a pair of markers replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


if __name__ == "__main__":
    README.write_text(replace_section(README.read_text(), "methods", methods_table()))
