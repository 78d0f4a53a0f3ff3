"""AurA (arXiv 2407.12824): units of the MLPs are damped by how well they tell undesired texts from desired ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from methods import directions, layout, options, sites
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.folding import folded
from methods.intervention import edited
from methods.sites import Place
from methods.tokens import encode_pairs

Form = Literal["aura", "det0", "damp"]
AuraRead = Literal["all", "continuation"]
CHANCE = 0.5  # AUROC of a unit that tells nothing


@dataclass(frozen=True, kw_only=True)
class AurA(Method):
    """y_m <- (1 - strength (1 - alpha_m)) y_m for every output m of every linear layer of the MLPs, at all tokens.

    z is the largest value that output m, the unit, takes over the tokens of a text, before any nonlinearity. AUROC_m is
    the share of pairs in which the undesired text has the larger z, among all pairs of one undesired and one desired
    text. Ties count one half. Values are rounded to whole steps of 1e-5 of the unit's largest absolute value before
    they are compared, so most values that differ only by rounding errors are ties; two such values differ only if they
    are rounded to different steps. The forms are

        aura:  alpha_m = 1 - 2 (AUROC_m - .5)   if AUROC_m > .5, else 1
        det0:  alpha_m = 0;    damp:  alpha_m = damp_alpha

    The linear layers of a block's MLP are gate, up and down, or in and out if there is no gate. So each coordinate of
    what the MLP writes is damped by itself, and the product of gate and up is damped twice, as published. If gate and
    up are one matrix, all its rows are units. Bias and weights are scaled alike, and the edit is exact:
    W' = diag(alpha) W. A factor that would fall below 0, at a strength above 1, is set to 0.

    top: only this share of the units of all layers together is damped, namely those with the largest AUROC; among equal
    AUROCs, units that run first are taken first. The authors' code (github apple/ml-aura, learn_aura.py) has this
    option for det0 and damp, as a number of units; that code leaves out every unit whose AUROC equals that of the best
    unit that is not taken, and it fails if the number given is the number of all units. None damps every unit above .5;
    with det0, that sets about half of the units to 0. (An older method, also called Det0, replaces a unit by its mean,
    not by 0.)

    min_auroc: units with an AUROC up to this are left as they are. With n texts per side, the AUROC of a unit without
    information has a standard deviation of sqrt((2 n + 1) / (12 n^2)) around .5, .036 for n = 128, so half of the units
    without information are damped a little; `info.share_above_half` and `info.share_damped` are the shares of units
    above .5 and of those that are damped.

    The authors read texts without prompts, all tokens including BOS. Ours come in pairs, and by default only the
    continuation is read. skip_first leaves the attention sink, which may always have the largest value, out of texts
    without a prompt.

    A mixture of experts is refused, since the matrices of its MLPs are not separate layers.

    Example:
        >>> from methods import AurA, FitData
        >>> method = AurA(top=0.1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1):
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> round(float(artefact["info.share_damped"]), 2), {name.split(".")[3] for name in changed}
        (0.1, {'mlp'})
    """

    name: ClassVar[str] = "aura"
    title: ClassVar[str] = "AurA"
    cite: ClassVar[str] = "2407.12824"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the damping"

    form: Form = "aura"
    top: float | None = None
    damp_alpha: float = 0.5
    min_auroc: float = 0.5
    read: AuraRead = "continuation"
    skip_first: int = 1
    max_tokens: int = 128
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1, 1.5)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed, and for a model whose MLPs have no linear layers."""
        options.check_types(self)
        for key, value, allowed in (("form", self.form, get_args(Form)), ("read", self.read, get_args(AuraRead))):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.top is not None and not 0 < self.top <= 1:
            raise SetupError(f"method.top={self.top}: expected a share of the units in (0, 1], or null for all")
        if not 0 <= self.damp_alpha < 1:
            raise SetupError(f"method.damp_alpha={self.damp_alpha}: expected a factor of at least 0 and below 1")
        if not CHANCE <= self.min_auroc < 1:
            raise SetupError(
                f"method.min_auroc={self.min_auroc}: expected at least {CHANCE}, which is chance, and below 1"
            )
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        for layer in range(len(layout.blocks(model))):
            sites.mlp_linears(model, layer)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the factor of every unit: "layers.<l>.<module>.alpha" (outputs,), 1 where nothing is damped.

        Raises SetupError without pairs, for a mixture of experts, and if no unit is above `min_auroc`.
        """
        self.check(model)
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        if sorted(text.tokens for text in texts.desired) == sorted(text.tokens for text in texts.undesired):
            raise SetupError(
                "aura: the desired texts are the undesired ones, in whatever order, so no unit is larger in either; "
                "give pairs whose texts differ"
            )
        modules = _modules(model)
        places = [Place(module, "output", _outputs(module)) for module in modules.values()]
        count = len(texts.undesired)
        largest = directions.pooled_at(
            model,
            [*texts.undesired, *texts.desired],
            places,
            read=self.read,
            reduce="max",
            skip_first=self.skip_first,
        )
        steps = [_steps(one) for one in largest]
        aurocs = torch.cat([auroc(one[:count], one[count:]) for one in steps])  # (units,) of all modules
        alpha = self._alpha(aurocs)
        if bool((alpha == 1).all()):
            raise SetupError(
                f"aura: no unit of the MLPs separates undesired from desired texts with an AUROC above "
                f"method.min_auroc={self.min_auroc}; the largest is {float(aurocs.max()):.3f}. Give pairs whose texts "
                f"differ where method.read={self.read} looks, or lower min_auroc where it is above 0.5"
            )
        parts = torch.split(alpha.float(), [place.width for place in places])
        return {
            **{f"{name}.alpha": part.clone() for name, part in zip(modules, parts, strict=True)},
            "info.share_above_half": (aurocs > CHANCE).float().mean(),
            "info.share_damped": (alpha < 1).float().mean(),
            "info.mean_alpha": alpha.mean().float(),
            "info.cut_pairs": torch.tensor(texts.cut),
        }

    def _alpha(self, aurocs: Tensor) -> Tensor:
        """Return the factor of each unit, (units,), from the AUROC of all units in the order in which they run."""
        damped = aurocs > self.min_auroc
        if self.top is not None:
            count = max(1, round(self.top * len(aurocs)))
            chosen = aurocs.argsort(descending=True, stable=True)[:count]
            damped &= torch.zeros_like(damped).index_fill(0, chosen, True)
        if self.form == "aura":
            factor = 1 - 2 * (aurocs - CHANCE)
        else:
            factor = torch.full_like(aurocs, 0.0 if self.form == "det0" else self.damp_alpha)
        return factor.where(damped, torch.ones_like(aurocs))

    def changes(self, artefact: Artefact) -> Artefact:
        """Return by how much each unit is damped, 1 - alpha."""
        return {name: 1 - alpha for name, alpha in artefact.items() if name.endswith(".alpha")}

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Scale rows of the MLPs' matrices inside the `with`. Raises SetupError for an artefact of another model."""
        new: dict[nn.Parameter, Tensor] = {}
        for name, module in _modules(model).items() if strength else ():
            alpha = artefact.get(f"{name}.alpha")
            if alpha is None or len(alpha) != _outputs(module):
                found = "no factors" if alpha is None else f"{len(alpha)} factors"
                raise SetupError(
                    f"aura: the artefact has {found} for the {_outputs(module)} outputs of {name}, so it was not "
                    "fitted on this model; fit it again"
                )
            if bool((alpha != 1).any()):
                new |= folded(module, (1 - strength * (1 - alpha)).clamp(min=0))
        directions.check_depth(model, artefact, self.name)
        with edited(new):
            yield Steering()


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Return each unit's area under the ROC curve, (units,) in fp64, from its values in N texts per side, (N, units).

    It is the share of pairs in which the positive text has the larger value, among all pairs of one positive and one
    negative text; ties count one half.
    """
    ordered, values = negative.T.contiguous().sort(-1).values, positive.T.contiguous()  # (units, N)
    below = torch.searchsorted(ordered, values)  # of the negative values, how many are smaller
    up_to = torch.searchsorted(ordered, values, right=True)  # and how many are not larger
    return (below + up_to).double().mean(-1) / (2 * len(negative))


def _steps(values: Tensor) -> Tensor:
    """Return the values (N, units) in whole steps of 1e-5 of each unit's largest, so that rounding seldom matters.

    Both texts of a pair begin with the same prompt; if the largest value is in the prompt, both texts must have the
    same number.
    """
    step = directions.SAME * values.abs().amax(0)  # (units,)
    return (values / step.where(step > 0, torch.ones_like(step))).round()


def _modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear modules of all MLPs in the order in which they run, by their names in the artefact."""
    return {
        f"layers.{layer}.{name}": module
        for layer in range(len(layout.blocks(model)))
        for name, module in sites.mlp_linears(model, layer).items()
    }


def _outputs(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if isinstance(module, Conv1D) else 0]
