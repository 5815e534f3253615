"""The HTML report of a run: a summary page and every executed notebook, in one folder that needs no network.

python -m lib.report.pages --recipe tiny --set "sft.learning_rate=1e-3"     writes outputs/<run>/report/index.html
python -m lib.report.pages publish                                          refreshes outputs/published/ and the README
"""

import base64
import hashlib
import sys

from markupsafe import Markup, escape

from lib.pipeline import recipe, records, terminal
from lib.pipeline.files import ROOT, outputs_dir, sha256_file, write_text
from lib.report import chapters, results

# A page runs its own script and no other, and loads nothing: its pictures are in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def main(argv=None):
    parser = recipe.parser(__doc__, prog="python -m lib.report.pages")
    parser.add_argument("action", nargs="?", default="build", choices=["build", "publish"])
    args = parser.parse_args(argv)
    try:
        cfg = recipe.chosen(args)
        if args.action == "build":
            build(outputs_dir() / cfg.run_name, cfg)
        else:
            from lib.report.publish import publish

            publish(outputs_dir() / cfg.run_name, cfg)
    except (ValueError, OSError) as error:
        print(f"{args.action:12} FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def build(folder, cfg=None, notebooks=None):
    """Write folder/report/: index.html and one page per executed notebook. Returns the path of index.html.

    folder, cfg and notebooks as in results.read_run. Raises ValueError when no stage has run.
    """
    out, root = folder / "report", notebooks.parent if notebooks else ROOT
    run = results.read_run(folder, cfg, notebooks)
    if all(result.record is None and result.notebook is None for result in run):
        raise ValueError(f"run {folder.name} has no stage to report on: make all{results.options(folder.name, cfg)}")
    pages = [{"file": "index.html", "title": "Summary", "state": "fresh"}]
    pages += [{"file": result.page, "title": result.title, "state": result.state} for result in run]
    for old in {path.name for path in out.glob("*.html")} - {page["file"] for page in pages}:
        (out / old).unlink()
    shown = [(r, chapters.to_html(chapters.relinked(r.notebook, root, out))) for r in run if r.notebook]
    written = [write_text(out / r.page, _chapter(folder.name, r, *parts, pages)) for r, parts in shown]
    manual = f"{chapters.from_folder(root, out)}/docs/serving.md"
    index = write_text(out / "index.html", _summary(folder.name, run, pages, cfg, manual))
    seals = {result.stage: result.record["seal"] for result in run if result.record}
    outputs = {path.name: sha256_file(path) for path in (*written, index)}
    about = {"run": folder.name, "stage": "report", "stages": seals, "outputs": outputs}
    records.write(out / records.REPORT, about)
    print(f"report       {index.relative_to(folder.parent.parent)}")
    return index


def render(template, **values):
    """A page of lib/report/templates, as text, in the style of all pages. values: what the template names."""
    import jinja2
    from pygments.formatters import HtmlFormatter

    values["css"] = (chapters.TEMPLATES / "style.css").read_text() + HtmlFormatter().get_style_defs(".highlight")
    values["script"] = script = (chapters.TEMPLATES / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values["policy"] = f"{POLICY}; script-src 'sha256-{digest}'"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(chapters.TEMPLATES), autoescape=True)
    return environment.get_template(template).render(values)


def link(file, text):
    """Escaped text as a link to file, or alone where file is None."""
    return Markup('<a href="{}">{}</a>').format(file, text) if file else escape(text)


def _chapter(run, result, body, heads, pages):
    """The page of one executed notebook. body, heads: of chapters.to_html."""
    notes = []
    if not result.same:
        notes.append("The notebook's code has changed since this run: this is the executed copy, with its own prose.")
    if result.state != "fresh":
        notes.append(f"This stage {_is(result.state)}: {result.why}.")
    stamp = f"{result.stage} of run {run}"
    if result.record:
        stamp += f", {results.clock(result.record['timings']['wall_s'])} on {results.hardware(result.record)}"
    linked = [page for page in pages if page["file"]]
    at = next(i for i, page in enumerate(linked) if page["file"] == result.page)
    turn = {"previous": linked[at - 1], "following": linked[at + 1] if at + 1 < len(linked) else None}
    values = {"run": run, "title": result.title, "here": result.page, "pages": pages, "foldable": True} | turn
    return render("page.html.j2", **values, heads=heads, notes=notes, stamp=stamp, body=body)


def _is(state):
    return {"failed": "failed", "stale": "is out of date", "missing": "is missing"}[state]


def _summary(run, stages, pages, cfg, manual):
    """The first page: results, main figures, times, machine, recipe, artifacts."""
    import yaml

    make = results.options(run, cfg)
    missing = [s for s in stages if s.state != "fresh"]
    notes = [f"{s.stage} {_is(s.state)}: {s.why}. To mend: make {s.stage}{make}" for s in missing]
    figures = []
    for stage in stages:
        if stage.notebook and stage.state != "failed":
            figures += [
                {**figure, "of": link(stage.page, stage.title)} for figure in chapters.headline_figures(stage.notebook)
            ]
    records = [s.record for s in stages if s.record]
    sections = {name: value for record in records for name, value in record["sections"].items()}
    artifacts = [(f"{r['stage']}/{name}", sha[:16]) for r in records for name, sha in sorted(r["outputs"].items())]
    headline = [{**row, "stage": link(row["page"], row["title"]), "value": Markup("<b>{}</b>").format(row["value"])}
                for row in results.headline(stages)]  # fmt: skip
    times = [{**row, "title": link(row.get("page"), row["title"])} for row in results.times(stages)]
    values = {"run": run, "title": "Summary", "here": "index.html", "pages": pages, "notes": notes, "figures": figures}
    return render(
        "summary.html.j2",
        **values,
        lead=f"{len(stages) - len(missing)} of {len(stages)} stages are finished and up to date.",
        command=f"make all{make}",
        serve=f"make serve{make}",
        manual=manual,
        headline=headline,
        times=times,
        facts=results.facts(stages),
        recipe=yaml.safe_dump(sections, sort_keys=False, width=100) if sections else "",
        artifacts=artifacts,
    )


if __name__ == "__main__":
    terminal.never_fail()
    sys.exit(main())
