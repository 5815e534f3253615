"""Which type of file is worth training for: python -m benchmarks.targets [--recipe tiny] [--schemes q2_k q3_k_m ...]

Chapters 4 and 5 run once for each type, in run folders of their own that begin with the recipe's finished chapters 1 to
3; a run's own type is taken from it. Every file is measured against the same control in 16 bits: the control rounded to
that type, the same with an importance matrix, the usual int4 training, and training on the type's own grid; with
--auto-round DIR, the folder of that package (see benchmarks.autoround), also as AutoRound rounds the control. Of the
default run table, figure and whether a trained file serves as well as the rounded one of the next larger
type go into docs/quantization.md.
"""

import itertools
import shutil
import subprocess
import sys

from benchmarks import autoround, common
from lib.chat import encoding
from lib.evaluation import generate, metrics
from lib.export import gguf, release, serve
from lib.figures import ladder
from lib.figures.markup import interval
from lib.model import loading, saving
from lib.pipeline import files, recipe, records
from lib.pipeline.files import ROOT, between, outputs_dir, write_text
from lib.report import results
from lib.report.publish import DEFAULT

SCHEMES = ("q2_k", "q3_k_m", "q4_0", "q4_k_m")  # by size; MXFP4 is a type of experts, which the default twin has not
PAGE, PICTURE = ROOT / "docs" / "quantization.md", ROOT / "docs" / "targets.png"
BEGIN, END = "<!-- targets: begin -->", "<!-- targets: end -->"
WAYS = ("control", "control-imatrix", "int4", "qat")
NAMES = {
    "qat": "the file trained on {}",
    "auto-round": "AutoRound's file of {}",
    "control": "the control rounded to {}",
    "control-imatrix": "the one rounded with the matrix to {}",
}


def run(cfg, scheme):
    """The run folder of a type, chapter 5 finished; what has run already is not run again.

    Raises RuntimeError with the cause.
    """
    plain = outputs_dir() / cfg.run_name
    if cfg.qat and cfg.qat["scheme"] == scheme and (plain / "05_export" / "stage.json").exists():
        return plain
    settings = f"{results.settings(cfg.overrides)} qat.scheme={scheme} export.quantizations=[{scheme}] judge=null"
    folder = outputs_dir() / recipe.load(cfg.name, recipe.parse_set(settings)).run_name
    for stage in ("01_dataset", "02_baseline", "03_sft"):
        if not (folder / stage).exists() and (plain / stage / "stage.json").exists():
            shutil.copytree(plain / stage, folder / stage)
    for stage in ("01_dataset", "02_baseline", "03_sft", "04_qat", "05_export"):
        command = [sys.executable, "-m", "lib.execute", stage, "--recipe", cfg.name, "--set", settings.strip()]
        if subprocess.run(command).returncode:
            raise RuntimeError(f"{stage} of {folder.name} did not finish: its last lines above say why")
    return folder


def by_autoround(cfg, folder, scheme, packages, steps):
    """The row of the file that AutoRound makes of a run's control, measured as chapter 5 measures the others."""
    out = folder / "bench" / f"auto-round-{scheme}-{steps}.gguf"
    rows = {part: files.read_jsonl(folder / "01_dataset" / f"{part}.jsonl") for part in ("train", "test")}
    style, threads = (cfg.chat["format"], cfg.chat["date"]), cfg.run["threads"]
    tokenizer, checkpoint = loading.tokenizer(cfg), out.parent / "control"
    if not out.exists():
        model = loading.adapted(loading.base(cfg), folder / "04_qat" / "adapter_control")
        saving.merge(model, tokenizer, checkpoint)
        said = [encoding.messages(row, style[0]) for row in rows["train"][: autoround.ROWS]]
        texts = [encoding.render(messages, tokenizer, date=style[1]) for messages in said]
        autoround.file(packages, checkpoint, texts, scheme, out, threads, steps)
        shutil.rmtree(checkpoint)
    text, reference = folder / "05_export" / "held_out.txt", out.parent / "reference.bin"
    ctx = records.read(folder / "05_export" / "stage.json")["metrics"]["perplexity"][f"qat {scheme}"]["ctx"]
    gguf.perplexity(folder / "04_qat" / "gguf" / "control.gguf", text, ctx, threads, save=reference)
    read = gguf.perplexity(out, text, ctx, threads, against=reference)
    reference.unlink()
    questions = release.evenly(rows["test"], cfg.export["questions"])
    asked = [{"id": r["id"], "messages": encoding.messages(r, style[0], answer=False)} for r in questions]
    drawn = {name: cfg.chat[name] for name in ("temperature", "top_p")} | {"seed": cfg.run["seed"]}
    slots, most = cfg.export["slots"], cfg.chat["max_new_tokens"]
    with serve.running(out, slots, 2 * cfg.sft["max_length"], threads) as url:
        answers = generate.server(url, asked, most, slots=slots, extra_body={"top_k": 0, "min_p": 0.0}, **drawn)
    scored = metrics.summary(metrics.score(answers, questions, cfg.chat["format"], tokenizer))
    return row(f"auto-round {scheme}", out.stat().st_size / 2**20, read, scored["accuracy"])


def row(name, mib, read, accuracy):
    """A file's row: its divergence from the control in 16 bits, and its accuracy as served."""
    near = {"value": read["kld"], "stderr": read["kld_stderr"], "same_top": read["same_top"]}
    return {"name": name, "mib": mib, **near, "accuracy": accuracy}


def rows_of(scheme, told):
    """The files of one type: [{"name", "mib", "value", "stderr", "same_top", "accuracy"}], value in nats a token."""
    measured = told["metrics"]
    read, scored = measured["perplexity"], {own["name"]: own for own in measured["ladder"]}
    names = [f"{way} {scheme}" for way in WAYS if f"{way} {scheme}" in read]
    return [row(name, measured["sizes_mib"][name], read[name], scored[name]) for name in names]


def sentences(rows):
    """The differences that decide whether a type is worth training for: a trained file, or AutoRound's, beside the
    control rounded to the next larger type; then each trained file beside what costs no training on the same type.

    Intervals take the two standard errors, over the same tokens, as independent: too wide rather than too narrow.
    """
    known = {row["name"]: row for row in rows}
    trained = {row["name"].split()[1]: row["mib"] for row in rows if row["name"].startswith("qat ")}
    kinds = sorted(trained, key=trained.get)
    pairs = [(f"{way} {a}", f"control {b}") for a, b in itertools.pairwise(kinds) for way in ("qat", "auto-round")]
    pairs += [(f"qat {kind}", f"{way} {kind}") for kind in kinds for way in ("control-imatrix", "auto-round")]
    said = []
    for ours, theirs in [pair for pair in pairs if set(pair) <= set(known)]:
        one, other = known[ours], known[theirs]
        gap, error = one["value"] - other["value"], (one["stderr"] ** 2 + other["stderr"] ** 2) ** 0.5
        shown = {"value": gap, "low": gap - 1.96 * error, "high": gap + 1.96 * error}
        side = "is further away than" if gap > 0 else "is nearer than"
        side = "is not told apart from" if shown["low"] <= 0 <= shown["high"] else side
        first = _named(one)[0].upper() + _named(one)[1:]
        said.append(f"{first} {side} {_named(other)}: {interval(shown, 'nats a token')}.")
    return said


def _named(row):
    way, kind = row["name"].split()
    return f"{NAMES[way].format(kind)} ({row['mib']:.2f} MiB)"


def block(rows, origin):
    """Table and sentences as Markdown."""
    cells = []
    for own in rows:
        away = f"{own['value']:.5f} ± {own['stderr']:.5f}"
        cells.append({"file": own["name"], "MiB": f"{own['mib']:.2f}", "divergence (nats a token)": away,
                      "same likeliest token": f"{100 * own['same_top']:.1f} %",
                      "accuracy": interval(own["accuracy"])})  # fmt: skip
    told = "\n".join(f"- {sentence}" for sentence in sentences(rows))
    return f"{origin}\n\n![File size against divergence]({PICTURE.name})\n\n{common.table(cells)}\n\n{told}"


def page(text, rows, origin):
    """The page's text with figure, table and sentences between its marks. Raises ValueError without them."""
    return between(text, BEGIN, END, block(rows, origin), PAGE.name)


def main(argv=None):
    parser = recipe.parser(__doc__)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--auto-round", help="folder of the auto-round package: its files are measured too")
    parser.add_argument("--steps", type=int, default=autoround.STEPS, help="of AutoRound in each layer")
    args = parser.parse_args(argv)
    cfg, rows = recipe.chosen(args), []
    for scheme in args.schemes:
        folder = run(cfg, scheme)
        last = records.read(folder / "05_export" / "stage.json")
        rows += rows_of(scheme, last)
        rows += [by_autoround(cfg, folder, scheme, args.auto_round, args.steps)] if args.auto_round else []
    read = last["metrics"]["perplexity"][f"qat {args.schemes[-1]}"]
    origin = (
        f"Measured by `python -m benchmarks.targets` on {last['hardware']['cpu']}, one seed, {read['chunks']} chunks "
        f"of {read['ctx']} tokens: the held-out\nconversations as plain text, questions included. Divergence from the "
        f"control in 16 bits, ± one standard error; accuracy on {rows[0]['accuracy']['n']} questions, as served."
    )
    if cfg.run_name == DEFAULT:  # of other runs only the table is printed: the page is the default recipe's
        ladder.divergence(rows, "What each type costs, by the way to it").savefig(PICTURE, dpi=144)
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), rows, origin))
    print(block(rows, origin))


if __name__ == "__main__":
    main()
