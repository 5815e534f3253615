"""Which type of file is worth training for: python -m benchmarks.targets [--recipe tiny] [--schemes q2_k q3_k_m ...]

Chapters 4 and 5 run once for each type, in run folders of their own that begin with the recipe's finished chapters 1 to
3. Every file is measured against the same control in 16 bits: the control rounded to that type, the same with an
importance matrix, the usual int4 training, and training on the type's own grid. Table, figure and the sentence on
whether a trained file serves as well as the rounded one of the next larger type go into docs/quantization.md.
"""

import shutil
import subprocess
import sys

from benchmarks import common
from lib.figures import ladder
from lib.figures.markup import interval
from lib.pipeline import recipe, records
from lib.pipeline.files import ROOT, outputs_dir, write_text

SCHEMES = ("q2_k", "q3_k_m", "q4_0", "q4_k_m")  # by size; MXFP4 is a type of experts, which the default twin has not
PAGE, PICTURE = ROOT / "docs" / "quantization.md", ROOT / "docs" / "targets.png"
BEGIN, END = "<!-- targets: begin -->", "<!-- targets: end -->"
WAYS = ("control", "control-imatrix", "int4", "qat")


def run(name, scheme):
    """stage.json of chapter 5 for a type; what has run already is not run again. Raises RuntimeError with the cause."""
    settings = f"qat.scheme={scheme} export.quantizations=[{scheme}] judge=null"
    own = recipe.load(name)
    plain = outputs_dir() / own.run_name
    if own.qat and own.qat["scheme"] == scheme and (plain / "05_export" / "stage.json").exists():
        return records.read(plain / "05_export" / "stage.json")
    folder = outputs_dir() / recipe.load(name, recipe.parse_set(settings)).run_name
    for stage in ("01_dataset", "02_baseline", "03_sft"):
        if not (folder / stage).exists() and (plain / stage / "stage.json").exists():
            shutil.copytree(plain / stage, folder / stage)
    for stage in ("01_dataset", "02_baseline", "03_sft", "04_qat", "05_export"):
        command = [sys.executable, "-m", "lib.execute", stage, "--recipe", name, "--set", settings]
        if subprocess.run(command).returncode:
            raise RuntimeError(f"{stage} of {folder.name} did not finish: its last lines above say why")
    return records.read(folder / "05_export" / "stage.json")


def rows_of(scheme, told):
    """The files of one type: [{"name", "mib", "value", "stderr", "same_top", "accuracy"}], value in nats a token."""
    metrics, found = told["metrics"], []
    scored = {row["name"]: row for row in metrics["ladder"]}
    for name in [f"{way} {scheme}" for way in WAYS if f"{way} {scheme}" in metrics["perplexity"]]:
        read = metrics["perplexity"][name]
        size = {"name": name, "mib": metrics["sizes_mib"][name]}
        found.append(
            size
            | {"value": read["kld"], "stderr": read["kld_stderr"]}
            | {"same_top": read["same_top"], "accuracy": scored[name]}
        )
    return found


def sentences(rows):
    """Whether each trained file is as near as the control rounded to the next larger type, and the difference.

    Its interval takes the two standard errors, over the same tokens, as independent: too wide rather than too narrow.
    """
    known, said = {row["name"]: row for row in rows}, []
    sizes = sorted({row["name"].split()[1]: row["mib"] for row in rows}.items(), key=lambda item: item[1])
    for (small, _), (large, _) in zip(sizes, sizes[1:], strict=False):
        ours, theirs = known[f"qat {small}"], known[f"control {large}"]
        gap, error = ours["value"] - theirs["value"], (ours["stderr"] ** 2 + theirs["stderr"] ** 2) ** 0.5
        shown = {"value": gap, "low": gap - 1.96 * error, "high": gap + 1.96 * error}
        side = "is further away than" if gap > 0 else "is nearer than"
        side = "is not told apart from" if shown["low"] <= 0 <= shown["high"] else side
        files = [f"{large} ({theirs['mib']:.2f} MiB)", f"The file trained on {small} ({ours['mib']:.2f} MiB)"]
        said.append(f"{files[1]} {side} the control rounded to {files[0]}: {interval(shown, 'nats a token')}.")
    return said


def page(text, rows, origin):
    """The page's text with figure, table and sentences between its marks. Raises ValueError without them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{PAGE.name} needs {BEGIN} and {END} once each, in this order")
    cells = []
    for row in rows:
        away = f"{row['value']:.5f} ± {row['stderr']:.5f}"
        cells.append({"file": row["name"], "MiB": f"{row['mib']:.2f}", "divergence (nats a token)": away,
                      "same likeliest token": f"{100 * row['same_top']:.1f} %",
                      "accuracy": interval(row["accuracy"])})  # fmt: skip
    told = "\n".join(f"- {sentence}" for sentence in sentences(rows))
    block = f"{origin}\n\n![File size against divergence]({PICTURE.name})\n\n{common.table(cells)}\n\n{told}"
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def main(argv=None):
    parser = recipe.parser(__doc__)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    args = parser.parse_args(argv)
    told = {scheme: run(args.recipe, scheme) for scheme in args.schemes}
    rows = [row for scheme in args.schemes for row in rows_of(scheme, told[scheme])]
    last = told[args.schemes[-1]]
    read = last["metrics"]["perplexity"][f"qat {args.schemes[-1]}"]
    origin = (
        f"Measured by `python -m benchmarks.targets` on {last['hardware']['cpu']}, one seed, {read['chunks']} chunks "
        f"of {read['ctx']} tokens,\n± one standard error; accuracy on {rows[0]['accuracy']['n']} questions, as served."
    )
    figure = ladder.divergence(rows, "What each type costs, by the way to it")
    figure.savefig(PICTURE, dpi=144)
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), rows, origin))
    print("\n".join(sentences(rows)))


if __name__ == "__main__":
    main()
