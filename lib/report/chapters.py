"""Executed notebooks as chapters of the report: newest prose, recorded outputs, HTML, and a copy fit for publishing."""

import copy
import getpass
import html
import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from lib.pipeline import credentials
from lib.pipeline.files import ROOT, cache_dir

TEMPLATES = Path(__file__).with_name("templates")
ERROR_TAGS = {"papermill-error-cell-tag", "medtune-error"}  # papermill's own, and lib.execute's
WIDGET = "application/vnd.jupyter.widget-view+json"
TAGS = set(
    "a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li ol p pre s small span "
    "strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
ATTRIBUTES = {"class", "id", "align", "title", "style", "colspan", "rowspan", "open", "alt", "width", "height", "start"}
STYLES = ["text-align", "color", "background-color", "line-height", "overflow-wrap"]
LINK, PICTURE = r"#|https?://|mailto:|(\.{0,2}/)*[\w.-]+([/#?]|$)", r"data:image/(png|jpeg|gif|webp);base64,"
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png"}  # what a published output may be
PROCESS_NAMES = {"root", "user", "runner", "ubuntu", "jovyan", "localhost"}  # ordinary words: they identify nobody


def tags(cell):
    """The set of a cell's tags."""
    return set(cell.metadata.get("tags", []))


def title(notebook, default):
    """The first heading of a notebook, without its marks, or `default`."""
    found = (re.search(r"^# (.+)$", c.source, re.M) for c in notebook.cells if c.cell_type == "markdown")
    return next((match[1].strip() for match in found if match), default)


def merge(source, executed):
    """Today's prose around recorded outputs, so that an edit of prose needs no new run.

    source: the notebook in notebooks/; executed: its executed copy, maybe with injected parameters and error marks.
    Returns (notebook, True), or (executed as it is, False) where their code cells differ.
    """
    own = [c for c in executed.cells if c.cell_type == "code" and "injected-parameters" not in tags(c)]
    written = [c for c in source.cells if c.cell_type == "code"]
    if [_code(c) for c in own] != [_code(c) for c in written]:
        return _cleaned(executed), False
    kept = {c.get("id") for c in executed.cells}  # without what lib.execute took out, as the recipe has no such section
    prose = [c for c in source.cells if c.get("id") in kept or not any(tag.startswith("needs ") for tag in tags(c))]
    cells, marks = [], []
    for cell in executed.cells:
        if tags(cell) & ERROR_TAGS:
            (marks if cells else prose).insert(0, cell)  # above the cell that failed, or above everything
        elif "injected-parameters" in tags(cell):
            cells += [cell] if _statements(cell) - _statements(cells[-1]) else []
        elif cell.cell_type == "code":
            while prose[0].cell_type != "code":
                cells.append(prose.pop(0))
            ran = copy.deepcopy(cell)
            ran.metadata["tags"] = sorted(tags(prose.pop(0)))
            cells, marks = [*cells, *marks, ran], []
    return _cleaned({**executed, "cells": cells + prose}), True


def _code(cell):
    """What has to agree between source and executed copy: the code, but for the values of the parameters."""
    return "parameters" if "parameters" in tags(cell) else cell.source.strip()


def _statements(cell):
    """The assignments of a parameters cell, whatever its comments and quotes."""
    lines = (re.sub(r"\s*#.*", "", line).replace("'", '"').strip() for line in cell.source.splitlines())
    return {line for line in lines if line}


def _cleaned(notebook):
    """A copy without widgets and scripts, which only a live kernel can show."""
    import nbformat

    notebook = nbformat.from_dict(copy.deepcopy(dict(notebook)))
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            live = {WIDGET, "application/javascript"}
            cell.outputs = [out for out in cell.outputs if not live & set(out.get("data", {}))]
    return notebook


def relinked(notebook, root, here):
    """A copy whose links, which a chapter writes for notebooks/, lead to the files of `root` from the folder `here`."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<=\]\()\.\./", lambda _: from_folder(root, here) + "/", cell.source)
    return notebook


def from_folder(root, here):
    """The relative address of `root` in a page of the folder `here`."""
    return quote(Path(os.path.relpath(root, here)).as_posix())


def headline_figures(notebook):
    """PNG outputs of the cells tagged "headline": [{"png": base64 text, "alt": str, "width": pixels or None}]."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []) if "headline" in tags(cell) else []:
            if "image/png" in output.get("data", {}):
                shown = output.metadata.get("image/png", {})
                png = "".join(output.data["image/png"].split())
                found.append({"png": png, "alt": shown.get("alt") or "", "width": shown.get("width")})
    return found


def error_of(notebook):
    """The error that ended a notebook, as "ValueError: message", or None."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}".splitlines()[0]
    marks = (c.source for c in notebook.cells if "medtune-error" in tags(c))
    return next((re.sub(r"[*]{2}[^*]*[*]{2}\s*", "", mark) for mark in marks), None)


def to_html(notebook):
    """(HTML of the notebook's cells without page around it, [(id, plain text)] of its second-level headings)."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="chapter", extra_template_basedirs=[str(TEMPLATES)])
    exporter.anchor_link_text = "#"
    exporter.exclude_output_prompt = True
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # a remote picture (the Colab badge) would need the network: show its text
            cell.source = re.sub(r"!\[([^\]]*)\]\(https?://[^)]*\)", r"\1", cell.source)
            cell.source = re.sub(r"(\]\(\d\d_\w+)\.ipynb", r"\1.html", cell.source)
    body = sanitized(exporter.from_notebook_node(notebook)[0])
    heads = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body, re.S)
    return body, [(anchor, html.unescape(re.sub(r"<[^>]+>", "", text)).strip()) for anchor, text in heads]


def sanitized(page):
    """HTML without whatever could run or reach elsewhere: only TAGS stay, other tags are shown as text."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    styles = CSSSanitizer(allowed_css_properties=STYLES)
    return bleach.clean(page, TAGS, _allowed, protocols=["http", "https", "mailto", "data"], css_sanitizer=styles)


def _allowed(tag, name, value):
    """Whether an attribute may stay: nothing that runs, links without a scheme of their own, pictures in the page."""
    if name in ("href", "src"):
        return bool(re.match(PICTURE if name == "src" else LINK, value)) and tag == ("img" if name == "src" else "a")
    return name in ATTRIBUTES


def scrub(notebook):
    """A copy fit for publishing: without papermill's metadata, paths of this machine, its name or its user's.

    Raises ValueError naming the cell when something that looks like a home or temporary folder is left.
    """
    notebook = _cleaned(notebook)
    for holder in (notebook, *notebook.cells):
        for key in ("papermill", "execution"):
            holder.metadata.pop(key, None)
    notebook.metadata.pop("language_info", None)
    for number, cell in enumerate(notebook.cells, 1):
        cell.source = _anonymous(cell.source, f"cell {number}")
        for output in cell.get("outputs", []):
            _scrub_output(output, f"the output of cell {number}")
    return notebook


def _scrub_output(output, where):
    for field in ("text", "evalue"):
        if field in output:
            output[field] = _anonymous(output[field], where)
    if "traceback" in output:
        output["traceback"] = [_anonymous(line, where) for line in output["traceback"]]
    for mime, data in list(output.get("data", {}).items()):
        if mime not in SHOWN:
            del output["data"][mime]
        elif isinstance(data, str) and not mime.startswith("image/"):  # base64 may spell anything
            data = sanitized(data) if mime == "text/html" else data
            data = re.sub("<(?=[A-Za-z/!?])", "&lt;", data) if mime == "text/markdown" else data
            output["data"][mime] = _anonymous(data, where)


def _user():
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id that the system has no name for
        return ""


def _anonymous(text, where):
    """`text` with known folders, names and keys replaced. Raises ValueError on a folder that is not known."""
    places = {str(ROOT): ".", sys.prefix: "<python>", sys.base_prefix: "<python>", str(cache_dir()): "~/.cache/medtune"}
    places |= {os.path.expanduser("~"): "~", tempfile.gettempdir(): "<tmp>"}
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 2:
            text = re.sub(re.escape(place) + r"(?![\w-])", lambda _, to=places[place]: to, text)
    for name in {_user(), socket.gethostname()} - PROCESS_NAMES:
        if len(name) > 3:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text)
    text = credentials.scrub(text)
    left = re.search(r"(?<![\w.:/<])/(home|Users|root|tmp|mnt|private)/[\w./-]+", text)
    if left:
        raise ValueError(
            f"{where} shows the absolute path {left[0]}: print a path relative to the run's folder instead"
        )
    return text
