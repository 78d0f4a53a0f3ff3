"""SADI (arXiv 2410.12299): elements that differ most between the sides are scaled; the change depends on the input."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options, sites
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import hooked, scope_mask, stopped_after
from methods.separation import separation_facts
from methods.tokens import Text, encode_pairs

Element = Literal["heads", "neurons", "hidden"]
SADIScope = Literal["generation", "last", "prompt", "all"]


@dataclass(frozen=True, kw_only=True)
class SADI(Method):
    """a <- a + delta * (a * M): the elements of the mask M are scaled by 1 + delta, and no others.

    The strength is delta in arXiv 2410.12299. The strength in the authors' code (github weixuan-wang123/SADI), called
    the factor there, is 1 + delta. Each text is read at its last token (`read`), and M holds the K elements, over all
    blocks, whose mean difference

        d = mean over pairs of (element(desired) - element(undesired))

    is largest. As in the code, only positive differences count (no absolute value is taken), so M has fewer than K
    elements if fewer differences are positive. An element is of one of three families:

        heads    one attention head before the output projection; it is read as the mean of its d_h entries, and all of
                 its entries are scaled
        neurons  one hidden unit of the MLP, before the matrix by which the MLP writes
        hidden   one entry of the output of that matrix (not of the residual stream)

    Elements are compared without normalisation, so most of the chosen ones are in blocks with large activations. Two
    elements with equal differences are ranked by block and number; the code looks them up by value and so takes one of
    them twice.

    scope: `generation` with `boundary` scales at the last prompt token and at each new one; for a likelihood, it scales
    from the last token of the context on, as in sampling. `last` scales only at the last prompt token, as the authors'
    code does.
    frozen: true does what the authors' code does. The prompt is first read without steering. Then, at the last prompt
    token, all elements of the family in all blocks are put back to the values of that reading, and those of M are
    scaled, so that no block can react to the scaling in earlier blocks. It needs `scope: last`, and the prompt is read
    twice. False scales in place, which is the paper's formula.

    The paper takes the best of 60 to 176 settings on the data on which it reports results; here the settings are chosen
    as for every other method.

    Example:
        >>> from methods import SADI, FitData, generating
        >>> method = SADI(element="neurons", top=4)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 9), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> int(artefact["info.chosen"]), moved.nonzero().flatten().tolist()
        (4, [5])
    """

    name: ClassVar[str] = "sadi"
    title: ClassVar[str] = "SADI"
    cite: ClassVar[str] = "2410.12299"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "delta: factor on the elements, minus 1"

    element: Element = "heads"
    top: int | float = 10
    read: directions.Read = "last"
    skip_first: int = 0
    frozen: bool = False
    scope: SADIScope = "generation"
    boundary: bool = True
    strengths: Sequence[float] = (1, 4, 9, 19, 39)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a model without such elements, and for a setting that is not allowed."""
        options.check_types(self)
        for option, allowed in (("element", Element), ("read", directions.Read), ("scope", SADIScope)):
            if getattr(self, option) not in get_args(allowed):
                raise SetupError(
                    f"method.{option}={getattr(self, option)!r}: allowed are {', '.join(get_args(allowed))}"
                )
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if not (0 < self.top < 1 or (self.top >= 1 and float(self.top).is_integer())):
            raise SetupError(
                f"method.top={self.top}: expected a number of elements of at least 1, or a share of them in (0, 1)"
            )
        if self.frozen and self.scope != "last":
            raise SetupError(
                f"method.frozen=true with method.scope={self.scope}: unsteered activations can be restored only at the "
                "last prompt token; set method.scope=last"
            )
        for layer in range(len(layout.blocks(model))):
            if self.element == "heads":
                sites.heads(model, layer)
            elif self.element == "neurons":
                sites.neurons(model, layer)
            else:
                layout.stream_rows(model, layer, "down")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the mask: "layers.<l>.elements" (k,), the indices of a block's chosen elements in ascending order.

        How well the pairs agree (`methods.separation`) is computed for the chosen elements together. Raises SetupError
        if there are no pairs, or if no element is larger in desired texts.
        """
        self.check(model)
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name))
        places, sizes = self._places(model)
        desired, undesired = (self._features(model, side, places, sizes) for side in (texts.desired, texts.undesired))
        counts = torch.tensor([place.width // size for place, size in zip(places, sizes, strict=True)])  # (L,)
        block = torch.arange(len(counts)).repeat_interleave(counts)  # (E,)
        number = torch.cat([torch.arange(int(own)) for own in counts])  # (E,)
        difference = directions.mean_difference(desired, undesired)  # (E,)
        count = int(self.top) if self.top >= 1 else max(1, round(self.top * len(difference)))
        order = difference.argsort(stable=True, descending=True)[:count]
        scale = torch.cat([desired, undesired]).abs().mean(0)  # (E,)
        chosen = order[difference[order] > directions.SAME * scale[order]]  # (K,)
        if not len(chosen):
            raise SetupError(
                f"sadi: none of {len(difference)} {self.element} has a larger mean in desired than in undesired "
                f"texts; give pairs whose texts differ where method.read={self.read} looks"
            )
        return {
            **{
                f"layers.{layer}.elements": number[chosen[block[chosen] == layer]].sort().values
                for layer in sorted(set(block[chosen].tolist()))
            },
            "info.elements": torch.stack([block[chosen], number[chosen]], -1),  # (K, 2), the largest first
            "info.differences": difference[chosen],
            "info.chosen": torch.tensor(len(chosen)),
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired[:, chosen], undesired[:, chosen]),
        }

    def _places(self, model: PreTrainedModel) -> tuple[list[sites.Place], list[int]]:
        """Return, for each block, the place of its elements and the number of entries of an element."""
        layers = range(len(layout.blocks(model)))
        if self.element == "heads":
            heads = [sites.heads(model, layer) for layer in layers]
            return [one.place for one in heads], [one.size for one in heads]
        if self.element == "neurons":
            return [sites.neurons(model, layer) for layer in layers], [1] * len(layers)
        return [sites.projected(model, layer, "mlp") for layer in layers], [1] * len(layers)

    def _features(
        self, model: PreTrainedModel, texts: Sequence[Text], places: Sequence[sites.Place], sizes: Sequence[int]
    ) -> Tensor:
        """Return all elements of all blocks, (N, E), each as the mean of its entries."""
        found = directions.pooled_at(model, texts, places, read=self.read, skip_first=self.skip_first)
        return torch.cat([one.view(len(one), -1, size).mean(-1) for one, size in zip(found, sizes, strict=True)], -1)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Scale the elements inside the `with`. Raises SetupError for an artefact of another model."""
        if not strength:
            yield Steering()
            return
        factors = self._factors(model, artefact, strength)
        places, _ = self._places(model)
        if not self.frozen:
            with hooked(places[layer].hook(self._scaling(factor)) for layer, factor in factors.items()):
                yield Steering()
            return
        with _put_back(model, places, factors):
            yield Steering()

    def _factors(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> dict[int, Tensor]:
        """Return a factor (width,) for each block with chosen elements: 1 + strength at these, 1 elsewhere."""
        places, sizes = self._places(model)
        factors = {}
        for key, elements in artefact.items():
            if not key.startswith("layers."):
                continue
            layer = int(key.split(".")[1])
            if layer >= len(places) or int(elements.max()) >= places[layer].width // sizes[layer]:
                raise SetupError(f"sadi: {key} was not fitted on this model, which has no such {self.element}")
            factor = torch.ones(places[layer].width // sizes[layer], sizes[layer])
            factor[elements] = 1 + strength
            factors[layer] = factor.flatten()
        if not factors:
            raise SetupError("sadi: the artefact has no elements to scale; fit it again")
        return factors

    def _scaling(self, factor: Tensor) -> Callable[[Tensor], Tensor]:
        def function(hidden: Tensor) -> Tensor:  # (B, T, width)
            nonlocal factor
            factor = factor.to(hidden)
            return _where(self._mask(hidden.shape[1]), hidden * factor, hidden)

        return function

    def _mask(self, columns: int) -> Tensor | None:
        if self.scope == "last":
            return last_prompt_token(columns)
        return scope_mask(self.scope, columns, boundary=self.boundary)


def last_prompt_token(columns: int) -> Tensor:
    """Return a mask (B, T) that is true at the last token of each row's prompt, if the running forward reads it."""
    first, after = (scope_mask("generation", columns, boundary=boundary) for boundary in (True, False))
    assert first is not None and after is not None
    return first & ~after


def _where(mask: Tensor | None, moved: Tensor, hidden: Tensor) -> Tensor:
    return moved if mask is None else torch.where(mask[..., None].to(hidden.device), moved, hidden)


@contextmanager
def _put_back(model: PreTrainedModel, places: Sequence[sites.Place], factors: Mapping[int, Tensor]) -> Iterator[None]:
    """At the last prompt token, put all places of all blocks back to their unsteered values, times their factor.

    A forward that reads a last prompt token runs twice; the first run steers nothing and works on a copy of the cache.
    """
    usual: dict[int, Tensor] = {}
    given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
    looking = False

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal given
        if not looking:
            given = args, kwargs

    def look(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Run the model once without steering; called at block 0, when `methods.generating` has set the positions."""
        nonlocal looking, given
        if looking:
            return
        (args, kwargs), given = given, ((), {})
        if not args and not kwargs:  # `methods.blockwise` runs a block alone
            raise SetupError(
                "sadi: method.frozen=true runs the whole model twice on each prompt, but a method after it (act) is "
                "fitted by running one block at a time; put act before sadi, or set method.causal=false for act"
            )
        ids = args[0] if args else kwargs["input_ids"] if "input_ids" in kwargs else kwargs["inputs_embeds"]
        if not last_prompt_token(ids.shape[1]).any():
            return
        looking, cache = True, copy.deepcopy(kwargs.get("past_key_values"))
        try:
            with stopped_after(model, len(places) - 1):
                model(*args, **{**kwargs, "past_key_values": cache, "use_cache": cache is not None})
        finally:
            looking = False

    def put(layer: int) -> Callable[[Tensor], Tensor]:
        def function(hidden: Tensor) -> Tensor:  # (B, T, width)
            if looking:
                usual[layer] = hidden
                return hidden
            mask = last_prompt_token(hidden.shape[1])
            if not mask.any():
                return hidden
            factor = factors.get(layer)
            kept = usual.pop(layer)
            return _where(mask, kept if factor is None else kept * factor.to(kept), hidden)

        return function

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(keep, with_kwargs=True).remove)
        stack.callback(layout.blocks(model)[0].register_forward_pre_hook(look).remove)
        stack.enter_context(hooked(place.hook(put(layer)) for layer, place in enumerate(places)))
        yield
