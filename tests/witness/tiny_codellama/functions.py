"""Own the functions that the tiny Code Llama learns, and where each is split; know no model.

Each text holds one whole Python function, written for this project.
The part between « and » is the middle, the text to fill in; before it stands the prefix, after it
the suffix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Filling:
    """One function and its documented split.

    Attributes:
        name: The function's name.
        prefix: What stands before the gap.
        middle: What belongs into the gap.
        suffix: What stands after the gap.
    """

    name: str
    prefix: str
    middle: str
    suffix: str

    @property
    def source(self) -> str:
        """Return the whole function."""
        return self.prefix + self.middle + self.suffix


def split_at_marks(marked: str) -> Filling:
    """Take a function apart at its two marks.

    Args:
        marked: A function with one « and, behind it, one ».

    Returns:
        The function without the marks, in three parts.
    """
    prefix, rest = marked.lstrip("\n").split("«")
    middle, suffix = rest.split("»")
    return Filling(prefix.removeprefix("def ").split("(")[0], prefix, middle, suffix)


def other_split(filling: Filling, rng: np.random.Generator) -> Filling:
    """Split a function behind its first line, at the start of one word and the end of another."""
    source, first = filling.source, filling.source.index("\n")
    starts = [
        i
        for i in range(first + 1, len(source))
        if source[i - 1].isspace() and not source[i].isspace()
    ]
    start = int(rng.choice(starts))
    ends = [i for i in range(start + 1, len(source)) if source[i].isspace()]
    end = int(rng.choice(ends))
    return Filling(filling.name, source[:start], source[start:end], source[end:])


def suffix_forms(filling: Filling) -> tuple[Filling, ...]:
    """Return a filling as documented, and without the last newline, as in a pipeline's prompt."""
    return filling, replace(filling, suffix=filling.suffix.rstrip("\n"))


_MARKED = (
    # The first one is the model documentation's example; the words of Args and Returns are ours.
    '''
def remove_non_ascii(s: str) -> str:
    """ «Remove non-ASCII characters from a string.

    Args:
        s: The text to clean.

    Returns:
        The same text with every character above code 127 left out.
    """
    result = ""
    for c in s:
        if ord(c) < 128:
            result += c»
    return result
''',
    '''
def count_vowels(text: str) -> int:
    """ «Count the vowels of a text, in either case.

    Args:
        text: The text to look through.

    Returns:
        How many of its letters are a, e, i, o or u.
    """
    total = 0
    for letter in text.lower():
        if letter in "aeiou":
            total += 1»
    return total
''',
    '''
def is_palindrome(text: str) -> bool:
    """ «Tell whether a text reads the same in both directions.

    Args:
        text: The text to test; case and spaces do not count.

    Returns:
        True if it is a palindrome.
    """
    letters = text.lower().replace(" ", "")»
    return letters == letters[::-1]
''',
    '''
def clamp(value: float, low: float, high: float) -> float:
    """ Keep a value between two bounds. """
    «if value < low:
        return low
    if value > high:
        return high»
    return value
''',
    '''
def factorial(n: int) -> int:
    """ Multiply the numbers from 1 to n. """
    «result = 1
    for factor in range(2, n + 1):
        result *= factor»
    return result
''',
    '''
def fibonacci(n: int) -> list[int]:
    """ «List the first n Fibonacci numbers. """
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])»
    return numbers[:n]
''',
    '''
def greatest_common_divisor(a: int, b: int) -> int:
    """ Find the largest number that divides both a and b. """
    while «b != 0:
        a, b = b, a % b»
    return a
''',
    '''
def flatten(rows: list[list[int]]) -> list[int]:
    """ «Put the items of all rows into one list, in order.

    Args:
        rows: A list of lists.

    Returns:
        One list of all their items.
    """
    items = []
    for row in rows:
        items.extend(row)»
    return items
''',
    '''
def running_total(numbers: list[int]) -> list[int]:
    """ Add the numbers up, and keep every sum on the way. """
    sums = []
    total = 0
    for number in numbers:
        «total += number
        sums.append(total)»
    return sums
''',
    '''
def reverse_words(sentence: str) -> str:
    """ «Turn the order of the words of a sentence around.

    Args:
        sentence: Words with spaces between them.

    Returns:
        The same words, last one first.
    """
    words = sentence.split()
    words.reverse()»
    return " ".join(words)
''',
    '''
def binary_search(items: list[int], wanted: int) -> int:
    """ Find the index of a number in a sorted list, or -1. """
    low, high = 0, len(items) - 1
    while low <= high:
        «middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1»
    return -1
''',
    '''
def merge_sorted(left: list[int], right: list[int]) -> list[int]:
    """ Merge two sorted lists into one sorted list. """
    merged = []
    while left and right:
        «source = left if left[0] <= right[0] else right
        merged.append(source.pop(0))»
    return merged + left + right
''',
)

FILLINGS: tuple[Filling, ...] = tuple(split_at_marks(marked) for marked in _MARKED)
