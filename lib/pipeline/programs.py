"""Where the programs of the pinned llama.cpp lie, once `make setup` has built them."""

from dataclasses import dataclass
from pathlib import Path

from lib.pipeline import toolchain as build


@dataclass(frozen=True)
class Toolchain:
    """Paths inside the built llama.cpp."""

    home: Path
    quantize: Path
    perplexity: Path
    server: Path
    imatrix: Path  # collects the importance matrix that PTQ is given at its best
    ggml_base: Path  # shared library with ggml_quantize_chunk, the reference for every quantized type
    converter: Path
    lora_converter: Path


def toolchain():
    """Find llama.cpp in the cache folder. Raises FileNotFoundError naming the command that builds it."""
    home = build.folder()
    if not home.is_dir():
        raise FileNotFoundError(
            f"llama.cpp is not built for this pin and machine ({home} is missing): run `make setup`"
        )
    library = next(home / name for name in ("libggml-base.so", "libggml-base.dylib") if (home / name).exists())
    programs = [home / name for name in build.PROGRAMS]
    return Toolchain(home, *programs, library, home / "convert_hf_to_gguf.py", home / "convert_lora_to_gguf.py")
