"""A conversation on the terminal: what was said stands before what is said next."""

import sys
from collections.abc import Callable, Iterable, Iterator

Reply = Callable[[str], Iterator[str]]
"""A prompt -> the text that follows, as it is written."""
YOU, MODEL = "User: ", "Model:"
STOP = f"\n{YOU}"


class Chat:
    """Turns, the oldest of which are forgotten when they no longer fit.

    Args:
      reply: continues a prompt.
      fits: whether a prompt can be continued.
    """

    def __init__(self, reply: Reply, fits: Callable[[str], bool]):
        self._reply, self._fits = reply, fits
        self._turns: list[str] = []

    def say(self, text: str) -> Iterator[str]:
        """Yields the answer to the next thing said, up to where the model would speak for its user."""
        self._turns.append(f"{YOU}{text}\n{MODEL}")
        while len(self._turns) > 1 and not self._fits("".join(self._turns)):
            del self._turns[0]
        said, shown = "", 0
        for piece in self._reply("".join(self._turns)):
            said += piece
            if STOP in said:
                said = said[: said.index(STOP)]
                break
            # What may become the stop string is held back.
            sure = len(said) - _begun(said)
            yield said[shown:sure]
            shown = max(shown, sure)
        yield said[shown:]
        self._turns[-1] += f"{said.rstrip()}\n"


def _begun(text: str) -> int:
    """How many characters at the end are the beginning of the stop string."""
    return max((length for length in range(1, len(STOP)) if text.endswith(STOP[:length])), default=0)


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Answers lines until there are no more."""
    for line in lines:
        if line.strip():
            for piece in chat.say(line.strip()):
                sys.stdout.write(piece)
                sys.stdout.flush()
            print()
