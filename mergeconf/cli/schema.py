"""`mergeconf schema`: the recipe's JSON Schema."""

from __future__ import annotations

NAME = "schema"


def command() -> None:
    """Print the JSON Schema of recipes, for editors.

    With the YAML language server: `# yaml-language-server: $schema=mergeconf.schema.json` as the
    first line of a recipe.
    """
    import json

    from mergeconf.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
