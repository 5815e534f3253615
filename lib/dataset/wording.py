"""Words that stand around many questions and say nothing about any of them: stock phrases, vitals, closing formulas."""

import re

ASKS = r"(?:questions?|problems?|quer(?:y|ies)|mcqs?|options?|answers?|choices?|letters?)"
STOCK = re.compile(  # what a data set or a prompt writes around every question: an order, a label, a closing order
    rf"^\s*(?:please\s+)?(?:carefully\s+)?(?:answer|read|solve|consider|choose|select|pick|attempt)\b[^\n?:.]{{0,99}}?"
    rf"\b{ASKS}\b[^\n?:.]{{0,60}}(?:[:.]\s+|\s*\n\s*)(?=\S)"
    r"|^\s*[\w -]{0,20}\b(?:question|q|vignette|problem|prompt)\s*\d*\s*[:：]\s*(?=\S)"
    r"|^\s*(?:请|以下|下面|阅读|问题|题目|问)[^\n。？?：:]{0,30}[：:\n]\s*(?=\S)"
    rf"|(?<=[?.])\s+(?:please\s+)?(?:answer|choose|select|pick|give)\b[^\n?.]{{0,60}}\b{ASKS}\b[^\n?.]{{0,40}}[.:]?\s*$"
    r"|(?<=[?.])\s+let(?:'|’)?s think step by step\.?\s*$|(?<=[？?。])\s*请[^\n。？?]{0,30}[。：:]?\s*$",
    re.IGNORECASE,
)


def without_stock(text: str) -> str:
    """A question without the phrase that its data set or prompt writes around all of them; never empty.

    "Please answer the following multiple-choice question:", "Question:", "Select the best answer." at its end.
    """
    for _ in range(3):  # an order, then a label, then a closing order
        bare = STOCK.sub("", text, count=1).strip()
        if not bare or bare == text:
            break
        text = bare
    return text
