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
    store = verdicts.Store(tmp_path / "v.sqlite")
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
