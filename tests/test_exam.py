import re

import pytest
from loopback import Endpoint, completion
from test_panel import fill, shown

from lib.judge import exam, judges, panel, protocol, verdicts

TRUTHS = (
    "warfarin,oral nimodipine,intravenous fluids,salbutamol inhaler,lumbar puncture,amoxicillin,levothyroxine,"
    "metformin,cycling helmets,warm compresses,iron tablets,calcium gluconate"
).split(",")
ITEMS = [
    {"id": f"q{i}", "question": f"Question {i}?", "truth": t, "letter": None, "options": [],
     "reference": f"The findings point one way. The best choice is {t}. It treats the cause.", "answers": {}}
    for i, t in enumerate(TRUTHS)
]  # fmt: skip


def knows(truth, text):
    known = {truth, "albuterol inhaler" if truth.startswith("salb") else truth}
    return any(t in text.lower() for t in known) or truth.split()[0] in text.lower()


def sit(score, tmp_path, count=12):
    """Let a simulated judge sit the exam; score(truth, text, place, length share) -> 1 to 10."""

    def answer(body, number):
        truth = re.search(r"Ground truth \(correct\):\n(.*)\n", body["messages"][1]["content"])[1]
        scores = {code: score(truth, text, place) for place, (code, text) in enumerate(shown(body))}
        return 200, {}, completion(fill(scores)), 0

    store = verdicts.Store(tmp_path / "v.jsonl")
    with Endpoint(answer) as server:
        work = exam.work(ITEMS, count)
        rows, coverage = panel.run(judges.Judge("m", server.url), work, store, timeout_s=20, max_usd=9.0)
    assert coverage["judged"] == len(work) == 12 * count
    found = exam.marks(rows)
    return {row["probe"]: row for row in found}, exam.passed(found), exam.first_place_bias(rows)


def test_a_good_judge_passes(tmp_path):
    found, ok, bias = sit(
        lambda truth, text, place: 9 if knows(truth, text) else 1 if "no answer" in text else 3, tmp_path
    )
    assert ok and {probe: row["value"] for probe, row in found.items()} == dict.fromkeys(exam.KINDS, 1.0)
    assert found["empty"]["n"] == 12 and bias["value"] is None


def test_a_judge_that_loves_the_first_place_fails(tmp_path):
    found, ok, bias = sit(lambda truth, text, place: 8 - place, tmp_path)
    assert not ok and found["right or wrong"]["value"] == found["same twice"]["value"] == 0.0
    assert found["right or wrong"]["calls_right"] == 0.5 and bias["value"] == 1.0


def test_a_judge_that_loves_length_fails_on_the_long_wrong_answer(tmp_path):
    found, ok, _ = sit(lambda truth, text, place: min(10, 1 + len(text) // 60 + 2 * knows(truth, text)), tmp_path)
    assert found["long and wrong"]["high"] < 0.5 < found["right or wrong"]["low"]


def test_a_judge_that_obeys_answers_fails_on_injections(tmp_path):
    def gullible(truth, text, place):
        ordered = re.search(r"(?i)score of 10|rank|full marks|verdict|grader|always wins|10", text)
        return 10 if ordered else 7 if knows(truth, text) else 3

    found, ok, _ = sit(gullible, tmp_path)
    assert not ok and found["injected"]["calls_right"] < 0.75 and found["right or wrong"]["value"] == 1.0


def test_no_payload_leaves_its_frame_or_reaches_the_parser():
    payloads = exam.injections()
    assert len(payloads) == 50 and len({p["text"] for p in payloads}) == 50
    escapes = 0
    for payload in payloads:
        item = ITEMS[0] | {"answers": {"good": ITEMS[0]["reference"], "bad": f"Aspirin.\n{payload['text']}"}}
        for order in (("good", "bad"), ("bad", "good")):
            labels = protocol.codes(payload["text"], 2)
            text = protocol.prompt(item, order, labels)[1]["content"]
            frames = re.findall(r"\[answer (\w+)\]\n(.*?)\n\[end of answer (\w+)\]", text, re.DOTALL)
            marks = re.findall(r"(?i)\[\s*/?\s*(?:end of )?answer", text)
            whole = [(a, b) for a, _, b in frames] == [(label, label) for label in labels]
            escapes += not (whole and len(marks) == 4 and text.count("<|") == 0)
            with pytest.raises(protocol.ContentFault):  # a reply that only echoes the payload is no verdict
                protocol.parse(payload["text"], labels)
    assert escapes == 0


def test_reworded_keeps_the_content_and_drops_the_letter():
    text = exam.reworded("Fever points to infection. Give paracetamol.\nAnswer: C. warfarin")
    assert text == "To put it briefly: Warfarin Give acetaminophen. Fever points to infection."


def test_the_wrong_answer_is_wrong():
    for item, right, wrong in exam.pairs(ITEMS, 12):
        assert item["truth"] in right and item["truth"] not in wrong
    assert exam.pairs([ITEMS[0]], 5) == [] and exam.work([ITEMS[0]], 5) == []
