"""What steering at decoding time shares: nuclei, and functions of a few rows of logits at a time."""

import pytest
import torch

from methods import decoding
from methods.decoding import by_pieces, most_probable, nucleus_edge


def by_hand(logits, top_p):
    """Tokens in order of probability, taken until their sum reaches top_p; logits (V,)."""
    probability, total, inside = logits.double().softmax(-1), 0.0, torch.zeros(len(logits), dtype=torch.bool)
    for token in probability.argsort(descending=True).tolist():
        if total >= top_p:
            break
        inside[token] = True
        total += float(probability[token])
    return inside


@pytest.mark.parametrize("sizes", [(), (2,), (3, 7)])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_a_nucleus_by_hand(top_p, sizes, monkeypatch):
    monkeypatch.setattr(decoding, "PROBABLE", sizes)
    scale = torch.tensor([0.1, 1.0, 3.0, 9.0])[:, None]  # flat and peaked ones
    logits = scale * torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([by_hand(row, top_p) for row in logits])
    edge = nucleus_edge(logits, top_p)
    assert (logits >= edge - 1e-5)[wanted].all() and (logits <= edge + 1e-5)[~wanted].all()
    tokens, inside = most_probable(logits.view(2, 2, 40), top_p, 40)
    assert torch.equal(torch.zeros(2, 2, 40, dtype=torch.bool).scatter(-1, tokens, inside).view(4, 40), wanted)


def test_the_edge_of_a_nucleus_by_hand():
    """Of .5, .3, .15 and .05 it lies at a logit inside, at the next one, or as far between as the last is needed."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    half, third, little = (torch.tensor(p).log().item() for p in (0.5, 0.3, 0.15))
    for top_p, wanted in ((0.5, third), (0.5 + 1e-6, third), (0.25, (half + third) / 2), (0.65, (third + little) / 2)):
        assert float(nucleus_edge(logits, top_p)) == pytest.approx(wanted, abs=1e-4), top_p


def test_at_a_top_p_of_1_every_token_is_inside():
    """The fp32 probabilities of the first tokens add up to 1 before the last, and the rest must not drop out."""
    logits = 6 * torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0))
    assert (nucleus_edge(logits, 1.0) < logits).all()
    assert most_probable(logits, 1.0, 20_000)[1].all()


def test_the_edge_moves_little_when_a_token_enters():
    logits = 3 * torch.randn(1, 500, generator=torch.Generator().manual_seed(1))
    border = float(logits.softmax(-1).sort(descending=True).values[0, :20].double().sum())
    below, above = (float(nucleus_edge(logits, border + change)) for change in (-1e-5, 1e-5))
    assert abs(above - below) < 1e-3


def test_at_most_so_many_of_the_most_probable():
    logits = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]])
    tokens, inside = most_probable(logits, 1.0, 2)
    assert tokens.tolist() == [[[1, 3]]] and inside.all()
    tokens, inside = most_probable(logits, 0.1, 9)
    assert tokens.tolist() == [[[1, 3, 2, 0]]] and inside.tolist() == [[[True, False, False, False]]]


def test_a_few_rows_at_a_time(monkeypatch):
    one, other = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    for rows in (1, 4, 100):
        monkeypatch.setattr(decoding, "PIECE", 7 * rows)
        seen = []

        def function(a, b, seen=seen):
            seen.append(len(a))
            return a.double() - b

        assert torch.equal(by_pieces(function, one, other), (one.double() - other).float())
        assert sum(seen) == 15 and max(seen) == min(rows, 15)
