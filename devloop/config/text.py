"""Text files as editors and shells of all systems write them."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class EncodingError(Exception):
    """Bytes that are no text. `line` and `column` count from 1; `what` and `hint` are sentences."""

    def __init__(self, line: int, column: int, what: str, hint: str) -> None:
        super().__init__(what)
        self.line = line
        self.column = column
        self.what = what
        self.hint = hint


def decode(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one, as PowerShell's `>` writes it.

    Raises `EncodingError`. Line ends stay as they are.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "replace")
        line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
        raise EncodingError(line, column, f"this is not {_NAMES[encoding]} text", SAVE_AS_UTF8) from None
    if encoding == "utf-8" and "\0" in text[:200]:
        # UTF-16 without a mark: every second byte of plain text is a NUL.
        raise EncodingError(1, text.index("\0") + 1, "this is not UTF-8 text: it has NUL characters", SAVE_AS_UTF8)
    return text


_NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}
SAVE_AS_UTF8 = "save it as UTF-8: in an editor, or by `iconv -f ENCODING -t UTF-8 FILE > NEW`"
