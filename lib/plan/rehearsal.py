"""What a rehearsal changes of its recipe, and what it cannot show: `python -m lib.plan.rehearsal --recipe qwen3_8b`."""

import sys

import pandas as pd

from lib.pipeline import architectures, recipe

OVERLAY = "rehearsal"
COLUMNS = ("key", "recipe", "rehearsal")
ALIAS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}  # GPT-2's names


def name(stem):
    """The name under which a recipe's rehearsal loads, runs and is reported."""
    return stem if stem.endswith(f"@{OVERLAY}") else f"{stem}@{OVERLAY}"


def differences(real, other):
    """Rows {"key", "recipe", "rehearsal"} of all values in which two recipes differ, and of the sizes of base and twin,
    by the base's own names."""
    ours, theirs = ({f"{section}.{key}": value for section, values in side.sections().items()
                     for key, value in (values or {}).items()} for side in (real, other))  # fmt: skip
    base, twin = ours.pop("model.twin") or architectures.published(ours["model.base"]), theirs.pop("model.twin")
    sizes = {key: twin.get(ALIAS.get(key, key)) for key in base}
    ours |= {key: value for key, value in base.items() if sizes[key] is not None}
    theirs |= {key: value for key, value in sizes.items() if value is not None}
    pairs = [(key, ours.get(key), theirs.get(key)) for key in ours | theirs]
    return [dict(zip(COLUMNS, (key, str(a), str(b)), strict=True)) for key, a, b in pairs if a != b]


def main(argv=None):
    args = recipe.parser(__doc__, prog="python -m lib.plan.rehearsal").parse_args(argv)
    args.recipe = args.recipe and name(args.recipe)
    try:
        other = recipe.chosen(args)
        real = recipe.load(args.recipe.removesuffix(f"@{OVERLAY}"))
    except ValueError as error:
        print(f"rehearsal    FAILED: {error}", file=sys.stderr)
        return 1
    print(f"{other.run_name}: all chapters on a twin of {real.sections(['model'])['model']['base']}.")
    rows = pd.DataFrame(differences(real, other), columns=COLUMNS)
    print("What differs:", rows.to_markdown(index=False, tablefmt="plain", disable_numparse=True), sep="\n")
    print("What it cannot show:", *(f"  - {text}" for text in other.cautions), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
