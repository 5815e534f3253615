"""The cheap opponents: what each rule picks, by hand, and the paired comparison with them."""

from types import SimpleNamespace

import pytest

from lib.dataset import clinic, clinic_rules, textbook
from lib.evaluation import elicit, multiple_choice, opponents


def record(name, question, options, answer, **rest):
    listed = "".join(f"\n{mark}. {text}" for mark, text in zip("ABCD", options, strict=False))
    letter = "ABCD"[options.index(answer)] if answer in options else None
    return {"id": name, "instruction": f"{question}\n{listed}", "options": options, "answer": answer, "letter": letter,
            "reasoning": "Because.", "source": "x"} | rest  # fmt: skip


TRAIN = [
    record("1", "Thirst and weight loss. What is it?", ["diabetes", "gout"], "diabetes"),
    record("2", "Weight loss and sweats. What is it?", ["gout", "tuberculosis"], "tuberculosis"),
    record("3", "A swollen toe. What is it?", ["asthma", "gout"], "gout"),
    record("4", "A hot toe at night. What is it?", ["asthma", "gout"], "gout"),
]
ASKED = [
    record("a", "Sweats at night and weight loss. What is it?", ["gout", "tuberculosis"], "tuberculosis"),
    record("b", "A red toe. What is it?", ["diabetes", "gout"], "gout"),
    record("c", "A cough. What is it?", ["croup", "measles"], "croup"),
]


def letters(rows):
    return [(row["picked"], row["correct"]) for row in rows]


def test_the_commonest_answer_and_where_none_is_known_the_commonest_letter():
    # gout twice of four; letters A, B, B, B: of two options that were never an answer, B
    assert letters(opponents.commonest(TRAIN, ASKED)) == [("A", False), ("B", True), ("B", False)]


def test_the_nearest_training_question_is_copied_where_its_answer_is_an_option():
    assert letters(opponents.nearest(TRAIN, ASKED)) == [("B", True), ("B", True), (None, False)]
    assert letters(opponents.nearest([], ASKED[:1])) == [(None, False)]


def rows_of(pattern):
    return [{"id": str(n), "picked": "A", "correct": hit == "1"} for n, hit in enumerate(pattern)]


def test_against_by_hand():
    mine = rows_of("1111110000")
    (first, second) = opponents.against(mine, {"low": rows_of("0000000000"), "same": mine})
    assert (first["accuracy"]["value"], first["change"]["value"]) == (0, 0.6)
    assert first["p"] == 2 / 2**6 and first["p_holm"] == 2 * 2 / 2**6  # six for, none against; two opponents
    assert (second["change"]["low"], second["change"]["high"], second["p"]) == (0, 0, 1)
    with pytest.raises(ValueError, match="1 questions of 'x' were not scored, the first is 10"):
        opponents.against(mine, {"x": rows_of("0" * 11)})


def test_the_nearest_row_is_copied_whole():
    assert [row["id"] for row in opponents.copied(TRAIN, ASKED[:2])] == ["1", "3"]


def test_naive_bayes_by_hand_and_on_the_eval_split():
    rows, how = opponents.bayes(TRAIN, ASKED[:2], ASKED)
    # "sweats" stands in tuberculosis alone; "toe" in gout alone; neither croup nor measles was ever an answer
    assert letters(rows) == [("B", True), ("B", True), (None, False)]
    assert (how["words"], how["alpha"], how["held_out"]["value"]) == (1, 1.0, 1.0)
    assert opponents.bayes([], [], ASKED[:1]) == ([opponents.picked(ASKED[0], None)], {})


def test_naive_bayes_may_learn_topics_which_options_belong_to():
    train = [
        row | {"reasoning": f"This fits {told}: x."} for row, told in zip(TRAIN, ("d", "t", "g", "g"), strict=True)
    ]
    train.append(record("5", "Chalky lumps. Which drug?", ["allopurinol", "insulin"], "allopurinol")
                 | {"reasoning": "This fits g: lumps."})  # fmt: skip
    asked = [record("x", "A red toe. Which drug?", ["insulin", "allopurinol"], "allopurinol")]
    assert letters(opponents.bayes(train, [], asked, clinic_rules.topic)[0]) == [("B", True)]
    assert clinic_rules.topic({"reasoning": "Because."}) == ""


RIVALS = {"nearest training question": rows_of("1" * 50 + "0" * 50), opponents.CEILING: rows_of("1" * 100),
          "base, generated": rows_of("0" * 100), "base, few-shot": rows_of("1" * 40 + "0" * 60),
          "base, best form": rows_of("1" * 30 + "0" * 70)}  # fmt: skip
ASKED_OF = [{"id": str(n), "options": ["x", "y"]} for n in range(100)]


def said_of(tuned, rivals=RIVALS):
    return opponents.in_words(opponents.against(tuned, rivals), tuned, ASKED_OF)


def test_what_was_known_and_what_was_learnt_is_said_with_the_numbers():
    said = said_of(rows_of("1" * 70 + "0" * 30))
    for part in ("70.0 % of the tuned", "+70.0 points", "reaches 40.0 % as 'base, few-shot'", "has +30.0 points",
                 "training added knowledge", "nearest training question, it has +20.0 points"):  # fmt: skip
        assert part in said
    assert "name no option" not in said and said_of([], {}) == ""


def test_a_difference_counts_after_its_adjustment_alone():
    """Eight for and one against: p 0.04 alone, and twice that beside another that is no smaller."""
    tuned = rows_of("1" * 48 + "0" * 52)
    rivals = RIVALS | {"base, few-shot": rows_of("0" * 8 + "1" * 41 + "0" * 51)}
    (row,) = [r for r in opponents.against(tuned, rivals) if r["opponent"] == "base, few-shot"]
    assert row["change"]["low"] > 0 and row["p"] < 0.05 < row["p_holm"]
    assert "do not show that training added or lost any" in said_of(tuned, rivals)


def test_answers_that_name_no_option_are_counted_and_guessed_for():
    tuned = rows_of("1" * 60 + "0" * 40)
    for row in tuned[-20:]:
        row["picked"] = None
    assert (
        "20 of 100 answers name no option and count as wrong; a guess instead of each would make it 70.0 %"
        in said_of(tuned)
    )


def test_scores_by_skill():
    records = [{"id": str(n), "skill": skill} for n, skill in enumerate(["named", "denied", "named", None])]
    table = opponents.by_skill({"sft": rows_of("1001"), "rule": rows_of("0100")}, records)
    assert [(row["skill"], row["questions"], row["sft"]["value"], row["rule"]["value"]) for row in table] == [
        ("named", 2, 0.5, 0), ("denied", 1, 0, 1)]  # fmt: skip
    assert opponents.by_skill({"sft": rows_of("1")}, [{"id": "0"}]) == []


def test_the_best_form_is_chosen_on_the_eval_split_and_the_plainest_of_equals():
    def form(share):
        return lambda records: [opponents.picked(r, 0 if n < share else None) for n, r in enumerate(records)]

    held_out = [record(str(n), "q", ["right", "wrong"], "right") for n in range(4)] + [{"options": [], "letter": None}]
    name, shares = elicit.best({"plain": form(2), "better": form(3), "equal": form(3)}, held_out)
    assert name == "better" and [share["value"] for share in shares.values()] == [0.5, 0.75, 0.75]
    assert elicit.best({"plain": form(2), "better": form(3)}, []) == ("plain", {})


def test_every_question_of_the_clinic_opens_as_the_textbook_does():
    for kind, (_, wordings, *_) in clinic.KINDS.items():
        for words in wordings:
            asked = record("x", f"A 40-year-old man has gout. {words}", ["a", "b"], "a")
            assert elicit._in_the_book(asked) == f"A 40-year-old man has gout. {textbook.TOPICS[kind]}\n"


def test_what_is_written_is_read_and_else_the_likeliest_option_takes_its_place(monkeypatch):
    written = {"a": " This is chest and fits tuberculosis.\n\nNext", "b": " This fits scurvy."}
    given = []

    def likelihoods(model, tokenizer, pairs, *_):
        given.extend(pairs)
        return [[{"sum": -4.0, "tokens": 2}, {"sum": -1.0, "tokens": 1}] for _ in pairs]

    monkeypatch.setattr(elicit, "continued", lambda m, t, texts: [written["a"], written["b"]])
    monkeypatch.setattr(multiple_choice, "option_loglikelihoods", likelihoods)
    rows = elicit._written(None, None, ASKED[:2], lambda r: f"{opponents.stem(r)}!")
    assert letters(rows) == [("B", True), ("B", True)]
    ((context, options),) = given
    assert context.endswith("! This fits") and options == [" diabetes", " gout"]


def test_forms_show_worked_examples_of_the_training_rows_only(monkeypatch):
    contexts = []

    def likelihoods(model, tokenizer, pairs, *_):
        contexts.extend(context for context, _ in pairs)
        return [[{"sum": -1.0, "tokens": 1} for _ in options] for _, options in pairs]

    monkeypatch.setattr(multiple_choice, "option_loglikelihoods", likelihoods)
    found = elicit.forms(SimpleNamespace(), None, TRAIN, 7, book=False)
    found["few-shot"](ASKED[:1])
    assert contexts[0].count("Answer:") == elicit.SHOTS + 1 and contexts[0].endswith("Answer:")
    assert len(found) == 5 and "textbook" not in " ".join(found)


def test_a_form_that_was_stopped_asks_for_the_rest_only(monkeypatch, tmp_path):
    monkeypatch.setattr(elicit.generate, "identity", lambda model: model)
    monkeypatch.setattr(elicit, "AT_ONCE", 1)
    asked, shown = [], []

    def likelihoods(model, tokenizer, pairs, *_):
        asked.extend(context for context, _ in pairs)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [[{"sum": -1.0, "tokens": 1} for _ in options] for _, options in pairs]

    def rows(model="base"):
        found = elicit.forms(model, None, TRAIN, 7, False, tmp_path, lambda *at: shown.append(at))
        return found["question and options"](ASKED[:2])

    monkeypatch.setattr(multiple_choice, "option_loglikelihoods", likelihoods)
    with pytest.raises(KeyboardInterrupt):
        rows()
    went_on = rows()
    assert len(asked) == 3 and asked[1] == asked[2]
    assert shown == [(1, 2, "question and options"), (2, 2, "question and options")]
    assert [row["id"] for row in went_on] == [record["id"] for record in ASKED[:2]] and len(asked) == 3
    assert rows() == went_on and len(asked) == 3
    rows("another model")
    assert len(asked) == 5
