"""Text out of ids as they come: whole characters only, nothing that may still turn out to be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from freedive.tokenizer import Tokenizer


class StopText:
    """The text so far, up to the first stop string in it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._decoder, self._stops = tokenizer.stream_decoder(), tuple(stops)
        self._longest = max(map(len, self._stops), default=1)
        self.text = ""  # the stop string and what follows it left out
        self._given = 0
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take an id; True if a stop string is now in the text."""
        return self._add(self._decoder.push(token))

    def _add(self, piece: str) -> bool:
        if self.stopped or not piece:
            return self.stopped
        begin = max(0, len(self.text) - self._longest + 1)  # where a stop string that ends in the piece could begin
        self.text += piece
        found = [at for s in self._stops if (at := self.text.find(s, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        return self.stopped

    def safe(self) -> str:
        """What can be shown that was not given yet: without a tail that may begin a stop string."""
        end = len(self.text)
        if not self.stopped:
            for length in range(min(self._longest - 1, end - self._given), 0, -1):
                if any(s.startswith(self.text[end - length :]) for s in self._stops):
                    end -= length
                    break
        piece, self._given = self.text[self._given : end], max(self._given, end)
        return piece

    def rest(self) -> str:
        """The end of the stream: whatever was held back. An unfinished character becomes U+FFFD."""
        if not self.stopped:
            self._add(self._decoder.flush())
        piece, self._given = self.text[self._given :], len(self.text)
        return piece
