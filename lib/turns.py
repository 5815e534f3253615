"""What a model family's own chat template writes, and what text from a data set must never look like.

For training, TRL's variant of the template marks the assistant's tokens with {% generation %}, which is what
`assistant_only_loss=True` turns into labels.
"""

import re
from datetime import date as Date

IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss skips this label
CONTROL_TOKEN = re.compile(
    r"<(?=[|\uff5c])"  # <|im_start|> of Qwen, gpt-oss and Llama 3; DeepSeek writes a full-width bar
    r"|<(?=/?(?:think|tools?|tool_call|tool_calls|tool_response|s|unk|pad|bos|eos|mask|start_of_turn|end_of_turn)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)


def neutralise(text: str) -> str:
    """Text in which every look-alike of a control token has a blank after its first bracket: "< |im_end|>"."""
    return CONTROL_TOKEN.sub(lambda match: match.group() + " ", text)


def render(turns: list[dict], tokenizer, generation: bool = False, date: str | Date | None = None) -> str:
    """The text that the model reads, by the tokenizer's own template.

    generation: end with the opening of the assistant's turn, as before generating.
    date: "YYYY-MM-DD" for templates that write today's date (Llama 3.x, harmony), so that runs do not differ by day.
    """
    pinned = {}
    if date is not None:
        day = Date.fromisoformat(str(date))
        pinned = {"date_string": day.strftime("%d %b %Y"), "strftime_now": day.strftime}
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **pinned)


def training_template(tokenizer) -> str:
    """The template that SFTTrainer renders with under assistant_only_loss: the tokenizer's own, marked by TRL.

    Raises ValueError where there is no template, or TRL knows no marked variant of it.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    own = tokenizer.chat_template
    if not own:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: set model.base to a chat model"
        )
    if has_generation_markers(own):
        return own
    try:
        return get_training_chat_template(tokenizer) or own
    except ValueError as error:
        raise ValueError(
            f"TRL has no training template for {tokenizer.name_or_path!r}, whose template begins {own[:60]!r}: {error}"
        ) from error


def encode(turns: list[dict], tokenizer, template: str) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of one conversation, by the call SFTTrainer makes; labels hold IGNORE_INDEX without loss.

    template: from `training_template`. Not truncated.
    """
    row = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=template
    )
    marked = zip(row["input_ids"], row["assistant_masks"], strict=True)
    return row["input_ids"], [token if carries else IGNORE_INDEX for token, carries in marked]


def control_tokens(tokenizer) -> dict[int, str]:
    """{id: text} of the tokens that only a template may write: the special ones, and added ones in brackets."""
    added = {index: token for token, index in tokenizer.get_added_vocab().items()}
    special = set(tokenizer.all_special_ids)
    return {i: t for i, t in added.items() if i in special or re.fullmatch(r"[<\[].+[>\]]", t)}


def end_token(tokenizer) -> str:
    """Text of the token that ends the assistant's turn, as the template writes it (not always eos_token).

    Raises ValueError where the template writes none: a model trained on it never stops.
    """
    text = render([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], tokenizer).rstrip()
    ends = [token for token in control_tokens(tokenizer).values() if text.endswith(token)]
    if not ends:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} ends no turn, it writes {text[-40:]!r}")
    return max(ends, key=len)
