"""From the text of a model to its reasoning and its answer, and whether the answer is the truth.

Everything here is case-exact where that matters and refuses to guess. lib/dataset/chosen.py reads the letter of an
option, lib/dataset/forms.py brings texts to one form.
"""

import re

from lib.dataset.chosen import LETTERS, choice, stated
from lib.dataset.forms import ALIASES, canonical, contains, negated, normalise

__all__ = ["ALIASES", "FORMATS", "LETTERS", "canonical", "choice", "contains", "matches", "negated",
           "kept", "normalise", "split_reasoning", "stated"]  # fmt: skip


def _split_think(text):
    """(reasoning, answer, compliant) of "<think> reasoning </think> answer"; compliant: just that, with an answer."""
    form = re.fullmatch(r"\s*<think>(.*?)</think>(.*)", text, re.DOTALL)
    if form and "think>" not in form[1] + form[2]:
        reasoning, answer = form[1].strip(), form[2].strip()
        return reasoning, answer, bool(answer)
    reasoning = re.findall(r"<think>(.*?)</think>", text, re.DOTALL)
    rest = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    if "</think>" in rest:  # closed without an opening: what stands before the last closing tag is reasoning
        before, _, rest = rest.rpartition("</think>")
        reasoning.append(before)
    rest, opened, unclosed = rest.partition("<think>")
    if opened:  # never closed: the budget ended, or the model went on thinking; none of it is an answer
        reasoning.append(unclosed)
    return "\n".join(part.strip() for part in reasoning).strip(), rest.strip(), False


def _split_harmony(text):
    """The analysis channel and the final channel of gpt-oss; compliant: in this order, once, with an answer.

    Without reasoning its template writes the final channel alone.
    """
    form = re.fullmatch(
        r"\s*(?:<\|start\|>assistant)?(?:<\|channel\|>analysis<\|message\|>(.*?)<\|end\|>"
        r"<\|start\|>assistant)?<\|channel\|>final<\|message\|>(.*?)(?:<\|return\|>|<\|end\|>)?\s*",
        text,
        re.DOTALL,
    )
    if form and "<|" not in (form[1] or "") + form[2]:
        reasoning, answer = (form[1] or "").strip(), form[2].strip()
        return reasoning, answer, bool(answer)
    parts = re.findall(
        r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?=<\|end\|>|<\|return\|>|<\|start\|>|\Z)", text, re.DOTALL
    )
    reasoning = "\n".join(part.strip() for channel, part in parts if channel != "final")
    final = [part.strip() for channel, part in parts if channel == "final"]
    return reasoning.strip(), final[-1] if final else "" if parts else text.strip(), False


def _split_headings(text):
    """ "## Thinking ... ## Final Response ...": compliant: each heading once, in this order, with an answer."""
    before, heading, answer = text.rpartition("## Final Response")
    if not heading:  # the budget ended while it thought, or it never thought at all
        thinking = text.lstrip().startswith("## Thinking")
        return (text.replace("## Thinking", "", 1).strip(), "", False) if thinking else ("", text.strip(), False)
    reasoning = before.replace("## Thinking", "", 1).strip()
    once = before.count("## Thinking") == 1 and "## Final Response" not in before
    return (
        reasoning,
        answer.strip(),
        bool(before.lstrip().startswith("## Thinking") and once and answer.strip()),
    )


def _split_instruction(text):
    """No marks: the whole turn is the answer; compliant: there is one."""
    return "", text.strip(), bool(text.strip())


FORMATS = {  # format of the recipe (chat.format) -> splitter of a whole assistant turn
    "think": _split_think,
    "harmony": _split_harmony,
    "thinking_response": _split_headings,
    "instruction": _split_instruction,
}


def split_reasoning(text, fmt):
    """Split an assistant turn into (reasoning, answer, compliant).

    text: the complete turn, including an opening tag that the template put into the prompt, without stop tokens.
    fmt: a key of FORMATS. compliant: the turn has exactly the form that training taught, with an answer and nothing
    repeated; whether it may go without reasoning is asked in `kept`. A turn that is not compliant still yields the
    answer where one can be told from the reasoning; where the reasoning never ends, the answer is "".
    """
    if fmt not in FORMATS:
        raise ValueError(f"chat.format {fmt!r} has no splitter: known are {', '.join(sorted(FORMATS))}")
    return FORMATS[fmt](text)


def kept(reasoning, compliant, record):
    """Whether a turn that `split_reasoning` read keeps the form: without reasoning only where its record has none."""
    return compliant and bool(reasoning or not record.get("reasoning", True))


def matches(answer_text, truth):
    """Whether the short ground truth stands in the answer, after synonyms and spelling, and is not negated there.

    A truth of one letter has to be stated as the answer, or be the whole of it: "a" is an article.
    """
    wanted = canonical(truth)
    if len(wanted) == 1 and "a" <= wanted <= "z":
        letter = wanted.upper()
        if letter in LETTERS:
            return choice(answer_text, [""] * len(LETTERS)) == letter
        return bool(re.search(rf"(?<![\w'’-]){letter}(?![\w'’-])", answer_text))
    return contains(canonical(answer_text), wanted) and not negated(answer_text, truth)
