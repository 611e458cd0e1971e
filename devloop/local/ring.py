"""The newest lines of one service, in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

MAX_LINES = 10_000
"""Lines kept in memory for each service."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes kept in memory for each service."""
HELD_BYTES = 32 * 1024 * 1024
"""Bytes kept for each service as long as a follower has not read them."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lines that came together."""

    first: int
    """Number of the first line among all lines of all services."""
    position: int
    """Number of the first line among those of its service."""
    at: int
    stream: str
    lines: list[bytes]
    size: int

    @property
    def end(self) -> int:
        """The position behind its last line."""
        return self.position + len(self.lines)


class Ring:
    """Chunks, bounded in lines and bytes."""

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.count = 0
        self.size = 0
        self.end = 0
        """Lines ever added."""

    def add(self, first: int, at: int, stream: str, lines: list[bytes], held: int | None) -> None:
        """Add lines; the oldest go, but for those from the position `held` on."""
        kept = lines if held is not None else lines[-MAX_LINES:]
        skipped = len(lines) - len(kept)
        chunk = Chunk(first + skipped, self.end + skipped, at, stream, kept, sum(map(len, kept)))
        self.end += len(lines)
        self.chunks.append(chunk)
        self.count += len(kept)
        self.size += chunk.size
        while len(self.chunks) > 1 and (self.count > MAX_LINES or self.size > MAX_BYTES):
            oldest = self.chunks[0]
            if held is not None and oldest.end > held and self.size <= HELD_BYTES:
                return
            self.chunks.popleft()
            self.count -= len(oldest.lines)
            self.size -= oldest.size

    @property
    def start(self) -> int:
        """The position of the oldest line that is here."""
        return self.chunks[0].position if self.chunks else self.end

    def after(self, number: int, limit: int) -> list[tuple[int, Chunk, bytes]]:
        """The newest lines numbered `number` and up, at most `limit`, newest first."""
        found: list[tuple[int, Chunk, bytes]] = []
        for chunk in reversed(self.chunks):
            for index in range(len(chunk.lines) - 1, -1, -1):
                if chunk.first + index < number or len(found) >= limit:
                    return found
                found.append((chunk.first + index, chunk, chunk.lines[index]))
        return found

    def since(self, position: int, limit: int) -> Iterator[Chunk]:
        """Chunks from this line on, or from the oldest that is here; at most `limit` bytes, but one chunk at least."""
        begin = max(0, bisect_right(self.chunks, position, key=lambda chunk: chunk.position) - 1)
        size = 0
        for chunk in islice(self.chunks, begin, None):
            if chunk.end <= position:
                continue
            if size and size + chunk.size > limit:
                return
            size += chunk.size
            yield chunk
