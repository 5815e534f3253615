"""`python -m lib.pipeline.launch 03_sft`: become the stage behind the words of LAUNCH, none of which a shell reads."""

import os
import shlex
import sys
from pathlib import Path


def command(launch, stage):
    """The words of LAUNCH, then the stage's own command; env, so that A=b may stand among them as in a shell.

    torchrun would take the program for a Python file. Raises ValueError for a quote that is not closed.
    """
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise ValueError(f"LAUNCH is {launch!r}: {error}") from None
    apart = ["--no-python"] if "torchrun" in launch else []
    return ["env", *words, *apart, sys.executable, "-m", "lib.execute", stage]


def main(stage):
    """Replace this process, whose signals then reach the stage. torchrun is the one beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.execvpe("env", command(os.environ.get("LAUNCH", ""), stage), os.environ | {"PATH": path})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
