"""How fast are the frozen questions answered, beside a loop over them without a cache? python -m benchmarks.evaluation

ours  generate.transformers as chapters 2 and 3 call it: batched by length, with a key-value cache
loop  model.generate() on one question after another with use_cache=False, as a first script often has it

Both answer the same questions of a finished run with its merged model, greedy, until the same stop tokens, up to the
same number of tokens, in turns. The loop's answers are compared with ours token by token; where they part, the logits
of the loop's model say how close the two tokens were. Results go to outputs/bench/evaluation.json.
"""

import functools
import statistics
import sys

import torch

from benchmarks import common
from lib.chat import encoding
from lib.evaluation import batching, generate
from lib.model import loading
from lib.pipeline.files import outputs_dir, read_jsonl

TARGET = 8.0  # times as fast as the loop


def load(cfg, count):
    """(model, tokenizer, prompts) of a finished run. Raises ValueError where chapters 1 and 3 have not run."""
    folder = outputs_dir() / cfg.run_name
    questions, merged = folder / "01_dataset" / "test.jsonl", folder / "03_sft" / "merged"
    for path in (questions, merged / "config.json"):
        if not path.exists():
            raise ValueError(f"{path} is missing: this benchmark asks a finished run's model its questions. Run "
                             f"make 03_sft {cfg.options} first (or make all)")  # fmt: skip
    tokenizer, fmt = loading.tokenizer(cfg), cfg.chat["format"]
    prompts = [
        {"id": r["id"], "messages": encoding.messages(r, fmt, answer=False)} for r in read_jsonl(questions)[:count]
    ]
    return loading.saved(cfg, merged), tokenizer, prompts


def ours(model, tokenizer, prompts, how):
    """Texts by id, stop tokens left out."""
    answers = generate.transformers(model, tokenizer, prompts, how["max_new_tokens"], how["batch_size"],
                                    date=how["date"], effort=how["reasoning_effort"])  # fmt: skip
    return {answer["id"]: answer["text"] for answer in answers}


def loop(model, tokenizer, prompts, how):
    """The same, one question at a time, reading the whole text again for every token."""
    stops, found = sorted(generate.stop_ids(model, tokenizer)), {}
    for prompt in prompts:
        text = encoding.render(prompt["messages"], tokenizer, True, how["date"], how["reasoning_effort"])
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        out = model.generate(**ids, max_new_tokens=how["max_new_tokens"], do_sample=False, use_cache=False,
                             eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        new = out[0, ids["input_ids"].shape[1] :].tolist()
        found[prompt["id"]] = tokenizer.decode(new[:-1] if new[-1] in stops else new, skip_special_tokens=False)
    return found


def gap(model, tokenizer, prompt, how, one, other):
    """Where two answers part: {"token", "gap"}, the distance in nats of the two tokens' logits there."""
    text = encoding.render(prompt["messages"], tokenizer, True, how["date"], how["reasoning_effort"])
    asked, first, second = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, one, other))
    ends = [tokenizer.eos_token_id]  # a shorter answer ended where the other went on
    first, second = first + ends, second + ends
    at = next(i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    with batching.evaluation(model):
        logits = model(torch.tensor([asked + first[:at]], device=model.device)).logits[0, -1].float()
    return {"id": prompt["id"], "token": at, "gap": abs(float(logits[first[at]] - logits[second[at]]))}


def told(found):
    """The result as Markdown; answers that differ, below it."""
    ours_s, loop_s = (statistics.median(row[key] for row in found["rounds"]) for key in ("ours_s", "loop_s"))
    row = {"questions": found["questions"], "ours, s": f"{ours_s:.1f}", "loop, s": f"{loop_s:.1f}",
           "ours is faster": common.spread_text(found["ratio_wall"]),
           "by CPU time": common.spread_text(found["ratio_cpu"]), "equal answers": found["equal"]}  # fmt: skip
    told = "{id}: apart from token {token} on, where the two tokens' logits differ by {gap:.1e}"
    return "\n".join([common.table([row]), *(told.format(**row) for row in found["apart"])])


def timed_round(arms, backwards):
    """({"ours_s", "ours_cpu_s", "loop_s", "loop_cpu_s"}, {arm: its texts}) of every arm once."""
    row, texts = {}, {}
    for name in list(arms)[:: -1 if backwards else 1]:
        start = common.now()
        texts[name] = arms[name]()
        spent = common.since(start)
        row |= {f"{name}_s": round(spent["wall_s"], 2), f"{name}_cpu_s": round(spent["cpu_s"], 2)}
    return row, texts


def main():
    args = common.parser(__doc__, questions=200, rounds=3).parse_args()
    cfg = common.started(args)
    try:
        model, tokenizer, prompts = load(cfg, args.questions)
    except ValueError as error:
        print(f"bench-eval: {error}", file=sys.stderr)
        return 1
    how = cfg.chat
    for arm in (ours, loop):
        arm(model, tokenizer, prompts[:2], how)  # warm up
    arms = {arm.__name__: functools.partial(arm, model, tokenizer, prompts, how) for arm in (ours, loop)}
    rounds = []
    for done in range(args.rounds):
        row, texts = timed_round(arms, done % 2)
        rounds.append(row)
        print(f"round {done + 1} of {args.rounds}: {row}", flush=True)
    found = {"arguments": vars(args), "questions": len(prompts), "rounds": rounds, "target": TARGET}
    for key, label in (("_s", "wall"), ("_cpu_s", "cpu")):
        found[f"ratio_{label}"] = common.spread([row[f"loop{key}"] / row[f"ours{key}"] for row in rounds])
    apart = [p for p in prompts if texts["ours"][p["id"]] != texts["loop"][p["id"]]]
    found["equal"] = len(prompts) - len(apart)
    found["apart"] = [gap(model, tokenizer, p, how, texts["ours"][p["id"]], texts["loop"][p["id"]]) for p in apart]
    print(told(found))
    common.keep("evaluation", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
