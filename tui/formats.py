"""Numbers as a table shows them: short, and never wider than they say."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def duration(nanoseconds: int | None) -> str:
    """At most six cells: 0.4ms, 212ms, 1.24s, 12.3s, 2m05s, 3h07m. Empty for None."""
    if nanoseconds is None:
        return ""
    milliseconds = nanoseconds / 1e6
    if milliseconds < 9.95:
        return f"{milliseconds:.1f}ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d"


def rate(per_second: float) -> str:
    """At most four cells: 0, 0.4, 12, 340, 1.2k, 34k."""
    if per_second <= 0:
        return "0"
    if per_second < 9.95:
        return f"{per_second:.1f}".removesuffix(".0")
    if per_second < 999.5:
        return f"{per_second:.0f}"
    return f"{per_second / 1000:.1f}k" if per_second < 9_950 else f"{per_second / 1000:.0f}k"


def age(nanoseconds: int) -> str:
    """At most four cells: 12s, 3m, 2h, 4d. A clock that ran backwards is 0s."""
    seconds = max(0, nanoseconds) // 1_000_000_000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def sparkline(values: Sequence[int], width: int) -> str:
    """The newest `width` values as blocks; the median is half high, twice the median or more is full.

    So noise stays flat, and one slow outlier does not flatten all else.
    """
    newest = values[-width:] if width > 0 else ()
    if not newest:
        return ""
    median = max(1, sorted(newest)[len(newest) // 2])
    return "".join(_BLOCKS[max(0, min(7, value * 4 // median - 1))] for value in newest)


def shorten(text: str, width: int) -> str:
    """The text in at most `width` characters, cut with an ellipsis."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 0 else ""


def printable(text: str) -> str:
    """Text that no terminal stumbles over: what has no glyph, such as bytes that are no UTF-8, is �."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else "�" for c in text)


def one_line(text: str) -> str:
    """Printable text with its line ends as ⏎."""
    return printable(text.replace("\r\n", "\n")).replace("\n", "⏎")


def count(number: int, noun: str, plural: str = "") -> str:
    """1 notice, 2 notices; 2 processes, if told so."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def path_list(files: Sequence[str], width: int) -> str:
    """As many paths as fit, and how many more there are."""
    shown = ""
    for n, name in enumerate(files):
        rest = len(files) - n - 1
        longer = f"{shown}, {name}" if shown else name
        if len(longer) + (len(f" +{rest} more") if rest else 0) > width:
            if not shown:
                tail = f" +{rest} more" if rest else ""
                return shorten(name, max(1, width - len(tail))) + tail
            return f"{shown} +{rest + 1} more"
        shown = longer
    return shown
