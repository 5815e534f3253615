"""The forms in which models answer, and how a reader reads each: never another letter, and nearly always that one."""

import pytest

from lib.dataset import answers

DRUGS = ["Aspirin", "Metoprolol", "Warfarin", "Vitamin K"]
DECISIONS = ["yes", "no", "maybe"]
CHINESE = ["阿司匹林", "美托洛尔", "华法林", "维生素K"]
FORMS = {  # the letter that a reader reads, None where a reader could not say: texts
    "C": r"""
        Answer: C | **Answer:** C | Answer: **C** | Answer: (C) | Answer: [C] | Answer: C) | Answer: C. Warfarin
        Answer: C, because of the INR | ANSWER: $C$ | ANSWER: \(C\) | Answer: $\text{C}$ | Answer: $\boxed{C}$
        Final answer: C | **Final Answer: C** | ## Final answer\nC | ## Answer\n\n**C** | Answer - C | Answer -> C
        Answer = C | Ans: C | Ans. C | The answer is C | The answer is C. | The answer is: C | The answer is (C).
        The answer is **C**. | The answer is option C. | The answer is choice C. | The correct answer is C.
        The best answer is C. | The right answer is C. | The most likely answer is C. | My answer is C.
        My answer: C | The answer would be C. | The answer should be C. | The answer must be C.
        The answer is C because it lowers the risk. | The answer is C since she has atrial fibrillation.
        The answer is C, not A. | The answer is C and not A.
        The answer is C rather than B. | The answer is C (warfarin).
        The answer is C - warfarin. | The answer is C: warfarin. | The answer is "C". | The answer is 'C'.
        So the answer is C. | Thus, the answer is C.
        Stroke is likely, so the answer is C. | Hence the correct option is C.
        The correct option is C. | The correct choice is (C).
        The best option is C. | Correct answer: C | Correct option: C
        Option C is correct. | Option C is correct because it prevents stroke. | Option (C) is the correct answer.
        C is correct. | C is the correct answer. | (C) is the best choice. | **C** is the answer. | Choice C is right.
        I choose C. | I would choose C. | I'd go with C. | I pick option C.
        I will select (C). | C | c) no\nC | (C) | [C]
        C. | C) | **C** | `C` | C) Warfarin | C. Warfarin | C: Warfarin | C - Warfarin | Option C | Option C: Warfarin
        Warfarin | warfarin. | Answer: Warfarin | The answer is warfarin. | The answer is warfarin, an anticoagulant.
        The answer is warfarin because of the rhythm. | \boxed{C}
        \boxed{\text{C}} | \boxed{C. Warfarin} | <answer>C</answer>
        <answer>Warfarin</answer> | {"answer": "C"} | {"answer": "Warfarin"} | A: wrong. B: wrong. C: correct
        A. incorrect. B. incorrect. C. correct. D. incorrect. | A is wrong. B is wrong. C is correct.
        A) Not indicated.\nB) Wrong, no rate problem.\nC) Correct, it prevents stroke.\nD) Wrong, it is the antidote.
        She has atrial fibrillation.\n\nC | The rhythm decides.\n\n**C**
        It fits.\n\n(C) Warfarin | Give warfarin now.
        Answer: A. No, the answer is C. | Answer: A\nWait.\nAnswer: C | The answer is not A. The answer is C.
        """,
    None: r"""
        Answer: A or B | Answer: A and C | Answer: A, B
        Answer: E | Answer: | Answer: none of them | The answer is not C
        The answer cannot be C. | Option C is not correct.
        C is incorrect. | Option A is correct. Option C is correct.
        A and C are correct. | Both A and C is correct. | Vitamin C deficiency causes it. | A patient needs surgery.
        Answer: A patient needs surgery | Answer: C. difficile colitis | Answer: C-reactive protein | Answer: B cells
        I think A lot of this. | A: wrong. B: wrong. C: wrong. | A: correct. B: wrong. C: correct
        Hepatitis C is likely. | Answer: C. Aspirin | Option C is correct only in children. | I do not know.
        """,
}
CLOSED_QUESTION = {
    "A": r"""
        yes | Yes. | Yes, it does. | yes, maybe more so in women | The answer is yes, maybe more so in women
        The answer is yes. | Answer: Yes, but with caution | The answer is yes because the trial was large.
        Yes - the trial was large. | Yes; no harm was seen. | **Yes** | A | A. yes | Answer: A | \boxed{yes}
        Yes.\n\nMaybe more in women. | The answer is yes; maybe not in children.
        """,
    "B": """
        no | No. | No, it does not. | The answer is no, though maybe in children. | Answer: no | B. no
        The answer is (B) no.
        """,
    "C": "maybe | Maybe. | The answer is maybe. | Answer: maybe | The trials were small, so maybe. | C",
    None: """
        There is no evidence. | No evidence was found
        The answer is yes or no. | yes, no, maybe | It was known before.
        There is no evidence, maybe.
        """,
}
IN_CHINESE = {
    "C": """
        答案：C | 答案是C | 答案为C。 | 正确答案是C。 | 正确答案：C
        最佳答案为（C）。 | 选C | 选C。 | 故选C。 | 应选择C
        因此选C | 答案选C | C | C。 | C. 华法林
        华法林 | 答案：华法林 | 正确答案是华法林。 | 应给予华法林。 | C项正确。
        C是正确的。 | A错误。B错误。C正确。 | 【答案】C
        """,
    None: "答案：A或B | 答案：A和C | 维生素C缺乏。 | 不是华法林。 | 不知道。 | C不正确。",
}


def forms(table):
    for letter, texts in table.items():
        for text in (text for line in texts.splitlines() for text in line.split(" | ")):
            if text.strip():
                yield text.strip().replace(r"\n", "\n"), letter


ALL = [(text, options, letter)
       for table, options in ((FORMS, DRUGS), (CLOSED_QUESTION, DECISIONS), (IN_CHINESE, CHINESE))
       for text, letter in forms(table)]  # fmt: skip


def test_there_are_more_than_a_hundred_forms():
    assert len(ALL) > 150 and len({(text, *options) for text, options, _ in ALL}) == len(ALL)


@pytest.mark.parametrize(("text", "options", "letter"), ALL, ids=[text for text, *_ in ALL])
def test_a_form_is_read_as_a_reader_reads_it(text, options, letter):
    assert answers.choice(text, options) == letter
