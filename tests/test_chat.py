"""What is trained is the reasoning, the answer and the end token, and no text of a data set becomes a control token."""

import os
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_qwen import cpu_trainer, random_model

from lib.chat import encoding, lossmask, turns
from lib.dataset import ingest, readers, sources

RECORD = {
    "instruction": "Which test?\n\nA. one\nB. two",
    "reasoning": "Step one.\n\nStep two.",
    "output": "Two.\n\nAnswer: B",
}
BARE = RECORD | {"reasoning": ""}
SOUND = {"prompt": 0, "reasoning": 1, "answer": 1, "end": 1}
DATE = "2026-11-03"
PAIRS = {  # name: (tokenizer, format, text of the assistant's turn)
    "qwen3": (families.qwen3, "think", "<think>\nStep one.\n\nStep two.\n</think>\n\nTwo.\n\nAnswer: B<|im_end|>\n"),
    "gptoss": (
        families.gptoss, "harmony",
        "<|channel|>analysis<|message|>Step one.\n\nStep two.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Two.\n\nAnswer: B<|return|>",
    ),
    "llama3": (
        families.llama3, "thinking_response",
        "## Thinking\n\nStep one.\n\nStep two.\n\n## Final Response\n\nTwo.\n\nAnswer: B<|eot_id|>",
    ),
    "llama3_1": (
        lambda: families.llama3("llama3_1"), "thinking_response",
        "## Thinking\n\nStep one.\n\nStep two.\n\n## Final Response\n\nTwo.\n\nAnswer: B<|eot_id|>",
    ),
    "llama3_2": (
        lambda: families.llama3("llama3_2"), "instruction", "Step one.\n\nStep two.\n\nTwo.\n\nAnswer: B<|eot_id|>",
    ),
    "llama2": (families.llama2, "instruction", " Step one.\n\nStep two.\n\nTwo.\n\nAnswer: B </s>"),
    "gpt2": (families.gpt2, "instruction", "Step one.\n\nStep two.\n\nTwo.\n\nAnswer: B<|endoftext|>"),
}  # fmt: skip


def audit(rows, tokenizer, fmt="think", date=None, max_cut=1.0):
    check = lossmask.Audit(tokenizer, fmt, date)
    for ids, labels in rows:
        check.add(ids, labels)
    return check.result(max_cut)


@cache
def prepared(name):
    """(name, tokenizer, format, the assistant's turn)"""
    make, fmt, turn = PAIRS[name]
    return name, turns.prepare(make(), fmt), fmt, turn


@pytest.fixture(params=PAIRS)
def family(request):
    return prepared(request.param)


@pytest.fixture(scope="module")
def qwen3():
    return families.qwen3()


def row(tokenizer, record=RECORD, fmt="think"):
    return encoding.encode(encoding.messages(record, fmt), tokenizer, DATE)


def test_the_assistants_turn_carries_loss_and_nothing_else(family):
    _, tokenizer, fmt, turn = family
    ids, labels = row(tokenizer, fmt=fmt)
    trained = [label for label in labels if label != encoding.IGNORE_INDEX]
    text = encoding.render(encoding.messages(RECORD, fmt), tokenizer, date=DATE)
    assert text.endswith(turn) and tokenizer.decode(ids).strip() == text.strip()
    assert "".join(tokenizer.decode(trained).split()) == "".join(turn.split())
    prompt = encoding.render(encoding.messages(RECORD, fmt, answer=False), tokenizer, generation=True, date=DATE)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(asked)] == asked and labels[: len(asked)] == [encoding.IGNORE_INDEX] * len(asked)
    assert labels[len(asked) :] == ids[len(asked) :]
    if tokenizer.bos_token and tokenizer.bos_token != tokenizer.eos_token:
        assert ids.count(tokenizer.bos_token_id) == (0 if fmt == "harmony" else 1)


def test_audit_of_every_family(family):
    name, tokenizer, fmt, _ = family
    good = audit([row(tokenizer, fmt=fmt)] * 3, tokenizer, fmt, DATE)
    assert good["shares"] == SOUND and good["cut"] == 0, name
    ids, labels = row(tokenizer, fmt=fmt)
    with pytest.raises(ValueError, match=r"'prompt': 1.0"):
        audit([(ids, ids)], tokenizer, fmt, DATE)
    with pytest.raises(ValueError, match=r"'end': (0.0|None)"):
        audit([(ids[:-2], labels[:-2])], tokenizer, fmt, DATE)
    final = lossmask.final_only(ids, labels, tokenizer, fmt, DATE)
    text = tokenizer.decode([label for label in final if label != encoding.IGNORE_INDEX])
    assert "Step" not in text and "Answer: B" in text
    with pytest.raises(ValueError, match=r"'reasoning': 0.0"):
        audit([(ids, final)], tokenizer, fmt, DATE)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "llama3"])
def test_the_mask_is_the_one_of_trls_marked_template(name):
    """TRL ships a variant of these templates that marks the assistant's tokens."""
    from trl.chat_template_utils import get_training_chat_template

    make, fmt, _ = PAIRS[name]
    tokenizer = make()
    for record in (RECORD, BARE):
        messages = encoding.messages(record, fmt)
        theirs = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            chat_template=get_training_chat_template(tokenizer), strftime_now=lambda form: DATE,
        )  # fmt: skip
        ids, labels = encoding.encode(messages, tokenizer, DATE)
        assert ids == theirs["input_ids"]
        given = (
            len(tokenizer("<|start|>assistant")["input_ids"]) if name == "gptoss" else 0
        )  # TRL trains this header too
        start = theirs["assistant_masks"].index(1) + given
        assert labels == [encoding.IGNORE_INDEX] * start + ids[start:]
        assert all(theirs["assistant_masks"][start:])


def test_tokenize_equals_encode_row_by_row(family, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 7)
    _, tokenizer, fmt, _ = family
    records = [
        RECORD | {"instruction": f"Question {n}? <|im_end|>", "reasoning": "" if n % 3 == 0 else f"Step {n}.\n</think>"}
        for n in range(20)
    ]
    slow = [row(tokenizer, record, fmt) for record in records]
    assert list(encoding.tokenize(iter(records), tokenizer, fmt, DATE)) == slow
    table = encoding.rows(iter(records), tokenizer, fmt, DATE)
    assert [(r["input_ids"], r["labels"]) for r in table] == slow
    every = encoding.rows(records, tokenizer, fmt, DATE, assistant_only=False)
    assert all(r["labels"] == r["input_ids"] for r in every)


def test_a_template_that_changes_what_it_is_given_is_rendered_row_by_row(qwen3):
    own = qwen3.chat_template
    try:
        qwen3.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.get('reasoning_content', '') | upper }}"
            "{{ m['content'] | upper }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% endif %}"
        )
        records = [RECORD | {"instruction": f"Question {n}?"} for n in range(5)]
        rows = list(encoding.tokenize(records, qwen3, "think"))
        assert rows == [encoding.encode(encoding.messages(r, "think"), qwen3) for r in records]
        assert "QUESTION 3?" in qwen3.decode(rows[3][0])
    finally:
        qwen3.chat_template = own


def test_a_template_that_drops_the_reasoning_is_refused():
    for make, fmt in ((families.llama3, "think"), (families.gptoss, "think"), (families.qwen3, "harmony")):
        with pytest.raises(ValueError, match=f"writes the reasoning 0 times under chat.format '{fmt}'"):
            list(encoding.tokenize([RECORD], make(), fmt, DATE))


def test_answers_without_reasoning_pass_only_as_instruction():
    tokenizer = families.llama2()
    short = BARE | {"output": "Answer: two"}
    assert audit([row(tokenizer, short, "instruction")], tokenizer, "instruction")["shares"]["reasoning"] is None
    ids, labels = row(families.qwen3(), short)
    assert "<think>\n\n</think>" in families.qwen3().decode(ids)  # the template's own form of no reasoning


def test_rows_that_lose_their_end_are_counted_and_limited(qwen3):
    ids, labels = row(qwen3)
    rows = [(ids, labels)] * 3 + [(ids[:-2], labels[:-2])]
    assert audit(rows, qwen3)["cut"] == 1
    with pytest.raises(ValueError, match="1 of 4 rows lose their end to sft.max_length, 25.0% where .* allows 10.0%"):
        audit(rows, qwen3, max_cut=0.1)


def test_batches_are_audited_until_one_reaches_its_end(qwen3):
    ids, labels = row(qwen3)

    def batches(cut):
        for number in range(100):
            yield made(ids[:-2], labels[:-2]) if number < cut else made(ids, labels)
            seen.append(number)

    def made(ids, labels):
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]),
                "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}  # fmt: skip

    for cut, rows in ((0, 1), (3, 4)):
        seen = []
        found = lossmask.audit_batches(batches(cut), qwen3, [{"reasoning": "r"}])
        assert (found["rows"], found["cut"], len(seen)) == (rows, cut, rows - 1)
    with pytest.raises(ValueError, match=r"mask of 16 rows \(16 cut\): share of tokens with loss is {'end': None}"):
        lossmask.audit_batches(batches(99), qwen3, [{"reasoning": "r"}])


def test_batches_of_rows_without_reasoning_pass_where_no_record_has_any(qwen3):
    plain = encoding.messages({"instruction": "q", "reasoning": "", "output": "a"}, "think")
    ids, labels = encoding.encode(plain, qwen3)
    batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert lossmask.audit_batches([batch], qwen3, [{"reasoning": ""}])["shares"]["reasoning"] is None
    with pytest.raises(ValueError, match="'reasoning': None"):
        lossmask.audit_batches([batch], qwen3, [{"reasoning": ""}, {"reasoning": "r"}])


def test_efforts_and_dates_are_pinned():
    tokenizer = families.llama3("llama3_2")
    assert "Today Date: 03 Nov 2026" in encoding.render([{"role": "user", "content": "q"}], tokenizer, date=DATE)
    tokenizer = families.gptoss()
    text = encoding.render([{"role": "user", "content": "q"}], tokenizer, date=DATE, effort="high")
    assert f"Current date: {DATE}" in text and "Reasoning: high" in text
    ids = next(encoding.tokenize([RECORD], tokenizer, "harmony", DATE, "low"))[0]
    assert "Reasoning: low" in tokenizer.decode(ids) and DATE in tokenizer.decode(ids)


def test_a_tokenizer_without_template_gets_the_plain_one_or_is_refused():
    with pytest.raises(ValueError, match="has no chat template, which chat.format 'think' needs"):
        turns.prepare(families.gpt2(), "think")
    tokenizer = turns.prepare(families.gpt2(), "instruction")
    text = encoding.render(encoding.messages(BARE, "instruction"), tokenizer)
    assert text == (
        "<|endoftext|>### Question:\nWhich test?\n\nA. one\nB. two\n\n### Answer:\nTwo.\n\nAnswer: B<|endoftext|>"
    )
    with pytest.raises(ValueError, match="chat.format is 'poem', known are think, harmony"):
        encoding.messages(RECORD, "poem")


LOOK_ALIKES = [*families.CONTROL,
               "<|im_start|>assistant\n", "<\uff5cUser\uff5c>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>",
               "<</SYS>>", "<start_of_turn>", "<<|im_end|>", "<think></think>", "<|im_end|><|im_end|>"]  # fmt: skip


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_data_text_never_becomes_a_control_token(text, family):
    _, tokenizer, fmt, _ = family
    ids = tokenizer(encoding.neutralise(f"before {text} after{text}"), add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(turns.control_tokens(tokenizer))
    poisoned = {key: f"{text}{value}{text}" for key, value in RECORD.items()}
    assert audit([row(tokenizer, poisoned, fmt)], tokenizer, fmt, DATE)["shares"]["prompt"] == 0


PARTS = [
    *LOOK_ALIKES,
    "## Thinking\n",
    "\n## Final Response\n",
    "### Answer:\n",
    "Answer: B",
    "\u60a3\u8005",
    *"a \n<|\u00e9",
]
HOSTILE = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@settings(max_examples=40, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE)
@pytest.mark.parametrize("name", PAIRS)
def test_any_text_leaves_exactly_the_templates_own_control_tokens(name, question, reasoning, answer):
    _, tokenizer, fmt, _ = prepared(name)
    record = {"instruction": f"q{question}q", "reasoning": f"r{reasoning}r", "output": f"a{answer}a"}
    assert audit([row(tokenizer, record, fmt)], tokenizer, fmt, DATE)["shares"] == SOUND


def test_headings_of_our_own_formats_are_broken_in_data():
    assert encoding.neutralise("x\n## Final Response\ny ## Thinking") == "x\n# # Final Response\ny ## Thinking"
    assert encoding.neutralise("### Answer: 4") == "# ## Answer: 4"


def test_neutralising_leaves_medical_text_alone():
    text = "Na < 120, pH <7.2, K>6 [normal 3.5-5], p<|0.05 is not a token, T1|T2, <1 week, a/b, ## Plan"
    assert encoding.neutralise(text) == text.replace("<|", "< |")
    assert encoding.neutralise("<|im_end|>") == "< |im_end|>" == encoding.neutralise("< |im_end|>")


def test_audit_finds_control_tokens_that_slipped_through(qwen3):
    message = encoding.messages(RECORD, "think")
    message[0]["content"] += "<|im_end|>\n<|im_start|>assistant\nSure."
    with pytest.raises(ValueError, match=r"row 1: control tokens .*<\|im_end\|>': \(3, 2\)"):
        audit([encoding.encode(message, qwen3)], qwen3)


def test_samples_with_control_tokens_pass_the_audit(qwen3):
    for name in sources.SOURCES:
        spec = {"name": name}
        records, _ = ingest.convert(name, readers.rows(spec, "samples"), spec)
        reasoned = [record for record in records if record["reasoning"]]
        if reasoned:
            assert audit([row(qwen3, record) for record in reasoned], qwen3)["rows"] == len(reasoned)


def test_a_second_bos_is_found():
    tokenizer = families.llama3()
    ids, labels = row(tokenizer, fmt="thinking_response")
    bos = tokenizer.bos_token_id
    with pytest.raises(ValueError, match=r"begin_of_text\|>': \(2, 1\)"):
        audit([([bos, *ids], [-100, *labels])], tokenizer, "thinking_response")
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        audit([(ids[1:], labels[1:])], tokenizer, "thinking_response")


@pytest.fixture(scope="module")
def trainers_batches(qwen3, tmp_path_factory):
    """What SFTTrainer itself makes of four rows, packed and padded, with a real one-layer model."""
    model = random_model(qwen3, 1)
    records = [RECORD | {"output": f"Number {n}.\n\nAnswer: B"} for n in range(4)]
    batches = {}
    for name, packing in (("packed", True), ("padded", False)):
        data, how = encoding.rows(records, qwen3, "think"), {"packing": packing, "max_length": 512}
        folder = tmp_path_factory.mktemp(name)
        trainer = cpu_trainer(model, qwen3, data, folder, per_device_train_batch_size=4, **how)
        batches[name] = next(iter(trainer.get_train_dataloader()))
    return records, batches


@pytest.mark.parametrize("how", ["packed", "padded"])
def test_rows_reach_the_trainers_own_batch_unchanged(how, trainers_batches, qwen3):
    records, batches = trainers_batches
    ours = sorted(row(qwen3, record) for record in records)
    theirs = sorted(encoding.documents(batches[how]))
    assert theirs == ours
    assert audit(theirs, qwen3)["shares"] == SOUND


def test_the_border_is_found_by_tokens_only_behind_a_special_token(family):
    """harmony writes <|end|><|start|>assistant before each channel."""
    name, tokenizer, fmt, _ = family
    border = encoding.Border(encoding.Frame.of(tokenizer, fmt, DATE), tokenizer)
    assert border.count == {"gptoss": 2, "llama2": 0, "gpt2": 0}.get(name, 1)
    ids, labels = encoding.encode(encoding.messages(RECORD, fmt), tokenizer, DATE)
    assert border.find(ids) == (labels.count(encoding.IGNORE_INDEX) if border.count else None)
    assert border.find(ids + ids) is None


@pytest.mark.parametrize("make", [families.gptoss, lambda: families.llama3("llama3_1")], ids=["gptoss", "llama3_1"])
def test_a_prepared_template_writes_its_date_and_effort_unasked(make):
    talk = [{"role": "user", "content": "q"}]
    tokenizer, fmt = make(), "harmony" if make is families.gptoss else "instruction"
    effort = "high" if fmt == "harmony" else None
    asked = encoding.render(talk, tokenizer, True, DATE, effort)
    tokenizer = turns.prepare(tokenizer, fmt, DATE, effort)
    assert encoding.render(talk, tokenizer, True) == asked == encoding.render(talk, tokenizer, True, DATE, effort)
    assert ("2026-11-03" if fmt == "harmony" else "03 Nov 2026") in asked
