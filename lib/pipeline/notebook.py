"""A stage's notebook run by papermill: what it leaves when it ends well, when a cell fails, and when it is killed."""

import os
import secrets
import signal
import sys
import tempfile
import time

from lib.pipeline import ranks, records, run
from lib.pipeline.files import ROOT, cache_dir, read_json, remove, sha256_file, sha256_text
from lib.pipeline.terminal import Terminal

ERROR_MARK = "medtune-error"
FULL_SAYS = (
    "No space left",
    "File too large",
    "quota exceeded",
    "file write failed",
    "os error 28",
    "os error 27",
    "iostream error",
    " requested and ",
)  # fmt: skip  (the last is numpy's: "9 requested and 3 written")
FULL = (
    "the disk is full (that of the outputs, or of TMPDIR), or a limit on file sizes is reached: free space, then run "
    "again; whole checkpoints are resumed"
)


def execute(stage, cfg, folder):
    """Run a stage's notebook in its folder. Returns a process exit status: 0 only when stage.json stands."""
    import nbformat
    from papermill.exceptions import PapermillExecutionError

    os.environ.update(
        MEDTUNE_STAGE_NONCE=secrets.token_hex(8),
        JUPYTER_PREFER_ENV_PATH="1",
        OMP_NUM_THREADS=str(cfg.run["threads"]),
        TQDM_DISABLE="1",
        PYTHONHASHSEED="0",  # sets are saved in one order, in adapter_config.json for example
    )
    own = "" if ranks.leads() else f".rank{ranks.rank()}"
    keys = cache_dir() / "kernels" / sha256_text(f"{folder}{own}")[:16]  # the kernel's address and key lie there
    remove(keys)  # left by a run that was killed
    keys.mkdir(parents=True, mode=0o700)
    tempfile.tempdir = str(keys)  # where jupyter_client writes them, in this process alone
    executed, error, started = folder / f"{stage}{own}.ipynb", "", time.time()
    terminal, failed = Terminal(folder, quiet=bool(own)), "FAILED"
    _listen(folder)
    try:
        _papermill(stage, cfg, executed, terminal.register())
    except PapermillExecutionError as failure:
        error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
        failed = "STOPPED" if failure.ename == "Stopped" else failed
    except KeyboardInterrupt:
        error = "interrupted"
    except Exception as failure:  # a dead kernel, a full disk: whatever papermill raises, the stage has failed
        error = f"{type(failure).__name__}: {failure}"
    finally:
        terminal.close()
        run.kernel(folder).unlink(missing_ok=True)  # its process id may soon be another's
        tempfile.tempdir = None
        remove(keys)
    error = error or _incomplete(folder, nbformat.read(executed, as_version=4))
    if error:
        run.pending(folder).unlink(missing_ok=True)
        _mark(executed, error)
        error += f"\n  {FULL}" if any(said in error for said in FULL_SAYS) else ""
        return fail(stage + own, f"{error}\n  the notebook up to there: {executed}", failed)
    if own:
        run.pending(folder).unlink()
        return 0
    _leave_out(executed, cfg)
    _promote(folder, executed)
    print(f"{stage:12} done in {time.time() - started:.0f} s", flush=True)
    return 0


def _papermill(stage, cfg, executed, engine):
    """Execute the notebook as the recipe says; `executed` grows cell by cell."""
    import papermill

    papermill.execute_notebook(
        ROOT / "notebooks" / f"{stage}.ipynb",
        executed,
        {"recipe": cfg.name, "overrides": cfg.overrides},
        progress_bar=False,
        kernel_name="python3",
        cwd=ROOT / "notebooks",
        engine_name=engine,
        start_timeout=600,  # seconds: several kernels at once, on a busy machine or a network disk
        extra_arguments=["--log-level=CRITICAL"],  # it advises on encryption, and tells that it was asked to end
    )


def _leave_out(executed, cfg):
    """Take the prose about a section of the recipe that is null, tagged "needs qat" for example, out of a notebook."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    missing = {f"needs {name}" for name, values in cfg.sections().items() if values is None}
    notebook.cells = [cell for cell in notebook.cells if not missing & set(cell.metadata.get("tags", []))]
    nbformat.write(notebook, executed)


def _promote(folder, executed):
    """Turn the pending record into stage.json, the last act of a stage, with the executed notebook's hash in it."""
    record = read_json(folder / "stage.pending.json") | {"executed": sha256_file(executed)}
    del record["nonce"]
    records.write(folder / "stage.json", record)
    (folder / "stage.pending.json").unlink()


def _incomplete(folder, notebook):
    """Why an executed notebook does not count as finished, or "".

    papermill marks the cells after a killed kernel as completed and takes sys.exit(0) for success: trust neither.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    unrun = [cell for cell in code if cell.execution_count is None or cell.metadata.papermill.status != "completed"]
    pending = run.pending(folder)
    if not pending.exists():
        return "the kernel ended before its last cell, stage.finish(): killed, out of memory, or sys.exit() in a cell"
    if unrun:
        return f"{len(unrun)} of {len(code)} cells did not run"
    if read_json(pending)["nonce"] != os.environ["MEDTUNE_STAGE_NONCE"]:
        return "stage.pending.json is another run's"
    return ""


def _mark(executed, error):
    """Put the error at the top of the kept notebook, where papermill has not done so itself."""
    import nbformat

    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, ValueError):  # none was written, or half of one on a full disk
        return
    if not any("papermill-error" in str(cell.metadata.get("tags", "")) for cell in notebook.cells):
        text = f"**This run failed.** {error}"
        cell = nbformat.v4.new_markdown_cell(text, metadata={"tags": [ERROR_MARK], "papermill": {}})
        notebook.cells.insert(0, cell)
        nbformat.write(notebook, executed)


def _listen(folder):
    """From now on pass what asks this process to stop on to the kernel; what it was started to ignore, it ignores."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: _stop(folder))


def _stop(folder):
    """Ask the kernel, by SIGTERM, to save what it trains and to end; before there is one, interrupt."""
    try:
        os.kill(int(run.kernel(folder).read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        raise KeyboardInterrupt from None


def fail(stage, message, failed="FAILED"):
    """Print one problem of a stage; returns exit status 1."""
    print(f"{stage:12} {failed}: {message}\n", end="", file=sys.stderr, flush=True)  # in one piece beside other ranks'
    return 1
