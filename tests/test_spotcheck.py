import csv

import pytest

from lib.judge import spotcheck
from lib.pipeline import files, records


def item(number, **answers):
    return {"id": f"q{number}", "question": f"=Question {number}?", "truth": "warfarin", "letter": "A",
            "options": ["warfarin", "aspirin"], "reference": "x", "answers": answers}  # fmt: skip


ITEMS = [item(n, base="Answer: B", sft="Answer: A", qat=f"I am Qwen. Answer: A, {n}", cut="") for n in range(30)]
SCORES = {(i["id"], m): {"base": 1, "sft": 9, "qat": 9, "cut": 1}[m] for i in ITEMS for m in i["answers"]}


def fill(folder, better):
    with open(folder / "sheet.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["better"] = better(row)
    with open(folder / "sheet.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader(), writer.writerows(rows)
    return rows


def test_a_sheet_tells_nothing_of_who_wrote_what(tmp_path):
    chosen = spotcheck.pairs(ITEMS, 20, 1)
    assert len(chosen) == 20 and all("cut" not in models for _, models in chosen)
    assert chosen == spotcheck.pairs(ITEMS, 20, 1) != spotcheck.pairs(ITEMS, 20, 2)
    sheet = spotcheck.write(chosen, tmp_path).read_text(encoding="utf-8")
    assert not any(word in sheet for word in ("Qwen", "sft", "qat", "base", "cut"))
    assert "'=Question" in sheet  # no formula for the spreadsheet


def test_a_sheet_comes_back_as_agreement(tmp_path):
    spotcheck.write(spotcheck.pairs(ITEMS, 20, 1), tmp_path)
    assert spotcheck.read(tmp_path) == []

    def better(row):
        right = ["Answer: A" in row[name] for name in ("answer_1", "answer_2")]
        return "" if row["pair"] == "7" else {(1, 0): "1", (0, 1): "2"}.get(tuple(right), " TIE")

    fill(tmp_path, better)
    preferred = spotcheck.read(tmp_path)
    flipped = {(question, model) for question, models, value in preferred[:5] for model in models if value != "tie"}
    other = {key: 10 - score if key in flipped else score for key, score in SCORES.items()}
    found = {row["judge"]: row for row in spotcheck.report(preferred, {"words": SCORES, "other": other})}
    assert found["words"]["value"] == 1.0 and found["words"]["n"] == 19 and found["words"]["low"] < 1.0
    assert found["other"]["value"] < 1.0
    (one, *_) = spotcheck.report(preferred, {"half": {k: v for k, v in SCORES.items() if k[0] < "q15"}})
    assert 0 < one["n"] < 19  # what a judge has not scored is not compared


def test_a_sheet_that_was_spoilt_is_named(tmp_path):
    spotcheck.write(spotcheck.pairs(ITEMS, 6, 1), tmp_path)
    fill(tmp_path, lambda row: "left" if row["pair"] == "2" else "1")
    with pytest.raises(ValueError, match="2: 'left'.*expected 1, 2, tie"):
        spotcheck.read(tmp_path)
    text = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig").splitlines()
    (tmp_path / "sheet.csv").write_text("\n".join(text[:-1]), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="the pairs 1 to 6"):
        spotcheck.read(tmp_path)


def test_items_and_scores_that_were_edited_are_not_read(tmp_path):
    stage, rows = tmp_path / "06_judge", [{"judge": "words", "question": "q0", "model": "sft", "score": 9}]
    names = ("items.jsonl", "overlap.jsonl", "verdicts.jsonl")
    outputs = {name: files.sha256_file(files.write_jsonl(stage / name, rows)) for name in names}
    records.write(stage / "stage.json", {"stage": "06_judge", "outputs": outputs})
    assert spotcheck.scores_by_judge(stage) == {"words": {("q0", "sft"): 9.0}}
    for name in names:
        files.write_jsonl(stage / name, [rows[0] | {"score": 1}])
        with pytest.raises(ValueError, match=f"06_judge/{name} has other bytes"):
            spotcheck.rows_of(stage, name)
        files.write_jsonl(stage / name, rows)
    (stage / "stage.json").write_text((stage / "stage.json").read_text().replace("06_judge", "06_jugde"))
    with pytest.raises(ValueError, match="its seal does not fit"):
        spotcheck.scores_by_judge(stage)
