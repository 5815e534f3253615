"""What goes out beside a GGUF file, and whether two served models say the same."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from test_gguf import bf16, twin  # noqa: F401 (fixtures)

from lib.dataset import sources
from lib.export import release, serve


class Tokenizer:
    """ChatML as a plain Python function: the second path that the derived Modelfile is compared with."""

    bos_token, eos_token, eos_token_id = None, "<|im_end|>", 1

    def apply_chat_template(self, turns, tokenize, add_generation_prompt, **more):
        text = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def get_vocab(self):
        return {"<|im_end|>": 1, "<|endoftext|>": 0}

    def convert_ids_to_tokens(self, token):
        return {0: "<|endoftext|>", 1: "<|im_end|>"}[token]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in text]}


def test_parity_counts_equal_prompts_and_shows_the_first_difference():
    tokenizer, talk = Tokenizer(), [[{"role": "user", "content": "Why?"}]]

    def render(messages):
        return tokenizer.apply_chat_template(messages, False, True)

    def encode(text):
        return [ord(c) for c in text]

    assert release.parity(talk, tokenizer, render, encode) == 1
    with pytest.raises(ValueError, match="conversation 1, text of the prompt.*position 1"):
        release.parity(talk, tokenizer, lambda m: "<s>" + render(m), encode)
    with pytest.raises(ValueError, match="conversation 1, tokens"):
        release.parity(talk, tokenizer, render, lambda text: [0, *encode(text)])


SOURCE = {"source": "medreason", "licence": "Apache-2.0", "rows": 1200, "commercial": True, "citation": "Wu (2025)"}


def test_names_of_others_are_text_in_a_card():
    evil = "x](http://e.example)<img src=x onerror=alert(1)>"
    card = release.model_card(evil, {"base": f"{evil}\n# Approved"}, [], [SOURCE], {"recipe": evil, "run": evil})
    assert ModelCard(card).data.base_model == f"{evil}\n# Approved"
    body = card.split("---\n")[2]
    assert "<img" not in body and "x](" not in body and "\n# Approved" not in body and body.count("&lt;img") == 4


def test_a_card_holds_the_ladder_the_licences_and_what_they_do_not_allow():
    run, base = {"recipe": "tiny", "run": "tiny"}, "C:/models: my base #2"  # which YAML would read otherwise
    ladder = [{"file": "q4_0", "accuracy": "80 %", "tokens/s": None}]
    card = release.model_card("m", {"base": base}, ladder, [SOURCE], run)
    assert "| q4_0   | 80 %       |" in card and "medreason: 1,200 training rows, licence Apache-2.0" in card
    assert "license: apache-2.0" in card and ModelCard(card).data.base_model == base
    odd = [SOURCE | {"source": "a", "licence": "unknown", "commercial": None},
           SOURCE | {"source": "b", "licence": "CC-BY-NC-4.0", "commercial": False}]  # fmt: skip
    card = release.model_card("m", {"base": base}, ladder, [SOURCE, *odd], run)
    assert release.licence_warnings([SOURCE]) == [] and card.count("Wu (2025)") == 1
    assert "Licence of a: unknown, terms not known" in card and "license: other" in card
    assert "Licence of b: CC-BY-NC-4.0, commercial use excluded" in card


def test_only_a_model_of_the_hub_is_named_as_base_and_the_clinics_rows_as_ours(tmp_path):
    entries = [sources.credited({"name": name}, "clinic") for name in ("medical_o1", "medqa_bigbio")]
    ours = [{"source": spec["label"], "rows": 317, **sources.terms(spec)} for spec in entries]
    run, model = {"recipe": "tiny", "run": "tiny"}, {"base": "twin", "twin": {"architecture": "qwen3"}}
    card, header = release.model_card("m", model, [], ours, run), release.header("m", model, ours)
    assert ModelCard(card).data.base_model is None and "a tiny qwen3 model, pretrained from nothing" in card
    assert "clinic, in medical_o1's columns: 317 training rows, licence MIT" in card and "license: mit" in card
    for lie in ("Apache", "HuatuoGPT", "Jin et al", "terms not known", "base_model"):
        assert lie not in card
    assert header["general.license.name"] == "mit" and "317 rows of clinic, in medical_o1's columns" in str(header)
    folder = release.model_card("m", {"base": str(tmp_path)}, [], [SOURCE], run)
    assert tmp_path.name in folder and str(tmp_path.parent) not in folder


def test_the_first_parting_counts_with_its_lead():
    ours = [[(5, 2.0), (6, 0.01), (7, 1.0)], [(5, 2.0)], [(5, 2.0)], [(5, None)]]
    theirs = [[(5, 2.1), (8, 0.02), (9, 1.0)], [(5, 1.9)], [(5, 2.0), (9, 0.5)], [(6, 0.3)]]
    assert release.compare(ours, theirs) == {"asked": 4, "equal": 1, "lead": 0.5}
    assert release.compare(ours[:1], theirs[:1])["lead"] == 0.01
    assert release.compare(ours, ours) == {"asked": 4, "equal": 4, "lead": None}


def test_tokens_and_leads_are_those_of_torch(twin, bf16, monkeypatch):  # noqa: F811
    model, prompts = twin[1], [list(range(260, 280)), list(range(40, 50))]
    monkeypatch.setattr(release, "MAX_NEW_TOKENS", 6)
    with serve.running(bf16, ctx=256) as url:
        found = release.greedy(url, prompts, 50)
        assert release.greedy(url, prompts[:1], 2)[0] == found[0][:2]
    for prompt, answer in zip(prompts, found, strict=True):
        assert len(answer) == 6 and sum(lead is not None for _, lead in answer) >= 5
        for token, lead in answer:
            with torch.no_grad():
                (first, second), (likeliest, _) = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(2)
            assert token == likeliest
            assert lead is None or lead == pytest.approx(float(first - second), abs=0.05)
            prompt = [*prompt, token]


def test_an_adapter_that_says_something_else_stops_the_chapter():
    file, near = Path("sft-adapter.gguf"), {"asked": 20, "equal": 17, "lead": 0.4}
    release.same_adapter(file, near)
    release.same_adapter(file, near | {"equal": 20, "lead": None})
    release.same_adapter(file, near | {"asked": 4, "equal": 0})
    for equal, lead, said in ((17, 5.3, "led by 5.30 nats"), (0, 0.9, "led by 0.90 nats"), (0, None, "does not say"),
                              (17, None, "by how much its token led, the server does not say")):  # fmt: skip
        with pytest.raises(ValueError, match=f"of 20 answers {equal} are the merged file's, .*{said}"):
            release.same_adapter(file, near | {"equal": equal, "lead": lead})


@pytest.mark.parametrize(("number", "kept"), [(None, "abcdefg"), (3, "ace"), (1, "a"), (7, "abcdefg"), (9, "abcdefg")])
def test_questions_are_taken_evenly(number, kept):
    assert "".join(release.evenly("abcdefg", number)) == kept
