"""Two served models token by token: the same ones, and how close the call was where they part."""

import pytest
import torch
from test_gguf import bf16, text, twin  # noqa: F401 (fixtures)

from lib.export import agreement, gguf


def test_the_first_parting_counts_with_its_lead():
    ours = [[(5, 2.0), (6, 0.01), (7, 1.0)], [(5, 2.0)], [(5, 2.0)], [(5, None)]]
    theirs = [[(5, 2.1), (8, 0.02), (9, 1.0)], [(5, 1.9)], [(5, 2.0), (9, 0.5)], [(6, 0.3)]]
    assert agreement.compare(ours, theirs) == {"asked": 4, "equal": 1, "lead": 0.5}
    assert agreement.compare(ours[:1], theirs[:1])["lead"] == 0.01
    assert agreement.compare(ours, ours) == {"asked": 4, "equal": 4, "lead": None}


def test_tokens_and_leads_are_those_of_torch(twin, bf16, monkeypatch):  # noqa: F811
    model, prompts = twin[1], [list(range(260, 280)), list(range(40, 50))]
    monkeypatch.setattr(agreement, "MAX_NEW_TOKENS", 6)
    with gguf.serve(bf16, ctx=256) as url:
        found = agreement.greedy(url, prompts, 50)
        assert agreement.greedy(url, prompts[:1], 2)[0] == found[0][:2]
    for prompt, answer in zip(prompts, found, strict=True):
        assert len(answer) == 6 and sum(lead is not None for _, lead in answer) >= 5
        for token, lead in answer:
            with torch.no_grad():
                (first, second), (likeliest, _) = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(2)
            assert token == likeliest
            assert lead is None or lead == pytest.approx(float(first - second), abs=0.05)
            prompt = [*prompt, token]
