"""One recipe on a rented GPU of Modal, from the root: `modal run params/launch/modal_run.py --recipe qwen3_8b`.

What it writes stays in a volume: `modal volume get medtune outputs outputs`. Its secret "huggingface" holds HF_TOKEN.
"""

import os
import subprocess

import modal

app = modal.App("medtune")
image = modal.Image.from_dockerfile("Dockerfile.gpu", add_python="3.11")  # for Modal itself; ours is the system's
keep = modal.Volume.from_name("medtune", create_if_missing=True)
PLACES = {"OUTPUTS": "/keep/outputs", "XDG_CACHE_HOME": "/keep/cache", "HF_HOME": "/keep/huggingface"}


@app.function(
    image=image.add_local_dir("data", "/medtune/data"),  # with your own data/mine*, which the image leaves out
    gpu="A100-80GB",
    timeout=24 * 3600,  # Modal's longest; started again, the run goes on where it was
    volumes={"/keep": keep},
    secrets=[modal.Secret.from_name("huggingface")],
)
def run(recipe):
    """All chapters of a recipe, those left out that an earlier run has finished."""
    command = ["make", "all", f"RECIPE={recipe}", "PYTHON3=/usr/bin/python3"]
    subprocess.run(command, cwd="/medtune", env=os.environ | PLACES, check=True)


@app.local_entrypoint()
def main(recipe: str = "qwen3_8b"):
    run.remote(recipe)
