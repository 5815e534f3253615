"""The terminal while a notebook runs: which stage, which section, how far, how long."""

import os
import sys
import threading
import time


class Terminal:
    """One line on the terminal: the stage, a bar over its cells, the time, the section heading, training steps.

    On a terminal the line is redrawn every second; elsewhere one line is printed for each section of the notebook.
    quiet: says nothing, for ranks other than 0.
    """

    def __init__(self, stage, folder, quiet=False):
        self.stage, self.folder, self.start = stage, folder, time.time()
        self.cell, self.cells, self.heading = 0, 1, ""
        self.quiet, self.live = quiet, sys.stdout.isatty() and not quiet
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

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
        self.cell, self.cells = index, len(cells)
        if not self.live and not self.quiet and self.heading != before:
            print(f"  {time.time() - self.start:5.0f} s  {self.heading}", flush=True)

    def _redraw(self):
        while self.live and not self._end.wait(0.5):
            try:
                step = (self.folder / ".progress").read_text()
            except OSError:
                step = ""
            full = round(20 * self.cell / self.cells)
            minutes, seconds = divmod(int(time.time() - self.start), 60)
            line = f"  [{'#' * full}{'.' * (20 - full)}] {minutes:02d}:{seconds:02d}  {self.heading} {step}"
            print(f"\r\x1b[2K{line[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def close(self):
        self._end.set()
        self._thread.join()
        if self.live:
            print("\r\x1b[2K", end="", flush=True)
