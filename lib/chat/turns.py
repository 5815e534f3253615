"""What a model family's own chat template writes, and what text from a data set must never look like."""

import contextlib
import re
import signal
import threading
import unicodedata
from datetime import date as Date
from functools import lru_cache

LIMIT_S = 10  # seconds for one conversation, which takes a thousandth of one
IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss skips this label
CONTROL_TOKEN = re.compile(
    r"<(?=[|\uff5c])"  # <|im_start|> of Qwen, gpt-oss and Llama 3; DeepSeek writes a full-width bar
    r"|<(?=/?(?:think|tools?|tool_call|tool_calls|tool_response|s|unk|pad|bos|eos|mask|start_of_turn|end_of_turn)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|^#(?=# (?:Thinking|Final Response)\b)|^#(?=## (?:Question|Answer):)",  # headings that our own formats write
    re.MULTILINE,
)
# For models without a chat template (Llama-2 base, GPT-2, DialoGPT): one question, one answer, the end token.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}### Question:\n"
    "{{ message['content'] }}\n\n### Answer:\n{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Before a template that knows no system turn: a server, which has the template alone, then merges it as training does.
TOLD_FIRST = (
    "{%- if messages[0]['role'] == 'system' and messages|length > 1 -%}"
    "{%- set told = messages[0]['content'] + '\n\n' + messages[1]['content'] -%}"
    "{%- set messages = [{'role': messages[1]['role'], 'content': told}] + messages[2:] -%}{%- endif -%}"
)


def neutralise(text: str) -> str:
    """Text in which every look-alike of a control token has a blank after its first character: "< |im_end|>".

    Letters and accents are composed (NFC): Qwen's tokenizer does it, llama.cpp's does not, and both read this text.
    """
    text = unicodedata.normalize("NFC", text)
    if "<" not in text and "[" not in text and "#" not in text:
        return text
    return CONTROL_TOKEN.sub(lambda match: match.group() + " ", text)


def prepare(tokenizer, fmt: str, date=None, effort: str | None = None):
    """The tokenizer with the template that is trained and served: PLAIN_TEMPLATE where it has none and the format is
    "instruction"; the date and the reasoning effort, as in `render`, written into it, so that a server, which is asked
    on another day, writes them too; a system turn before the first question where the template knows none.

    Raises ValueError where there is no template and the format needs one.
    """
    if not tokenizer.chat_template:
        if fmt != "instruction":
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template, which chat.format {fmt!r} needs: "
                f"set chat.format: instruction, or model.base to a chat model"
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    told = "" if _knows_system(tokenizer) else TOLD_FIRST
    tokenizer.chat_template = _pins(tokenizer.chat_template, date, effort) + told + tokenizer.chat_template
    return tokenizer


def _pins(template, date, effort):
    """What makes a template write one date and one reasoning effort wherever it is rendered, in a server too."""
    pins = f'{{%- set reasoning_effort = "{effort}" -%}}' if effort else ""
    if date and "date_string" in template:
        pins += f'{{%- set date_string = "{Date.fromisoformat(str(date)):%d %b %Y}" -%}}'
    if date and "strftime_now" in template:
        pins += f"{{%- macro strftime_now(form) -%}}{date}{{%- endmacro -%}}"
    return pins


def render(turns: list[dict], tokenizer, generation: bool = False, date=None, effort: str | None = None) -> str:
    """The text that the model reads, by the tokenizer's own template.

    generation: end with the opening of the assistant's turn, as before generating.
    date: "YYYY-MM-DD" for templates that write today's date (Llama 3.x, harmony), so that runs do not differ by day.
    effort: "low", "medium" or "high", which harmony writes into its system turn; None leaves the template's default.
    """
    pinned = {}
    if date is not None:
        day = Date.fromisoformat(str(date))
        pinned = {"date_string": day.strftime("%d %b %Y"), "strftime_now": day.strftime}
    if effort is not None:
        pinned["reasoning_effort"] = effort
    with _limited(tokenizer):
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **pinned)


class Endless(ValueError):
    """A template that takes longer than any would."""


@contextlib.contextmanager
def _limited(tokenizer):
    """End a template that loops; the model's folder brings it, and jinja limits no nested loops."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals, and renders first
        yield
        return

    def late(number, frame):
        raise Endless(
            f"the chat template of {tokenizer.name_or_path} takes more than {LIMIT_S} s for one conversation: it "
            "loops. Mend it there, or set model.base to another model"
        )

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _knows_system(tokenizer):
    """Whether a template writes a system turn as one; those of Llama-2 base and Gemma 2 drop it, refuse it or take it
    for an answer, and get its text before the first question.
    """
    texts = []
    for role in ("system", "assistant"):
        asked = [{"role": role, "content": "\ue0004\ue001"}, {"role": "user", "content": "q"}]
        try:
            with _limited(tokenizer):
                texts.append(tokenizer.apply_chat_template(asked, tokenize=False))
        except Endless:
            raise
        except Exception:  # noqa: BLE001 - jinja's own errors, and those that templates raise
            texts.append("")
    return "\ue0004\ue001" in texts[0] and texts[0] != texts[1]


def control_tokens(tokenizer) -> dict[int, str]:
    """{id: text} of the tokens that only a template may write: the special ones, and added ones in brackets."""
    added = {index: token for token, index in tokenizer.get_added_vocab().items()}
    special = set(tokenizer.all_special_ids)
    return {i: t for i, t in added.items() if i in special or re.fullmatch(r"[<\[].+[>\]]", t)}


def end_token(tokenizer) -> str:
    """Text of the token that ends the assistant's turn, as the template writes it (not always eos_token).

    Raises ValueError where the template writes none: a model trained on it never stops.
    """
    return _end_token(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=64)
def _end_token(tokenizer, template):
    text = render([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], tokenizer).rstrip()
    ends = [token for token in control_tokens(tokenizer).values() if text.endswith(token)]
    if not ends:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} ends no turn, it writes {text[-40:]!r}")
    return max(ends, key=len)
