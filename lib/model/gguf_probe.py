"""Run llama.cpp's own conversion on folders of weights and keep the tensors that it would write: no tokenizer, no file.

A program of its own, started by layout.py: the converter's gguf package is of its own commit, and this process has
another one.
"""

import os
import sys
from pathlib import Path

import numpy as np


def converted(folder, converter):
    """{tensor name in the file: float32 array} of a transformers checkpoint folder. converter: the package."""
    hparams = converter.ModelBase.load_hparams(folder, False)
    kind = converter.get_model_class(converter.get_model_architecture(hparams, converter.ModelType.TEXT))
    kind.generate_extra_tensors = lambda model: ()  # rotary factors, computed from the configuration
    model = kind(folder, 0, folder / "none.gguf", eager=True)  # 0: all in float32
    model.prepare_tensors()
    return {name: np.asarray(info.tensor) for part in model.gguf_writer.tensors for name, info in part.items()}


def main(script, out, *folders):
    """Convert each folder and write its tensors to out/0.npz, out/1.npz, ... script: convert_hf_to_gguf.py."""
    home = Path(script).parent
    sys.path[:0] = [str(home), str(home / "gguf-py")]
    os.environ["NO_LOCAL_GGUF"] = "1"
    sys.modules["sklearn"] = None  # transformers would load it, in two seconds
    import conversion as converter

    for number, folder in enumerate(folders):
        np.savez(Path(out, f"{number}.npz"), **converted(Path(folder), converter))


if __name__ == "__main__":
    main(*sys.argv[1:])
