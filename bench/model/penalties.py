"""Penalties of repeated tokens, and top-k, which act on the logits before a token is drawn."""

import torch
from torch import Tensor

from bench.model.decoding import Sampling
from bench.model.rows import Rows


def applied(logits: Tensor, rows: Rows, settings: Sampling) -> Tensor:
    """Return next-token logits (B, V) after the settings' penalties and then top_k; the given logits are not changed.

    repetition_penalty p: the logit of a token that occurs in the prompt or the text is divided by p if it is positive,
    else multiplied by p (arXiv 1909.05858 section 4.1, as transformers has it). frequency_penalty f: f is subtracted
    for each time that the token was written, and with frequency_in_prompt for each time in the prompt, too. top_k:
    tokens that are as probable as the k-th are kept, too. The penalties are computed in fp32, as by transformers,
    whatever the dtype of the model.
    """
    if settings.repetition_penalty != 1 or settings.frequency_penalty:
        logits = logits.float()
    if settings.repetition_penalty != 1:
        tokens = torch.where(rows.seen, rows.ids, rows.ids[:, -1:])  # for padding, the row's last token again
        found = logits.gather(-1, tokens)
        penalty = settings.repetition_penalty
        logits = logits.scatter(-1, tokens, torch.where(found > 0, found / penalty, found * penalty))
    if settings.frequency_penalty:
        place = rows.seen.long().cumsum(-1) - 1  # (B, C)
        counted = rows.seen if settings.frequency_in_prompt else rows.seen & (place >= rows.prompt[:, None])
        logits = logits.scatter_add(-1, rows.ids, -settings.frequency_penalty * counted.to(logits))
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits
