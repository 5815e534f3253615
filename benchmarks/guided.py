"""The same servers under GuideLLM's load (vLLM project, Apache-2.0), a tool that this project has no hand in.

It lies in a venv of its own: `python3 -m venv DIR && DIR/bin/pip install guidellm==0.8.1`; benchmarks.serving takes its
path as --guidellm. No tokenizer is loaded: tokens are counted by what each server reports.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.common import table

COLUMNS = ("first token, median", "first token, 95th", "added, median", "added, 95th", "tokens/s", "share", "failed")


def load(program, target, streams, questions, tokens):
    """One run: {"median", "p95": milliseconds to the first token, "tokens_s", "failed"}.

    target: (address, key, model, "" for the first it lists). questions: texts, each asked once.
    Raises RuntimeError with the tool's last lines.
    """
    url, key, model = target
    with tempfile.TemporaryDirectory() as scratch:
        asked, told = Path(scratch, "asked.jsonl"), Path(scratch, "told.json")
        asked.write_text("".join(json.dumps({"prompt": q, "output_tokens_count": tokens}) + "\n" for q in questions))
        about = [f"target={url}", "http2=false", f"api_key={key}", *([f"model={model}"] if model else [])]
        command = [program, "run", "--backend", ",".join(["kind=openai_http", *about]), "--disable-console"]
        command += ["--profile", f"kind=concurrent,streams={streams}", "--data", f"kind=json_file,path={asked}"]
        command += ["--constraint", f"kind=max_requests,count={len(questions)}", "--output", f"kind=json,path={told}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode or not told.exists():
            raise RuntimeError(f"{program} ended with status {done.returncode}:\n{done.stderr[-1500:]}")
        return read(json.loads(told.read_text()))


def read(report):
    """What a run's report says, as `load` returns it."""
    (run,) = report["benchmarks"]
    metrics, count = run["metrics"], run["metrics"]["request_totals"]
    first = metrics["time_to_first_token_ms"]["successful"]
    rate = metrics["output_tokens_per_second"]["successful"]["mean"]
    failed = count["total"] - count["successful"]
    return {"median": first["median"], "p95": first["percentiles"]["p95"], "tokens_s": rate, "failed": failed}


def compare(program, targets, question, how):
    """Print a table of all targets, each alone and with all streams; the first is what the others are compared with."""
    base, rows, alone, crowd = next(iter(targets)), [], {}, {}
    questions = [question.format(number % 50) for number in range(how.requests)]
    for name, target in targets.items():
        load(program, target, 2, questions[:4], 8)
        alone[name] = load(program, target, 1, questions[: how.alone], 8)
        crowd[name] = load(program, target, how.streams, questions, how.tokens)
    for name in targets:
        one, many = alone[name], crowd[name]
        added = [f"{one[key] - alone[base][key]:+.2f} ms" for key in ("median", "p95")] if name != base else ["", ""]
        share = f"{100 * many['tokens_s'] / crowd[base]['tokens_s']:.1f} %" if name != base else ""
        shown = [f"{one['median']:.2f} ms", f"{one['p95']:.2f} ms", *added, f"{many['tokens_s']:,.0f}", share]
        rows.append({"server": name} | dict(zip(COLUMNS, [*shown, one["failed"] + many["failed"]], strict=True)))
    print(table(rows))
