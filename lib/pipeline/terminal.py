"""The terminal while a notebook runs: which section, how far, how long. It may go away: nothing fails for that."""

import contextlib
import io
import os
import sys
import threading
import time

from tqdm import tqdm


class _Lasting(io.FileIO):
    """A file descriptor that takes everything: /dev/null from the first write on that fails."""

    def write(self, data):
        try:
            return super().write(data) or len(data)
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())  # in place, so that what this process starts can write too
            return len(data)


def never_fail():
    """Let no print of this process fail: a closed terminal, `| head`, a full disk, a letter that the locale lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            lasting = io.BufferedWriter(_Lasting(stream.fileno(), "wb", closefd=False))
        except (AttributeError, OSError):  # closed before this process began
            setattr(sys, name, open(os.devnull, "w"))
            continue
        options = {"encoding": stream.encoding, "errors": "backslashreplace", "line_buffering": True}
        setattr(sys, name, io.TextIOWrapper(lasting, **options))


class Terminal:
    """A bar over a notebook's cells, with its section heading and training steps, redrawn twice a second.

    Where the output is no terminal, or Make runs several stages at once (JOBS), a line is printed for each section.
    folder: the stage's, whose .progress says how far a long cell is. quiet: says nothing, for ranks other than 0.
    """

    def __init__(self, folder, quiet=False):
        self.folder, self.quiet, self.heading, self.start = folder, quiet, "", time.time()
        shape = "  |{bar:20}| {elapsed}  {desc}"
        off = quiet or not sys.stdout.isatty() or os.environ.get("JOBS", "1") != "1"
        self.bar = tqdm(total=1, file=sys.stdout, disable=off, leave=False, dynamic_ncols=True, bar_format=shape)
        self._end = threading.Event()
        threading.Thread(target=self._redraw, daemon=True).start()

    def register(self):
        """Register a papermill engine that reports each cell here; returns its name."""
        from papermill.engines import NBClientEngine, papermill_engines

        terminal = self

        class Reporting(NBClientEngine):
            @classmethod
            def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
                begin = nb_man.cell_start

                def cell_start(cell, cell_index=None, **more):
                    terminal.at(nb_man.nb.cells, cell_index or 0)
                    return begin(cell, cell_index, **more)

                nb_man.cell_start = cell_start
                return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

        papermill_engines.register("medtune", Reporting)
        return "medtune"

    def at(self, cells, index):
        """Called when a cell starts; the heading is the last one above it."""
        lines = (line for c in cells[:index] if c.cell_type == "markdown" for line in c.source.split("\n"))
        headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
        before, self.heading = self.heading, (headings or [""])[-1]
        self.bar.n, self.bar.total = index, len(cells)
        if self.bar.disable and not self.quiet and self.heading != before:
            print(f"{self.folder.name:12} {time.time() - self.start:5.0f} s  {self.heading}", flush=True)

    def _redraw(self):
        while not self.bar.disable and not self._end.wait(0.5):
            step = ""
            with contextlib.suppress(OSError):
                step = (self.folder / ".progress").read_text()
            self.bar.set_description_str(f"{self.heading} {step}")

    def close(self):
        self._end.set()
        self.bar.close()
