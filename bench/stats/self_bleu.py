"""Self-BLEU: how much of a text is found in texts that answer other prompts (Zhu et al. 2018, arXiv 1802.01886).

Texygen knows no prompts and compares each text with all others. Here a text is compared only with a sample of the texts
of other prompts, since texts of one prompt share what it asks for. An order of n-grams for which a text is too short
does not count, so that a copy of a short text scores 1 too. In all else the score is sacrebleu's sentence BLEU with
floor smoothing. sacrebleu counts the references again for each text, which takes 15 s for 850 texts; this module takes
.2 s.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

MOST_REFERENCES = 100
ORDER = 4  # BLEU-4
SMOOTHED = 0.1  # matches of an order that has none: the first method of Chen and Cherry 2014, which Texygen uses


class References:
    """Reference texts of several items (prompts). The texts of an item are compared with those of the other items.

    BLEU rises with the number of references, so every item is compared with equally many, at most MOST_REFERENCES. An
    item that has references of its own is compared with all but its own; any further item is compared with all
    references but those of the last item.
    """

    def __init__(self, items: Sequence[Hashable], texts: Sequence[Sequence[str]]) -> None:
        """Take the first texts of each item, or of MOST_REFERENCES + 1 evenly spaced items if there are more.

        texts[i]: the texts of items[i]; all items have equally many. Raises ValueError for fewer than two items.
        """
        count = min(len(items), MOST_REFERENCES + 1)
        if count < 2:
            raise ValueError(f"self-BLEU compares the texts of several prompts and got those of {count}")
        each = max(1, MOST_REFERENCES // (count - 1))
        chosen = [i * len(items) // count for i in range(count)]
        self._items = [items[i] for i in chosen]
        self._lengths: dict[Hashable, list[int]] = {item: [] for item in self._items}  # in words
        self._most: dict[tuple[str, ...], tuple[int, Hashable, int]] = {}
        """Each n-gram's largest count in one text, the item of that text, its largest count in other items' texts."""
        for i in chosen:
            for text in texts[i][:each]:
                words = text.split()
                self._lengths[items[i]].append(len(words))
                self._add(items[i], words)

    def _add(self, item: Hashable, words: Sequence[str]) -> None:
        for order in range(1, ORDER + 1):
            for gram, count in ngrams(words, order).items():
                most, owner, other = self._most.get(gram, (0, item, 0))
                if owner == item:
                    self._most[gram] = (max(most, count), item, other)
                elif count > most:
                    self._most[gram] = (count, item, most)
                else:
                    self._most[gram] = (most, owner, max(other, count))

    def self_bleu(self, item: Hashable, texts: Sequence[str]) -> float:
        """Return the mean BLEU (0 to 1) of an item's texts against texts of other items; 1 if each is a copy of one."""
        left_out = item if item in self._lengths else self._items[-1]
        lengths = {one for other, some in self._lengths.items() if other != left_out for one in some}
        return sum(self._bleu(text.split(), left_out, lengths) for text in texts) / len(texts)

    def _bleu(self, words: Sequence[str], left_out: Hashable, lengths: set[int]) -> float:
        """Return exp(mean of log p_n) times the brevity penalty, over the orders n for which the text is long enough.

        p_n is the share of the text's n-grams that are in the references, where an n-gram counts at most as often as in
        the single reference that has it most. 0 for a text that shares no word with the references.
        """
        logs, matches = [], 0
        for order in range(1, min(ORDER, len(words)) + 1):
            found = 0
            for gram, count in ngrams(words, order).items():
                most, owner, other = self._most.get(gram, (0, None, 0))
                found += min(count, other if owner == left_out else most)
            matches += found
            logs.append(math.log((found or SMOOTHED) / (len(words) - order + 1)))
        if not matches:
            return 0.0
        closest = min(lengths, key=lambda length: (abs(length - len(words)), length))
        return math.exp(min(0.0, 1 - closest / len(words)) + sum(logs) / len(logs))


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Count how often each run of `order` words occurs."""
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))
