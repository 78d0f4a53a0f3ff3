"""Inference-time intervention (arXiv 2306.03341): a few attention heads are shifted along the direction of truth."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options, sites
from methods.base import Artefact, FitData, Method, Pairs, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import adding, edited, hooked
from methods.probes import logistic, sides
from methods.separation import separation_facts
from methods.tokens import Text, encode, encode_pairs

ITIDirection = Literal["mass_mean", "probe", "random"]
ITISigma = Literal["fit", "tuning"]
ITIScope = Literal["generation", "prompt", "all"]
FEWEST_TO_TRAIN = 2  # fewest pairs that a probe learns from


class Probed(NamedTuple):
    """One probe per head: its accuracy and margin on held-out texts, (L, H) each, and its unit normal (L, H, d)."""

    accuracy: Tensor
    margin: Tensor  # mean log-likelihood of the right class, in nats
    normal: Tensor
    unconverged: int


@dataclass(frozen=True, kw_only=True)
class ITI(Method):
    """x_h <- x_h + strength * sigma_h * theta_h at K attention heads h, before the output projection.

    Sections 3 and 4 of arXiv 2306.03341. x_h (B, T, d) is the output of one head, a slice of the output projection's
    input; with grouped queries the heads are the query heads. Each text is read at its last token (`read`), in all
    blocks in one pass. A logistic regression (scikit-learn, C = 1) on each head tells desired from undesired texts; a
    fifth of the pairs is held out, and the K heads whose probes are most often right on these pairs are shifted:

        theta_h = unit(mean of desired x_h - mean of undesired x_h)      over all pairs, "mass mean shift"
        sigma_h = standard deviation of theta_h . x_h                    over all texts of both sides

    Strength is the paper's alpha, in standard deviations. K is given as a share of all heads (the paper chooses 48 of
    LLaMA-7B's 1,024); a share of 1 is the paper's run without a selection. Both texts of a pair are held out together.
    Of probes that are equally often right, the one with the larger held-out likelihood comes first (this rule is ours;
    on small sets most probes are tied).

    scope: the paper shifts the last column of each forward, which with a cache is the last prompt token and then each
    new token; `generation` with `boundary` does that. `all` shifts every token, which is what the paper writes as a
    bias of the output projection, W_o (strength * sigma * theta). If that projection has a bias, `all` changes the
    bias, so that the model can be exported as a checkpoint; otherwise it sets a hook.
    direction: `probe` is the normal of the head's probe, `random` a random unit vector in the chosen heads; the paper
    compares both with the mass mean shift.
    sigma: with `fit` it is computed as in the paper. `tuning` follows the authors' code (github
    likenneth/honest_llama), which computes it from other texts: each text followed by the prompt of a random pair.

    Differences from the authors' code: its script for editing weights puts the shift of the heads into the bias as it
    is, without the output matrix; its hook shifts only the last position of a scored text, and the logits there are not
    scored, so no likelihood changes. Here a likelihood is steered in the same way as a sampled text, from the last
    token of the context on. The code's standard deviation divides by N in one script and by N - 1 in another; here it
    is N.

    Example:
        >>> from methods import ITI, FitData, generating
        >>> method = ITI(head_fraction=0.1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 10), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> len(artefact["info.heads"]), moved.nonzero().flatten().tolist()  # of 30 heads; at the prompt's last token
        (3, [5])
    """

    name: ClassVar[str] = "iti"
    title: ClassVar[str] = "ITI"
    cite: ClassVar[str] = "2306.03341"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "standard deviations of the heads' projections"

    head_fraction: float = 48 / 1024
    read: directions.Read = "last"
    skip_first: int = 0
    direction: ITIDirection = "mass_mean"
    sigma: ITISigma = "fit"
    held_out: float = 0.2
    scope: ITIScope = "generation"
    boundary: bool = True
    seed: int = 0
    strengths: Sequence[float] = (2, 5, 10, 15, 20)

    def passes(self) -> float:
        """Count one pass over the pairs, and with sigma=tuning one over the texts that sigma is computed from."""
        return 2.0 if self.sigma == "tuning" else 1.0

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a model whose heads cannot be taken apart, and for a setting that is not allowed."""
        options.check_types(self)
        for option, allowed in (
            ("read", directions.Read), ("direction", ITIDirection), ("sigma", ITISigma), ("scope", ITIScope),
        ):  # fmt: skip
            if getattr(self, option) not in get_args(allowed):
                raise SetupError(
                    f"method.{option}={getattr(self, option)!r}: allowed are {', '.join(get_args(allowed))}"
                )
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if not 0 < self.head_fraction <= 1:
            raise SetupError(
                f"method.head_fraction={self.head_fraction} is outside (0, 1]; 0 would choose no head, so that every "
                "strength is the unsteered model; the paper's is 0.047"
            )
        if not 0 < self.held_out < 1:
            raise SetupError(f"method.held_out={self.held_out} is outside (0, 1); the paper's is 0.2")
        shapes = {sites.heads(model, layer)[1:] for layer in range(len(layout.blocks(model)))}
        if len(shapes) > 1:
            told = ", ".join(f"{number} of {size}" for number, size in sorted(shapes))
            raise SetupError(
                f"iti: the heads of {model.config.model_type} differ from block to block ({told} entries), and iti "
                "compares them across blocks; choose itic or sadi"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the shifts sigma * theta of the chosen heads, "layers.<l>.shift" (H * d,), zero in the others.

        The two measures of how well the pairs agree (`methods.separation`) are means over the chosen heads. Raises
        SetupError for too few pairs, and if the features of the two sides differ in fewer heads than are to be chosen.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encode_pairs(model, tokenizer, pairs)
        heads = [sites.heads(model, layer) for layer in range(len(layout.blocks(model)))]
        places = [one.place for one in heads]

        def features(side: Sequence[Text], read: directions.Read) -> Tensor:
            found = torch.stack(directions.pooled_at(model, side, places, read=read, skip_first=self.skip_first))
            return found.view(*found.shape[:2], heads[0].number, heads[0].size).transpose(1, 2).clone()

        desired, undesired = (features(side, self.read) for side in (texts.desired, texts.undesired))  # (L, H, N, d)
        generator = torch.Generator().manual_seed(self.seed)
        train, test = self._split(len(pairs.prompt), generator)
        shift = desired.mean(2) - undesired.mean(2)  # (L, H, d)
        length = torch.cat([desired, undesired], 2).norm(dim=-1).mean(2)  # (L, H)
        alive = shift.norm(dim=-1) > directions.SAME * length
        count = max(1, round(self.head_fraction * alive.numel()))
        if alive.sum() < count:
            raise SetupError(
                f"iti: the features of desired and undesired texts have the same mean in all but {int(alive.sum())} of "
                f"{alive.numel()} heads, and {count} are to be chosen; give pairs whose texts differ where "
                f"method.read={self.read} looks, or lower method.head_fraction"
            )
        probed = probe_heads(desired, undesired, train, test)
        chosen = ranked(probed, alive)[:count]  # (K, 2)
        at = chosen.unbind(-1)
        if self.direction == "random":
            theta = functional.normalize(torch.randn(shift.shape, generator=generator), dim=-1)
        else:
            theta = functional.normalize(shift, dim=-1) if self.direction == "mass_mean" else probed.normal
        if self.sigma == "tuning":
            both = features(_followed(model, tokenizer, pairs, generator), "last")
        else:
            both = torch.cat([desired, undesired], 2)  # (L, H, 2N, d)
        sigma = torch.einsum("lhnd,lhd->lhn", both, theta).std(-1, correction=0)  # (L, H)
        full = torch.zeros_like(theta)
        full[at] = (sigma[..., None] * theta)[at]
        return {
            **{f"layers.{layer}.shift": full[layer].flatten().clone() for layer in sorted(set(chosen[:, 0].tolist()))},
            "info.heads": chosen,
            "info.sigma": sigma[at],
            "info.probe_accuracy": probed.accuracy[at],
            "info.mean_probe_accuracy": probed.accuracy.mean(),
            "info.unconverged_probes": torch.tensor(probed.unconverged),
            "info.held_out_texts": torch.tensor(2 * len(test)),
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired[at], undesired[at]),
        }

    def _split(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the indices of the pairs on which probes are trained, and of those on which they are tested."""
        order = torch.randperm(count, generator=generator)
        tested = max(1, round(self.held_out * count))
        if count - tested < FEWEST_TO_TRAIN:
            raise SetupError(
                f"iti: {count} pairs with method.held_out={self.held_out} leave {count - tested} to train "
                f"probes on; at least {FEWEST_TO_TRAIN} are needed: give more pairs or hold out less"
            )
        return order[tested:], order[:tested]

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Shift the chosen heads inside the `with`. Raises SetupError for an artefact of another model."""
        layers = range(len(layout.blocks(model)))
        if strength and not any(f"layers.{layer}.shift" in artefact for layer in layers):
            raise SetupError("iti: the artefact has no shift of a head; fit it again")
        with ExitStack() as stack:
            for layer in layers if strength else ():
                key = f"layers.{layer}.shift"
                if key not in artefact:
                    continue
                place, shift = sites.heads(model, layer).place, strength * artefact[key]
                if len(shift) != place.width:
                    raise SetupError(f"iti: {key} {tuple(shift.shape)} was not fitted on this model; fit it again")
                bias = sites.output_bias(model, layer, "attention") if self.scope == "all" else None
                if bias is None:
                    stack.enter_context(hooked([place.hook(adding(shift, self.scope, boundary=self.boundary))]))
                else:
                    matrix = layout.stream_rows(model, layer, "o").parts[0].read().float()  # (H * d, D)
                    stack.enter_context(edited({bias: bias.detach().float() + shift.to(matrix.device) @ matrix}))
            directions.check_depth(model, artefact, self.name)
            yield Steering()


def probe_heads(desired: Tensor, undesired: Tensor, train: Tensor, test: Tensor) -> Probed:
    """Train a probe on each head, on the pairs `train`, and judge it on `test`; each side has features (L, H, N, d)."""
    layers, heads, _, size = desired.shape
    accuracy, margin, normal = torch.zeros(layers, heads), torch.zeros(layers, heads), torch.zeros(layers, heads, size)
    unconverged = 0
    for layer in range(layers):
        for head in range(heads):
            one, other = desired[layer, head], undesired[layer, head]  # (N, d)
            probe = logistic(*sides(one[train], other[train]))
            margins = probe.margins(*sides(one[test], other[test]))  # (2n,)
            accuracy[layer, head] = (margins > 0).float().mean()
            margin[layer, head] = functional.logsigmoid(margins).mean()
            normal[layer, head] = functional.normalize(probe.weight, dim=0)
            unconverged += not probe.converged
    return Probed(accuracy, margin, normal, unconverged)


def ranked(probed: Probed, alive: Tensor) -> Tensor:
    """Return block and head (n, 2) of the `alive` heads (L, H), the most accurate probe first, ties by likelihood."""
    where = alive.nonzero()  # (n, 2)
    at = where.unbind(-1)
    by_margin = probed.margin[at].argsort(stable=True, descending=True)
    by_accuracy = probed.accuracy[at][by_margin].argsort(stable=True, descending=True)
    return where[by_margin[by_accuracy]]


def _followed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, generator: torch.Generator
) -> list[Text]:
    """Return the texts of both sides, each followed by the prompt of a random pair."""
    found: list[Text] = []
    for side in (pairs.desired, pairs.undesired):
        after = torch.randperm(len(pairs.prompt), generator=generator).tolist()
        before = [prompt + text for prompt, text in zip(pairs.prompt, side, strict=True)]
        found += encode(model, tokenizer, before, ["\n" + pairs.prompt[i] for i in after])[0]
    return found
