import pytest

from lib.evaluation import metrics

FMT = "think"


def record(number, source="medqa", options=("aspirin", "warfarin"), letter="B", output="Give warfarin.\nAnswer: B"):
    return {"id": f"q{number}", "source": source, "options": list(options), "letter": letter,
            "answer": dict(zip("ABCDE", options, strict=False)).get(letter), "output": output}  # fmt: skip


def answer(number, text, finish="stop"):
    return {"id": f"q{number}", "text": text, "tokens": 3, "finish": finish, "seconds": 1.0, "first_s": 0.1}


def scored(texts, records):
    given = [answer(i, text) for i, text in enumerate(texts)]
    return metrics.with_overlap(metrics.score(given, records, FMT), given, records, FMT)


RECORDS = [record(i) for i in range(12)]
GOOD, BAD = "<think>x</think>Give warfarin.\nAnswer: B", "<think>x</think>Rest.\nAnswer: A"


def test_changes_by_hand():
    before, after = scored([BAD] * 12, RECORDS), scored([GOOD] * 9 + [BAD] * 3, RECORDS)
    table = {row["measure"]: row for row in metrics.before_after(before, after)}
    accuracy = table["accuracy"]
    assert (accuracy["before"], accuracy["after"], accuracy["change"], accuracy["n"]) == (0.0, 0.75, 0.75, 12)
    assert 0.4 < accuracy["low"] < 0.75 < accuracy["high"] <= 1.0 and accuracy["p"] == pytest.approx(2 / 2**9)
    assert accuracy["p_holm"] > accuracy["p"] and table["format compliance"]["p"] == 1.0
    assert table["exact match"]["after"] == 0.75 and table["ROUGE-L"]["after"] > table["ROUGE-L"]["before"]
    assert "reasoning length" not in table  # no tokenizer counted
    with pytest.raises(ValueError, match="not of the same questions"):
        metrics.before_after(before, after[:5])


def test_a_benchmark_with_fixed_labels_has_macro_f1_and_a_majority():
    labels = ("yes", "no", "maybe")
    records = [record(i, "pubmedqa", labels, "AAAB"[i % 4]) for i in range(8)]
    records += [record(8, options=("x", "y")), record(9, options=("z", "w"))]
    records += [record(10, options=(), letter=None) | {"answer": None}]
    rows = scored(["Answer: A"] * 10 + ["no idea"], records)
    found = {row["source"]: row for row in metrics.by_source(rows, records)}
    assert found["pubmedqa"]["accuracy"]["value"] == 0.75 and found["pubmedqa"]["majority"] == "yes"
    assert found["pubmedqa"]["majority_share"]["value"] == 0.75
    assert found["pubmedqa"]["macro_f1"]["value"] == pytest.approx((6 * 2 / (6 * 2 + 2)) / 3, abs=0.01)
    assert found["medqa"]["accuracy"]["n"] == 2 and found["medqa"]["macro_f1"] is None


def test_a_record_without_words_has_no_overlap():
    rows = scored([GOOD], [record(0, output=" ")])
    assert rows[0]["rouge_l"] is None and rows[0]["correct"] is True
