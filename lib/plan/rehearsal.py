"""What a rehearsal changes of its recipe, and what it cannot show: `python -m lib.plan.rehearsal --recipe qwen3_8b`."""

import sys

import pandas as pd

from lib.pipeline import architectures, recipe

OVERLAY = "rehearsal"
COLUMNS = ("key", "recipe", "rehearsal")


def name(stem):
    """The name under which a recipe's rehearsal loads, runs and is reported."""
    return stem if stem.endswith(f"@{OVERLAY}") else f"{stem}@{OVERLAY}"


def differences(real, other):
    """Rows {"key", "recipe", "rehearsal"} of all values in which two recipes' sections differ, twin sizes apart."""
    rows = []
    for section, values in real.sections().items():
        theirs = other.sections([section])[section]
        for key in sorted(set(values or {}) | set(theirs or {})):
            pair = [side.get(key) if side else None for side in (values, theirs)]
            if pair[0] != pair[1] and key != "twin":
                rows.append(dict(zip(COLUMNS, (f"{section}.{key}", *map(str, pair)), strict=True)))
    return rows


def sizes(real, other):
    """Rows as in `differences` of the base's sizes and the twin's, by the base's own names."""
    twin, base = other.sections(["model"])["model"]["twin"], real.sections(["model"])["model"]["base"]
    shape = twin if base == "twin" else architectures.published(base)
    alias = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    pairs = [(key, value, twin.get(alias.get(key, key))) for key, value in shape.items()]
    return [dict(zip(COLUMNS, (key, str(a), str(b)), strict=True)) for key, a, b in pairs if b is not None and a != b]


def main(argv=None):
    args = recipe.parser(__doc__, prog="python -m lib.plan.rehearsal").parse_args(argv)
    args.recipe = args.recipe and name(args.recipe)
    try:
        other = recipe.chosen(args)
        real = recipe.load(args.recipe.removesuffix(f"@{OVERLAY}"))
    except ValueError as error:
        print(f"rehearsal    FAILED: {error}", file=sys.stderr)
        return 1
    print(f"{other.run_name}: all six chapters on a twin of {real.sections(['model'])['model']['base']}.")
    rows = pd.DataFrame(differences(real, other) + sizes(real, other), columns=COLUMNS)
    print("What differs:", rows.to_markdown(index=False, tablefmt="plain", disable_numparse=True), sep="\n")
    print("What it cannot show:", *(f"  - {text}" for text in other.cautions), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
