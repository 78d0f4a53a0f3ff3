"""Gates around any activation method: CAST (arXiv 2409.05907) for a whole prompt, DSAS (2512.03661) for each token."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, layout_search, options
from methods.base import INFO, Artefact, FitData, Method, Steering, required_background, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, hooked, wrapped
from methods.positions import current_positions, number_of_rows
from methods.sites import Place
from methods.tokens import Text, encode, encode_pairs
from methods.verdicts import extremes

Kind = Literal["cast", "dsas"]
When = Literal["auto", "above", "below"]
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Gate(Method):
    """y <- what `inner` makes of y where the gate is open, and y itself where it is closed; both bit for bit.

    The gate learns from two sets: the source, which is to be steered (the pairs' prompts with their undesired texts),
    and the control, which is to stay as it is (the background texts). Both choices are ours, as neither release says
    what to take for a model that continues a text. Features are means over all tokens of a text but the first
    `skip_first`.

    kind: `cast` judges a prompt once, at the input of block `condition_layer`, by

        sim = cos(h, tanh(c c^T h)),   open if sim > threshold (`above`) or sim < threshold (`below`)

    h: the mean over the prompt's tokens. c: the first principal component, of length 1, of all features minus their
    mean. threshold, when: with null and `auto`, the values with the largest F1 on the features are chosen. The verdict
    holds for the last token of the prompt and for what is written after it. Earlier tokens are not steered, since they
    may have been read, and shared with other prompts, before there is a verdict. So `inner` must steer only generation,
    and no block before `condition_layer`. The authors' release judges the first row of a batch, with its padding, for
    all rows, and adds to the prompt as well. Here each row is judged by itself, from its real tokens, and keeps its
    verdict when it is copied for more samples.

    kind: `dsas` opens the gate partly, by a share g for each token at each place that `inner` hooks,

        y <- y + g (T(y) - y),   g = sigmoid(w . y + b)

    T(y) is what `inner` makes of y at its strength. w and b are a logistic regression (C=1) of source against control,
    on `components` principal components of the features, each scaled to unit variance; w is mapped back to one vector
    over the features. If the regression at a place is right for less than `min_accuracy` of the texts, in a
    cross-validation of five folds, the gate stays closed there. We could not read the paper's main text: folds, scaling
    and the sets are ours. As in the paper, the regression learns from means and judges tokens.

    The record says how often the condition holds (`info.open_source`, `info.open_control`, `info.open_prompts`) and how
    accurate the regression of each place is (`info.accuracy`). It has `info.never_opens` if no text of the fit opens
    the gate, and `info.always_open` if every text does.

    Example:
        >>> from methods import CAA, FitData, Gate, generating
        >>> method = Gate(inner=CAA(layer=2), threshold=1.0, when="above")  # no cosine is above 1: it stays closed
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 2.0), generating(model):
        ...     model(**inputs).logits.equal(logits)
        True
    """

    name: ClassVar[str] = "gate"
    title: ClassVar[str] = "Gate (CAST, DSAS)"
    cite: ClassVar[str] = "2409.05907"
    family: ClassVar[str] = "activation"
    version: ClassVar[int] = 1

    inner: Method
    kind: Kind = "cast"
    skip_first: int = 1
    condition_layer: int | float = 0.25
    threshold: float | None = None
    when: When = "auto"
    components: int = 5
    min_accuracy: float = 0.75
    max_tokens: int = 512
    strengths: Sequence[float] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        """Take over the grid of the method inside if the gate has no grid of its own."""
        if not self.strengths:
            object.__setattr__(self, "strengths", tuple(self.inner.strengths))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on the method inside
        """What the method inside needs, and both sets that the gate tells apart."""
        return self.inner.needs | {"pairs", "background"}

    @property
    def strength_unit(self) -> str:  # type: ignore[override]
        """The unit of the method inside."""
        return self.inner.strength_unit

    @property
    def half_version(self) -> int:  # type: ignore[override]
        """The half version of the method inside (`methods.base.Method`)."""
        return self.inner.half_version

    @property
    def control_version(self) -> int:  # type: ignore[override]
        """The control version of the method inside, whose vectors a control rotates."""
        return self.inner.control_version

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """Whether swapped pairs would give the method inside other vectors than its own."""
        return self.inner.reads_labels

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        """Whether the method inside has only the strengths of its grid."""
        return self.inner.discrete

    def passes(self) -> float:
        """Return one pass more than the method inside makes."""
        return self.inner.passes() + 1

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the length of what the method inside adds where the gate is open."""
        own = {key.removeprefix("inner."): one for key, one in facts.items() if key.startswith("inner.")}
        return self.inner.residual_norms(own)

    def changes(self, artefact: Artefact) -> Artefact:
        """Return what the method inside adds where the gate is open."""
        own = {key.removeprefix("inner."): one for key, one in artefact.items() if key.startswith("inner.")}
        return {f"inner.{key}": one for key, one in self.inner.changes(own).items()}

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed, and for a method inside that no gate can close."""
        options.check_types(self)
        for key, value, allowed in (("kind", self.kind, get_args(Kind)), ("when", self.when, get_args(When))):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        layout.layer_index(model, self.condition_layer, "method.condition_layer")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise SetupError(
                f"method.threshold={self.threshold}: expected a cosine, or null for the threshold with the largest F1"
            )
        if self.components < 1:
            raise SetupError(f"method.components={self.components}: expected at least 1")
        if not 0 <= self.min_accuracy <= 1:
            raise SetupError(f"method.min_accuracy={self.min_accuracy} is outside 0 to 1")
        if self.inner.family != "activation":
            raise SetupError(
                f"method.inner={self.inner.name} is of the family {self.inner.family}, and a gate opens and closes "
                "hooks: choose an activation method, such as caa"
            )
        if self.kind == "cast" and self.inner.scope != "generation":
            raise SetupError(
                f"method.kind=cast decides at the end of a prompt, and method.inner={self.inner.name} "
                f"steers what comes before (scope {self.inner.scope}); set method.inner.scope=generation, choose a "
                "method that has it, or set method.kind=dsas"
            )
        self.inner.check(model)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the artefact of the method inside ("inner.") and the gate's. Raises SetupError without both sets."""
        self.check(model)
        pairs = required_pairs(data, self.name)
        why = "gate needs at least 2 ordinary texts, to compare with those that are steered,"
        background = required_background(data, why)
        if len(background) < 2:
            raise SetupError(f"{why} and got one; set background=wiki, or background=texts background.path=FILE")
        inner = self.inner.fit(model, tokenizer, data)
        found = {
            f"{INFO}inner.{key.removeprefix(INFO)}" if key.startswith(INFO) else f"inner.{key}": tensor
            for key, tensor in inner.items()
        }
        texts = encode_pairs(model, tokenizer, pairs, self.max_tokens)
        control, cut = encode(model, tokenizer, [""] * len(background), background, self.max_tokens)
        prompts = [prompt for prompt in pairs.prompt if prompt] or pairs.prompt
        asked, _ = encode(model, tokenizer, prompts, [""] * len(prompts), self.max_tokens)
        long = [one for one in control if not directions.is_too_short(one, "all", self.skip_first)]
        if len(long) < 2:
            raise SetupError(
                f"{why} and {len(long)} of {len(control)} are longer than the {self.skip_first} token(s) that "
                "method.skip_first leaves out; set background=wiki, or method.skip_first=0"
            )
        sets = Sets(texts.undesired, long, asked)
        own = self._condition(model, sets) if self.kind == "cast" else self._regressions(model, inner, sets)
        told = {"info.cut_pairs": torch.tensor(texts.cut), "info.cut_background": torch.tensor(cut)}
        if len(long) < len(control):
            told["info.left_out_background"] = torch.tensor(len(control) - len(long))
        return {**found, **own, **told}

    def _condition(self, model: PreTrainedModel, sets: "Sets") -> Artefact:
        layer = layout.layer_index(model, self.condition_layer)

        def pooled(texts: list[Text], short: directions.Short) -> Tensor:  # (N, D)
            return directions.pooled_features(
                model, texts, [layer], read="all", skip_first=self.skip_first, site="input", short=short
            )[0].double()

        source, control = pooled(sets.source, "refuse"), pooled(sets.control, "refuse")
        asked = pooled(sets.prompts, "last")  # as `Condition` reads a prompt
        features = torch.cat([source, control])
        centred = features - features.mean(0)
        values, axes = torch.linalg.svd(centred, full_matrices=False)[1:]
        if values[0] <= directions.SAME * features.norm():
            raise SetupError(
                f"gate: the texts do not differ at the input of block {layer}, so no condition can be read there; set "
                "method.condition_layer to a higher block, or give other texts"
            )
        axis = axes[0]  # (D,)
        sims = [similarity(one, axis) for one in (source, control, asked)]
        threshold, above, f1 = chosen(sims[0], sims[1], self.threshold, self.when)
        opened = [((one > threshold) == above).double() for one in sims]
        return {
            "condition": axis.float(),
            "threshold": torch.tensor(threshold, dtype=torch.float32),
            "above": torch.tensor(1.0 if above else 0.0),
            "info.f1": torch.tensor(f1),
            **_told(opened),
        }

    def _regressions(self, model: PreTrainedModel, inner: Artefact, sets: "Sets") -> Artefact:
        places = self._places(model, inner)

        def pool(texts: list[Text], short: directions.Short) -> list[Tensor]:  # (N, width) for each place
            return directions.pooled_at(
                model, texts, list(places.values()), read="all", skip_first=self.skip_first, short=short
            )

        pooled = [pool(sets.source, "refuse"), pool(sets.control, "refuse"), pool(sets.prompts, "last")]
        found: Artefact = {}
        accuracies, opened = [], [torch.zeros(len(side)) for side in sets]
        for number, key in enumerate(places):
            source, control, _ = (side[number] for side in pooled)
            accuracy = cross_validated(source, control, self.components)
            row = regression(source, control, self.components)  # (width + 1,)
            is_on = accuracy >= self.min_accuracy
            found[f"gates.{key}"] = row.float()
            found[f"on.{key}"] = torch.tensor(float(is_on))
            accuracies.append(accuracy)
            if is_on:
                for many, side in zip(opened, pooled, strict=True):
                    torch.maximum(many, (side[number] @ row[:-1].float() + row[-1].float() > 0).float(), out=many)
        return {**found, "info.accuracy": torch.tensor(accuracies), **_told(opened)}

    def _places(self, model: PreTrainedModel, inner: Artefact) -> dict[str, Place]:
        """Return the places where the method inside sets its hooks, by name, in the order in which it sets them."""
        names = {id(module): name for name, module in model.named_modules()}
        seen: dict[str, Place] = {}

        def note(hook: Hook) -> Hook:
            seen.setdefault(_key(names, hook), Place(hook.module, hook.site, 0))
            return hook._replace(function=lambda hidden: hidden)

        with wrapped(note), self.inner.apply(model, inner, 1.0) as steering:
            self._check_hooks(steering)
        inside = {id(module) for block in layout.blocks(model) for module in block.modules()}
        for key, place in seen.items():
            if id(place.module) not in inside:
                raise SetupError(
                    f"method.inner={self.inner.name} acts at {key}, outside the blocks, where a gate does not read; "
                    "choose a method that acts in the blocks"
                )
        widths: dict[str, int] = {}

        def measure(key: str) -> Callable[[Tensor], Tensor]:
            def function(hidden: Tensor) -> Tensor:
                widths[key] = hidden.shape[-1]
                return hidden

            return function

        with torch.inference_mode(), hooked(Hook(one.module, one.side, measure(key)) for key, one in seen.items()):
            layout_search.read_one_token(model, use_cache=False)
        return {key: one._replace(width=widths[key]) for key, one in seen.items()}

    def _check_hooks(self, steering: Steering) -> None:
        if steering != Steering():
            raise SetupError(
                f"method.inner={self.inner.name} steers by a text before the prompt or by the logits, which no gate "
                "closes; choose a method that only moves activations"
            )

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Apply the method inside, gated. Raises SetupError if it does more than set hooks, or acts too early."""
        if strength == 0:
            yield Steering()
            return
        own = {key.removeprefix("inner."): one for key, one in artefact.items() if key.startswith("inner.")}
        with ExitStack() as stack:
            if self.kind == "cast":
                wrap = self._judging(model, artefact, stack)
            else:
                wrap = self._weighing(model, artefact)
            with wrapped(wrap):
                steering = stack.enter_context(self.inner.apply(model, own, strength))
            self._check_hooks(steering)
            yield steering

    def _judging(self, model: PreTrainedModel, artefact: Artefact, stack: ExitStack) -> Callable[[Hook], Hook]:
        """Set the hook that judges; return a wrapper that makes the inner method's hooks act only in open rows."""
        layer = layout.layer_index(model, self.condition_layer)
        axis = directions.fitted(model, artefact, "condition", self.name)
        condition = Condition(axis, float(artefact["threshold"]), bool(artefact["above"] > 0.5), self.skip_first)
        blocks = layout.blocks(model)
        stack.enter_context(hooked([Hook(blocks[layer], "input", condition.look)]))
        later = {id(module) for block in blocks[layer:] for module in block.modules()}
        names = {id(module): name for name, module in model.named_modules()}

        def wrap(hook: Hook) -> Hook:
            if id(hook.module) not in later:
                raise SetupError(
                    f"method.inner={self.inner.name} acts at {names[id(hook.module)]}, before block {layer}, at whose "
                    "input a prompt is judged; set method.condition_layer to a lower block"
                )

            def function(hidden: Tensor) -> Tensor:
                moved = hook.function(hidden)
                return torch.where(_as(condition.is_open()[:, None], hidden), moved, hidden)

            return hook._replace(function=function)

        return wrap

    def _weighing(self, model: PreTrainedModel, artefact: Artefact) -> Callable[[Hook], Hook]:
        names = {id(module): name for name, module in model.named_modules()}

        def wrap(hook: Hook) -> Hook:
            key = _key(names, hook)
            if f"gates.{key}" not in artefact:
                raise SetupError(f"gate: the artefact has no gate for the {key}; it was fitted on another model")
            row, is_on = artefact[f"gates.{key}"], bool(artefact[f"on.{key}"] > 0.5)

            def function(hidden: Tensor) -> Tensor:
                moved = hook.function(hidden)
                return weighed(hidden, moved, row) if is_on else hidden

            return hook._replace(function=function)

        return wrap


class Sets(NamedTuple):
    """The texts for which a gate is to open, the texts for which it is to close, and the prompts of the pairs."""

    source: list[Text]
    control: list[Text]
    prompts: list[Text]


class Condition:
    """CAST's condition on the mean of each prompt's stream, which is known at the prompt's last token.

    The running sum and the verdict are kept with the row (`Positions.noted`), so a prompt may be read in parts.
    axis: (D,) of length 1.
    """

    def __init__(self, axis: Tensor, threshold: float, above: bool, skip_first: int) -> None:
        self.axis, self.threshold, self.above, self.skip_first = axis, threshold, above, skip_first
        self.verdict = torch.zeros(0, dtype=torch.bool)  # (B,) of the running forward, if nothing is kept with the rows

    def look(self, hidden: Tensor) -> Tensor:
        """Add the prompts' tokens in the stream (B, T, D) to the sums, judge complete prompts, and return the stream.

        Raises RuntimeError if a part of a prompt was read and its sum was not kept.
        """
        positions = current_positions()
        index = positions.in_text(hidden.shape[1]).to(hidden.device)  # (B, T)
        prompt = positions.prompt.to(hidden.device)[:, None]  # (B, 1)
        first = (prompt - 1).clamp(min=0, max=self.skip_first)
        counted = ((index >= first) & (index < prompt)).float()  # (B, T)
        sums = torch.einsum("bt,btd->bd", counted, hidden.float())
        sums = torch.cat([sums, counted.sum(-1, keepdim=True)], -1)  # (B, D + 1)
        noted = positions.noted
        if noted is not None and self in noted:
            begun = (positions.cached > 0).to(hidden.device)[:, None]  # (B, 1); else a batch is read once more
            sums = sums + torch.where(begun, noted[self].to(sums), 0.0)
        elif bool((positions.cached > 0).any()):
            raise RuntimeError(
                "this steering judges a prompt by all its tokens, and some were read without keeping what was seen; "
                "call model.generate inside `with methods.generating(model)`, run the model through bench.load_lm, or "
                "pass one dict as Positions(..., noted) to all forwards of the same rows"
            )
        if noted is not None:
            noted[self] = sums
        whole = positions.cached + positions.length >= positions.prompt  # (B,)
        similar = similarity(sums[:, :-1] / sums[:, -1:].clamp(min=1), self.axis.to(sums))
        self.verdict = ((similar > self.threshold) == self.above) & whole.to(similar.device)
        if noted is not None:
            noted[self, "verdict"] = self.verdict
        return hidden

    def is_open(self) -> Tensor:
        """Return the verdicts (B,) about the rows of the running forward."""
        noted = current_positions().noted
        return self.verdict if noted is None else noted[self, "verdict"]


def similarity(features: Tensor, axis: Tensor) -> Tensor:
    """Return cos(h, tanh(c c^T h)), (N,), of features h (N, D) and a unit axis c (D,)."""
    return torch.cosine_similarity(features, ((features @ axis)[:, None] * axis).tanh(), dim=-1)


def chosen(source: Tensor, control: Tensor, threshold: float | None, when: When) -> tuple[float, bool, float]:
    """Return the threshold, whether the gate opens above it, and F1 of source texts against control texts.

    source, control: the similarity of each text, (N,) and (M,). A given threshold is kept. Otherwise the midpoints
    between neighbouring similarities are tried; if several of them give the best F1, the first is taken.
    """
    every = torch.cat([source, control]).double()
    order = torch.unique(every)
    cuts = (order[1:] + order[:-1]) / 2 if threshold is None else torch.tensor([threshold], dtype=torch.float64)
    if not len(cuts):  # all similarities are the same
        cuts = order - 1
    best: tuple[float, bool, float] | None = None
    for above in (True, False) if when == "auto" else (when == "above",):
        hits, false = (((one.double()[None] > cuts[:, None]) == above).sum(1).double() for one in (source, control))
        f1 = 2 * hits / (hits + false + len(source))  # (C,)
        at = int(f1.argmax())
        if best is None or float(f1[at]) > best[2]:
            best = float(cuts[at]), above, float(f1[at])
    assert best is not None
    return best


def regression(source: Tensor, control: Tensor, components: int) -> Tensor:
    """Return w and b, (D + 1,) in fp64, of a logistic regression that tells source (N, D) from control texts (M, D)."""
    from sklearn.linear_model import LogisticRegression

    features = torch.cat([source, control]).double()
    mean = features.mean(0)
    values, axes = torch.linalg.svd(features - mean, full_matrices=False)[1:]
    kept = min(components, int((values > directions.SAME * features.norm()).sum()))
    if not kept:
        return torch.zeros(features.shape[1] + 1, dtype=torch.float64)
    scale = values[:kept] / (len(features) - 1) ** 0.5  # (K,)
    coordinates = (features - mean) @ axes[:kept].T / scale  # (N + M, K)
    labels = torch.cat([torch.ones(len(source)), torch.zeros(len(control))])
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(coordinates.numpy(), labels.numpy())
    weights = axes[:kept].T @ (torch.from_numpy(fitted.coef_[0]) / scale)  # (D,)
    return torch.cat([weights, torch.from_numpy(fitted.intercept_) - mean @ weights])


def cross_validated(source: Tensor, control: Tensor, components: int) -> float:
    """Return the share of texts that a regression on the other folds gets right; a fold is each fifth text of a set."""
    folds = min(FOLDS, len(source), len(control))
    right = 0
    for fold in range(folds):
        held = [torch.arange(len(side)) % folds == fold for side in (source, control)]
        row = regression(source[~held[0]], control[~held[1]], components)
        for side, mask, sign in ((source, held[0], 1), (control, held[1], -1)):
            right += int((sign * (side[mask].double() @ row[:-1] + row[-1]) > 0).sum())
    return right / (len(source) + len(control))


def weighed(hidden: Tensor, moved: Tensor, row: Tensor) -> Tensor:
    """Return h + g (T(h) - h) with g = sigmoid(w . h + b) of each vector; T(h) and h themselves at g = 1 and 0.

    hidden, moved: h and T(h), (..., D). row: w and b in one tensor, (D + 1,).
    """
    row = row.to(hidden.device).float()
    share = (hidden.float() @ row[:-1] + row[-1]).sigmoid()[..., None]  # (..., 1)
    mixed = (hidden.float() + share * (moved.float() - hidden.float())).to(hidden.dtype)
    return torch.where(share >= 1, moved, torch.where(share <= 0, hidden, mixed))


def _as(rows: Tensor, hidden: Tensor) -> Tensor:
    """Return a mask of rows (B, 1) in a shape that fits (B, T, D), or (B * T, D) as in OPT's MLP."""
    if hidden.dim() == 3:
        return rows[..., None].to(hidden.device)
    each = hidden.shape[0] // (number_of_rows() or 1)
    return rows.to(hidden.device).repeat_interleave(each, 0)


def _key(names: Mapping[int, str], hook: Hook) -> str:
    return f"{names[id(hook.module)]}.{hook.site}"


def _told(opened: Sequence[Tensor]) -> Artefact:
    """Return the facts on a condition. opened: whether it holds, for source, control and prompts, (N,) each."""
    every = torch.cat([one.float() for one in opened[:2]])
    told = {
        f"{INFO}open_{name}": one.float().mean()
        for name, one in zip(("source", "control", "prompts"), opened, strict=True)
    }
    return told | extremes(every)
