"""Which beginnings of prompts the device remembers: blocks of tokens, each known by all that stands before it.

A block's name is a digest of the salt, its tokens and the block before, so two
organisations never meet in one, and equal tokens after different beginnings are
different blocks. A prompt that begins with known blocks gets copies of their keys
and values and is read from there on; its last token is always read, as it is what
the first answer token follows from. The block that was used longest ago goes first,
and of one prompt the last block before the first.

Plain Python: it gives numbers of places; the runner owns what lies there.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b


class Prefixes:
    """The index of a prefix cache.

    Args:
        num_blocks: places on the device.
        block_tokens: tokens of a block.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self._num_blocks = num_blocks
        self._block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self._places: OrderedDict[bytes, int] = OrderedDict()  # the next to go first

    def __len__(self) -> int:
        """Blocks in use."""
        return len(self._places)

    def match(self, salt: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """Places of the longest known beginning, which leaves at least one token to read; none without a salt."""
        known = []
        for name in self._names(salt, prompt, len(prompt) - 1):
            if name not in self._places:
                break
            known.append(name)
        self._touch(known)
        return tuple(self._places[name] for name in known)

    def keep(self, salt: str, prompt: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Give places to the whole blocks of a prompt that has been read and that are not known yet.

        Whoever had a place before is forgotten. The caller fills them, in order, before
        the next `match`'s places are read.

        Returns:
            The number of the first block, and a place for it and for each one after it.
        """
        names = [*self._names(salt, prompt, len(prompt))]
        num_known = next((i for i, name in enumerate(names) if name not in self._places), len(names))
        self._touch(names[:num_known])
        room = len(self._free) + len(self._places) - num_known
        missing = names[num_known : num_known + room]
        for name in missing:
            if name not in self._places:  # one behind a block that went
                self._places[name] = self._take()
            self._places.move_to_end(name)
        self._touch(names[: num_known + len(missing)])
        return num_known, tuple(self._places[name] for name in missing)

    def clear(self) -> None:
        """Forget everything, as after a step that failed and may have left anything behind."""
        self._free += self._places.values()
        self._places.clear()

    def _take(self) -> int:
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]

    def _touch(self, names: list[bytes]) -> None:
        for name in reversed(names):
            self._places.move_to_end(name)

    def _names(self, salt: str, prompt: tuple[int, ...], num_tokens: int) -> Iterator[bytes]:
        if not salt or not self._num_blocks:
            return
        name = _digest(salt.encode())
        for end in range(self._block_tokens, num_tokens + 1, self._block_tokens):
            name = _digest(name + array("I", prompt[end - self._block_tokens : end]).tobytes())
            yield name


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()
