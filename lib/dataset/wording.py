"""Words that stand around many questions and say nothing about any of them: stock phrases, vitals, closing formulas."""

import re

UNSPACED = (  # blocks of scripts without blanks: Thai and Lao, Myanmar, Khmer, kana, Han and its extensions
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # fmt: skip
ALONE = re.compile(f"[{''.join(f'{chr(first)}-{chr(last)}' for first, last in UNSPACED)}]")
EMPTY = (  # words of which vitals, openings and closing formulas are made; a run of little else is no evidence
    "a an the and or of in on at to for from with by as is are was were be been has have had he she his her him it its "
    "this that these those there who which what when where following most likely best next initial first appropriate "
    "diagnosis cause test step management treatment drug patient patient's finding findings would should you your "
    "year old man woman boy girl infant comes presents brought physician clinic emergency department because history "
    "days weeks months years hours day week month year hour past medical unremarkable shows examination physical "
    "temperature pulse respirations respiratory blood pressure heart rate oxygen saturation room air min mm hg bpm f c "
    "s beats breaths per minute kg m2 cm body mass index vital signs within normal limits laboratory studies reveals "
    "体温脉搏心率呼吸次分血压毫米汞柱度患者男女岁因天月年小时入院来就诊下列哪项种最可能的诊断是什么为以不正确应首选治疗药物检查方法原因关于"
)
NUMBERS = " ".join(map(str, range(1000)))


def spaced(text: str) -> str:
    """Text with a blank on both sides of every character of a script that writes none between its words."""
    return text if text.isascii() else ALONE.sub(r" \g<0> ", text)


def length(text: str) -> float:
    """Number of words; a character of an unspaced script counts as 5/8 of one."""
    return len(ALONE.sub(" ", text).split()) + len(ALONE.findall(text)) * 5 / 8


def telling(text: str) -> int:
    """Number of words, or of characters of an unspaced script, that say something: not of EMPTY."""
    return len([word for word in re.findall(r"\w+", spaced(text.casefold())) if word not in SAYS_NOTHING])


def closing(text: str) -> str | None:
    """The question on the last of several lines, where it says enough to be told by itself; else None."""
    *before, line = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return line if before and line.endswith(("?", "？")) and telling(line) >= TELLING else None


TELLING = 3  # words that say something: "What is the most likely diagnosis?" asks anything
SAYS_NOTHING = frozenset(spaced(EMPTY).split())
ASKS = r"(?:questions?|problems?|quer(?:y|ies)|mcqs?|options?|answers?|choices?|letters?)"
STOCK = re.compile(  # what a data set or a prompt writes around every question: an order, a label, a closing order
    rf"^\s*(?:please\s+)?(?:carefully\s+)?(?:answer|read|solve|consider|choose|select|pick|attempt)\b[^\n?:.]{{0,99}}?"
    rf"\b{ASKS}\b[^\n?:.]{{0,60}}(?:[:.]\s+|\s*\n\s*)(?=\S)"
    r"|^\s*[\w -]{0,20}\b(?:question|q|vignette|problem|prompt)\s*\d*\s*[:：]\s*(?=\S)"
    r"|^\s*(?:请|以下|下面|阅读|问题|题目|问)[^\n。？?：:]{0,30}[：:\n]\s*(?=\S)"
    rf"|(?<=[?.？。])\s+(?:please\s+)?(?:answer|choose|select|pick|give)\b[^\n?.]{{0,60}}\b{ASKS}\b[^\n?.]{{0,40}}[.:]?\s*$"
    r"|(?<=[?.？。])\s+let(?:'|’)?s think step by step\.?\s*$|(?<=[？?。])\s*请[^\n。？?]{0,30}[。：:]?\s*$",
    re.IGNORECASE,
)

HINT = re.compile(rf"\b{ASKS}\b|\bq\b|vignette|prompt|step by step|[请以下阅读题目问][^。]*[：:\n。]", re.IGNORECASE)
HEAD = 200  # characters at either end of a question in which a stock phrase is looked for


def without_stock(text: str) -> str:
    """A question without the phrase that its data set or prompt writes around all of them; never empty.

    "Please answer the following multiple-choice question:", "Question:", "Select the best answer." at its end.
    """
    if not HINT.search(text[:HEAD]) and not HINT.search(text[-HEAD:]):  # most questions: no time is lost on them
        return text
    for _ in range(3):  # an order, then a label, then a closing order
        bare = STOCK.sub("", text, count=1).strip()
        if not bare or bare == text:
            break
        text = bare
    return text
