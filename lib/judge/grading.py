"""Grading answers one by one against a rubric, through the panel's calls, retries, deadline, cap and store."""

from dataclasses import dataclass

from lib.chat import encoding
from lib.evaluation import generate, screens
from lib.judge import asking, panel, protocol, rubric
from lib.pipeline import files

TOKENS_OUT = {"case": 400, "healthbench": 0, "medsafety": 100}  # for the estimate before a call
TOKENS_PER_CRITERION = 50


@dataclass(frozen=True)
class Task:
    """One answer to grade: an item of lib.evaluation.cases, the model it is from, and its text, "" where none came."""

    item: dict
    model: str
    text: str

    def key(self, judge):
        return self.item["id"], judge.name, self.item["kind"], rubric.content_hash(self.item, self.text), 0

    def usd(self, judge):
        tokens_out = TOKENS_OUT[self.item["kind"]] + TOKENS_PER_CRITERION * len(self.item.get("rubrics", ()))
        return asking.expected(judge, rubric.messages(self.item, self.text), tokens_out)

    def messages(self, judge, attempt):
        codes = protocol.codes(f"{self.item['id']} {judge.name} {self.text} {attempt}", 1)
        return rubric.messages(self.item, self.text, codes[0]), codes

    def schema(self, codes):
        return rubric.schema(self.item)

    def parse(self, reply, codes):
        return rubric.parse(reply, self.item, self.text)

    def repair(self, fault, codes):
        return rubric.REPAIR.format(fault=fault)


def tasks(items, texts):
    """Answers to grade, a list of Task.

    items: from lib.evaluation.cases. texts: {model: {item id: answer}}; "" for an answer that was cut or never came.
    Raises ValueError when a model has no text, not even an empty one, for an item.
    """
    for model, found in texts.items():
        if missing := [item["id"] for item in items if item["id"] not in found]:
            raise ValueError(f"{model} has no answer to {', '.join(missing[:3])} ({len(missing)} in all): generate it")
    return [Task(item, model, found[item["id"]]) for item in items for model, found in texts.items()]


def asked(name, items, models, stage, tokenizer, running):
    """Answers of models to a benchmark, asked through the server as a user would ask: {model: {item id: text}}.

    name, items: of lib.evaluation.cases.load_benchmark. models: {model: GGUF file of 05_export}. running:
    lib.export.serve.running, given room for the longest question. Writes <name>_<model>.jsonl below the stage.
    """
    chat, slots, threads = stage.recipe.chat, stage.recipe.export["slots"], stage.recipe.run["threads"]
    texts = [encoding.render(item["messages"], tokenizer, True, chat["date"]) for item in items]
    room = max(len(tokenizer(text)["input_ids"]) for text in texts) + chat["max_new_tokens"] + 16
    drawn = {key: chat[key] for key in ("temperature", "top_p")} | {"extra_body": {"top_k": 0, "min_p": 0.0}}
    found = {}
    for model, file in models.items():
        path, kept = stage.input("05_export")[file], f"{name}_{model}.jsonl"
        drawn |= {"identity": files.sha256_file(path), "keep": stage.dir / "cache" / kept, "slots": slots}
        drawn["seed"] = stage.recipe.run["seed"]
        with stage.timer(f"{name} {model}"), running(path, slots, room, threads) as url:
            answers = generate.server(url, items, chat["max_new_tokens"], **drawn)
        files.write_jsonl(stage.dir / kept, answers)
        found[model] = screens.texts(answers, chat["format"])
    return found


def estimate(judge, work):
    """Dollars that asking `judge` for `work` will cost, cache and equal answers aside: tokens by length, no retries."""
    return sum(task.usd(judge) for task in work if rubric.shown(task.text))


def grade(judge, work, store, **limits):
    """Get one judge's verdicts on `work`; returns (rows, coverage). limits: see panel.collect.

    work: from `tasks`. Equal answers to one item are asked once, empty ones never.
    rows: one per answer with a verdict: question, judge, is_llm_judge, kind, model, empty, the axes of rubric.AXES,
    verdict. coverage: panel.collect's, counted in answers. Raises ValueError as panel.heard does.
    """
    asked = {task.key(judge): task for task in work if rubric.shown(task.text)}
    found, coverage = panel.collect(judge, list(asked.values()), store, **limits)
    panel.refuse_silence(judge, coverage)
    verdicts, rows = dict(zip(asked, found, strict=True)), []
    for task in work:
        empty = not rubric.shown(task.text)
        verdict = rubric.unanswered(task.item) if empty else verdicts[task.key(judge)]
        if verdict:
            rows.append(_row(judge, task, verdict, empty))
    missing = len(work) - len(rows)
    incomplete = missing > protocol.MAX_INVALID * len(work)
    coverage |= {"asked": len(work), "judged": len(rows), "incomplete": incomplete}
    return sorted(rows, key=lambda row: (row["question"], row["model"])), coverage


def _row(judge, task, verdict, empty):
    item = task.item
    who = {"question": item["id"], "judge": judge.name, "is_llm_judge": True, "kind": item["kind"], "model": task.model}
    return who | {"empty": empty} | rubric.score(verdict, item) | {"verdict": verdict}
