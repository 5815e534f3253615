import json

import pytest
from loopback import Endpoint, completion

from lib.judge import judges, verdicts

PROMPTS = [{"id": f"q{i}", "messages": [{"role": "user", "content": f"Question {i}?"}]} for i in range(4)]


def ask(url, store, tmp_path, **changes):
    environ = {"API_BASE_URL": url, "OPENAI_API_KEY": "secret"} | changes.pop("environ", {})
    limits = {"prices": {"m": {"input": 1000.0, "output": 1000.0}}, "max_usd": 99.0, "timeout_s": 10} | changes
    return judges.hosted_answers("m-1", PROMPTS, 10, environ, store, tmp_path / "kept.jsonl", **limits)


def test_a_hosted_model_answers_within_the_cap_and_its_cost_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.judge.judges.LOOPBACK", ())  # so that this server has a price
    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(lambda body, n: (200, {}, completion("Answer: B"), 0)) as server:
        with pytest.raises(ValueError, match="answers of m-1 may cost"):
            ask(server.url, store, tmp_path, max_usd=0.01)
        assert not server.bodies
        found = ask(server.url, store, tmp_path)
        assert [answer["text"] for answer in found] == ["Answer: B"] * 4 and len(server.bodies) == 4
        spent = store.spent("candidate m-1")
        assert spent == pytest.approx(4 * (11 / 3.5 + 7) / 1000)
        assert ask(server.url, store, tmp_path) == found and len(server.bodies) == 4
        assert store.spent("candidate m-1") == spent


def test_without_a_way_to_the_model_there_are_no_answers(tmp_path):
    assert ask(None, None, tmp_path, environ={"OPENAI_API_KEY": None}) is None


def test_a_reasoning_model_takes_part_and_its_empty_answers_are_not_ranked(tmp_path):
    def reply(body, number):
        for name, said in {
            "temperature": "'temperature' is not supported",
            "max_tokens": "use max_completion_tokens",
        }.items():
            if name in body:
                return 400, {}, json.dumps({"error": {"message": said}}), 0
        return 200, {}, completion("", "length") if mute else completion("Answer: B"), 0

    store, mute = verdicts.Store(tmp_path / "v.jsonl"), False
    with Endpoint(reply) as server:
        assert [answer["text"] for answer in ask(server.url, store, tmp_path)] == ["Answer: B"] * 4
    mute = True
    with Endpoint(reply) as server:
        with pytest.raises(ValueError, match="4 of 4 answers of m-1 have no text: 4 ended .* judge.hosted_tokens"):
            ask(server.url, store, tmp_path)


def test_answers_that_never_came_are_not_ranked_either_and_are_asked_for_again(tmp_path):
    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(lambda body, n: (503, {}, "{}", 0)) as server:
        with pytest.raises(ValueError, match="4 of 4 answers of m-1 have no text: 0 ended .* 4 never came"):
            ask(server.url, store, tmp_path, timeout_s=0.2)
    with Endpoint(lambda body, n: (200, {}, completion("Answer: B"), 0)) as server:
        assert [answer["text"] for answer in ask(server.url, store, tmp_path)] == ["Answer: B"] * 4


def test_what_was_paid_before_a_fault_is_in_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.judge.judges.LOOPBACK", ())
    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(lambda body, n: (200, {}, completion("B"), 0) if n < 3 else (401, {}, "{}", 0)) as server:
        with pytest.raises(ValueError, match="refused prompt"):
            ask(server.url, store, tmp_path)
    assert store.spent("candidate m-1") == pytest.approx(2 * (11 / 3.5 + 7) / 1000)
