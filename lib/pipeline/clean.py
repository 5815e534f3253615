"""`python3 -m lib.pipeline.clean`: remove the outputs of RECIPE, all its SETs; nothing unless it names a recipe.

Standard library only: it also works where nothing is set up. Caches and .venv stay.
"""

import os
import shutil
import sys

from lib.pipeline.files import ROOT, outputs_dir


def runs(name):
    """Folders in outputs/ of the recipe's runs. Raises ValueError where params/ has no such name."""
    stem, at, overlay = name.partition("@")
    known = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if path.stem != "prices")
    overlays = [path.stem for path in (ROOT / "params" / "overlays").glob("*.yaml")]
    if stem not in known or (at and overlay not in overlays):
        raise ValueError(f"no recipe {name!r} in params/, nothing is removed; there is {', '.join(known)}")
    found = outputs_dir().iterdir() if outputs_dir().is_dir() else []
    return sorted(path for path in found if path.name == name or path.name.startswith(name + "+"))


def main():
    """Remove them, each with a line; returns the exit status."""
    try:
        for folder in runs(os.environ.get("RECIPE", "tiny")):
            shutil.rmtree(str(folder))
            print(f"clean        {folder}")
    except (ValueError, OSError) as error:
        print(f"clean        FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
