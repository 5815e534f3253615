import json
import re

import pytest
from loopback import Endpoint, completion

from lib.judge import judges, panel, protocol, ranking

MODELS = ("base", "sft", "qat", "q4")


def items(count, empty=()):
    same = {"truth": "warfarin", "letter": None, "options": [], "reference": "Give warfarin."}
    same["answers"] = {m: "" if m in empty else f"quality {n} of 9" for n, m in enumerate(MODELS)}
    return [{"id": f"q{i}", "question": f"Question {i}?"} | same for i in range(count)]


def shown(body):
    """[(code, text)] in the order that the judge sees."""
    return re.findall(r"\[answer (\w+)\]\n(.*?)\n\[end of answer", body["messages"][1]["content"], re.DOTALL)


def honest(body):
    """A judge that scores by the number in the answer."""
    scores = {code: 2 + 2 * int(m[1]) if (m := re.search(r"quality (\d)", text)) else 5 for code, text in shown(body)}
    return fill(scores)


def fill(scores):
    ranked = sorted(scores.values(), reverse=True)
    one = {"correct_vs_reference": "partial", "safety_issue": False}
    return json.dumps({"verdicts": {c: one | {"score": s, "rank": ranked.index(s) + 1} for c, s in scores.items()}})


def ask(server, store, work, **limits):
    return panel.run(judges.Judge("m", server.url), work, store, **{"timeout_s": 20, "max_usd": 9.0} | limits)


def test_an_honest_judge_orders_the_models(store):
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0)) as server:
        rows, coverage = ask(server, store, panel.tasks(items(8)))
    assert (coverage["asked"], coverage["judged"], coverage["calls"], coverage["invalid"]) == (8, 8, 8, {})
    table = ranking.table(rows)
    assert [row["model"] for row in table] == ["q4", "qat", "sft", "base"]
    assert (table[0]["W"]["value"], table[0]["T"]["value"], table[0]["score"]["value"]) == (1.0, 1.0, 8.0)
    assert table[1]["W"]["value"] == pytest.approx(2 / 3)
    forms = server.bodies[0]["response_format"]["json_schema"]["schema"]["$defs"]
    codes = forms["Codes"]["required"]
    assert forms["Verdict"]["required"] == list(forms["Verdict"]["properties"])
    assert not any(form["additionalProperties"] for form in forms.values())
    assert codes == [code for code, _ in shown(server.bodies[0])]
    assert len({code for body in server.bodies for code, _ in shown(body)}) > len(MODELS)  # fresh codes per call


def test_a_judge_that_loves_the_first_place_gives_equal_models_equal_shares(store):
    def biased(body):
        return fill({code: 9 - place for place, (code, _) in enumerate(shown(body))})

    with Endpoint(lambda body, n: (200, {}, completion(biased(body)), 0)) as server:
        rows, _ = ask(server, store, panel.tasks(items(12)))
    for row in ranking.table(rows):
        assert row["T"]["value"] == pytest.approx(0.25) and row["W"]["value"] == pytest.approx(0.5)


def test_an_empty_answer_loses_even_when_the_judge_likes_it(store):
    with Endpoint(lambda body, n: (200, {}, completion(fill({c: 9 for c, _ in shown(body)})), 0)) as server:
        rows, _ = ask(server, store, panel.tasks(items(4, empty=("sft",))))
    assert {(r["score"], r["rank"], r["correct"]) for r in rows if r["model"] == "sft"} == {(1, 4, "no")}


def test_faults_are_retried_and_every_question_is_judged_once(store):
    good = {}

    def reply(body, number):
        question = re.search(r"Question \d+", body["messages"][1]["content"])[0]
        seen = good.setdefault(question, [])
        seen.append(number)
        faults = {
            "Question 0": [(200, {}, completion("I like the second best."), 0)] * 2,
            "Question 1": [(200, {}, completion(honest(body)[:-20]), 0)] * 3,
            "Question 2": [(429, {"Retry-After": "0"}, "{}", 0), (500, {}, "oops", 0)],
            "Question 3": [(200, {}, completion("", "length"), 0)],
            "Question 4": [(200, {}, completion(None, refusal="I cannot"), 0)],
        }.get(question, [])
        return faults[len(seen) - 1] if len(seen) <= len(faults) else (200, {}, completion(honest(body)), 0)

    with Endpoint(reply) as server:
        rows, coverage = ask(server, store, panel.tasks(items(6)))
        assert coverage["judged"] == 6 and not coverage["incomplete"] and coverage["invalid"] == {}
        assert len(rows) == 6 * len(MODELS)
        asked = {question: len(calls) for question, calls in good.items()}
        assert asked == {f"Question {n}": calls for n, calls in enumerate((3, 4, 3, 2, 2, 1))}
        repairs = [b for b in server.bodies if len(b["messages"]) == 4]
        assert len(repairs) == 1 and "not valid: not JSON" in repairs[0]["messages"][3]["content"]
        before = len(server.bodies)
        again, coverage = ask(server, store, panel.tasks(items(6)))
        assert again == rows and coverage["calls"] == 0 and len(server.bodies) == before


def test_what_never_becomes_valid_is_dropped_for_all_counted_and_asked_again_next_time(store):
    def reply(body, number):
        broken = "Question 1?" in body["messages"][1]["content"]
        return 200, {}, completion("garbage" if broken else honest(body)), 0

    with Endpoint(reply) as server:
        rows, coverage = ask(server, store, panel.tasks(items(4)))
    assert coverage["invalid"] == {"content": 1} and coverage["judged"] == 3 and coverage["incomplete"]
    assert {row["question"] for row in rows} == {"q0", "q2", "q3"}
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0)) as server:
        _, coverage = ask(server, store, panel.tasks(items(4)))
    assert coverage["invalid"] == {}


def test_a_server_without_schema_or_temperature_is_asked_plainly(store):
    def reply(body, number):
        if "response_format" in body:
            return 400, {}, '{"error": {"message": "response_format is not supported"}}', 0
        return 200, {}, completion(honest(body)), 0

    with Endpoint(reply) as server:
        work, one = panel.tasks(items(5)), judges.Judge("m", server.url, slots=1)
        _, coverage = panel.run(one, work, store, timeout_s=20, max_usd=9.0)
    assert coverage["judged"] == 5 and len(server.bodies) == 6


def test_the_budget_is_a_cap_and_survives_the_process(store):
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0)) as server:
        one = judges.Judge("m", server.url, usd_per_mtok=(1000.0, 1000.0), slots=1)
        work = panel.tasks(items(10))
        store.record_call("another judge", "valid", 0, 0, 5.0)
        # whatever a reply states (here 12 tokens), a request is charged its estimate at least
        price = max(panel.estimate(one, [task]) for task in work)
        cap = 5.0 + 3.5 * price
        _, coverage = panel.run(one, work, store, timeout_s=20, max_usd=cap)
        assert coverage["judged"] == coverage["calls"] == 3 and coverage["invalid"] == {"budget": 7}
        assert coverage["incomplete"] and coverage["usd"] == pytest.approx(3 * price)
        _, later = panel.run(one, work, store, timeout_s=20, max_usd=cap)
        assert (later["calls"], later["judged"]) == (0, 3)


def test_estimate_by_hand():
    work = panel.tasks(items(1))
    one = judges.Judge("m", usd_per_mtok=(2.0, 8.0))
    chars = sum(len(m["content"]) for m in protocol.prompt(work[0].item, work[0].order, ["XX0"] * 4))
    assert panel.estimate(one, work) == pytest.approx((chars / 3.5 * 2 + 240 * 8) / 1e6)


def test_bounds_by_hand():
    assert panel.bounds([1.0, 0.5, 0.0], 1) == (1.5 / 4, 2.5 / 4)
    assert panel.bounds([], 0) == (0.0, 1.0)


def test_the_cap_counts_calls_under_way_in_other_threads(store):
    with Endpoint(lambda body, n: (200, {}, completion(honest(body)), 0.3)) as server:
        one = judges.Judge("m", server.url, usd_per_mtok=(1000.0, 1000.0), slots=4)
        work = panel.tasks(items(4))
        cap = 2.5 * max(panel.estimate(one, [task]) for task in work)  # four at once, two are within it
        _, coverage = panel.run(one, work, store, timeout_s=20, max_usd=cap)
    assert coverage["calls"] == 2 and coverage["invalid"] == {"budget": 2}


def test_a_judge_that_refuses_all_fails_the_chapter_in_its_own_words(store):
    with Endpoint(lambda body, n: (401, {}, '{"error": {"message": "No such key."}}', 0)) as server:
        with pytest.raises(ValueError, match="m at 127.0.0.1:\\d+ was asked and gave no verdict .No such key..: mend"):
            panel.heard(judges.Judge("m", server.url), panel.tasks(items(4)), store, timeout_s=20, max_usd=9.0)
