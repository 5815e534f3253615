"""How fast is chapter 3's training, beside what else one could run? python -m benchmarks.train [--recipe tiny]

Every arm trains the same LoRA adapter on the same base with the same conversations, once, from the same seed:

    ours                chapter 3's own: lib.chat's rows, the recipe's fields, packed, loss on the answers, checkpoints
    bare loop           ours without a trainer: the same batches, made beforehand, the same loss, AdamW, clip, schedule
    bare loop, own loss the same with the model's own loss, over all logits, in place of TRL's chunks of answer tokens
    trl sft             what `trl sft --packing --use_peft` gives: messages in, TRL's own defaults for all else
    trl sft, no gc      the same without gradient checkpointing, which TRL switches on by default
    naive tutorial      transformers.Trainer, every conversation padded to max_length, loss on all tokens
    naive tutorial, gc  the same with gradient checkpointing, which prepare_model_for_kbit_training switches on

Rows, max_length, learning rate, dtype and device are the recipe's in all arms; nobody evaluates. The naive arms take as
many conversations a step as a packed row of ours holds. The arms take turns, in another order every round; a bare loop
takes them step by step with a training of ours, because a few per cent drown in what a shared machine does meanwhile
(on a GPU every turn is waited for, which hides none of the trainer's time). Timed is from the first step to the last:
no loading, no tokenizing. Results go to outputs/bench/train.json.
"""

import contextlib
import gc
import io
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.optimization import get_scheduler
from trl import SFTConfig, SFTTrainer

from benchmarks import common
from benchmarks.common import now, since, spread, spread_text, table
from lib.chat import encoding, packing
from lib.dataset import ingest, readers
from lib.model import loading
from lib.pipeline.files import ROOT
from lib.sft import checkpoint

SHARED = ("learning_rate", "num_train_epochs", "gradient_accumulation_steps", "output_dir", "use_cpu", "bf16", "fp16",
          "seed", "report_to", "disable_tqdm")  # fmt: skip
TARGETS = {"naive tutorial": 3.0, "trl sft": 1.0, "bare loop": 0.95}  # of ours, times the arm's speed


def conversations(cfg, count):
    """The first `count` training records of the recipe's sources, in an order drawn with its seed."""
    found = []
    for spec in cfg.data["sources"]:
        raw = readers.rows(spec, cfg.data["origin"], lambda path: ROOT / path, cfg.run["seed"])
        found += ingest.stream(spec["name"], raw, spec, Counter(), cfg.data["min_reasoning_chars"])
    random.Random(cfg.run["seed"]).shuffle(found)
    return found[:count]


class Clock(TrainerCallback):
    """Wall and CPU seconds from the first step's start to the last step's end.

    between: called after every step; its own seconds are kept apart, in `other`.
    """

    def __init__(self, between=None):
        self.between, self.other = between, {"wall_s": 0.0, "cpu_s": 0.0}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        if self.between:
            start = now()
            self.between()
            self.other = {kind: self.other[kind] + spent for kind, spent in since(start).items()}
        if state.global_step == state.max_steps:
            spent = {kind: s - self.other[kind] for kind, s in since(self.start).items()}
            self.spent = {"steps": state.global_step} | spent


class Bench:
    """What the arms share. records: conversations. folder: for checkpoints. An arm returns steps, wall_s, cpu_s."""

    def __init__(self, cfg, records, folder):
        self.cfg, self.records, self.folder = cfg, records, folder
        self.tokenizer, self.style = (
            loading.tokenizer(cfg),
            [cfg.chat[k] for k in ("format", "date", "reasoning_effort")],
        )
        stage = SimpleNamespace(dir=folder, headless=True)
        gate = packing.exact(loading.base(cfg).config, loading.attention(cfg), loading.device())
        changes, self.why = packing.fields(cfg.sft, gate)
        once = {"num_train_epochs": 1.0, "eval_strategy": "no"}
        self.fields = cfg.sft | changes | loading.device_fields(cfg, stage) | once
        self.adapters = {}
        self.keep(self.model(), "start")
        rows = list(encoding.tokenize(records, self.tokenizer, *self.style))
        longest = self.fields["max_length"]
        self.tokens = sum(min(len(ids), longest) for ids, _ in rows)
        self.trained = sum(label != encoding.IGNORE_INDEX for _, labels in rows for label in labels[:longest])

    def model(self):
        torch.manual_seed(self.cfg.run["seed"])
        return get_peft_model(loading.base(self.cfg), LoraConfig(**self.cfg.lora))

    def timed(self, trainer, name, between=None):
        clock = Clock(between)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        checkpoint.train(trainer, None)
        self.keep(trainer.model, name)
        return clock.spent | ({"beside": clock.other} if between else {})

    def keep(self, model, name):
        self.adapters[name] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def our_trainer(self):
        rows = encoding.rows(self.records, self.tokenizer, *self.style)
        callbacks = [checkpoint.Manifests("bench", lambda *at: None)]
        args = SFTConfig(**self.fields)
        made = SFTTrainer(self.model(), args, None, rows, processing_class=self.tokenizer, callbacks=callbacks)
        self.a_row = len(self.records) / len(made.train_dataset)  # conversations
        return made

    def ours(self):
        return self.timed(self.our_trainer(), "ours")

    def bare(self, own_loss=False):
        """A trainer makes the batches and puts its loss into the model; then it is left alone."""
        trainer = self.our_trainer()
        batches, model = list(trainer.get_train_dataloader()), (self.model() if own_loss else trainer.model).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.fields["learning_rate"], weight_decay=0.0, fused=True)
        warm = trainer.args.get_warmup_steps(len(batches))
        schedule = get_scheduler(self.fields["lr_scheduler_type"], optimizer, warm, len(batches))
        left = iter(batches)

        def step():
            model(**next(left), use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

        ours = self.timed(self.our_trainer(), "ours", step)
        self.keep(model, "own loss" if own_loss else "bare loop")
        return {"steps": len(batches)} | ours.pop("beside") | {"ours": ours}

    def plain(self, **changes):
        """The recipe's values that every arm shares; what else it says is left to the libraries' defaults."""
        return {key: self.fields[key] for key in SHARED} | {"save_strategy": "no"} | changes

    def trl(self, **changes):
        rows = Dataset.from_list([{"messages": encoding.messages(r, self.style[0])} for r in self.records])
        own = {key: self.fields[key] for key in ("max_length", "per_device_train_batch_size")}
        args = SFTConfig(**self.plain(packing=True, **own, **changes))
        torch.manual_seed(self.cfg.run["seed"])
        base, lora = loading.base(self.cfg), LoraConfig(**self.cfg.lora)
        trainer = SFTTrainer(base, args, None, rows, processing_class=self.tokenizer, peft_config=lora)
        return self.timed(trainer, "trl sft")

    def naive(self, checkpointing=False):
        texts = [encoding.render(encoding.messages(r, self.style[0]), self.tokenizer) for r in self.records]
        how = {"padding": "max_length", "truncation": True, "max_length": self.fields["max_length"]}
        rows = Dataset.from_list([{"text": text} for text in texts])
        rows = rows.map(lambda row: self.tokenizer(row["text"], **how), batched=True, remove_columns=["text"])
        size = max(1, round(self.a_row * self.fields["per_device_train_batch_size"]))
        changes = {"per_device_train_batch_size": size, "logging_steps": 10, "gradient_checkpointing": checkpointing}
        model = self.model()
        if checkpointing:
            model.enable_input_require_grads()
        collator = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
        args = TrainingArguments(**self.plain(**changes))
        return self.timed(Trainer(model, args, collator, rows, processing_class=self.tokenizer), "naive tutorial")


ARMS = {
    "ours": Bench.ours,
    "bare loop": Bench.bare,
    "bare loop, own loss": lambda bench: bench.bare(own_loss=True),
    "trl sft": Bench.trl,
    "trl sft, no gc": lambda bench: bench.trl(gradient_checkpointing=False),
    "naive tutorial": Bench.naive,
    "naive tutorial, gc": lambda bench: bench.naive(checkpointing=True),
}


def measure(bench, names, rounds):
    """{arm: [{steps, wall_s, cpu_s} of every round]}."""
    found = {name: [] for name in names}
    bench.ours()  # warms up, and tells how many conversations a row holds
    for done in range(rounds):
        at = done % len(names)
        for name in names[at:] + names[:at]:
            with contextlib.redirect_stdout(io.StringIO()):
                found[name].append(ARMS[name](bench))
            gc.collect()
        print(f"round {done + 1} of {rounds}:", {n: round(f[-1]["cpu_s"], 1) for n, f in found.items()}, flush=True)
    return found


def farthest(one, other):
    """The largest difference between two adapters' numbers; NaN where either holds one."""
    return float(torch.stack([(one[name] - other[name]).abs().max() for name in one]).max())


def summary(bench, found):
    """One row per arm: tokens and trained tokens a second, and how many times as fast ours was, round by round."""
    rows = []
    for name, rounds in found.items():
        answers = name.startswith(("ours", "bare"))
        row = {"arm": name, "steps": rounds[0]["steps"]}
        row["tokens_per_s"] = spread([bench.tokens / r["wall_s"] for r in rounds], 0)
        row["trained_per_s"] = spread([(bench.trained if answers else bench.tokens) / r["wall_s"] for r in rounds], 0)
        for kind in ("wall", "cpu"):
            pairs = [(r, r.get("ours", own)) for r, own in zip(rounds, found["ours"], strict=True)]
            row[f"ours_faster_{kind}"] = spread([r[f"{kind}_s"] / own[f"{kind}_s"] for r, own in pairs], 3)
        rows.append(row | {"target": TARGETS.get(name)})
    return rows


def told(rows):
    """The rows as Markdown: medians, with the extremes over the rounds."""
    heads = {"tokens_per_s": "tokens/s", "trained_per_s": "tokens with loss/s", "ours_faster_wall": "ours is faster",
             "ours_faster_cpu": "by CPU time"}  # fmt: skip
    return table([
        {"arm": row["arm"], "steps": row["steps"]} | {head: spread_text(row[key]) for key, head in heads.items()}
        | {"target": row["target"]} for row in rows
    ])  # fmt: skip


def main():
    parser = common.parser(__doc__, conversations=200, rounds=5)
    parser.add_argument("--arm", action="append", choices=ARMS, help="default: all; ours always runs")
    args = parser.parse_args()
    disable_progress_bars()
    cfg = common.started(args)
    names = ["ours", *[name for name in args.arm or ARMS if name != "ours"]]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(cfg, conversations(cfg, args.conversations), Path(folder))
        print(f"{len(bench.records)} conversations, {bench.tokens:,} tokens, {bench.trained:,} of answers. {bench.why}")
        rows = summary(bench, measure(bench, names, args.rounds))
    print(told(rows))
    found = {"arguments": vars(args), "arms": rows}
    found |= {"conversations": len(bench.records), "tokens": bench.tokens, "trained": bench.trained}
    if "bare loop" in names:
        ours, bare, start = (bench.adapters[name] for name in ("ours", "bare loop", "start"))
        found |= {"difference_from_bare": farthest(ours, bare), "moved_by_training": farthest(ours, start)}
        print("Largest weight difference: ours from the bare loop {difference_from_bare:.1e}, from its own beginning "
              "{moved_by_training:.1e}".format(**found))  # fmt: skip
    common.keep("train", found)


if __name__ == "__main__":
    sys.exit(main())
