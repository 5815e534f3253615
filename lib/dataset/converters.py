"""From a raw row of one data set to the content of a record, or a Reject that carries a short reason.

Content fields: instruction, reasoning, output, options, answer, letter. Provenance is added in lib/dataset/ingest.py.
"""

import re

from lib.dataset import answers, choices, stated
from lib.dataset.choices import LETTERS, Reject, clean
from lib.dataset.wording import length, without_stock

EXPLANATION = re.compile(r"\s*\bExplanation:\s*")
STATING = ("answer", "option", "choice", "boxed")  # words without which nothing states an answer
TAIL_CHARS = 500  # of an output, in which its last stated answer is looked for
DECISIONS = ["yes", "no", "maybe"]
LEAD = re.compile(r"\s*(?:the\s+)?(?:final\s+|correct\s+)*(?:decision|answer)\s*(?:is\b\s*:?|:)\s*", re.IGNORECASE)
PROSE = re.compile(r"\n|[.!?]\s+[A-Z]|[。！？].")  # signs of more than one sentence
TRUTH_WORDS = (6, 25)  # a ground truth of fewer words is no prose whatever its signs, one of more always is


def content(instruction: str, reasoning: str, output: str, answer: str | None) -> dict:
    """Content fields of an open question."""
    return {"instruction": instruction, "reasoning": reasoning, "output": output, "options": [], "answer": answer,
            "letter": None}  # fmt: skip


def choice(question: str, reasoning: str, explanation: str, options: list[str], index: int) -> dict:
    """Content fields of a multiple-choice question; index: of the right option.

    The output ends with the option's text, not its letter: a letter says nothing without the list.
    Raises Reject: options_alike where another option reads like the right one.
    """
    right = options[index]
    if not choices.unique(options, index):
        raise Reject("options_alike")
    return {
        "instruction": choices.listed(question, options),
        "reasoning": reasoning,
        "output": "\n\n".join(filter(None, [explanation, f"Answer: {right}"])),
        "options": options,
        "answer": right,
        "letter": LETTERS[index],
    }


def optional(row: dict, column: str) -> str:
    """A cell as clean text, "" where it is missing or void. Raises Reject for what is not text."""
    value = row.get(column)
    return "" if value is None or (isinstance(value, str) and not value.strip()) else clean(value, "")


def last_answer(output: str) -> str | None:
    """The text of a last line "Answer: <text>", None where there is none."""
    line = output[output.rfind("\n") + 1 :]
    return line[len("Answer:") :].strip() or None if line.startswith("Answer:") else None


def open_question(row: dict, columns: tuple[str, str, str]) -> dict:
    """Content of a free-text question from its (question, reasoning, response) columns.

    A last line "Answer: <text>" of the response is read as the short ground truth.
    """
    question = clean(row[columns[0]], "empty_question")
    reasoning = clean(row[columns[1]], "empty_reasoning")
    output = clean(row[columns[2]], "empty_answer")
    return content(question, reasoning, output, last_answer(output))


def verifiable(row: dict) -> dict:
    """Content of a medical-o1-verifiable-problem row: a question and its short ground truth."""
    question = clean(row["Open-ended Verifiable Question"], "empty_question")
    truth = clean(row["Ground-True Answer"], "empty_answer")
    return content(question, "", truth, truth)


def medreason(row: dict) -> dict:
    """Content of a MedReason row: `answer` is "<option text>. Explanation: <why>", `options` is one string or empty.

    Its PubMedQA rows answer "The final decision is: yes. <why>"; others list the options inside the question, or have
    none and a whole response as answer, which is no short ground truth.
    """
    question = clean(row["question"], "empty_question")
    reasoning = clean(row["reasoning"], "empty_reasoning")
    output = clean(row["answer"], "empty_answer")
    if not isinstance(row["options"] or "", str):
        raise Reject("wrong_type")
    options = choices.options_of(row["options"] or None)
    truth, *explanation = (part.strip() for part in EXPLANATION.split(output, maxsplit=1))
    if not truth:
        raise Reject("empty_answer")
    stem, inside = (question, []) if options else choices.inside_or_none(question)
    if options or (inside and (LEAD.match(truth) or not is_prose(truth))):
        index, why = _named(truth, options or inside)
        why = stated.without_letters("\n\n".join([*filter(None, [why]), *explanation]), options or inside, index)
        return choice(stem, reasoning, why, options or inside, index)
    if choices.LETTERED.fullmatch(truth):
        raise Reject("answer_not_in_options")  # a letter without a list
    truth = truth.rstrip(".")
    return content(question, reasoning, output, None if is_prose(truth) else LEAD.sub("", truth, count=1) or None)


def _named(truth: str, options: list[str]) -> tuple[int, str]:
    """(index, rest) of the option with which a truth opens, "The final decision is: yes. <rest>" as well as "yes"."""
    bare = LEAD.sub("", truth, count=1) if LEAD.match(truth) else truth
    if bare == truth or choices.fold(bare) in map(choices.fold, options):
        return choices.find(bare, options, means="text"), ""
    head, _, rest = re.sub(r"([.,;:]\s|\n)", "\0", bare, count=1).partition("\0")
    return choices.find(head, options, means="text"), rest.strip()


def is_prose(truth: str) -> bool:
    """Whether a text is a response of several sentences rather than a short ground truth."""
    words, (few, many) = length(truth), TRUTH_WORDS
    return "\n" in truth or words > many or len(truth) > 12 * many or bool(words > few and PROSE.search(truth))


def reasonmed(row: dict, reasoned: bool = True) -> dict:
    """Content of a ReasonMed row; its options stand inside instruction or input, and no column holds the truth.

    The answer is the last one that the output states, None where it states none or several at once.
    reasoned: what the output says before its last paragraph, or inside <think> tags, is the reasoning; else all of it
        is the answer, as in ResponseMed.json.
    """
    question = "\n".join(filter(None, [clean(row["instruction"], "empty_question"), optional(row, "input")]))
    question = without_stock(question)
    output = clean(row["output"], "empty_answer")
    stem, options = choices.inside(question)
    reasoning, said = _reasoning_and_answer(output) if reasoned else ("", output)
    index = named(output[-TAIL_CHARS:], options) if options else None
    if index is not None:
        if last_answer(said):
            said = said[: said.rfind("\n") + 1].strip()
        return choice(stem, reasoning, said, options, index)
    fields = content(question, reasoning, said, None if options else last_answer(output))
    return fields | ({"instruction": choices.listed(stem, options), "options": options} if options else {})


def named(text: str, options: list[str]) -> int | None:
    """Index of the option that a text states as its answer, rather than mentions; None where it states none.

    Raises Reject: answer_conflict where its last two statements, in whatever words, name different options.
    """
    folded = text.casefold()
    if not any(word in folded for word in STATING):  # for speed
        return None
    letter, _ = answers.stated(text, options)
    further = [other for other in stated.letters(text) if LETTERS.index(other) < len(options)]
    if letter and further and further[-1] != letter:
        raise Reject("answer_conflict")
    return LETTERS.index(letter) if letter else None


def _reasoning_and_answer(output: str) -> tuple[str, str]:
    before, closes, after = output.partition("</think>")
    if not closes:
        before, _, after = output.rpartition("\n\n")
    before, after = before.replace("<think>", "").strip(), after.strip()
    if not after:
        raise Reject("empty_answer")
    return before, after


def pubmedqa(row: dict) -> dict:
    """Content of a PubMedQA row: the abstract's paragraphs, then the question; the conclusion is the reasoning."""
    question, context = clean(row["question"], "empty_question"), row["context"]
    if not isinstance(context, dict) or not isinstance(context.get("contexts"), list):
        raise Reject("wrong_type")
    paragraphs = [clean(text, "empty_context") for text in context["contexts"]]
    if not paragraphs:
        raise Reject("empty_context")
    decision = clean(row["final_decision"], "empty_answer").casefold()
    if decision not in DECISIONS:
        raise Reject("answer_not_in_options")
    instruction = "\n\n".join([*paragraphs, question])
    return choice(instruction, optional(row, "long_answer"), "", list(DECISIONS), DECISIONS.index(decision))


def medmcqa(row: dict, base: int = 0) -> dict:
    """Content of a MedMCQA row: `cop` counts from `base` and is -1 where the answer is hidden; `exp` is the reasoning.

    `exp` often states the answer's letter. That is cut out where it agrees with `cop`, else the row is rejected.
    """
    question = clean(row["question"], "empty_question")
    options = choices.options_of([row[column] for column in ("opa", "opb", "opc", "opd")])
    if row["cop"] in (-1, None) and not isinstance(row["cop"], bool):
        raise Reject("answer_hidden")
    if isinstance(row["cop"], str):
        raise Reject("wrong_type")  # a mirror's text; this source states a number
    index = choices.find(row["cop"], options, means="letter", base=base)
    return choice(question, stated.without_letters(optional(row, "exp"), options, index), "", options, index)


def medqa(row: dict) -> dict:
    """Content of a MedQA row, options by letter or as a list of {"key", "value"}; text and letter must agree."""
    question = choices.unquote(clean(row["question"], "empty_question"))
    if not question:
        raise Reject("empty_question")
    options = choices.options_of(_unquoted(row["options"]))
    if not options:
        raise Reject("options_unparsable")
    index = choices.find(choices.unquote(clean(row["answer_idx"], "empty_answer")), options, means="letter")
    truth = choices.unquote(clean(row["answer"], "empty_answer"))
    if choices.find(truth, options, means="text") != index:
        raise Reject("answer_conflict")
    return choice(question, "", "", options, index)


def _unquoted(value):
    """Options with stray quotes and blanks taken off every text."""
    if isinstance(value, dict):
        return {key: _unquoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unquoted(inner) for inner in value]
    return choices.unquote(value) if isinstance(value, str) else value
