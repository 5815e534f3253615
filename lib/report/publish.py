"""The published copy of a run: executed notebooks that GitHub renders, and the results in README and docs."""

import base64
import re
import textwrap

import pandas as pd

from lib.figures.markup import plain
from lib.pipeline import credentials, recipe
from lib.pipeline.files import ROOT, between, write_text
from lib.report import chapters, results

DEFAULT = "tiny"  # the recipe whose results stand in the README
LIMIT_MIB = 4
ROWS = 6  # of the README's results
WANTED = ("naive", "best form", "sft accuracy", "not sent on: sft", "minus ptq", "qat q")  # words of their labels
START, END = "<!-- results:start -->", "<!-- results:end -->"


def publish(folder, cfg=None, root=ROOT):
    """Rewrite outputs/published/ and the results in README.md (six rows) and docs/results.md (all, and the figures).

    A recipe other than the default one has outputs/published/<recipe>/ and docs/results-<recipe>.md, without README;
    there, stages that have not run are left out and named. Of a recipe with an overlay (a hyphen in place of the @)
    the stages are left out that read none of the sections which the overlay changes.
    folder: outputs/<run>. root: the repository that holds notebooks/, outputs/published/, README.md and docs/.
    Raises ValueError, before anything is written, when a stage is not finished and up to date, when the copies exceed
    LIMIT_MIB, when one shows a path of this machine or a key of .env, or when a page has no results block.
    """
    run, files, figures = results.read_run(folder, cfg, root / "notebooks"), {}, []
    own, left_out, target = cfg.name.replace("@", "-") if cfg else DEFAULT, [], root / "outputs" / "published"
    if own != DEFAULT:
        target /= own
        left_out = [result.stage for result in run if result.state == "missing"]
        run = [result for result in run if result.state != "missing" and not _same_without_overlay(result, cfg)]
    for result in run:
        if result.state != "fresh" or result.notebook is None:
            why = result.why or "it ran in JupyterLab, which leaves no executed notebook"
            remedy = f"make {result.stage}{results.options(folder.name, cfg)}"
            raise ValueError(f"cannot publish {folder.name}: {result.stage}: {why}. Run {remedy} first")
        files[f"{result.stage}.ipynb"], pictures = _copy(result, root, target)
        for number, figure in enumerate(pictures, 1):
            name = f"{result.stage}-{number}.png"
            files[name] = base64.b64decode(figure["png"])
            figures.append((name, figure["alt"]))
    mib = _checked_size(files)
    command = f"make all{results.options(folder.name, cfg)}"
    said = _origin(run, command) + (f" Not run: {', '.join(left_out)}." if left_out else "")
    full = results_block(run, figures, said).replace("](outputs/", "](../outputs/")
    blocks = {"README.md": front_block(results.headline(run), said), "docs/results.md": full}
    if own != DEFAULT:
        blocks = {f"docs/results-{own}.md": full.replace("/published/", f"/published/{own}/")}
    pages = {
        name: between((root / name).read_text(encoding="utf-8"), START, END, text, name)
        for name, text in blocks.items()
    }
    for name, text in (pages | {n: content.decode() for n, content in files.items() if n.endswith(".ipynb")}).items():
        credentials.check(text, name)
    target.mkdir(parents=True, exist_ok=True)
    for old in [path for path in target.iterdir() if path.is_file()]:  # folders are other recipes'
        old.unlink()
    for name, content in files.items():
        (target / name).write_bytes(content)
    for name, text in pages.items():
        write_text(root / name, text)
    print(f"publish      {folder.name}: {len(run)} notebooks, {mib:.2f} MiB, {', '.join(pages)}")
    return target


def _same_without_overlay(result, cfg):
    """Whether a finished stage read no section of the recipe that its overlay changes."""
    plain_name, at, _ = cfg.name.partition("@")
    if not at or not result.record:
        return False
    with_overlay, without = (recipe.load(name).sections() for name in (cfg.name, plain_name))
    return all(with_overlay[section] == without[section] for section in result.record["sections"])


def _copy(result, root, target):
    """(bytes of the scrubbed notebook as it stands in the folder `target`, its headline figures)."""
    import nbformat

    try:
        clean = chapters.scrub(chapters.relinked(result.notebook, root, target))
    except ValueError as error:
        raise ValueError(f"cannot publish {result.stage}: {error}") from error
    return (nbformat.writes(clean) + "\n").encode(), chapters.headline_figures(clean)


def _checked_size(files):
    """The size of all files in MiB. Raises ValueError above LIMIT_MIB."""
    total = sum(map(len, files.values())) / 2**20
    if total > LIMIT_MIB:
        largest = sorted(files, key=lambda name: -len(files[name]))[:3]
        sizes = ", ".join(f"{name} ({len(files[name]) / 2**20:.1f})" for name in largest)
        raise ValueError(f"the published files take {total:.1f} MiB, allowed are {LIMIT_MIB}: shrink {sizes}")
    return total


def results_block(run, figures, origin):
    """Markdown of the measured results: where they come from, the headline table, the headline figures.

    run: list of results.Result. figures: [(file in outputs/published/, alternative text)].
    """
    rows = [row | {"shown": row["title"]} for row in results.headline(run)]
    lines = [origin, "", _table(rows, "Stage", "Measure")]
    for name, alt in figures:
        lines += ["", f"![{plain(alt)}](outputs/published/{name})"]
    return "\n".join(lines)


def front_block(headline, origin):
    """Markdown of the README's six rows and, below them, where they come from, in lines of at most 120 characters."""
    rows = [row | {"shown": str(int(row["stage"][:2]))} for row in front_rows(headline)]
    wrapped = textwrap.wrap(origin, 118, break_on_hyphens=False)
    table = re.sub(r"0\.0*\d{4,}", lambda number: f"{float(number[0]):.3g}", _table(rows, "Chapter", "Measured"))
    return "\n".join([table, "", *wrapped])


def front_rows(headline):
    """At most ROWS of results.headline: those with the wanted words, filled up with others, in their own order."""
    picked = []
    for word in WANTED:
        found = [i for i, row in enumerate(headline) if word in row["label"].lower() and i not in picked]
        picked += found[:1]
    others = [i for i in range(len(headline)) if i not in picked]
    return [headline[i] for i in sorted((picked + others)[:ROWS])]


def _table(rows, stage, measure):
    """Headline rows as Markdown, as long as its text: padding would double the file's lines. shown: the link's text."""
    columns = {"shown": stage, "label": measure, "value": "Value", "interval": "95 % interval", "n": "n"}
    frame = pd.DataFrame(rows, columns=["stage", *columns])
    links = "[" + frame["shown"].map(plain) + "](outputs/published/" + frame["stage"] + ".ipynb)"
    frame["shown"] = links.where(frame["shown"] != "", "")
    frame[["label", "value", "interval"]] = frame[["label", "value", "interval"]].map(plain)
    align = ["left", "left", "right", "right", "right"]
    table = frame[list(columns)].rename(columns=columns).to_markdown(index=False, disable_numparse=True, colalign=align)
    return re.sub("(?<= ) +|(?<=--)-+", "", table)


def _origin(run, command):
    """Where results come from: command, machine, time, code."""
    last = run[-1].record
    wall = results.clock(results.elapsed([result.record for result in run]))
    return (
        f"Measured by `{command}` on {results.hardware(last)}, in {wall} after set-up ({results.code(last)}, "
        f"Python {last['versions']['python']}); written by `make publish` from the run's stage.json files."
    )
