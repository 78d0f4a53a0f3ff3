import pytest
import torch
from torch import Tensor

from bench.model.lm import LM
from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import prefill, sample
from methods import layout
from methods.intervention import Hook, Positions, adding, at, generating, hooked
from methods.vectors import where_open, within
from methods.verdicts import Verdict, extremes
from tests.tiny import CORPUS, tiny_lm

LAYER = 1
PROMPTS = ["The quick fox", "People walk along the water and", "a bird", "Bread near the long road home", "The"]


def axis(lm: LM, seed: int = 3) -> Tensor:
    return torch.randn(layout.width(lm.model), generator=torch.Generator().manual_seed(seed))


def stream_end(lm: LM, prompt: str) -> float:
    """The projection of the block's output at the end of a prompt."""
    with torch.inference_mode():
        hidden = lm.model(torch.tensor([lm.encode(prompt)]), output_hidden_states=True).hidden_states
    return float(hidden[LAYER + 1][0, -1] @ axis(lm))


def cut(lm: LM) -> float:
    """A threshold that some prompts are beyond and some are not."""
    ends = sorted(stream_end(lm, prompt) for prompt in PROMPTS)
    return (ends[1] + ends[2]) / 2


def gate(lm: LM, *, threshold: float | None = None, size: float = 4.0) -> Hook:
    """Adds a vector from the last prompt token on, in the rows whose prompts end beyond a threshold."""
    bound = cut(lm) if threshold is None else threshold
    verdict = Verdict(lambda hidden: (hidden @ axis(lm).to(hidden) > bound).float())
    moved = within(adding(size * axis(lm, 9), "all"), "generation", boundary=True)
    return Hook(layout.blocks(lm.model)[LAYER], "output", where_open(verdict, moved))


def opened(lm: LM) -> list[bool]:
    return [stream_end(lm, prompt) > cut(lm) for prompt in PROMPTS]


def test_it_is_decided_once_and_kept_for_each_row():
    """Every step of a row is steered or not, as its own prompt says, beside others and padded."""
    lm = tiny_lm()
    expected = opened(lm)
    assert 0 < sum(expected) < len(PROMPTS)
    ids = [lm.encode(prompt) for prompt in PROMPTS]
    tokens = torch.tensor([[40]] * len(ids)), torch.ones(len(ids), 1, dtype=torch.bool)

    def steps(hooks: list[Hook]) -> Tensor:
        with hooked(hooks):
            rows, first = prefill(lm, ids)
            return torch.stack([first, *(lm.read(rows, *tokens)[:, -1] for _ in range(3))], 1)  # (B, 4, V)

    base, always, judged = steps([]), steps([gate(lm, threshold=-1e9)]), steps([gate(lm)])
    for row, is_open in enumerate(expected):
        assert torch.equal(judged[row], (always if is_open else base)[row])
        assert not torch.equal(base[row], always[row])


def test_never_and_always_are_unsteered_and_ungated():
    lm = tiny_lm()
    plain = Hook(layout.blocks(lm.model)[LAYER], "output", adding(4 * axis(lm, 9), "generation", boundary=True))

    def texts(hooks: list[Hook]) -> tuple[list[list[str]], list[float]]:
        with hooked(hooks):
            scored = log_likelihood(lm, PROMPTS, [" the old tree"] * len(PROMPTS))
            return sample(lm, PROMPTS, 3, 6), [one.logprob for one in scored]

    assert texts([gate(lm, threshold=1e9)]) == texts([])
    assert texts([gate(lm, threshold=-1e9)]) == texts([plain]) != texts([])


def test_sampled_rows_keep_the_verdict_of_their_prompt():
    """Rows are copied for the samples of a prompt, and left out when they have ended."""
    lm = tiny_lm()
    with hooked([gate(lm)]):
        judged = sample(lm, PROMPTS, 6, 12, batch_size=64)
        alone = [sample(lm, [prompt], 6, 12)[0] for prompt in PROMPTS]
        assert judged == alone == sample(lm, PROMPTS[::-1], 6, 12, batch_size=4)[::-1]
    base = sample(lm, PROMPTS, 6, 12)
    with hooked([gate(lm, threshold=-1e9)]):
        always = sample(lm, PROMPTS, 6, 12)
    for row, is_open in enumerate(opened(lm)):
        assert judged[row] == (always if is_open else base)[row] and base[row] != always[row]


def test_likelihoods_take_the_context_for_the_prompt():
    """Also where contexts begin alike, so that their beginning was read before there is a verdict."""
    lm = tiny_lm()
    prompts = [CORPUS[:150] + prompt for prompt in PROMPTS] + PROMPTS
    ends = [" the old tree", " hate", " love and the river sings"]
    asked = [(prompt, end) for prompt in prompts for end in ends]
    found = {}
    for name, hooks in {"base": [], "always": [gate(lm, threshold=-1e9)], "judged": [gate(lm)]}.items():
        with hooked(hooks):
            found[name] = log_likelihood(lm, *(list(column) for column in zip(*asked, strict=True)))
    states = [stream_end(lm, prompt) > cut(lm) for prompt, _ in asked]
    assert 0 < sum(states) < len(states)
    for i, is_open in enumerate(states):
        assert found["judged"][i] == found["always" if is_open else "base"][i]
        assert found["base"][i].logprob != found["always"][i].logprob


def test_models_own_generate_keeps_it_too():
    lm = tiny_lm()
    for prompt, is_open in zip(PROMPTS, opened(lm), strict=True):
        ids = torch.tensor([lm.encode(prompt)])

        def written(hooks: list[Hook], ids: Tensor = ids) -> list[list[int]]:
            with hooked(hooks), generating(lm.model):
                mask = torch.ones_like(ids)
                return [
                    lm.model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0,
                                      num_return_sequences=beams, num_beams=beams).tolist()
                    for beams in (1, 2)
                ]  # fmt: skip

        assert written([gate(lm)]) == written([gate(lm, threshold=-1e9)] if is_open else [])


def test_one_hook_serves_two_texts_in_turn():
    """The verdict is with the rows, not in the hook."""
    lm = tiny_lm()
    step = torch.tensor([[40]]), torch.tensor([[True]])
    expected = opened(lm)
    one, other = expected.index(True), expected.index(False)
    base = [prefill(lm, [lm.encode(PROMPTS[i])])[0] for i in (one, other)]
    unsteered = [lm.read(rows, *step) for rows in base]
    with hooked([gate(lm)]):
        rows = [prefill(lm, [lm.encode(PROMPTS[i])])[0] for i in (one, other)]
        first, second = (lm.read(one, *step) for one in rows)
    assert not torch.equal(first, unsteered[0]) and torch.equal(second, unsteered[1])


def test_it_does_not_guess_where_nobody_kept_it():
    lm = tiny_lm()
    verdict, hidden = Verdict(lambda h: h[:, 0]), torch.ones(2, 3, 4)
    two = torch.tensor([3, 3])
    with at(Positions(0 * two, two, two, two)):
        with pytest.raises(RuntimeError, match="a row was read beyond it without keeping what was decided"):
            verdict(hidden)
    with at(Positions(0 * two, two, 0 * two, torch.tensor([3, 9]))):
        assert verdict(hidden).tolist() == [1, 0], "the prompt of the second goes on"
    rows, _ = prefill(lm, [lm.encode("The old tree")])
    with hooked([gate(lm)]), pytest.raises(RuntimeError, match="a row was read beyond it"):
        lm.read(rows, torch.tensor([[40]]), torch.tensor([[True]]))


def test_extremes_of_a_gate():
    assert [sorted(extremes(torch.tensor(one))) for one in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5])] == [
        ["info.never_opens"], ["info.always_open"], [], [],
    ]  # fmt: skip
