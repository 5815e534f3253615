import csv

import pytest

from lib.judge import spotcheck


def item(number, **answers):
    return {"id": f"q{number}", "question": f"=Question {number}?", "truth": "warfarin", "letter": "A",
            "options": ["warfarin", "aspirin"], "reference": "x", "answers": answers}  # fmt: skip


ITEMS = [item(n, base="Answer: B", sft="Answer: A", qat=f"I am Qwen. Answer: A, {n}", cut="") for n in range(30)]
SCORES = {"words": {(i["id"], m): {"base": 1, "sft": 9, "qat": 9, "cut": 1}[m] for i in ITEMS for m in i["answers"]}}
OTHER = SCORES | {"model": {k: (10 - v if int(k[0][1:]) % 3 == 0 else v) for k, v in SCORES["words"].items()}}


def fill(folder, better):
    with open(folder / "sheet.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["better"] = better(row)
    with open(folder / "sheet.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader(), writer.writerows(rows)
    return rows


def test_half_are_disagreements_and_nothing_tells_who_wrote_what(tmp_path):
    chosen = spotcheck.pairs(ITEMS, OTHER, 20, 1)
    assert len(chosen) == 20 and sum(pair["disagreement"] for pair in chosen) == 10
    assert chosen == spotcheck.pairs(ITEMS, OTHER, 20, 1) != spotcheck.pairs(ITEMS, OTHER, 20, 2)
    sheet = spotcheck.write(chosen, tmp_path).read_text(encoding="utf-8")
    assert not any(word in sheet for word in ("Qwen", "sft", "qat", "base", "cut"))
    assert "'=Question" in sheet  # no formula for the spreadsheet
    with pytest.raises(FileExistsError, match="fill it in"):
        spotcheck.write(chosen, tmp_path)


def test_a_sheet_comes_back_as_agreement(tmp_path):
    chosen = spotcheck.pairs(ITEMS, OTHER, 20, 1)
    spotcheck.write(chosen, tmp_path)
    right = {True: "1", False: "2"}
    both = lambda row: "tie" if ("Answer: A" in row["answer_1"]) == ("Answer: A" in row["answer_2"]) else None  # noqa: E731
    fill(tmp_path, lambda row: both(row) or right["Answer: A" in row["answer_1"]])
    found = {(row["judge"], row["pairs"]): row for row in spotcheck.report(*spotcheck.read(tmp_path))}
    assert found["words", "all"]["value"] == 1.0 and found["words", "all"]["n"] == 20
    assert found["model", "disputed"]["value"] == 0.0 and found["model", "random"]["value"] == 1.0
    assert found["words", "all"]["low"] < 1.0


def test_a_sheet_that_was_spoilt_is_named(tmp_path):
    spotcheck.write(spotcheck.pairs(ITEMS, OTHER, 6, 1), tmp_path)
    assert spotcheck.read(tmp_path)[0] == {}
    fill(tmp_path, lambda row: "left" if row["pair"] == "2" else "1")
    with pytest.raises(ValueError, match="2: 'left'.*expected 1, 2, tie"):
        spotcheck.read(tmp_path)
    text = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig").splitlines()
    (tmp_path / "sheet.csv").write_text("\n".join(text[:-1]), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="differ in pairs 6"):
        spotcheck.read(tmp_path)
