"""Cells as text: clean, folded for comparison, without stray quotes.

Every function raises Reject with a short reason instead of guessing; lib/dataset/ingest.py counts the reasons.
"""

MAX_CELL_CHARS = 200_000  # about 50k tokens: longer cells are scraping accidents, no recipe can train them
CONTROL = bytes([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])  # all but tab and the line ends


class Reject(Exception):
    """A row that cannot become a record; `str(reject)` is the short reason that is counted."""


def clean(value, empty: str) -> str:
    """A cell as text: line ends are "\\n", no outer blanks. Raises Reject, with the reason `empty` for a void cell."""
    if value is None:
        raise Reject(empty)
    if not isinstance(value, str):
        raise Reject("wrong_type")
    if len(value) > MAX_CELL_CHARS:
        raise Reject("too_long")
    try:
        raw = value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise Reject("bad_utf8") from None
    if b"\xef\xbf\xbd" in raw:  # U+FFFD, which a lossy decoder left
        raise Reject("bad_utf8")
    if len(raw.translate(None, CONTROL)) < len(raw):  # four times as fast as a regular expression over the text
        raise Reject("control_characters")
    if b"\r" in raw:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    value = value.strip()
    if not value:
        raise Reject(empty)
    return value


def fold(text: str) -> str:
    """Text as compared between an answer and its options: case, blanks and the closing full stop do not count."""
    return " ".join(text.split()).rstrip(" .;,").casefold()


def unquote(text: str) -> str:
    """Text without the blanks and the stray or paired quotes around it; quotes inside and the prime of "5'" stay."""
    text = text.strip()
    for mark in "\"'":
        count = text.count(mark)
        if text[:1] == mark and (count % 2 or (count == 2 and text[-1:] == mark)):
            text, count = text[1:].strip(), count - 1
        if count % 2 and text[-1:] == mark and not (mark == "'" and text[-2:-1].isdigit()):
            text = text[:-1].strip()
    return text
