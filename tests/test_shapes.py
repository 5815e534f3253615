"""Users' files in the shapes people have: which column is what, and nothing of a row lost in silence."""

import csv
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.dataset import entries, ingest, readers, recognise, shapes

OPTIONS = ["Adrenaline", "Atropine", "Aspirin"]
LIST = "\n".join(f"{letter}. {text}" for letter, text in zip("ABC", OPTIONS, strict=True))
ASKED = "Which drug is given first?"


def told(rows, least=0, **spec):
    """(records, reasons, the shape) of rows of a user's own file."""
    spec = {"name": "own", **spec}
    records, reasons = ingest.convert("own", rows, spec, least)
    return records, reasons, recognise.read_as(rows, spec, "mine.jsonl")[0]


@pytest.mark.parametrize(
    ("row", "question", "answer", "said"),
    [
        ({"instruction": "Answer.", "input": ASKED, "output": "A."}, f"Answer.\n\n{ASKED}", "A.",
         "alpaca: question = instruction + input, answer = output"),
        ({"instruction": ASKED, "input": "", "output": "A."}, ASKED, "A.", "alpaca: "),
        ({"Instruction": ASKED, "Output": "A."}, ASKED, "A.", "question and answer: question = Instruction"),
        ({"question": ASKED, "answer": "A."}, ASKED, "A.", "question and answer: question = question, answer = answer"),
        ({"prompt": ASKED, "completion": "A."}, ASKED, "A.", "prompt and completion: "),
        ({"instruction": ASKED, "context": "A man falls.", "response": "A."}, f"A man falls.\n\n{ASKED}", "A.",
         "question = context + instruction"),
        ({"query": ASKED, "response": "A.", "Unnamed: 0": "7"}, ASKED, "A.", "question = query, answer = response"),
        ({"Question": ASKED, "Complex_CoT": "So.", "Response": "A."}, ASKED, "A.", "the columns of medical_o1"),
        ({"Open-ended Verifiable Question": ASKED, "Ground-True Answer": "A."}, ASKED, "A.", "columns of verifiable"),
        ({"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "A."}]}, ASKED, "A.",
         "ShareGPT: messages = conversations, each answer is trained"),
        ({"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "A."}]}, ASKED, "A.",
         "chat messages: "),
        ({"messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": ASKED}]},
                                  {"role": "assistant", "content": "A."}])}, ASKED, "A.", "chat messages: "),
        ({"conversation": [[ASKED, "A."]]}, ASKED, "A.", "messages = conversation, each answer is trained"),
        ({"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": "A."}]},
         ASKED, "A.", "messages = prompt + completion, the last answer is trained"),
        ({"messages": [{"role": "user", "content": ASKED, "id": 7},
                       {"role": "assistant", "content": "A.", "weight": 1}]},
         ASKED, "A.", "chat messages: "),
    ],
)  # fmt: skip
def test_a_shape_is_recognised_and_said(row, question, answer, said):
    (record,), _, shape = told([row])
    assert (record["instruction"], record["output"]) == (question, answer)
    assert said in shape.said


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"question": ASKED, "choices": OPTIONS, "answer": "Atropine"}, "B"),
        ({"question": ASKED, "choices": OPTIONS, "answer": "B"}, "B"),
        ({"question": ASKED, "options": {"A": OPTIONS[0], "B": OPTIONS[1]}, "answer_idx": "B"}, "B"),
        ({"question": ASKED, "options": str(OPTIONS), "answer": "C"}, "C"),
        ({"question": ASKED, "options": json.dumps(OPTIONS), "response": "It is that.\n\nAnswer: C"}, "C"),
        ({"question": ASKED, "A": OPTIONS[0], "B": OPTIONS[1], "C": OPTIONS[2], "answer": "A"}, "A"),
        ({"question": ASKED, "option_1": OPTIONS[0], "option_2": OPTIONS[1], "answer": "Atropine"}, "B"),
        ({"question": ASKED, "opa": OPTIONS[0], "opb": OPTIONS[1], "opc": "", "answer": "b", "exp": ""}, "B"),
        ({"question": ASKED, "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": "So.",
          "subject_name": "Medicine"}, "C"),
        ({"question": ASKED, "answer": OPTIONS[1], "options": {"A": OPTIONS[0], "B": OPTIONS[1]}, "answer_idx": "B",
          "meta_info": "step1"}, "B"),
        ({"instruction": f"{ASKED}\n{LIST}", "output": "The answer is B."}, "B"),
        ({"instruction": "Choose.", "input": f"{ASKED}\n{LIST}", "output": "(C)"}, "C"),
        ({"prompt": f"{ASKED}\nA. Adrenaline B. Atropine", "completion": "A. Adrenaline"}, "A"),
        ({"messages": [{"role": "user", "content": f"{ASKED}\n\n{LIST}"}, {"role": "assistant", "content": "B"}]}, "B"),
        ({"prompt": f"{ASKED}\n{LIST}\nAnswer:", "completion": " C"}, "C"),
        ({"instruction": f"{ASKED}\n1. Adrenaline\n2. Atropine", "output": "2"}, "B"),
        ({"instruction": f"{ASKED}\n(1) Adrenaline\n(2) Atropine\nAnswer:", "output": "(2) Atropine, at once."}, "B"),
        ({"instruction": ASKED, "options": OPTIONS, "output": "B"}, "B"),
        ({"instruction": ASKED, "options": OPTIONS, "output": "B. Atropine, since it speeds the heart."}, "B"),
        ({"prompt": ASKED, "choices": OPTIONS, "completion": "Atropine"}, "B"),
        ({"question": ASKED, "choices": {"text": OPTIONS, "label": ["A", "B", "C"]}, "answerKey": "B"}, "B"),
        ({"question": ASKED, "options": OPTIONS, "answer": "Atropine", "answer_idx": 1}, "B"),
        ({"question": ASKED, "options": OPTIONS, "answer": "Atropine", "answer_idx": 2}, "B"),
        ({"question": ASKED, "options": ["2", "3", "4"], "answer": 3}, "B"),
        ({"question": ASKED, "options": "A. Adrenaline B. Atropine", "answer": "B"}, "B"),
    ],
)  # fmt: skip
def test_options_are_read_wherever_they_stand(row, letter):
    record, *_ = told([row], columns={"base": 0} if "cop" in row else None)[0]
    assert record["letter"] == letter and record["instruction"].startswith(record["instruction"].split("\n\nA. ")[0])
    assert record["answer"] == record["options"]["ABCD".index(letter)]
    assert record["output"].endswith(f"Answer: {record['answer']}") and "A. A. " not in record["instruction"]


@pytest.mark.parametrize(
    ("output", "reasoning", "answer"),
    [
        ("<think>\nSo.\n</think>\n\nThat.", "So.", "That."),
        ("So.\n</think>\nThat.", "So.", "That."),
        ("<thinking>So.</thinking>That.", "So.", "That."),
        ("<reasoning>\nSo.\n</reasoning>\nThat.", "So.", "That."),
        ("## Thinking\n\nSo.\n\n## Final Response\n\nThat.", "So.", "That."),
        ("<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>That.", "So.", "That."),
        ("<Think>So.</Think>That.", "So.", "That."),
        ("< thinking >So.</ thinking >That.", "So.", "That."),
        ("### Thinking\nSo.\n### Final Response\nThat.", "So.", "That."),
        ("# **thinking:**\nSo.\n\n# **FINAL ANSWER:**\nThat.", "So.", "That."),
        ("That is < 3 and > 1.", "", "That is < 3 and > 1."),
        ("## Reasoning\nThat.", "", "## Reasoning\nThat."),
    ],
)
def test_reasoning_inside_an_output_is_taken_apart(output, reasoning, answer):
    chat = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": output}]
    for row in ({"instruction": ASKED, "output": output}, {"messages": chat}):
        (record,), _, _ = told([row])
        assert (record["reasoning"], record["output"]) == (reasoning, answer)


@pytest.mark.parametrize(
    ("asked", "output", "reason"),
    [
        (LIST, "Avoid Atropine.", None),
        (LIST, "Atropine is contraindicated here.", None),
        (LIST, "Neither Aspirin.", None),
        (LIST, "The answer is A.\n\nWait, on reflection the answer is B.", "answer_conflict"),
        (LIST, "E", "answer_not_in_options"),
        (LIST, "A. Aspirin", "answer_conflict"),
        ("1. Adrenaline\n2. Atropine", "B", "options_unparsable"),
        ("How many?\n1. Adrenaline\n2. Atropine", "2", "options_unparsable"),
        ("1. Adrenaline\n2. Atropine\n4. Aspirin", "1", "options_unparsable"),
        ("1. Adrenaline\n2. Atropine", "2. Adrenaline", "answer_conflict"),
        (f"{LIST}\nShe is allergic to all of these.", "B", "options_unparsable"),
        (f"{LIST}\n\nshe has a rash", "Atropine", None),
    ],
)
def test_an_option_that_is_not_stated_is_no_truth_and_a_letter_without_a_list_no_answer(asked, output, reason):
    row = {"instruction": f"{ASKED}\n{asked}", "output": output}
    records, reasons, _ = told([{"instruction": ASKED, "output": "It is."}, row])
    assert reasons == ({"kept": 1, reason: 1} if reason else {"kept": 2})
    assert reason or (records[1]["letter"], records[1]["output"]) == (None, output)


def test_open_and_multiple_choice_rows_of_one_file():
    rows = [{"question": ASKED, "answer": "Adrenaline is."}, {"question": ASKED, "options": OPTIONS, "answer": "B"},
            {"question": ASKED, "options": None, "answer": "B"}]  # fmt: skip
    records, reasons, _ = told(rows)
    assert [(r["letter"], r["output"]) for r in records] == [(None, "Adrenaline is."), ("B", "Answer: Atropine")]
    assert reasons == {"kept": 2, "answer_not_in_options": 1}, "a letter without a list"


def test_the_columns_of_a_published_set_keep_id_and_benchmark():
    row = {
        "question": ASKED,
        "options": dict(zip("ABC", OPTIONS, strict=True)),
        "answer": OPTIONS[0],
        "answer_idx": "A",
    }
    records, reasons, shape = told([row | {"id": n, "benchmark": "MedXpertQA"} for n in (1, 2, 2)])
    assert [(r["row_id"], r["benchmark"]) for r in records] == [("1", "medxpertqa"), ("2", "medxpertqa")]
    assert reasons == {"kept": 2, "duplicate_id": 1} and "columns of medqa, id = id, benchmark = bench" in shape.said


@pytest.mark.parametrize("column", ["", "Unnamed: 0", "__index_level_0__"])
def test_only_numbers_in_an_unnamed_column_number_the_rows(column):
    row = {"question": ASKED, "answer": "A."}
    assert told([row | {column: number} for number in (0, "1", 2.0, None)])[1] == {"kept": 4}
    said = f"nothing reads {column!r}, e.g. .text.*ROLE: {column or chr(34) * 2}}}.*ignore: .{column or chr(34) * 2}.}}"
    with pytest.raises(shapes.Unread, match=said):
        told([row | {column: 0}] * 1500 + [row | {column: "text"}])


@pytest.mark.parametrize(
    ("answers", "base"), [([0, 1, 2, 1], 0), ([1, 3, 2, 3], 1), (["1", "3", "2", "3"], 1), ([0.0, 2.0, 1.0, 0.0], 0)]
)
def test_numbers_count_options_from_what_the_rows_show(answers, base):
    rows = [{"question": f"{ASKED} {n}", "choices": OPTIONS, "answer": answer} for n, answer in enumerate(answers)]
    records, _, shape = told(rows)
    assert [record["letter"] for record in records] == ["ABC"[int(float(answer)) - base] for answer in answers]
    assert f"options count from {base}" in shape.said


def test_numbers_that_show_no_base_are_asked_for():
    numbered = [{"index": n, "question": ASKED, "choices": OPTIONS, "answer": "B"} for n in range(9)]
    with pytest.raises(shapes.Unread, match=r"'index' holds numbers.*number the rows, columns: {ignore: \[index\]}"):
        told(numbered)
    assert told(numbered, columns={"ignore": "index"})[1] == {"kept": 9}
    rows = [{"question": ASKED, "choices": OPTIONS, "answer": 1}]
    with pytest.raises(shapes.Unread, match="from 0 or from 1.*columns: {base: 0}"):
        told(rows)
    assert (
        told(rows, columns={"base": 1})[0][0]["letter"] == "A"
        and told(rows, columns={"base": 0})[0][0]["letter"] == "B"
    )


@pytest.mark.parametrize("column", ["score", "topic", "difficulty (1-5)", "input_2", "tools"])
def test_a_column_that_nothing_reads_stops_the_stage_by_name_and_says_what_to_write(column):
    row = {"instruction": ASKED, "output": "A.", column: "x"}
    with pytest.raises(shapes.Unread) as error:
        told([row])
    assert f"nothing reads {column!r}, e.g. 'x'" in str(error.value) and f"ignore: [{column}]" in str(error.value)
    assert told([row], columns={"ignore": [column]})[1] == {"kept": 1}
    assert told([row], columns={"input": column})[0][0]["instruction"] == f"{ASKED}\n\nx"
    with pytest.raises(shapes.Unread, match="nothing reads"):  # also where it comes late
        told([{"instruction": ASKED, "output": "A."}] * 1500 + [row])
    assert told([row | {column: None}, row | {column: " "}, row | {column: []}])[1] == {"kept": 3}, "nothing is lost"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ASKED, "chosen": "A.", "rejected": "B."}, "preference pairs.*columns: {output: chosen"),
        ({"text": "A book."}, "has the columns 'text', and none is known as the question"),
        ({"question": ASKED, "label": 1}, "none is known as the answer.*columns: {output: label}"),
        ({"id": 1, "question": ASKED, "choices": OPTIONS, "gold": "A"}, "known as the answer.*columns: {answer: gold}"),
        ({"question": ASKED, "prompt": "Say.", "answer": "A."}, "'question', 'prompt' may each be the instruction"),
    ],
)
def test_what_is_no_question_and_answer_is_named(row, said):
    with pytest.raises(shapes.Unread, match=said):
        told([row])


def test_columns_of_the_recipe_go_before_what_is_found():
    row = {"q": ASKED, "hint": "Think.", "a": "A.", "why": "So.", "prompt": "unused", "n": 3}
    columns = {"instruction": ["q", "hint"], "output": "a", "reasoning": "why", "id": "n", "ignore": ["prompt"]}
    (record,), _, _ = told([row], columns=columns)
    assert record["instruction"] == f"{ASKED}\n\nThink." and record["reasoning"] == "So." and record["row_id"] == "3"
    with pytest.raises(shapes.Unread, match="columns names 'p', and the file has 'q', 'hint'"):
        told([row], columns={"instruction": "p"})
    pair = {"prompt": ASKED, "chosen": "A.", "rejected": "B."}
    assert told([pair], columns={"output": "chosen", "ignore": ["rejected"]})[0][0]["output"] == "A."


TALK = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "My nose runs."},
    {"from": "gpt", "value": "<think>Cold?</think>For how long?"},
    {"from": "human", "value": "Two days."},
    {"from": "human", "value": "And a cough."},
    {"from": "gpt", "value": "<think>A cold.</think>Rest."},
]


def test_each_answer_of_a_conversation_is_trained_or_the_last():
    records, reasons, _ = told([{"id": "x", "conversations": TALK}])
    assert [(r["id"], r["row"], r["row_id"]) for r in records] == [("own:train:0", 0, "x"), ("own:train:0.1", 0, "x.1")]
    first, second = records
    assert (first["instruction"], first["reasoning"], first["output"]) == ("My nose runs.", "Cold?", "For how long?")
    assert first["history"] == [{"role": "system", "content": "Be brief."}] and reasons == {"kept": 2}
    assert (second["instruction"], second["output"]) == ("Two days.\n\nAnd a cough.", "Rest.")
    assert [turn["content"] for turn in second["history"]] == ["Be brief.", "My nose runs.", "For how long?"]
    last, reasons, shape = told([{"id": "x", "conversations": TALK}], turns="last")
    assert last[0] | {"id": "", "row_id": ""} == second | {"id": "", "row_id": ""} and reasons == {"kept": 1}
    assert "the last answer is trained" in shape.said
    rows = [
        {"instruction": "Two days.", "output": "Rest.", "system": "Be brief.", "history": [["My nose runs.", "Long?"]]}
    ]
    assert [turn["role"] for turn in told(rows)[0][0]["history"]] == ["system", "user", "assistant"]


def test_pairs_are_turns_and_what_is_said_before_and_after_the_questions_is_counted():
    records, reasons, _ = told([{"conversation": [["q1", "a1"], ["q2", "a2"], ["Thanks", None]]}])
    assert [(r["instruction"], r["output"]) for r in records] == [("q1", "a1"), ("q2", "a2")]
    assert reasons == {"kept": 2, "closing_turn": 1}
    greeted = [{"from": "gpt", "value": "Hello!"}, *TALK, {"from": "human", "value": "Thanks."}]
    records, reasons, _ = told([{"conversations": greeted}])
    assert [r["output"] for r in records] == ["For how long?", "Rest."]
    assert records[0]["history"] == [{"role": "system", "content": "Be brief."}]
    assert reasons == {"kept": 2, "opening_turn": 1, "closing_turn": 1}
    assert told([{"conversations": greeted}], turns="last")[1] == {"kept": 1, "opening_turn": 1, "closing_turn": 1}
    check = {"path": "x", "max_rejected": 0.0}  # none of them is a fault
    assert ingest.convert("own", [{"conversations": greeted}], {"name": "own"} | check)[1]["kept"] == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (TALK + [{"from": "human", "value": "Thanks?"}], "closing_turn"),
        (TALK[:2], "empty_answer"),
        (TALK[2:3], "empty_question"),
        (TALK[2:], "opening_turn"),
        (TALK[:2] + [{"from": "function", "value": "x"}] + TALK[2:], "unknown_turn: function"),
        (TALK[:2] + [{"from": "gpt", "value": "x", "tool_calls": [{"name": "f"}]}], "unknown_turn: tool_calls"),
        (TALK[:2] + [{"from": "gpt", "value": "x", "weight": 0}], "unknown_turn: weight"),
        (TALK[:2] + [{"from": "gpt", "value": "x", "channel": "final"}], "unknown_turn: channel"),
        (TALK[:2] + [{"from": "gpt", "value": "It is. <think>never ends"}], "empty_answer"),
        (TALK[:2] + [{"from": "gpt", "value": "<think>never ends"}], "empty_answer"),
        (TALK[:2] + ["text"], "wrong_type"),
        ("no list", "wrong_type"),
        ([], "empty_answer"),
    ],
)
def test_what_a_conversation_cannot_give_is_counted(turns, reason):
    _, reasons, _ = told([{"conversations": TALK}] * 9 + [{"conversations": turns}])
    assert reasons[reason] and set(reasons) <= {"kept", reason} and not reasons["converter_error"]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
NAME = (
    st.sampled_from([*shapes.ROLES, "question", "prompt", "response", "score", "topic", "A", "B", "opa", "chosen"])
    | TEXT
)


GOOD = st.sampled_from(
    [{"instruction": "q1", "output": "a1"}, {"question": "q1", "answer": "a1"}, {"prompt": "q1", "completion": "a1"}]
)
CELLS = st.dictionaries(NAME, TEXT | st.none() | st.just(" "), max_size=4)


@given(
    st.lists(CELLS, min_size=1, max_size=4)
    | st.lists(st.builds(lambda a, b: b | a, GOOD, CELLS), min_size=1, max_size=3)
)
@settings(max_examples=400, deadline=None)
def test_of_random_tables_no_cell_is_lost_in_silence(rows):
    """Each cell stands in its row's record, or its row is counted as rejected, or the stage stops with the reason."""
    reasons, records = Counter(), []
    try:
        for record in ingest.stream("own", rows, {"name": "own", "path": "x", "max_rejected": 1.0}, reasons):
            records.append(record)
    except ValueError as error:
        assert isinstance(error, shapes.Unread) or "gave no record" in str(error)
        return
    assert reasons.total() == len(rows) and not reasons["converter_error"]
    for record in records:
        told = json.dumps(list(record.values()), ensure_ascii=False).casefold()
        for cell in rows[record["row"]].values():
            if cell and cell.strip():
                assert json.dumps(cell.strip(), ensure_ascii=False)[1:-1].casefold() in told or cell in "ABCDEFGHIJ"


def rows_of(count, bad):
    return [{"instruction": f"Q{n}", "output": "" if n < bad else f"A{n}"} for n in range(count)]


def read(path, **spec):
    return ingest.convert("own", readers.rows({"name": "own", "path": str(path), **spec}, "hub"),
                          {"name": "own", "path": str(path), **spec})  # fmt: skip


def test_more_than_a_fifth_of_bad_rows_stop_with_reasons_and_examples(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(100, 20)))
    assert read(path)[1] == {"kept": 80, "empty_answer": 20}
    broken = "".join(json.dumps(row) + ("," if n > 97 else "") + "\n" for n, row in enumerate(rows_of(100, 20)))
    path.write_text(broken.replace('{"instruction": "Q50"', '{"instruction": 50', 1))
    with pytest.raises(ValueError) as error:
        read(path)
    assert "gave 23% of bad rows where 20% may be" in str(error.value)
    assert "20 empty_answer, e.g. row 1: {'instruction': 'Q0', 'output': ''}" in str(error.value)
    assert "mine.jsonl, line 99: Extra data" in str(error.value) and "no comma between rows" in str(error.value)
    assert "1 wrong_type, e.g. row 51" in str(error.value) and "max_rejected" in str(error.value)
    assert read(path, max_rejected=0.5)[1]["kept"] == 77


def test_too_little_reasoning_is_no_fault_of_a_file_without_any_and_named_elsewhere(tmp_path):
    assert told(rows_of(5, 0), 20)[1] == {"kept": 5}
    rows = [row | {"reasoning": "Short."} for row in rows_of(5, 0)]
    with pytest.raises(ValueError, match="set data.min_reasoning_chars: 0, it is 20"):
        told(rows, 20)


def test_tables_are_read_with_any_mark_and_quotes(tmp_path):
    rows = [["question", "answer"], ['He said "no", twice;\nwhy?', "Because, so."], ["Which?\ttab", "That|bar"]]
    for number, mark in enumerate(",;\t|"):
        path = tmp_path / f"{number}.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=mark).writerows(rows)
        assert [(r["instruction"], r["output"]) for r in read(path)[0]] == [tuple(row) for row in rows[1:]]


def test_two_files_of_one_name_a_train_and_a_test_file_and_one_listed_twice():
    def data(train, test=()):
        specs = [[{"name": "own", **spec} for spec in part] for part in (train, test)]
        return {"sources": specs[0], "test_sources": specs[1], "truth_sources": []}

    named = entries.labelled(data([{"path": "a/data.jsonl"}, {"path": "b/data.jsonl"}, {"path": "c/x.json.gz"}]))
    assert list(named) == ["a/data.jsonl", "b/data.jsonl", "x"] and named["x"][1]["label"] == "x"
    assert list(entries.labelled(data([{"path": "d/*.csv"}], [{"path": "t.csv"}]))) == ["d", "t"]
    assert list(entries.labelled(data([{"path": "m.csv"}], [{"path": "m.csv"}]))) == ["m", "m (test)"]
    assert list(entries.labelled(data([{"path": "medqa.csv"}]))) == ["medqa.csv"], "a hub set's name is taken"
    assert list(entries.labelled(data([{"path": "m.csv", "label": "ours"}]))) == ["ours"]
    for twice in ([{"path": "m.csv"}] * 2, [{"path": "m.csv", "label": "x"}, {"path": "n.csv", "label": "x"}]):
        with pytest.raises(ValueError, match="data.sources lists '[mx]' twice.*label"):
            entries.labelled(data(twice))
