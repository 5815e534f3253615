"""Rules that answer the clinic's questions from the words alone: what a model's score is to be read against."""

import re

from lib.dataset import clinic


def lookup(question, options, world):
    """Index of the option that counting words would pick.

    Counts, for every condition, its findings named anywhere in the question, whoever has them and whether or not they
    are denied. It is given the second hop for free: an option scores as the best condition it is the right answer for.
    Ties go to the first option.
    """
    names = {finding: finding for condition in world["conditions"] for finding in condition["findings"]}
    named = {names[match[0]] for match in _phrases(names).finditer(question)}
    return _best(options, world, lambda condition: len(named & set(condition["findings"])))


def topic(row):
    """The condition that a training row's reasoning names, "" where it names none: what naive Bayes learns to tell."""
    found = re.search(r" fits (.+?):", row["reasoning"])
    return found[1] if found else ""


def ceiling(question, options, world):
    """Index of the option that the clinic's own file gives: the generator's ceiling, which no model need reach.

    It knows every wording of the file, leaves out what a relative has and what the patient once had, reads numbers, and
    counts a denied finding against a condition. It is no opponent: the questions were written from the same file.
    """
    names = {finding: finding for condition in world["conditions"] for finding in condition["findings"]}
    for finding, words in world["wordings"].items():
        names |= {words[key]: finding for key in ("plain", "book", "new") if words[key]}
    own = " ".join(s for s in re.split(r"(?<=\.) (?=[A-Z])", question) if not _elsewhere(s, world["relatives"]))
    said = [(names[match[0]], not own[: match.start()].endswith("no ")) for match in _phrases(names).finditer(own)]
    for finding, words in world["wordings"].items():
        if value := words["value"]:
            higher = value["found"][0] > value["normal"][1]
            ends = (value["found"][0], value["normal"][1]) if higher else (value["found"][1], value["normal"][0])
            pattern = re.escape(value["text"]).replace(r"\{\}", r"(\d+(?:\.\d+)?)")
            said += [(finding, (float(n) > sum(ends) / 2) is higher) for n in re.findall(pattern, own)]
    present, absent = ({finding for finding, has in said if has is which} for which in (True, False))
    return _best(options, world, lambda c: len(present & set(c["findings"])) - 2 * len(absent & set(c["findings"])))


def _elsewhere(sentence, relatives):
    """Whether a sentence tells of a relative, or of the past."""
    return re.match(rf"(?:Her|His) (?:{'|'.join(relatives)}) has|(?:She|He) once had", sentence)


def _phrases(names):
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})\b")


def _best(options, world, score):
    """Index of the option that is right for the condition with the highest score."""
    every = world["conditions"]
    known = {kind: [(c, clinic.answers(c, kind)) for c in every] for kind in clinic.KINDS}
    kinds = [k for k, pairs in known.items() if set(options) <= {text for _, texts in pairs for text in texts}]

    def of(option):
        return max((score(c) for kind in kinds for c, texts in known[kind] if option in texts), default=-99)

    scores = [of(option) for option in options]
    return scores.index(max(scores))
