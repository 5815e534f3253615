"""Guard rails: what is said before and after an answer, by rules that can be read (rules.yaml) and a learned score.

A notice is put beside an answer, nothing in it is changed. The rules are regular expressions, the score weighs words
(cues.py): both know ways of saying things and understand nothing. benchmarks/guard.py measures what they see and miss.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from app.cues import Cues
from lib.chat.turns import neutralise

RULES = Path(__file__).with_name("rules.yaml")
LIKENESS = str.maketrans(
    {"’": "'", "‘": "'", "`": "'", "á": "a", "é": "e", "í": "i", "ó": "o", "ú": "u", "ü": "u", "ñ": "n"}
)
READ, RULED = 4000, 1000  # characters of a question, from its end, that are read; that red flags' rules are tried on
ASKED = (
    "Does this message describe a medical emergency that needs help within the hour? Reply with one word, yes or no."
)
PARTS = ("emergency", "calm", "medical", "dose", "caveat", "certain")
DENIED = re.compile(  # "no rash or fever", to the end of the clause; "no pulse" is a finding of its own
    r"\b(?:no|without|never had|nor)\b (?!(?:pulse|urine|wet|feeling|stool|wind|sensation|response|reason|one|longer|"
    r"puede|puedo|quiero|se|me|desaparecen|breath|movements?|kicks?|kicking|strength|spleen|tears|power|relief|point|"
    r"improvement|effect|matter|hay|respira|responde|deja|para|despierta|reacciona|noto|siento|pee|poo|idea|control)\b)"
    r"[^.,;:?!]*?(?=[.,;:?!]|\bbut\b|\band (?:now|i|he|she|my|the|today)\b|$)",
)
APART = re.compile(r"(?<=[^\w\s'.,-])(?=\w)|(?<=[.,])(?=[a-z])")  # "fever,rash" and "(chest": a word begins


@dataclass(frozen=True)
class Hit:
    """A rule that fired: its id, its kind, the notice it brings."""

    id: str
    kind: str
    text: str

    def entry(self):
        """As clients see it, in `guard` of a response."""
        return {"id": self.id, "kind": self.kind, "notice": self.text}


class Guard:
    """Rules over questions and answers. out_of_scope: "notice", "refuse" or "off"."""

    def __init__(self, out_of_scope="notice", path=RULES, log=None):
        self.rules = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        self.version, self.notices, self.out_of_scope, self.log = (
            self.rules["version"],
            self.rules["notices"],
            out_of_scope,
            log,
        )

    @cached_property
    def patterns(self):
        """{part: [(id, searches that must find, one that must not)]}."""
        made, words = {}, self.rules["words"]

        def compiled(text):
            for _ in range(3):  # words may name words
                text = re.sub(r"\{([a-z_]+)\}", lambda m: f"(?:{words[m[1]]})", text)
            if text not in made:
                small = re.sub(r"\\.|[A-Z]", lambda m: m[0] if m[0][0] == "\\" else m[0].lower(), text)
                made[text] = re.compile(rf" (?:{small})(?!\w)" if small[0] != "^" else small).search
            return made[text]

        def rule(r):
            return r["id"], [compiled(text) for text in r["find"]], compiled(r["unless"]) if "unless" in r else None

        return {part: [rule(r) for r in self.rules[part]] for part in PARTS}

    @cached_property
    def cues(self):
        """The learned score of red flags."""
        return Cues()

    @cached_property
    def neutral(self):
        """Phrases of alarming words that alarm nobody."""
        return re.compile(rf" (?:{self.rules['neutral']})(?!\w)")

    @cached_property
    def spelling(self):
        """{a word of the rules with one letter left out: the word}, to read words with one typing error."""
        found = {}
        literal = re.sub(r"\\+[wWbdsS][*+?]?|\(\?[:!<=]+|\{[^}]*\}", " ", " ".join(_texts(self.rules)))
        for word in set(re.findall(r"(?<![a-z])[a-z]{5,}(?![a-z])", literal)):
            for at in range(len(word)):
                found.setdefault(word[:at] + word[at + 1 :], word)
            found[word] = word
        found |= {word: word for word in self.rules["spelt"].split()}
        return found

    def compile(self):
        """Before the first request: a rule that is no expression stops the start."""
        return self.patterns, self.neutral, self.spelling, self.cues

    def question(self, text):
        """Hits on a question. Emergencies are looked for first; no fault in another rule keeps one from being told."""
        text = plain(text)
        hits = [Hit(i, "emergency", self.notices["emergency"]) for i in self._urgent(text)]
        for check in (self._scope, self._control):
            hits += self._safe(check.__name__, check, text) or []
        if any(hit.kind == "emergency" for hit in hits):
            hits = [hit for hit in hits if hit.kind != "scope"]
        return hits

    def spelled(self, text):
        """The text with words that lack a letter, hold one too many or two swapped as the rules write them."""

        def mended(match):
            word = match.group()
            if self.spelling.get(word) == word:
                return word
            near = [self.spelling[word]] if word in self.spelling else []  # it lacks a letter
            for at in range(len(word)):
                other = self.spelling.get(word[:at] + word[at + 1 :], "")
                if len(other) < len(word) or sorted(other) == sorted(word):  # one too many, or two swapped
                    near.append(other)
            # the first letter and the last are seldom missed, and "other" is no "mother"
            near = [other for other in near if (other[:1], other[-1:]) == (word[0], word[-1])]
            return next(iter(near), word)

        return re.sub(r"[a-z]{4,}", mended, text)

    def emergencies(self, text):
        """Ids of the red flags in a text, from `words`; what is said of the past, of study or of "no ..." is none."""
        found = []
        texts = dict.fromkeys(self.neutral.sub("", DENIED.sub(" ", told)) for told in (text, self.spelled(text)))
        for told in texts:
            if not any(self._fired("calm", told)):
                found += self._fired("emergency", told)
        return list(dict.fromkeys(found))

    def _urgent(self, text):
        """Ids of the rules that fire, and "cues" where the score is high.

        Where the score finds the text harmless, rules are told only with one of those that it may not silence.
        """
        fired = self.emergencies(words(text[-RULED:]))
        found = fired[:3]
        score = self._safe("cues", self.cues.score, words(text))
        if score is None:  # a fault in the score takes nothing from the rules
            return found
        told = score > self.cues.ruled or not self.cues.certain.isdisjoint(fired)
        return (found if told else []) + (["cues"] if score > self.cues.threshold else [])

    def _fired(self, part, text):
        """Ids of a part's rules that fire. A wrong rule does not, and a wrong `unless` excuses nothing."""
        for name, finds, unless in self.patterns[part]:
            if self._safe(name, _found, text, finds) and not (unless and self._safe(name, unless, text)):
                yield name

    def _safe(self, name, check, *given):
        """What a check finds. A fault in it is reported, finds nothing, and is no reason to answer nothing."""
        try:
            return check(*given)
        except Exception as error:
            if self.log:
                self.log.error("guard_rule_failed", rule=name, error=repr(error))

    def _scope(self, text):
        if self.out_of_scope == "off" or any(_found(words(text), f, u) for _, f, u in self.patterns["medical"]):
            return []
        return [Hit("not-medical", "scope", self.notices["scope"])]

    def _control(self, text):
        return [Hit("control-tokens", "injection", self.notices["injection"])] if neutralise(text) != text else []

    def before(self, hits):
        """(what stands before the answer, its entries): one notice of each kind, emergencies first."""
        shown = {hit.kind: hit.text for hit in hits if hit.kind != "injection"}
        return "".join(f"> {text}\n\n" for text in shown.values()), [hit.entry() for hit in hits]

    def header(self, ids):
        """The response's header that names the rules and what fired of them."""
        return b"x-guard", f"v{self.version} {','.join(ids)}".strip().encode()

    def mark(self, problem, hits):
        """Put what the rules say of the question into an error."""
        problem.notices, problem.guarded = self.before(hits)[1], [self.header([hit.id for hit in hits])]

    def after(self, answer, finish, compliant):
        """(what stands behind an answer, its entries). finish: "stop", "length". compliant: in the recipe's format."""
        hits = []
        if not answer.strip():
            hits.append(Hit("empty", "empty", self.notices["empty"]))
        elif finish == "length":
            hits.append(Hit("cut", "cut", self.notices["cut"]))
        elif not compliant:
            hits.append(Hit("format", "format", self.notices["format"]))
        text = words(plain(answer))
        for kind, rule in (("dose", "dose"), ("certainty", "certain")):
            found = list(self._fired(rule, text))
            if found and not any(self._fired("caveat", text)):
                hits.append(Hit(found[0], kind, self.notices[kind]))
        return "".join(f"\n\n> {hit.text}" for hit in hits), [hit.entry() for hit in hits]

    def strip(self, text):
        """An earlier answer without our notices, as the model wrote it."""
        for notice in self.notices.values():
            text = text.replace(f"> {notice}\n\n", "").replace(f"\n\n> {notice}", "")
        return text

    async def second(self, session, settings, text):
        """What a guard model says, asked with the same question: a hit or none. It may fail, the rules stand."""
        body = {"model": settings.guard_model, "max_tokens": 4, "temperature": 0, "messages": [
            {"role": "system", "content": ASKED}, {"role": "user", "content": text[-READ:]}]}  # fmt: skip
        headers = {"Authorization": f"Bearer {settings.guard_key}"} if settings.guard_key else {}
        try:
            async with session.post(
                settings.guard_url.rstrip("/") + "/chat/completions", json=body, headers=headers
            ) as reply:
                said = json.loads(await reply.read())["choices"][0]["message"]["content"].lower()
        except Exception as error:
            if self.log:
                self.log.error("guard_model_failed", error=repr(error))
            return []
        return [Hit("model", "emergency", self.notices["emergency"])] if "yes" in said[:20] else []


def plain(text):
    """The text as the rules read it: straight apostrophes, no accents of Spanish, the last READ characters."""
    return " ".join(text[-READ:].translate(LIKENESS).split())


def words(text):
    """The text from `plain` in small letters, with a blank before each word: where a rule may begin to match."""
    return " " + " ".join(APART.sub(" ", text.lower()).split())


def _found(text, finds, unless=None):
    """Whether every part is found and nothing that excuses it."""
    for find in finds:
        if not find(text):
            return False
    return not (unless and unless(text))


def _texts(rules):
    """All expressions of the red flags."""
    return [*rules["words"].values(), *(text for rule in rules["emergency"] for text in rule["find"])]
