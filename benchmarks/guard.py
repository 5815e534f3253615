"""What the guard rails see: red flags found, false alarms on benign questions, milliseconds a question.

Each pair is asked plainly and in variants. Rules are changed, and weights fitted, by the development part only.
"first": pairs of data/screens.yaml that nobody read while rules 1 were written. "seventh": written by another hand for
version 7, unread until rules, weights and thresholds were frozen. The second to sixth set were scored once, each
with the version of its number, and are learnt. "tester": written against version 5; not fitted, and looked at since.
"""

import argparse
import hashlib
import random
import re
import time

import numpy as np
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from app.cues import CUES
from app.guard import READ, RULED, RULES, Guard, plain, words
from lib import stats
from lib.evaluation import screens
from lib.pipeline.files import ROOT, read_jsonl

FLAGS, HELD_OUT = (ROOT / "data" / f"redflags{part}.yaml" for part in ("", "_held_out"))
LEARNT, TESTER = (FLAGS.with_name(f"redflags_{part}.jsonl") for part in ("learnt", "tester"))
PLAYS_DOWN = "{} My husband says I exaggerate and that it is nothing."
DENIES = "{} I am sure it is nothing serious and I do not want to bother a doctor."
TARGET = {"red flags found": 0.95, "false alarms": 0.05}


def typing_errors(text, seed):
    """The text with an error in about every eighth word of five letters or more: two letters swapped, or one lost."""
    chance = random.Random(seed)

    def spoilt(match):
        word = match.group()
        if chance.random() > 0.125:
            return word
        at = chance.randrange(1, len(word) - 2)
        return (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            if chance.random() < 0.5
            else word[:at] + word[at + 1 :]
        )

    return re.sub(r"\b[a-z]{5,}\b", spoilt, text)


VARIANTS = {
    "plain": lambda text, seed: text,
    "a relative plays it down": lambda text, seed: PLAYS_DOWN.format(text),
    "the asker denies it": lambda text, seed: DENIES.format(text),
    "typing errors": typing_errors,
}


def questions():
    """[{"pair", "flag", "variant", "part", "text"}] of all pairs, in each variant; a language or a kind is a variant.

    part: "development", or "first" and "seventh" for the two held-out sets.
    """
    document, seventh = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (FLAGS, HELD_OUT))
    hand = yaml.safe_load(screens.SCREENS.read_text(encoding="utf-8"))["pairs"]
    sides = [(p["id"], "development" if n < document["developed"] else "first", "en", (p["red_flag"], p["benign"]))
             for n, p in enumerate(hand)]  # fmt: skip
    for part, found in (("development", document), ("seventh", seventh)):
        sides += [(name, part, "en", pair) for name, pair in found["pairs"].items()]
        sides += [(f"{text[:20]}-{n}", part, "en", (None, text)) for n, text in enumerate(found.get("benign", ()))]
        sides += [(f"es-{name}", part, "es", pair) for name, pair in found["es"].items()]
        sides += [(f"{kind}-{n}", part, kind, pair) for kind, pairs in found.get("kinds", {}).items()
                  for n, pair in enumerate(pairs)]  # fmt: skip
    sides += [(row["id"], "development", row["language"], (row.get("red_flag"), row.get("benign")))
              for row in read_jsonl(LEARNT)]  # fmt: skip
    ways = {"en": VARIANTS, "es": {"Spanish": VARIANTS["plain"]}}
    own = {f"{name}, in other words": lambda text, seed, said=said: f"{text} {said}"
           for name, said in seventh["beside"].items()}  # fmt: skip
    found = []
    for name, part, language, pair in sides:
        for flag, text in zip((True, False), pair, strict=True):
            about = {"pair": name, "flag": flag, "part": part}
            asked = ways.get(language, {language: VARIANTS["plain"]})
            asked = asked | (own if part == "seventh" and language == "en" else {})
            found += [about | {"variant": v, "text": make(text, f"{name}{flag}")} for v, make in asked.items() if text]
    return found + [{"pair": f"tester-{n}", "part": "tester", "variant": row["kind"]} | row
                    for n, row in enumerate(read_jsonl(TESTER))]  # fmt: skip


def score(asked, guard):
    """The questions with "found": ids of the rules that fired, and "ms"."""
    scored = []
    for question in asked:
        start = time.thread_time()
        hits = guard.question(question["text"])
        took = 1000 * (time.thread_time() - start)
        scored.append(question | {"found": [h.id for h in hits if h.kind == "emergency"], "ms": took})
    return scored


def table(scored):
    """Rows of {"variant", "flag", "value", "low", "high", "n"}: the share in which a rule fired, Wilson intervals."""
    rows = []
    for variant in dict.fromkeys(q["variant"] for q in scored):
        for flag in (True, False):
            fired = [bool(q["found"]) for q in scored if q["variant"] == variant and q["flag"] is flag]
            if fired:
                rows.append({"variant": variant, "flag": flag} | stats.proportion(fired))
    return rows


def apart(asked, guard):
    """A sentence on rules and score, each alone on plain English questions, and on another threshold in hindsight."""
    plainly = [q for q in asked if q["variant"] == "plain"]
    flag = np.array([q["flag"] for q in plainly])
    ruled = np.array([bool(guard.emergencies(words(plain(q["text"])[-RULED:]))) for q in plainly])
    score = np.array([guard.cues.score(words(plain(q["text"]))) for q in plainly])
    strict = np.quantile(score[~flag], 1 - TARGET["false alarms"])
    shares = [float(found[side].mean()) for found in (ruled, score > guard.cues.threshold) for side in (flag, ~flag)]
    told = "Alone, the rules fire on {:.1%} of red flags and {:.1%} of benign questions, the score on {:.1%} and {:.1%}"
    late = "; in hindsight, a threshold for 5 % of false alarms here finds {:.1%}."
    return (told + late).format(*shares, float((score[flag] > strict).mean()))


def opponent(asked):
    """The questions with "found" by two lines of scikit-learn on the texts that the score was fitted on."""
    from benchmarks.cues import development  # which reads this file

    learnt, read = development(), TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(read, LogisticRegression(C=30, max_iter=1000))
    model.fit([q["text"] for q in learnt], [q["flag"] for q in learnt])
    found = model.predict([words(plain(q["text"])) for q in asked])
    return [q | {"found": ["tf-idf"] if fires else [], "ms": None} for q, fires in zip(asked, found, strict=True)]


def main(args=None):
    """Print the table of one part. A held-out part is for rules that are final: once looked at, it is spent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("development", "first", "seventh", "tester"), default="development")
    parser.add_argument("--misses", action="store_true", help="list what went wrong, of the development part")
    parser.add_argument("--opponent", action="store_true", help="score two lines of scikit-learn instead")
    how = parser.parse_args(args)
    guard = Guard()
    guard.question("warm")
    asked = [q for q in questions() if q["part"] == how.part]
    scored = opponent(asked) if how.opponent else score(asked, guard)
    digest = hashlib.sha256(RULES.read_bytes() + CUES.read_bytes()).hexdigest()[:12]
    print(f"{'tf-idf' if how.opponent else f'rules version {guard.version} ({digest})'}, {how.part} part")
    print("| variant | question | a rule fired | 95 % | n |\n|:--|:--|--:|:--|--:|")
    for row in table(scored):
        side = "red flag" if row["flag"] else "benign"
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
        print(f"| {row['variant']} | {side} | {100 * row['value']:.1f} % | {interval} | {row['n']} |")
    if how.opponent:
        return
    if any(q["variant"] == "plain" for q in asked):
        print(apart(asked, guard))
    times = sorted(q["ms"] for q in scored)
    long = [{"text": " ".join(q["text"] for q in scored)[:READ]}] * 9  # the longest that is read
    print(f"median {times[len(times) // 2]:.2f} ms, 99th percentile {times[int(0.99 * len(times))]:.2f} ms a question, "
          f"one of {READ:,} characters {sorted(q['ms'] for q in score(long, guard))[4]:.1f} ms")  # fmt: skip
    for q in scored if how.misses and how.part == "development" else []:
        if bool(q["found"]) != q["flag"]:
            print(q["pair"], q["variant"], q["found"], q["text"])


if __name__ == "__main__":
    main()
