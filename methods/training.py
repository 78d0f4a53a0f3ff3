"""Training as the methods that train share it: cross-entropy of completions, by AdamW, going on from a checkpoint.

What is trained is restored by whoever called (`trainable` copies the saved bytes back), so that `fit` leaves no trace.
"""

import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import Artefact, Examples, write
from methods.broken import reading
from methods.errors import SetupError
from methods.intervention import edited
from methods.progress import advance, checkpoint_folder
from methods.tokens import Text, encode

CHECKPOINT_EVERY_SECONDS = 30.0
CHECKPOINT_SHARE = 0.1  # of the time at most goes into keeping the state, which of a large model takes long
STEP_COST = 3  # a training step next to a forward over the same tokens, roughly


class Recipe(NamedTuple):
    """AdamW without weight decay; the learning rate falls linearly to 0 after a warm-up of a tenth of the steps."""

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int

    def batches(self, count: int) -> list[Tensor]:
        """Row numbers of each step's batch, over all epochs; another order in each."""
        generator = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(count, generator=generator) for _ in range(self.epochs)]
        return [batch for order in orders for batch in torch.split(order, self.batch_size)]

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step counted from 0."""
        warm_up = max(1, steps // 10)
        return self.learning_rate * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)


def check_recipe(recipe: Recipe) -> None:
    """Raises SetupError for numbers that train nothing."""
    if recipe.epochs < 1 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
        raise SetupError(f"{recipe}: epochs and batch size are at least 1, the learning rate is above 0")


def encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples | None,
    what: str,
    max_tokens: int,
) -> tuple[list[Text], int]:
    """Examples as tokens, those without a completion left out; and how many were cut (`methods.tokens.encode`).

    Raises SetupError where nothing is left.
    """
    found, cut = encode(model, tokenizer, *(examples or Examples([], [])), max_tokens)
    texts = [text._replace(prompt=max(text.prompt, 1)) for text in found]  # the first token has nothing to be told from
    texts = [text for text in texts if len(text.tokens) > text.prompt]
    if not texts:
        raise SetupError(f"no {what} with a completion to learn; choose another set (conf/examples, conf/harmful)")
    return texts, cut


def logits_and_targets(model: PreTrainedModel, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Logits (C, V) where a completion's token comes next, and those tokens (C,), over all C of the batch."""
    width = max(len(text.tokens) for text in texts)
    ids = torch.tensor([text.tokens + [0] * (width - len(text.tokens)) for text in texts], device=model.device)
    column = torch.arange(width, device=model.device)[None, :]  # (1, T)
    length = torch.tensor([len(text.tokens) for text in texts], device=model.device)[:, None]  # (B, 1)
    prompt = torch.tensor([text.prompt for text in texts], device=model.device)[:, None]
    advance(float(length.sum()))
    logits = model(input_ids=ids, attention_mask=(column < length).long(), use_cache=False).logits  # (B, T, V)
    said = ((column >= prompt) & (column < length))[:, 1:]  # (B, T - 1) columns that are to be told
    return logits[:, :-1][said].float(), ids[:, 1:][said]


def completion_loss(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """Mean cross-entropy in nats over all tokens of the completions; the prompts' are not learnt."""
    return functional.cross_entropy(*logits_and_targets(model, texts))


@torch.no_grad()
def mean_loss(model: PreTrainedModel, texts: Sequence[Text], batch_size: int = 16) -> float:
    """`completion_loss` over a whole set, each token counting alike."""
    total, count = 0.0, 0
    for start in range(0, len(texts), batch_size):
        logits, targets = logits_and_targets(model, texts[start : start + batch_size])
        total += float(functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count


@contextmanager
def trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters inside the block; afterwards none, and their saved bytes copied back."""
    saved = [parameter.detach().clone() for parameter in parameters]
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
    finally:
        with torch.no_grad():
            for parameter, bytes_before, want in zip(parameters, saved, wanted, strict=True):
                parameter.copy_(bytes_before)
                parameter.requires_grad_(want)
                parameter.grad = None


def gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Length of the gradient of a loss by these parameters, which keep no gradient."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return math.sqrt(sum(float(one.double().square().sum()) for one in found if one is not None))


def change(parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> Artefact:
    """What was added to each parameter, by name, as "change.<name>"."""
    return {
        f"change.{name}": (parameter.detach() - before[name]).cpu().contiguous()
        for name, parameter in parameters.items()
    }


@contextmanager
def changed(model: PreTrainedModel, artefact: Artefact, strength: float, method: str) -> Iterator[None]:
    """Add strength times the artefact's changes inside the block. Raises SetupError for another model's artefact."""
    new: dict[nn.Parameter, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, added in artefact.items() if strength != 0 else ():
        if not name.startswith("change."):
            continue
        parameter = parameters.get(name.removeprefix("change."))
        if parameter is None or parameter.shape != added.shape:
            raise SetupError(f"{method}: {name} {tuple(added.shape)} was not fitted on this model; fit it again")
        new[parameter] = parameter.detach() + strength * added.to(parameter)
    with edited(new):
        yield


def train(
    model: PreTrainedModel,
    parameters: Sequence[nn.Parameter],
    texts: Sequence[Text],
    recipe: Recipe,
    *,
    stage: str,
    penalty: Callable[[int], Tensor] | None = None,
) -> list[float]:
    """Minimise `completion_loss` (+ penalty of the step's number) over the parameters; the loss of each step.

    Under `methods.progress.checkpointing`, weights and optimiser are kept there as `stage` every half minute, and when
    the training is stopped; it goes on from where they were left, to the same bits.
    """
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    batches = recipe.batches(len(texts))
    folder = checkpoint_folder()
    kept = folder / f"{stage}.safetensors" if folder is not None else None
    losses = _resume(kept, parameters, optimiser) if kept is not None and kept.exists() else []
    state = _State(kept, parameters, optimiser, losses)
    try:
        for step in range(len(losses), len(batches)):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step, len(batches))
            loss = completion_loss(model, [texts[int(row)] for row in batches[step]])
            total = loss if penalty is None else loss + penalty(step)
            total.backward()  # type: ignore[no-untyped-call]
            advance((STEP_COST - 1) * sum(len(texts[int(row)].tokens) for row in batches[step]))
            with state.changing():
                optimiser.step()
                losses.append(float(loss.detach()))
            optimiser.zero_grad()
            if not math.isfinite(losses[-1]):
                raise SetupError(f"the loss is {losses[-1]} after {step + 1} steps of {stage}; lower the learning rate")
            if step + 1 == len(batches) or state.due:
                state.keep()
    except BaseException:  # a signal as well
        state.keep()
        raise
    return losses


class _State:
    """What a training has come to, kept in a file (None: nowhere) when it is due and when the training is stopped."""

    def __init__(
        self,
        path: Path | None,
        parameters: Sequence[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        losses: list[float],
    ) -> None:
        self.path, self.parameters, self.optimiser, self.losses = path, parameters, optimiser, losses
        self.kept, self.whole = len(losses), True
        self.next = time.monotonic() + CHECKPOINT_EVERY_SECONDS

    @property
    def due(self) -> bool:
        """Whether the state should be written now."""
        return time.monotonic() > self.next

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the block in which weights and losses are being updated, so that no half-made state is written."""
        self.whole = False
        yield
        self.whole = True

    def keep(self) -> None:
        """Write the state if it is new and complete; a failing disk does not stop the training."""
        if self.path is None or not self.whole or len(self.losses) == self.kept or not math.isfinite(self.losses[-1]):
            return
        began = time.monotonic()
        try:
            _keep(self.path, self.parameters, self.optimiser, self.losses)
        except OSError as error:
            print(
                f"warning: the training's state cannot be saved ({error}); it goes on without a checkpoint",
                file=sys.stderr,
            )
            self.path = None
        self.kept = len(self.losses)
        took = time.monotonic() - began
        self.next = time.monotonic() + max(CHECKPOINT_EVERY_SECONDS, took / CHECKPOINT_SHARE)


def _keep(
    path: Path, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Write the state whole: to a file of its own beside it, then renamed; another process may do the same training."""
    state: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for number, parameter in enumerate(parameters):
        state[f"{number}.weight"] = parameter.detach()
        state |= {f"{number}.{name}": value for name, value in optimiser.state.get(parameter, {}).items()}
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    about = {"sha256": digest(whole), "of": f"{path.parent.name} {path.name}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            write(whole, Path(folder) / path.name, about)
            (Path(folder) / path.name).replace(path)
    except FileNotFoundError:
        if path.parent.is_dir():
            raise
        # another process has finished this very fit and removed the folder: there is nothing left to keep


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of tensors with their names, types and shapes, in hex."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _resume(path: Path, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> list[float]:
    """Restore a stored state and return the losses of the steps before it.

    A file that is not what was kept here is set aside, with a warning, and the training begins again, with no losses.
    """
    try:
        state = _kept(path, parameters)
    except SetupError as error:
        aside = _set_aside(path)
        told = f"warning: {str(path)!r} {error}; it is set aside as {aside.name!r}, and the training begins again"
        print(told, file=sys.stderr)
        return []
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(state[f"{number}.weight"])
            own = {name: state[f"{number}.{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")
                   if f"{number}.{name}" in state}  # fmt: skip
            if own:
                optimiser.state[parameter] = own
    return [float(loss) for loss in state["losses"]]


def _kept(path: Path, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The state in a file. Raises SetupError, which goes on from the file's name, for what was not kept here."""
    with reading(lambda error: SetupError(f"cannot be read ({type(error).__name__})")):
        state = load_file(path)
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            told = file.metadata() or {}
    if "sha256" not in told:
        raise SetupError("was written by an older version and cannot be checked")
    if told["sha256"] != digest(state):
        raise SetupError("is not what was kept (its sha256 differs)")
    if told.get("of") != f"{path.parent.name} {path.name}":
        raise SetupError(f"is of another training, {told.get('of')!r}")
    shapes = {f"{number}.weight": parameter.shape for number, parameter in enumerate(parameters)}
    if "losses" not in state or any(name not in state or state[name].shape != shapes[name] for name in shapes):
        raise SetupError("is of a training of other weights")
    return state


def _set_aside(path: Path) -> Path:
    """Rename a file to `.<name>.damaged`, with a number where that is taken. Raises SetupError where that fails."""
    names = (f".{path.name}.damaged{'' if number == 1 else f'-{number}'}" for number in range(1, 1000))
    aside = next((one for one in map(path.with_name, names) if not one.exists()), path)
    try:
        return path.rename(aside)
    except OSError as error:
        raise SetupError(
            f"{path} is damaged and cannot be set aside ({error.strerror}); delete it, and the training begins again"
        ) from error
