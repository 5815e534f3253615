"""What the arms of a recipe learn from: pairs, questions to be answered, and the trainers made of them."""

from collections import Counter

from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOTrainer, RLOOTrainer

from lib.chat import encoding
from lib.dataset import answers as reading
from lib.dataset import clinic
from lib.dataset.choices import Reject
from lib.evaluation import generate
from lib.model import adapter, saving
from lib.pipeline import ranks
from lib.pipeline.files import sha256_json
from lib.preference import clinic_pairs, converters, measure, pairs, rewards, training
from lib.sft import checkpoint

HELD_OUT = 5  # one pair in so many of a source that is not the clinic's is kept for the test, by its question


def load(cfg, tokenizer, questions, local):
    """(pairs to train on, held-out pairs, ledger, leaks) of the recipe's preference.data.

    questions: the frozen test; a pair of either part that asks one of them is left out, by cfg.data["drop_overlaps"].
    local: stage.file. The ledger has a row for each entry: {"source", reason: count, "licence"}; its counts sum to the
    rows read. leaks: rows of pairs.without_leaks for each entry and "part". The clinic's held-out pairs are of other
    patients, and of red flags that no training pair has.
    """
    parts, ledger, leaks, drop = {"train": [], "test": []}, [], [], cfg.data["drop_overlaps"]
    for entry in cfg.preference["data"]:
        reasons, seed = Counter(), cfg.run["seed"]
        if entry["name"] == "clinic":
            axes, world = entry.get("axes") or list(clinic_pairs.AXES), clinic.load(local("data/clinic.yaml"))
            terms = {"licence": "this repository's"}
            found = {part: clinic_pairs.pairs(axes, size, seed, part, world) for part, size in per_axis(entry).items()}
        else:
            read, terms = list(converters.read(entry, reasons, local)), converters.terms(entry)
            found = {part: [p for p in read if _is_held_out(p) is (part == "test")] for part in ("train", "test")}
        reasons.pop("kept", None)
        for part, made in found.items():
            clean, rows = pairs.without_leaks(made, {"test": questions}, cfg.run["seed"], drop, cfg.data["banned"])
            leaks += [{"part": part, **row} for row in rows]
            fit = [pair for pair in clean if _fits(pair, tokenizer, cfg, reasons)]
            reasons |= {"asks a test question": reasons["asks a test question"] + len(made) - len(clean)}
            reasons[f"kept to {part}"] += len(fit)
            parts[part] += fit
        ledger.append({"source": entry.get("label") or entry["name"], **reasons, "licence": terms["licence"]})
    if not all(parts.values()):
        sizes = ", ".join(f"{len(found)} pairs to {part}" for part, found in parts.items())
        raise ValueError(f"preference.data gives {sizes}; where its rows went: {ledger}")
    return parts["train"], parts["test"], ledger, leaks


def per_axis(entry):
    """{"train", "test"}: pairs of each axis that an entry of the clinic gives."""
    count = entry.get("pairs", 64)
    return {"train": count, "test": max(20, count // 4)}


def _is_held_out(pair):
    return int(sha256_json(pair["question"]), 16) % HELD_OUT == 0


def _fits(pair, tokenizer, cfg, reasons):
    try:
        pairs.tokens(pair, tokenizer, cfg)
    except Reject as reject:
        reasons[str(reject)] += 1
        return False
    return True


def encoded(found, tokenizer, cfg):
    """The tokens of pairs, in order, as `pairs.tokens` gives them; those that are too long are left out."""
    return [pairs.tokens(pair, tokenizer, cfg) for pair in found if _fits(pair, tokenizer, cfg, Counter())]


def prompts(records, tokenizer, cfg):
    """{id: prompt as text} of records, rendered as chapter 3 renders them."""
    style = (cfg.chat["date"], cfg.chat["reasoning_effort"])
    asked = {record["id"]: encoding.messages(record, cfg.chat["format"], answer=False) for record in records}
    return {name: encoding.render(turns, tokenizer, True, *style) for name, turns in asked.items()}


class Material:
    """What the arms of a recipe learn from, and the trainers made of it.

    train: chapter 1's records; kept: pairs, and rows: their tokens; asked: {question id: rendered prompt} of the
    questions whose answers are rewarded; scored: {reward: score} as `rewards.scored` gives them. generated: {arm:
    tokens of the answers that it drew to learn from}, once it has; read: {arm: tokens of prompts, answers and rows
    that it read}.
    """

    def __init__(self, cfg, stage, tokenizer, train, kept, rows, asked, scored):
        self.cfg, self.stage, self.tokenizer, self.train_rows = cfg, stage, tokenizer, train
        self.kept, self.rows, self.asked, self.scored = kept, rows, asked, scored
        self.known = {record["id"]: record for record in train}
        self.generated, self.read = Counter(), Counter()

    def trainer(self, model, arm, name, seed):
        """TRL's trainer of an arm on `model`, ready to train. Raises ValueError where the arm has nothing to learn."""
        given = training.arguments(self.cfg, self.stage, arm, name, seed)
        with adapter.in_float32(model):
            made = self._made(model, arm, name, given, seed)
        if saving.sharded(made):
            raise ValueError(
                f"preference.arms.{name} spreads weights over ranks: chapter 7 trains whole copies; leave fsdp out"
            )
        made.add_callback(training.Leash(self.cfg.preference["kl_limit"]))
        made.add_callback(checkpoint.Manifests(self._key(name), self.stage.progress))
        made.remove_callback(PrinterCallback)
        return made

    def _made(self, model, arm, name, given, seed):
        trainer, common = training.TRAINERS[arm["method"]], {"args": given, "processing_class": self.tokenizer}
        if arm["method"] == "dpo":
            return trainer(model, train_dataset=Dataset.from_list(self.preferred(model, arm, name, seed)), **common)
        if arm["method"] in ("rloo", "grpo"):
            stops = generate.stop_ids(model, self.tokenizer)
            logged = [arm["reward"], *(other for other in ("key",) if other != arm["reward"])]  # the key's verdict too
            given.reward_weights = [1.0] + [0.0] * (len(logged) - 1)
            functions = [rewards.Reward(each, self.scored[each], self.tokenizer, stops) for each in logged]
            if not self.asked:
                raise ValueError(f"preference.arms.{name} draws answers, and no training question has a known truth")
            rows = Dataset.from_list([{"id": each, "prompt": text} for each, text in self.asked.items()])
            return trainer(model, functions, train_dataset=rows, **common)
        style = (self.cfg.chat["format"], self.cfg.chat["date"], self.cfg.chat["reasoning_effort"])
        records = self.train_rows if arm["method"] == "sft" else self.best(model, name, seed)
        return trainer(model, train_dataset=encoding.rows(records, self.tokenizer, *style), **common)

    def preferred(self, model, arm, name, seed=None):
        """Rows of the arm's axes; "samples": the model's own answers, best against worst by the key; "reference".

        As many references are added as there are other pairs: see `_references`.
        """
        found = [row for row, pair in zip(self.rows, self.kept, strict=True) if pair["axis"] in arm["pairs"]]
        if "samples" in arm["pairs"]:
            drawn = [(self.known[question], answers) for question, answers in self._drawn(model, name, seed).items()]
            own = pairs.from_samples(
                drawn,
                lambda r, sample: self.scored["key"]([r["id"]], [sample], None)[0],
                self.cfg.chat["format"],
                Counter(),
            )
            found += encoded(own, self.tokenizer, self.cfg)
        if "reference" in arm["pairs"]:
            found += encoded(self._references(len(found)), self.tokenizer, self.cfg)
        if not found:
            axes = ", ".join(sorted({pair["axis"] for pair in self.kept}))
            raise ValueError(f"preference.arms.{name}.pairs is {arm['pairs']}, of which no pair is left; axes: {axes}")
        return found

    def _references(self, count):
        """Chapter 1's answers, each against the answer to the next question: a reminder of what was learnt there."""
        records = [self.known[name] for name in self.asked]
        for n, record in enumerate(records[:count]):
            chosen, rejected = ({part: r[part] for part in ("reasoning", "output")} for r in (record, records[n - 1]))
            if chosen["output"] != rejected["output"]:
                yield {"id": f"reference:{record['id']}", "axis": "reference", "source": "chapter 1", "messages": [],
                       "question": record["instruction"], "chosen": chosen, "rejected": rejected}  # fmt: skip

    def best(self, model, name, seed=None):
        """Records whose reasoning and output are the model's own right answers, one for each question that has one."""
        found = []
        for question, answers in self._drawn(model, name, seed).items():
            values = self.scored["key"]([question] * len(answers), answers, None)
            right = [answer["text"] for answer, value in zip(answers, values, strict=True) if value]
            for text in right[:1]:
                reasoning, output, _ = reading.split_reasoning(text, self.cfg.chat["format"])
                found.append(self.known[question] | {"reasoning": reasoning, "output": output})
        if not found:
            raise ValueError(f"preference.arms.{name}: none of the samples is right, so there is nothing to learn from")
        return found

    def _drawn(self, model, name, seed):
        some = [self.known[question] for question in list(self.asked)[: self.cfg.preference["learn_from"]]]
        count = self.cfg.preference["samples"]
        drawn = measure.samples(self.stage, f"to_learn_{name}", model, self.tokenizer, some, count, seed)
        self.generated[name] = sum(answer["tokens"] for answers in drawn.values() for answer in answers)
        prompts = [self.tokenizer(self.asked[question], add_special_tokens=False)["input_ids"] for question in drawn]
        self.read[name] = self.generated[name] + count * sum(map(len, prompts))
        return drawn

    def _key(self, name):
        return f"{self.stage.resume_key()} {name}"

    def train(self, trainer, name):
        """Train to the end; returns the log. An arm that samples starts over after a kill: its draws are not kept."""
        if not isinstance(trainer, (RLOOTrainer, GRPOTrainer)):
            checkpoint.train(trainer, checkpoint.newest(trainer.args.output_dir, self._key(name)))
            self.read[name] += measure.tokens_seen(trainer.state.log_history)
            return trainer.state.log_history
        print(f"{name} draws its answers, and they are not kept: it starts from its first step, after a stop too.")
        checkpoint.train(trainer, None)
        self.read[name] = measure.tokens_seen(trainer.state.log_history)
        self.generated[name] = sum(ranks.gather(trainer.reward_funcs[0].generated))
        return trainer.state.log_history
