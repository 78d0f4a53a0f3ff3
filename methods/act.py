"""Activation transport, AcT (arXiv 2410.23054): a unit's values are mapped to those that it has in desired texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import blockwise, directions, maps, options
from methods.base import INFO, Artefact, FitData, Method, Steering, refuse_no_change, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, current_positions, hooked
from methods.maps import Map, Spot
from methods.tokens import Text, encode_pairs

Kind = Literal["linear", "mean", "gaussian"]
Where = Literal["auto", "attention", "mlp", "both", "block"]
Support = Literal["source", "infinite"]
Pushed = Literal["both", "source"]
ActRead = Literal["all", "continuation"]

FLAT = 1e-4  # standard deviation up to which the authors' mean and gaussian maps leave a unit alone
TALLIED = 64  # source texts on which the share of values inside the support is counted


@dataclass(frozen=True, kw_only=True)
class AcT(Method):
    """y <- (1 - strength) y + strength (w y + b) at all tokens, for each unit of each place by itself.

    A and B (N, D) are the values of the source texts (prompt and undesired continuation) and of the target texts
    (desired) at a place. Each text is pooled to its mean over tokens, and each column is sorted by itself (section 3):

        linear:    w = sum(a' b') / sum(a'^2),  a' = a - mean(a), b' = b - mean(b)
        gaussian:  w = std(b) / std(a)
        mean:      w = 1;                       b = mean(B) - w mean(A) in all three

    The linear w is the least-squares slope between the sorted columns. Definition 3.1 of the paper has the target's
    squares in the denominator. The source's squares, as above, minimise the cost, and the authors' code uses them
    (github apple/ml-act).

    support: `source` maps a value only if it lies strictly between the smallest and the largest pooled value that its
    unit has in the source texts; `infinite` maps every value. The paper uses `source` to mitigate a behaviour and
    `infinite` to induce one; its code uses `source` with the kind `linear` and `infinite` with the other two kinds.
    Means over a text have a smaller range than single tokens have, so many values are left as they are:
    `info.inside_support` is the share of values that are mapped, with all maps on, at the tokens that are read in the
    first 64 source texts. The published map jumps at the ends of the support. Here the map sets in gradually, over a
    hundredth of the support at either end: with a jump, rounding, which depends on the batch, would decide on which
    side of an end a value lies.

    where: `auto` is the output of the norms that follow attention and MLP if a model has them (Gemma 2 and 3, OLMo 2
    and 3); this is the paper's best place in Gemma 2. In other models `auto` is the output of attention, the paper's
    best place in Llama 3. Llama's post_attention_layernorm comes before the MLP, so it does not count as a norm after
    attention. `block` is the output of each block.

    causal: the places are fitted one after the other in the order of execution, each with the maps of the earlier
    places fully on; if false, all are fitted from one pass. The authors' code takes the order of `named_modules` and
    reads all texts once for each module. Here the stream of all texts is kept between two blocks (`methods.blockwise`),
    which gives the same values at the cost of about three passes.
    pushed: the texts on which the earlier maps act while a place is fitted. With `both`, as in the authors' code, they
    act on source and target texts. Target values inside the source's support then move as well, so the two sides may
    differ again at a place although its map was fitted to make them equal. With `source`, the target's values are those
    of the unsteered model.

    The paper's texts are unpaired and have no prompt. Ours come in pairs with a prompt, so by default only the
    continuation is pooled, and the map does not depend on which texts form a pair. In texts without a prompt,
    skip_first leaves out the first token, an attention sink. A unit that is constant in the source texts keeps w = 1 in
    the linear map; for such a unit, the authors' code divides by noise that it adds itself. With `mean` and `gaussian`,
    as in the authors' code, a unit is left as it is if its standard deviation on either side is at most 1e-4.

    With support=infinite, a map at the output of a linear module with a bias is written into the module's weights, and
    a map of kind=mean at the output of a block adds a constant vector: both can be exported. All maps that are not
    written into weights are applied by hooks.

    Example:
        >>> from methods import AcT, FitData
        >>> from methods.intervention import record
        >>> method = AcT(kind="mean", where="block", support="infinite")
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.5), record(model, [0]) as steered:
        ...     _ = model(**inputs)
        >>> (steered[0] - stream[0]).allclose(0.5 * artefact["layers.0.shift"], atol=1e-5)
        True
    """

    name: ClassVar[str] = "act"
    title: ClassVar[str] = "AcT"
    cite: ClassVar[str] = "2410.23054"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the transport"

    kind: Kind = "linear"
    where: Where = "auto"
    causal: bool = True
    pushed: Pushed = "both"
    support: Support = "source"
    read: ActRead = "continuation"
    skip_first: int = 1
    max_tokens: int = 128
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1)

    def passes(self) -> float:
        """Count one whole pass, and if causal, runs of each block: one for each place in it, one with its maps on."""
        places = {"attention": blockwise.PARTIAL, "both": blockwise.PARTIAL + 1, "auto": blockwise.PARTIAL}
        runs = places.get(self.where, 1.0) + 1
        return 1 + self.causal * runs * (1 if self.pushed == "both" else 0.5)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed."""
        del model
        options.check_types(self)
        for key, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("where", self.where, get_args(Where)),
            ("pushed", self.pushed, get_args(Pushed)),
            ("support", self.support, get_args(Support)),
            ("read", self.read, get_args(ActRead)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return a map for each place. Raises SetupError without pairs, and if both sides have the same texts.

        The tensors of a map are "<place>.scale" and "<place>.shift" (D,), and with support=source "<place>.low" and
        "<place>.high".
        """
        self.check(model)
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        if sorted(text.tokens for text in texts.desired) == sorted(text.tokens for text in texts.undesired):
            raise SetupError(
                "act: the desired texts are the undesired ones, in whatever order, so there is nothing to carry from "
                "one to the other; give pairs whose texts differ"
            )
        spots = self._spots(model)
        found = (self._causal if self.causal else self._at_once)(model, spots, texts.undesired, texts.desired)
        refuse_no_change(
            self.name,
            [one.moved() for one in found],
            f"the maps leave all values as they are, or act on none, since the source texts have the same values "
            f"(method.kind={self.kind}, method.support={self.support}); give more texts that differ",
        )
        artefact = maps.saved(spots, found)
        artefact[INFO + "cut_pairs"] = torch.tensor(texts.cut)
        if self.support == "source":
            artefact[INFO + "inside_support"] = self._inside(model, spots, found, texts.undesired[:TALLIED])
        return artefact

    def _spots(self, model: PreTrainedModel) -> list[Spot]:
        """Return the places that are mapped, in the order in which they run."""
        if self.where == "auto":
            return maps.post_norms(model) or maps.spots(model, "attention")
        return maps.spots(model, self.where)

    def _at_once(
        self, model: PreTrainedModel, spots: Sequence[Spot], source: Sequence[Text], target: Sequence[Text]
    ) -> list[Map]:
        pooled = self._unsteered(model, spots, [*source, *target])
        return [self._map(one[: len(source)], one[len(source) :]) for one in pooled]

    def _unsteered(self, model: PreTrainedModel, spots: Sequence[Spot], texts: Sequence[Text]) -> list[Tensor]:
        places = [spot.place for spot in spots]
        return directions.pooled_at(model, texts, places, read=self.read, skip_first=self.skip_first)

    def _causal(
        self, model: PreTrainedModel, spots: Sequence[Spot], source: Sequence[Text], target: Sequence[Text]
    ) -> list[Map]:
        still = self._unsteered(model, spots, target) if self.pushed == "source" else None
        texts = [*source, *(target if still is None else [])]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))  # the order of the batches
        of_source = torch.tensor([i < len(source) for i in order])
        with blockwise.kept(model) as batches:
            (first,) = self._unsteered(model, spots[:1], [texts[i] for i in order])
        fitted: list[Map] = []
        hooks: list[Hook] = []
        for number, spot in enumerate(spots):
            if number and spot.layer != spots[number - 1].layer:
                blockwise.run(model, batches, spot.layer - 1, hooks, onward=True)
                hooks = []
            pooled = first if number == 0 else self._pooled(model, batches, spot, hooks)  # (N, D)
            fitted.append(self._map(pooled[of_source], pooled[~of_source] if still is None else still[number]))
            hooks.append(maps.mapping(spot.place, fitted[-1], 1.0))
        return fitted

    def _pooled(
        self, model: PreTrainedModel, batches: Sequence[blockwise.Batch], spot: Spot, hooks: Sequence[Hook]
    ) -> Tensor:
        """Return the pooled features (N, D) of the batches' texts at one place of the block before which they wait."""
        found: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:  # (B, T, D)
            read = self._read(hidden)  # (B, T)
            weights = read / read.sum(-1, keepdim=True)
            found.append(torch.einsum("bt,btd->bd", weights, hidden.float()).cpu())
            return hidden

        until = spot.place.module if spot.part == "attention" else None
        blockwise.run(model, batches, spot.layer, [*hooks, spot.place.hook(keep)], until=until)
        pooled = torch.cat(found)
        if not pooled.isfinite().all():
            raise SetupError(f"act: with the maps before it on, {spot.key} is not finite; set method.causal=false")
        return pooled

    def _read(self, hidden: Tensor) -> Tensor:
        continuation = self.read == "continuation"
        read = blockwise.reading(current_positions(), hidden.shape[1], self.skip_first, continuation=continuation)
        return read.to(hidden.device)

    def _map(self, source: Tensor, target: Tensor) -> Map:
        """Return the map between two sets of N pooled texts, (N, D) each."""
        scale, shift = transport(source, target, self.kind)
        ends = (source.amin(0), source.amax(0)) if self.support == "source" else (None, None)
        return Map(scale, shift, *ends)

    def _inside(
        self, model: PreTrainedModel, spots: Sequence[Spot], fitted: Sequence[Map], texts: Sequence[Text]
    ) -> Tensor:
        """Return the share (a scalar) of values inside the support, over places, units and the tokens read."""
        counted = torch.zeros(2, dtype=torch.float64)

        def counting(one: Map, hook: Hook) -> Callable[[Tensor], Tensor]:
            def function(hidden: Tensor) -> Tensor:
                read = self._read(hidden)
                share = one.to(hidden.device).share(hidden.float())
                assert share is not None
                counted[0] += float(((share > 0) & read[..., None]).sum())
                counted[1] += float(read.sum()) * hidden.shape[-1]
                return hook.function(hidden)

            return function

        pairs = zip(spots, fitted, strict=True)
        with hooked([spot.place.hook(counting(one, maps.mapping(spot.place, one, 1.0))) for spot, one in pairs]):
            directions.pooled_at(model, texts, [], read=self.read)
        return (counted[0] / counted[1]).float()

    def changes(self, artefact: Artefact) -> Artefact:
        """Return w - 1 and b of each place."""
        return maps.changes(artefact)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Map the values inside the `with`. Raises SetupError for an artefact of another model or other places."""
        spots, supported = self._spots(model) if strength else [], self.support == "source"
        found = [maps.loaded(model, artefact, spot, self.name, supported=supported) for spot in spots]
        with maps.applied(spots, found, strength):
            yield Steering()


def transport(source: Tensor, target: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the scale and shift (D,) that carry each unit's N source values to its N target values, (N, D) each.

    The formulas are those of `AcT`, computed in double precision; the order of the values does not matter.
    """
    a, b = (side.double().sort(0).values for side in (source, target))  # (N, D)
    mean_a, mean_b = a.mean(0), b.mean(0)  # (D,)
    centred_a, centred_b = a - mean_a, b - mean_b  # (N, D)
    spread = centred_a.square().sum(0)  # (D,)
    ones = torch.ones_like(spread)
    if kind == "linear":
        flat = spread <= len(a) * (directions.SAME * a.abs().amax(0)).square()
        scale = torch.where(flat, ones, (centred_a * centred_b).sum(0) / spread.where(~flat, ones))
        shift = mean_b - scale * mean_a
    else:
        std_a, std_b = a.std(0), b.std(0)
        moved = (std_a > FLAT) & (std_b > FLAT)
        ratio = std_b / std_a.where(moved, ones) if kind == "gaussian" else ones
        scale = ratio.where(moved, ones)
        shift = (mean_b - scale * mean_a).where(moved, 0 * ones)
    return scale.float(), shift.float()
