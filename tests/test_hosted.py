import json
import traceback

import pytest
from loopback import Endpoint, completion

from lib.judge import asking, judges, verdicts

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
        assert spent == pytest.approx(4 * (5 + 7) / 1000)  # as the server states them: more than by length
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
        with pytest.raises(ValueError, match="m-1 at .* was given up .*503.*mend its address, name or key"):
            ask(server.url, store, tmp_path, timeout_s=0.2)
    with Endpoint(lambda body, n: (200, {}, completion("Answer: B"), 0)) as server:
        assert [answer["text"] for answer in ask(server.url, store, tmp_path)] == ["Answer: B"] * 4


def test_what_was_paid_before_a_fault_is_in_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.judge.judges.LOOPBACK", ())
    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(lambda body, n: (200, {}, completion("B"), 0) if n < 3 else (401, {}, "{}", 0)) as server:
        with pytest.raises(ValueError, match="was given up"):
            ask(server.url, store, tmp_path)
    assert store.spent("candidate m-1") == pytest.approx(2 * (5 + 7) / 1000)


@pytest.mark.parametrize("tokens", [None, 1, -5])
def test_an_answer_is_charged_its_length_at_least(tmp_path, monkeypatch, tokens):
    monkeypatch.setattr("lib.judge.judges.LOOPBACK", ())
    usage = None if tokens is None else {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}
    said = "antidisestablishmentarianism" * 20
    store, reply = verdicts.Store(tmp_path / "v.jsonl"), json.dumps(json.loads(completion(said)) | {"usage": usage})
    with Endpoint(lambda body, n: (200, {}, reply, 0)) as server:
        ask(server.url, store, tmp_path)
    assert store.spent() == pytest.approx(4 * (11 + len(said)) / 3.5 / 1000)


def test_every_attempt_is_in_the_ledger_and_within_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.judge.judges.LOOPBACK", ())
    longest = (11 / 3.5 + 10) / 1000  # dollars of an attempt of which nothing came
    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(lambda body, n: (500, {}, "{}", 0) if n == 1 else (200, {}, completion("B"), 0)) as server:
        ask(server.url, store, tmp_path)
        assert len(store.calls) == len(server.bodies) == 5
    assert store.spent() == pytest.approx(longest + 4 * (5 + 7) / 1000)
    (tmp_path / "kept.jsonl").unlink()
    store = verdicts.Store(tmp_path / "w.jsonl")
    with Endpoint(lambda body, n: (500, {}, "{}", 0)) as server:
        with pytest.raises(ValueError, match="asking m-1 again would exceed the 0.06 dollars of judge.max_usd"):
            ask(server.url, store, tmp_path, max_usd=4.5 * longest, timeout_s=60)
        assert len(store.calls) == len(server.bodies) == 4


@pytest.mark.parametrize("heard", [0, 8])
def test_a_server_that_hangs_costs_one_time_out_and_one_that_falls_silent_a_few(tmp_path, monkeypatch, heard):
    monkeypatch.setitem(globals(), "PROMPTS", [PROMPTS[0] | {"id": f"q{n}"} for n in range(60)])
    done = []

    def reply(body, number):
        return 200, {}, completion("B"), 0 if number <= heard else 60

    with Endpoint(reply) as server:
        with pytest.raises(ValueError, match="m-1 at .* was given up .*timed out"):
            ask(server.url, verdicts.Store(tmp_path / "v.jsonl"), tmp_path, timeout_s=2.0,
                progress=lambda *at: done.append(at))  # fmt: skip
    assert heard <= len(done) <= heard + 4 + asking.PATIENCE - 1  # four are asked at once


def test_a_key_that_the_server_repeats_is_not_shown(tmp_path):
    for status in (401, 400):
        said = json.dumps({"error": {"message": f"{'long ' * 56}no such key: sk-hidden-from-all"}})
        with Endpoint(lambda body, n, reply=(status, {}, said, 0): reply) as server:
            with pytest.raises(ValueError, match="no such key: ") as error:
                ask(
                    server.url,
                    verdicts.Store(tmp_path / "v.jsonl"),
                    tmp_path,
                    environ={"API_KEY": "sk-hidden-from-all"},
                )
        assert "hidden" not in "".join(traceback.format_exception(error.value)) and "sk-h" not in str(error.value)
