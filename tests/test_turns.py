"""Conversations of several turns: each answer is trained behind what stood before it, in every family's template."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from test_chat import DATE, PAIRS, SOUND, audit, row

from lib.chat import encoding, lossmask, turns

EARLIER = [
    {"role": "system", "content": "You are a careful doctor."},
    {"role": "user", "content": "My nose runs. <|im_end|>"},
    {"role": "assistant", "content": "For how long?"},
]
RECORD = {"instruction": "Two days.", "reasoning": "A cold.", "output": "Rest and fluids.", "history": EARLIER}


@pytest.fixture(scope="module", params=PAIRS)
def family(request):
    """(tokenizer, format)"""
    make, fmt, _ = PAIRS[request.param]
    return turns.prepare(make(), fmt), fmt


@pytest.mark.parametrize("reasoning", ["A cold.", ""])
@pytest.mark.parametrize("history", [EARLIER, EARLIER[:1], EARLIER[1:], EARLIER[1:] * 3])
def test_only_the_last_answer_carries_loss_and_all_that_was_said_is_in_the_prompt(family, history, reasoning):
    tokenizer, fmt = family
    record = RECORD | {"history": history, "reasoning": reasoning}
    ids, labels = row(tokenizer, record, fmt)
    trained = tokenizer.decode([label for label in labels if label != encoding.IGNORE_INDEX])
    context = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label == -100])
    assert "Rest and fluids." in trained and (reasoning in trained)
    assert "how long" not in trained and "Two days" not in trained and "careful" not in trained
    said = [turns.neutralise(turn["content"]) for turn in history]
    places = [" ".join(context.split()).find(" ".join(text.split())) for text in [*said, "Two days."]]
    assert -1 not in places and (len(set(said)) < len(said) or places == sorted(places))
    assert list(encoding.tokenize([record], tokenizer, fmt, DATE)) == [(ids, labels)]
    with_reasons = row(tokenizer, RECORD | {"history": []}, fmt)
    assert audit([(ids, labels), with_reasons], tokenizer, fmt, DATE)["shares"] == SOUND


def test_a_mask_that_trains_an_earlier_answer_too_is_found(family):
    tokenizer, fmt = family
    ids, labels = row(tokenizer, RECORD | {"history": EARLIER[1:]}, fmt)
    wrong = [token if place > 3 else label for place, (token, label) in enumerate(zip(ids, labels, strict=True))]
    with pytest.raises(ValueError, match="'prompt'"):
        audit([(ids, wrong)], tokenizer, fmt, DATE)


def test_rows_with_and_without_a_history_are_told_apart_in_one_batch(family):
    tokenizer, fmt = family
    records = [RECORD | {"history": EARLIER[: n % 2 * 3], "instruction": f"Question {n}"} for n in range(9)]
    assert list(encoding.tokenize(records, tokenizer, fmt, DATE)) == [row(tokenizer, r, fmt) for r in records]


DROPS = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + DROPS


@pytest.mark.parametrize("template", [DROPS, REFUSES])
def test_a_system_prompt_that_a_template_drops_or_refuses_stands_before_the_first_question(template):
    tokenizer = PAIRS["qwen3"][0]()
    tokenizer.chat_template = template
    ids, _ = row(turns.prepare(tokenizer, "thinking_response"), RECORD, "thinking_response")
    assert "<|im_start|>user\nYou are a careful doctor.\n\nMy nose runs." in tokenizer.decode(ids)


def test_a_template_that_drops_an_earlier_turn_is_refused():
    tokenizer = PAIRS["qwen3"][0]()
    tokenizer.chat_template = DROPS.replace("messages if", "messages[-2:] if")
    with pytest.raises(ValueError, match="does not write a conversation's system turn 'You are a careful doctor.'"):
        row(tokenizer, RECORD, "thinking_response")


def test_an_added_control_token_in_a_conversation_is_still_found():
    tokenizer = PAIRS["qwen3"][0]()
    ids, labels = row(tokenizer)
    extra = tokenizer.convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(ValueError, match="control tokens as .found, written by the template. differ"):
        audit([([*ids[:3], extra, *ids[3:]], [*labels[:3], -100, *labels[3:]])], tokenizer, "think", DATE)


def test_a_source_without_reasoning_passes_in_every_format_where_it_is_said(family):
    tokenizer, fmt = family
    bare = [row(tokenizer, {"instruction": f"Question {n}", "reasoning": "", "output": "A."}, fmt) for n in range(3)]
    check = lossmask.Audit(tokenizer, fmt, DATE, reasoned=False)
    for ids, labels in bare:
        check.add(ids, labels)
    found = check.result(0.05)
    assert found["shares"]["answer"] == 1 and found["shares"]["end"] == 1 and found["shares"]["prompt"] == 0
    with pytest.raises(ValueError, match="1 of 4 rows lose their end to sft.max_length, 25.0%"):
        check.result(0.05, left_out=1)
    wrong = lossmask.Audit(tokenizer, fmt, DATE, reasoned=False)  # reasoning that is there has to be trained still
    ids, labels = row(tokenizer, RECORD | {"history": []}, fmt)
    wrong.add(ids, lossmask.final_only(ids, labels, tokenizer, fmt, DATE))
    with pytest.raises(ValueError, match="'reasoning': 0.0"):
        wrong.result()
