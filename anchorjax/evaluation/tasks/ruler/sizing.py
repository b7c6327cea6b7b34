"""How much filler fits: few attempts, because an attempt at a million tokens takes seconds to tokenize."""

from collections.abc import Callable, Sized
from typing import TypeVar

Attempt = TypeVar("Attempt", bound=Sized)

_GROWTH = 16  # so that all attempts on the way up cost a fifteenth of the last one
_SECANTS = 12  # attempts after which halving takes over, should the lengths not be near a line


class TooShort(Exception):
    """Even the smallest attempt is too long; it has `needed` tokens."""

    def __init__(self, needed: int):
        super().__init__(f"at least {needed} tokens are needed")
        self.needed = needed


def slack(length: int) -> int:
    """A sample of `length` tokens leaves fewer than these free, unless one unit of filler more is too long."""
    return max(1, length // 1024)


def fit(attempt: Callable[[int], Attempt], smallest: int, largest: int, budget: int, slack: int) -> Attempt:
    """The attempt at a size in smallest..largest of at most `budget` tokens, and as near to it as need be.

    It leaves fewer than `slack` tokens free, or one unit more was too long, or it is the largest. An attempt's length
    is its number of tokens, which should grow about linearly with size; where the line bends, more attempts are made.

    Raises:
      TooShort: the smallest attempt has more than `budget` tokens.
    """
    best = attempt(smallest)
    if len(best) > budget:
        raise TooShort(len(best))
    low, high = smallest, largest + 1  # fits; is too long, or no size at all
    size, tokens = smallest, len(best)
    per_unit = tokens / smallest
    attempts = 0
    while budget - len(best) >= slack and high - low > 1:
        guess = low + int((budget - slack / 2 - len(best)) / per_unit)
        if attempts >= _SECANTS and high <= largest:
            guess = (low + high) // 2
        guess = max(low + 1, min(guess, high - 1, _GROWTH * (low + 1)))
        tried = attempt(guess)
        attempts += 1
        rise = (len(tried) - tokens) / (guess - size)
        per_unit = rise if rise > 0 else len(tried) / guess
        size, tokens = guess, len(tried)
        if tokens <= budget:
            low, best = guess, tried
        else:
            high = guess
    return best
