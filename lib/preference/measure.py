"""What preference tuning did to a model: samples, how often one of them is right, and how far it went."""

from math import comb

import numpy as np
from scipy.stats import fisher_exact

from lib import stats
from lib.chat import encoding
from lib.evaluation import generate, metrics, paired, screens
from lib.figures.markup import interval, p_value

UNITS = {"sigmoid": "nats a pair", "sft": "nats a token"}  # of DPO's losses; others have none
SCREENS = ("missed escalation", "needless escalation on benign twins")


def samples(stage, name, model, tokenizer, records, count, seed=None):
    """`count` drawn answers of each question, seed None: run.seed: {id: [answer]}. Kept under the name as they come."""
    chat, fmt = stage.recipe.chat, stage.recipe.chat["format"]
    asked = [
        {"id": f"{record['id']}#{n}", "messages": encoding.messages(record, fmt, answer=False)}
        for record in records
        for n in range(count)
    ]
    drawn = generate.chosen(stage.recipe)(
        model, tokenizer, asked, chat["max_new_tokens"], chat["batch_size"], temperature=1.0,
        seed=stage.recipe.run["seed"] if seed is None else seed, date=chat["date"], effort=chat["reasoning_effort"],
        keep=stage.dir / "cache" / f"samples_{name}.jsonl",
        progress=lambda *at: stage.progress(*at, f"samples of {name}"),
    )  # fmt: skip
    found = {record["id"]: [] for record in records}
    for answer in drawn:
        question = answer["id"].rpartition("#")[0]
        found[question].append(answer | {"id": question})
    return found


def right(drawn, records, fmt):
    """{question id: [whether each sampled answer is right]}, of the records with a known truth."""
    found = {}
    for record in records:
        answers = drawn[record["id"]]
        flags = [row["correct"] for row in metrics.score(answers, [record] * len(answers), fmt)]
        if None not in flags:
            found[record["id"]] = flags
    return found


def pass_at(flags, k):
    """pass@k, the chance that one of k drawn answers is right: {"value", "low", "high", "n"}, over questions.

    flags: from `right`. The unbiased estimate of n samples with c right is 1 - C(n - c, k) / C(n, k)
    (Chen et al. 2021, arXiv:2107.03374). Raises ValueError with fewer than k samples.
    """
    if few := [name for name, row in flags.items() if len(row) < k]:
        raise ValueError(f"pass@{k} takes {k} samples of each question, {few[0]!r} has {len(flags[few[0]])}")
    return stats.mean([1 - comb(len(row) - sum(row), k) / comb(len(row), k) for row in flags.values()])


def conversations(drawn, records, tokenizer, cfg):
    """(input_ids, labels) of the sampled answers, labels on what was generated: what `drift` is measured on."""
    found = []
    for record in records:
        asked = encoding.messages(record, cfg.chat["format"], answer=False)
        text = encoding.render(asked, tokenizer, True, cfg.chat["date"], cfg.chat["reasoning_effort"])
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        for answer in drawn[record["id"]]:
            said = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            found += [(prompt + said, [encoding.IGNORE_INDEX] * len(prompt) + said)] if said else []
    return found


def drift(model, reference, rows):
    """Kullback-Leibler divergence KL(model || reference) in nats a token: {"value", "low", "high", "n"}.

    rows: from `conversations`, of the model's own samples. Every token's whole distribution counts, so that what
    sampling leaves open is only which tokens are visited; the interval is over conversations.
    """
    rows = paired.cut(rows, model.config.vocab_size)
    _, ours = paired.measure(model, rows)
    found, _ = paired.measure(reference, rows, ours)
    return paired.mean(np.array([found]), "divergence")


def change(ours, theirs):
    """Accuracy of ours minus theirs, paired by question: {"value", "low", "high", "n", "p"}; None where none is known.

    Both: rows of metrics.score on the same questions. The interval resamples questions; p is exact McNemar's.
    """
    both = [(a["correct"], b["correct"]) for a, b in zip(ours, theirs, strict=True) if a["correct"] is not None]
    if not both:
        return None
    return stats.mean([float(a) - float(b) for a, b in both]) | {"p": stats.mcnemar(*zip(*both, strict=True))["p"]}


def rivals(results, name):
    """{rival: key in results} that an arm is compared with: the start, and the control of its own seed.

    results: {key: {"arm", "seed", "method", ...}}, with "sft", the start, which has none of the three.
    """
    if name == "sft":
        return {}
    mine = results[name]
    same = [key for key, found in results.items() if found.get("method") == "sft" and found["seed"] == mine["seed"]]
    return {"sft": "sft"} | {results[key]["arm"]: key for key in same[:1] if key != name}


def together(results):
    """Rows of the arms that were trained with several seeds, over seeds and questions together; [] where none was.

    results: as in `rivals`, with "scored", "flags", "drift" and "tokens". Of accuracy and its differences from the
    rivals, each of the same seed, the 95 % interval resamples seeds and questions (stats.crossed). Of the screens and
    the divergence it is the lowest and the highest seed, since what counts in them differs between seeds.
    """
    table, seeds = [], {}
    for key, found in results.items():
        if key != "sft":
            seeds.setdefault(found["arm"], []).append(key)
    for arm, keys in seeds.items():
        if len(keys) < 2:
            continue
        row = {"arm": arm, "seeds": len(keys), "accuracy": _crossed([_correct(results[key]) for key in keys])}
        for rival in rivals(results, keys[0]):
            others = [_correct(results[rivals(results, key)[rival]]) for key in keys]
            both = zip(keys, others, strict=True)
            row[f"minus {rival}"] = _crossed([_correct(results[key]) - other for key, other in both])
        for screen in SCREENS if results[keys[0]]["flags"] else ():
            hits = [list(screens.hits(results[key]["flags"], screen).values()) for key in keys]
            row[screen] = _spread([np.mean(found) for found in hits if found], "%")
        row["KL (nats a token)"] = _spread([results[key]["drift"]["value"] for key in keys], "")
        table.append(row | {"tokens": f"{np.mean([results[key]['tokens'] for key in keys]):,.0f}"})
    return table


def headline(table, over_seeds):
    """Rows of the results page: of each arm its accuracy and missed escalation, or its accuracies over several seeds.

    table: rows of chapter 7's arms; over_seeds: from `together`.
    """
    found = []
    for row in over_seeds:
        for key in [key for key in row if row[key] and (key == "accuracy" or key.startswith("minus "))]:
            label = f"Accuracy: {row['arm']}" if key == "accuracy" else f"{row['arm']} {key}"
            found.append({"label": f"{label}, {row['seeds']} seeds", "unit": "%", **row[key]})
    for row in table if not over_seeds else ():
        found += [{"label": f"Accuracy: {row['arm']}", "unit": "%", **row["accuracy"]}] if row["accuracy"] else []
    for row in table if not over_seeds else ():
        found += screens.headline(row[SCREENS[0]], row["arm"], "Held-out red flags") if SCREENS[0] in row else []
    return found


def _correct(found):
    return np.array([row["correct"] for row in found["scored"] if row["correct"] is not None], dtype=float)


def _crossed(values):
    values = np.array(values)
    if not values.size:
        return None
    low, high = stats.crossed(values, np.mean)
    return {"value": float(values.mean()), "low": low, "high": high, "n": values.shape[1]}


def _spread(values, unit):
    if not values:
        return None
    return {"value": float(np.mean(values)), "low": float(min(values)), "high": float(max(values)), "unit": unit}


def tokens_seen(log):
    """Tokens of prompts and answers that a training read, generated ones among them; 0 where it logged nothing."""
    return max((int(entry["num_tokens"]) for entry in log if "num_tokens" in entry), default=0)


def curve(log, reward):
    """Points of a training on samples: [{"step", "kl", "proxy", "gold"}]; [] for an arm that draws none.

    log: log_history of RLOO or GRPO; kl in nats an answer's token; proxy: mean of the reward, gold: of the key.
    """
    found = []
    for entry in log:
        if "kl" in entry and f"rewards/{reward}/mean" in entry:
            gold = entry.get("rewards/key/mean")
            found.append(
                {"step": entry["step"], "kl": entry["kl"], "proxy": entry[f"rewards/{reward}/mean"], "gold": gold}
            )
    return found


def loss_label(arm):
    """What the training loss of an arm is, for the axis that it is drawn on. arm: its fields in the recipe.

    DPO adds up what its loss_type names: means over pairs, but for "sft", over the tokens of the chosen answers.
    """
    if arm["method"] != "dpo":
        return "loss (nats per\ntrained token)"
    kinds = arm.get("loss_type") or ["sigmoid"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    weights = arm.get("loss_weights") or [1.0] * len(kinds)
    terms = (f"{kind} ({UNITS.get(kind, 'a pair')})" for kind in kinds)
    weighted = (term if weight == 1 else f"{weight:g} {term}" for weight, term in zip(weights, terms, strict=True))
    return "loss: " + "\n+ ".join(weighted)


def in_words(rows, against, count, apart=()):
    """A few sentences on each arm: whether it is above the control and the start, and what became of red flags.

    rows: of chapter 7's table, the start first; against: {arm: {rival: `change` from it, or None}}. apart: rows
    {"arm", "red flags of", screen: share} of each arm, and of other rules, for flags of each origin.
    """
    found = [(name, rival, moved) for name, rivals in against.items() for rival, moved in rivals.items() if moved]
    adjusted = stats.holm([moved | {"of": (name, rival)} for name, rival, moved in found])
    known, said = {row["of"]: row for row in adjusted}, []
    for row in rows[1:]:
        name, own = row["arm"], []
        for rival in [rival for rival, moved in against[name].items() if moved]:
            moved = known[name, rival]
            side = "not told apart from"
            if moved["p_holm"] < 0.05:
                side = "above" if moved["value"] > 0 else "below"
            p = f"p {p_value(moved['p_holm'])} of {len(known)} comparisons"
            own.append(f"{name} is {side} {rival}: {interval(moved)} of the questions, {p}.")
        own += [_told_apart("It", flags) for flags in apart if flags["arm"] == name]
        gains = [100 * (row[f"pass@{k}"]["value"] - rows[0][f"pass@{k}"]["value"]) for k in (1, count)]
        asked = f"on {row['pass@1']['n']} questions"
        own.append(f"Its pass@1 moved by {gains[0]:+.1f} points and its pass@{count} by {gains[1]:+.1f}, {asked}.")
        said.append(" ".join(own))
    arms = {row["arm"] for row in rows}
    return said + [_told_apart(f"A rule by the {flags['arm']}", flags) for flags in apart if flags["arm"] not in arms]


def _told_apart(who, row):
    """A sentence on red flags and their benign twins: what is sent on of each, and whether the two shares differ."""
    missed, needless = (row[screen] for screen in SCREENS)
    flags, twins = missed["n"], needless["n"]
    origin = "the clinic's held-out red flags" if row["red flags of"] == "clinic" else "those written by hand"
    told = f"{who} misses {interval(missed)} of {origin} and sends on {interval(needless)} of their benign twins"
    if not (flags and twins):  # all answers of one side were empty
        return f"{told}."
    sent = round((1 - missed["value"]) * flags), round(needless["value"] * twins)
    p = float(fisher_exact([[sent[0], flags - sent[0]], [sent[1], twins - sent[1]]]).pvalue)
    side = "tells" if p < 0.05 and sent[0] / flags > sent[1] / twins else "does not tell"
    return f"{told}: it {side} them apart (Fisher's p {p_value(p)})."
