"""A decision about each prompt, made once at its last token and kept for everything that is written after it."""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.base import INFO, Artefact
from methods.positions import current_positions


class Verdict:
    """A number for each row, which `judge` gives from the stream at the last token of the row's prompt.

    The number is computed in the forward pass that reads this last token. Later tokens, in the same forward or in one
    that continues it with a cache, use the same number: the code that runs the model keeps it with the row
    (`Positions.noted`), even if rows are copied, reordered or left out. A row's verdict depends only on its own prompt.
    Make a new `Verdict` for every `with` that steers.
    """

    def __init__(self, judge: Callable[[Tensor], Tensor]) -> None:
        """judge: maps the stream at the last prompt tokens, (B, D) in fp32, to the numbers that are kept, (B,)."""
        self.judge = judge

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the verdicts (B,) of this forward's rows, from the stream (B, T, D); 0 while a prompt is incomplete.

        Raises RuntimeError if the end of a row's prompt was read earlier and nobody kept its verdict.
        """
        positions = current_positions()
        index = positions.in_text(hidden.shape[1]).to(hidden.device)  # (B, T)
        last = (positions.prompt - 1).to(hidden.device)[:, None]  # (B, 1)
        here = index == last  # (B, T)
        known = (positions.noted or {}).get(self)
        if known is None and bool((~here.any(-1) & (index > last).any(-1)).any()):
            raise RuntimeError(
                "this steering decides at the last token of a prompt, and a row was read beyond it without keeping "
                "what was decided; call model.generate inside `with methods.generating(model)`, run the model through "
                "bench.load_lm, or pass one dict as Positions(..., noted) to all forwards of the same rows"
            )
        row = torch.arange(len(hidden), device=hidden.device)
        found = self.judge(hidden[row, here.long().argmax(-1)].float())  # (B,)
        before = torch.zeros_like(found) if known is None else known.to(found)
        verdict = torch.where(here.any(-1), found, before)
        if positions.noted is not None:
            positions.noted[self] = verdict
        return verdict


def extremes(opened: Tensor) -> Artefact:
    """Return the fact "never_opens" or "always_open" of a gate; nothing if it is open for some texts only.

    opened: how far the gate is open for each text, or in each set of texts, as a share between 0 and 1.
    """
    if not opened.any():
        return {INFO + "never_opens": torch.tensor(1)}
    return {INFO + "always_open": torch.tensor(1)} if bool((opened == 1).all()) else {}
