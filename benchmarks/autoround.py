"""AutoRound, an opponent of training on the grid that costs no more than minutes: what benchmarks.targets calls.

It learns, layer by layer, which way to round each weight so that the layer's output on calibration texts changes least
(Cheng et al. 2024, arXiv 2309.05516), and writes GGUF files itself. It is no package of this project; for a measurement
it lies in a folder of its own (INSTALL), with which this module is run as a program.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lib.model import gguf_convert
from lib.pipeline import programs
from lib.pipeline.files import ROOT, write_text

INSTALL = "pip install --no-deps --target {} auto-round==0.16.1 py-cpuinfo==9.0.0"
SCHEMES = {"q2_k": "q2_k_s"}  # AutoRound's mixture of types, where it has not llama.cpp's; the size shows what it is
TOKENS, ROWS, BATCH = 128, 64, 8  # of a calibration text, of all texts, of a step
STEPS = 200  # of its learning in each layer, its own default


def file(packages, checkpoint, texts, scheme, out, threads=1, steps=STEPS):
    """Round a checkpoint's 16-bit weights with AutoRound and write them as a GGUF file; returns out.

    packages: folder of the package. texts: rendered conversations of the train split, never of the test.
    Raises FileNotFoundError where the folder has no such package, RuntimeError with the program's last lines where it
    fails.
    """
    if not Path(packages, "auto_round").is_dir():
        raise FileNotFoundError(f"{packages} has no auto_round in it: {INSTALL.format(packages)}")
    home = programs.toolchain().converter.parent
    path = [str(ROOT), str(home / "gguf-py"), str(packages)]
    own = {"PYTHONPATH": os.pathsep.join(path), "LLAMA_CPP_ROOT": str(home), "OMP_NUM_THREADS": str(threads)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:  # beside it: a file is not moved from disk to disk
        calibration, written = Path(scratch, "texts.json"), Path(scratch, "gguf")
        write_text(calibration, json.dumps(texts))
        command = [sys.executable, "-m", "benchmarks.autoround", checkpoint, calibration, scheme, written, steps]
        done = subprocess.run(list(map(str, command)), env=os.environ | own, capture_output=True, text=True, cwd=ROOT)
        files = sorted(written.rglob("*.gguf"))
        if done.returncode or len(files) != 1:
            raise RuntimeError(f"AutoRound wrote {len(files)} files of {scheme}:\n{done.stderr[-2000:]}")
        return Path(files[0]).replace(out)


def chunks(texts, tokenizer):
    """Calibration rows of equal length: the texts' tokens one after the other, cut; a list of (TOKENS,) int64."""
    import torch

    ids = torch.cat([tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0] for text in texts])
    rows = ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)[:ROWS]
    if len(rows) < BATCH:
        raise ValueError(f"{len(ids)} tokens of calibration texts make {len(rows)} rows of {TOKENS}; give {BATCH} rows")
    return list(rows)


def main(checkpoint, calibration, scheme, out, steps):
    """As a program, with the package on the path."""
    import torch
    from auto_round import AutoRound
    from auto_round.export.export_to_gguf import llama_cpp_conversion as conversion
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    importing = conversion._import_conversion_from  # of llama.cpp's converter, afresh: it knows no twin's tokenizer

    def with_twins(*where):
        found = importing(*where)
        model = sys.modules["conversion.base"].TextModel
        stock = model.get_vocab_base_pre

        def name(self, tokenizer):
            try:
                return stock(self, tokenizer)
            except NotImplementedError:
                return gguf_convert.pre_tokenizer_name(Path(checkpoint, "tokenizer.json"))

        model.get_vocab_base_pre = name
        return found

    conversion._import_conversion_from = with_twins
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
    texts = json.loads(Path(calibration).read_text(encoding="utf-8"))
    rows = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in chunks(texts, tokenizer)],
                      batch_size=BATCH)  # fmt: skip
    kind = f"gguf:{SCHEMES.get(scheme, scheme)}"
    settings = {"iters": int(steps), "nsamples": ROWS, "seqlen": TOKENS, "batch_size": BATCH, "device_map": "cpu"}
    AutoRound(model, tokenizer, scheme=kind, dataset=rows, **settings).quantize_and_save(out, format=kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
