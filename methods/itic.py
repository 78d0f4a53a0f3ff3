"""ITI-c (our reading): attention's output is shifted along the normal of a linear classifier, in every block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options, sites
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import adding, edited, hooked
from methods.probes import logistic, sides
from methods.separation import separation_facts
from methods.tokens import encode_pairs

ITICScope = Literal["generation", "prompt", "all"]


@dataclass(frozen=True, kw_only=True)
class ITIC(Method):
    """y <- y + strength * sigma_l * w_l at the output of attention's matrix in every block l, at all tokens.

    ITI-c is what arXiv 2410.23054 (AcT) and 2503.10679 (LinEAS) compare with under the name of ITI (arXiv 2306.03341):
    one linear classifier on the output of a whole module instead of one on each head. No code was released, and
    the papers do not say whether its normal has unit length, whether the shift is scaled by the spread, and how a text
    is pooled, so this is our reading:

        x_l = mean over the continuation's tokens of y, (D,);   w_l = unit normal of a logistic regression by L-BFGS
        sigma_l = standard deviation of w_l . x_l over the texts of both sides

    w points to the desired texts. Strength is in standard deviations. The two papers' strengths do not agree with one
    another: AcT sweeps 1 to 15 and finds 8 and 3 best, LinEAS takes .5 at this place.

    read, skip_first: which tokens of a text are averaged; the first token of a text is an attention sink.
    scope: `all` is the papers' choice; `generation` begins at the last prompt token (`boundary`). With `all` the shift
    acts as a bias of attention's output matrix: if the matrix has a bias, that bias is changed, and the model can be
    exported as a checkpoint. If a norm follows (Gemma 2 and 3, OLMo 2 and 3), the shift is added before the norm, at
    the module that the papers name.

    Example:
        >>> from methods import ITIC, FitData, generating
        >>> method = ITIC(scope="generation")
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> sum(name.endswith(".shift") for name in artefact), moved.nonzero().flatten().tolist()
        (5, [5])
    """

    name: ClassVar[str] = "itic"
    title: ClassVar[str] = "ITI-c (our reading)"
    cite: ClassVar[str] = "2306.03341"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "standard deviations along the classifier's normal"

    read: directions.Read = "continuation"
    skip_first: int = 0
    scope: ITICScope = "all"
    boundary: bool = True
    strengths: Sequence[float] = (0.5, 1, 3, 5, 8)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed, and if attention's output cannot be found."""
        options.check_types(self)
        for option, allowed in (("read", directions.Read), ("scope", ITICScope)):
            if getattr(self, option) not in get_args(allowed):
                raise SetupError(
                    f"method.{option}={getattr(self, option)!r}: allowed are {', '.join(get_args(allowed))}"
                )
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        layout.stream_rows(model, 0, "o")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the shift sigma * w of each block, "layers.<l>.shift" (D,).

        The two measures of how well the pairs agree (`methods.separation`) are means over the blocks. Raises SetupError
        without pairs, and if the features of the two sides have the same mean in any block.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encode_pairs(model, tokenizer, pairs)
        places = [sites.projected(model, layer, "attention") for layer in range(len(layout.blocks(model)))]
        desired, undesired = (
            torch.stack(directions.pooled_at(model, side, places, read=self.read, skip_first=self.skip_first)).clone()
            for side in (texts.desired, texts.undesired)
        )  # (L, N, D) each
        both = torch.cat([desired, undesired], 1)  # (L, 2N, D)
        apart = (desired.mean(1) - undesired.mean(1)).norm(dim=-1) > directions.SAME * both.norm(dim=-1).mean(1)  # (L,)
        if not apart.all():
            raise SetupError(
                f"itic: the features of desired and undesired texts have the same mean in {int((~apart).sum())} of "
                f"{len(apart)} blocks; give pairs whose texts differ where method.read={self.read} looks"
            )
        labelled = [sides(*block) for block in zip(desired, undesired, strict=True)]
        probes = [logistic(*block) for block in labelled]
        normal = functional.normalize(torch.stack([probe.weight for probe in probes]), dim=-1)  # (L, D)
        sigma = torch.einsum("lnd,ld->ln", both, normal).std(-1, correction=0)  # (L,)
        right = [probe.margins(*block) > 0 for probe, block in zip(probes, labelled, strict=True)]  # (2N,) each
        return {
            **{f"layers.{layer}.shift": (sigma[layer] * one).clone() for layer, one in enumerate(normal)},
            "info.sigma": sigma,
            "info.train_accuracy": torch.stack(right).float().mean(-1),
            "info.unconverged_probes": torch.tensor(sum(not probe.converged for probe in probes)),
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Shift every block's attention inside the `with`. Raises SetupError for an artefact of another model."""
        with ExitStack() as stack:
            for layer in range(len(layout.blocks(model))) if strength else ():
                shift = strength * directions.fitted(model, artefact, f"layers.{layer}.shift", self.name)
                bias = sites.output_bias(model, layer, "attention") if self.scope == "all" else None
                if bias is None:
                    place = sites.projected(model, layer, "attention")
                    stack.enter_context(hooked([place.hook(adding(shift, self.scope, boundary=self.boundary))]))
                else:
                    stack.enter_context(edited({bias: bias.detach().float() + shift.to(bias.device)}))
            yield Steering()
