"""What the guard rails see: red flags found, false alarms on benign questions, milliseconds a question.

Each pair is asked plainly and in variants. A third of the pairs is held out: hand-written pairs of data/screens.yaml
that nobody read while the rules were written. Rules are changed by the development part only.
"""

import argparse
import random
import re
import time

import yaml

from app.guard import Guard
from lib import stats
from lib.evaluation import screens
from lib.pipeline.files import ROOT

FLAGS = ROOT / "data" / "redflags.yaml"
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
    """[{"pair", "flag", "variant", "held_out", "text"}] of all pairs, in each variant."""
    document = yaml.safe_load(FLAGS.read_text(encoding="utf-8"))
    hand = [p for p in yaml.safe_load(screens.SCREENS.read_text(encoding="utf-8"))["pairs"]]
    pairs = [(name, False, sides) for name, sides in document["pairs"].items()]
    pairs += [(p["id"], n >= document["developed"], (p["red_flag"], p["benign"])) for n, p in enumerate(hand)]
    found = []
    for name, held, sides in pairs:
        for flag, text in zip((True, False), sides, strict=True):
            about = {"pair": name, "flag": flag, "held_out": held}
            found += [about | {"variant": v, "text": make(text, f"{name}{flag}")} for v, make in VARIANTS.items()]
    for name, sides in document["es"].items():
        about = {"pair": name, "variant": "Spanish", "held_out": False}
        found += [about | {"flag": flag, "text": text} for flag, text in zip((True, False), sides, strict=True)]
    return found


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


def main(args=None):
    """Print the table of one part. --held-out is for rules that are final."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--misses", action="store_true", help="list what went wrong, of the development part")
    how = parser.parse_args(args)
    guard = Guard()
    guard.question("warm")
    scored = score([q for q in questions() if q["held_out"] is how.held_out], guard)
    print(f"rules version {guard.version}, {'held-out' if how.held_out else 'development'} part")
    print("| variant | question | a rule fired | 95 % | n |\n|:--|:--|--:|:--|--:|")
    for row in table(scored):
        side = "red flag" if row["flag"] else "benign"
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
        print(f"| {row['variant']} | {side} | {100 * row['value']:.1f} % | {interval} | {row['n']} |")
    times = sorted(q["ms"] for q in scored)
    print(f"median {times[len(times) // 2]:.2f} ms, 99th percentile {times[int(0.99 * len(times))]:.2f} ms a question")
    for q in scored if how.misses and not how.held_out else []:
        if bool(q["found"]) != q["flag"]:
            print(q["pair"], q["variant"], q["found"], q["text"])


if __name__ == "__main__":
    main()
