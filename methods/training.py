"""Training, shared by the methods that train: losses of completions, minimising them, resuming from a checkpoint.

The caller restores what is trained (`trainable` copies the saved bytes back), so that `fit` leaves no trace.
"""

import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import FEWEST_PAIRS, Artefact, Examples, Pairs, refuse_no_change, write
from methods.broken import reading
from methods.errors import SetupError, refuse_one_text
from methods.intervention import Positions, at, edited, exchanged
from methods.optimiser import HALF, LOSS_SCALE, Optimiser, OptimizerName
from methods.placement import check_materialised, input_device
from methods.progress import advance, checkpoint_folder, resumed
from methods.recompute import recomputed
from methods.tokens import EncodedPairs, Text, encode, encode_pairs
from methods.training_memory import TrainingMemory, announce, training_memory, wanting

CHECKPOINT_EVERY_SECONDS = 30.0
CHECKPOINT_SHARE = 0.1  # the largest share of the time that goes into saving the state, which is slow for a large model
NO_STEP = (
    "the training took no step, or its gradients vanish or overflow; bring method.learning_rate and the weights of the "
    "loss nearer to their defaults"
)
STEP_COST = 3  # rough cost of a training step, in forwards over the same tokens


class Recipe(NamedTuple):
    """The settings of `minimise`; the learning rate falls linearly to 0 after a warm-up of a tenth of the steps.

    steps: the largest number of steps, even if the epochs have more; None: no limit. constant: whether the learning
    rate stays the same throughout.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    steps: int | None = None
    constant: bool = False

    def batches(self, count: int) -> list[Tensor]:
        """Return the row numbers of each step's batch over all epochs; each epoch has another order."""
        generator = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(count, generator=generator) for _ in range(self.epochs)]
        return [batch for order in orders for batch in torch.split(order, self.batch_size)][: self.steps]

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step number `step`, counted from 0, of `steps` steps."""
        if self.constant:
            return self.learning_rate
        warm_up = max(1, steps // 10)
        return self.learning_rate * min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)


def check_recipe(recipe: Recipe) -> None:
    """Raises SetupError for numbers with which nothing is trained, and for an unknown optimizer."""
    if recipe.epochs < 1 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
        raise SetupError(f"{recipe}: epochs and batch size must be at least 1, the learning rate above 0")
    if recipe.optimizer not in get_args(OptimizerName):
        raise SetupError(f"method.optimizer={recipe.optimizer!r}: allowed are {', '.join(get_args(OptimizerName))}")


def encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples | None,
    what: str,
    max_tokens: int,
    advice: str = "choose another set (conf/examples, conf/harmful)",
) -> tuple[list[Text], int]:
    """Return the examples that have a completion, as tokens, and how many were cut (`methods.tokens.encode`).

    Raises SetupError if there are none.
    """
    found, cut = encode(model, tokenizer, *(examples or Examples([], [])), max_tokens)
    texts = [text._replace(prompt=max(text.prompt, 1)) for text in found]  # nothing predicts the first token
    texts = [text for text in texts if len(text.tokens) > text.prompt]
    if not texts:
        advice = _raise_limit(cut, max_tokens) or advice
        raise SetupError(f"no {what} with a completion to learn; {advice}")
    return texts, cut


def encoded_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, max_tokens: int
) -> EncodedPairs:
    """Return the pairs whose texts both have a continuation, as tokens, cut as in `methods.tokens.encode_pairs`.

    Raises SetupError if there are fewer than two.
    """
    found = encode_pairs(model, tokenizer, pairs, max_tokens)
    sides = ([text._replace(prompt=max(text.prompt, 1)) for text in side] for side in (found.desired, found.undesired))
    kept = [pair for pair in zip(*sides, strict=True) if all(len(text.tokens) > text.prompt for text in pair)]
    if len(kept) < FEWEST_PAIRS:
        raise SetupError(
            f"{len(kept) or 'no'} pair whose texts both have a continuation to learn, and at least {FEWEST_PAIRS} are "
            f"needed; {_raise_limit(found.cut, max_tokens) or 'choose another set (conf/pairs)'}"
        )
    return EncodedPairs([desired for desired, _ in kept], [undesired for _, undesired in kept], found.cut)


def _raise_limit(cut: int, max_tokens: int) -> str:
    """Return the advice if texts were cut, else an empty text."""
    return f"{cut} were cut to method.max_tokens={max_tokens}, so raise it" if cut else ""


def encoded_background(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, background: Sequence[str] | None, max_tokens: int
) -> tuple[list[Text], int]:
    """Return ordinary texts as tokens, and how many were cut, as `encoded` does for examples.

    A text is to be predicted from its second token on.
    """
    refuse_one_text(background, "background")
    ordinary = list(background or [])
    examples = Examples([""] * len(ordinary), ordinary)
    return encoded(
        model,
        tokenizer,
        examples,
        "background texts",
        max_tokens,
        "set background=wiki, or another set (conf/background)",
    )


def logits_and_targets(model: PreTrainedModel, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Return the logits (C, V) that predict the C tokens of the batch's completions, and those tokens (C,)."""
    width, device = max(len(text.tokens) for text in texts), input_device(model)
    ids = torch.tensor([text.tokens + [0] * (width - len(text.tokens)) for text in texts], device=device)
    column = torch.arange(width, device=device)[None, :]  # (1, T)
    length = torch.tensor([len(text.tokens) for text in texts], device=device)[:, None]  # (B, 1)
    prompt = torch.tensor([text.prompt for text in texts], device=device)[:, None]
    advance(float(length.sum()))
    start = torch.zeros_like(prompt[:, 0])
    with at(Positions(start, length[:, 0], start, prompt[:, 0])):
        logits = model(input_ids=ids, attention_mask=(column < length).long(), use_cache=False).logits  # (B, T, V)
    said = ((column >= prompt) & (column < length))[:, 1:]  # (B, T - 1) columns that are to be predicted
    return logits[:, :-1][said].float(), ids[:, 1:][said]


def completion_loss(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """Return the mean cross-entropy in nats over all tokens of the completions; tokens of prompts do not count."""
    return functional.cross_entropy(*logits_and_targets(model, texts))


def log_likelihoods(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """Return the log-probability (B,) in nats of each text's completion given its prompt, summed over its tokens."""
    logits, targets = logits_and_targets(model, texts)
    by_token = -functional.cross_entropy(logits, targets, reduction="none")  # (C,)
    lengths = torch.tensor([len(text.tokens) - text.prompt for text in texts], device=by_token.device)
    row = torch.repeat_interleave(lengths)  # (C,) the text that each token belongs to
    return by_token.new_zeros(len(texts)).index_add(0, row, by_token)


def divergence(usual: Tensor, now: Tensor) -> Tensor:
    """Return the mean over rows of KL(usual || now) in nats, for logits (C, V)."""
    return functional.kl_div(now.log_softmax(-1), usual.log_softmax(-1), log_target=True, reduction="batchmean")


@torch.no_grad()
def mean_loss(model: PreTrainedModel, texts: Sequence[Text], batch_size: int = 16) -> float:
    """Return `completion_loss` over a whole set, in which each token has the same weight."""
    total, count = 0.0, 0
    for start in range(0, len(texts), batch_size):
        logits, targets = logits_and_targets(model, texts[start : start + batch_size])
        total += float(functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count


@contextmanager
def trainable(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Inside the `with`, let these parameters require gradients; it yields their values from before, saved on the CPU.

    Afterwards there are no gradients, and the saved bytes are copied back.
    """
    saved = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield saved
    finally:
        with torch.no_grad():
            for parameter, bytes_before, want in zip(parameters, saved, wanted, strict=True):
                parameter.copy_(bytes_before)
                parameter.requires_grad_(want)
                parameter.grad = None


def gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Return the length of the gradient of a loss with respect to these parameters, whose `grad` stays as it is.

    If the parameters are float16, the loss is scaled, so that small gradients do not vanish, and scaled less if large
    ones overflow.
    """
    scale = LOSS_SCALE if any(one.dtype == torch.float16 for one in parameters) else 1.0
    while True:
        again = scale > 1
        found = torch.autograd.grad(loss * scale, list(parameters), allow_unused=True, retain_graph=again)
        length = math.sqrt(sum(float(one.double().square().sum()) for one in found if one is not None)) / scale
        if math.isfinite(length) or not again:
            return length
        scale /= 2


def change(
    parameters: Mapping[str, nn.Parameter], trained: Sequence[Tensor], before: Sequence[Tensor], method: str
) -> Artefact:
    """Return what was added to each parameter, by name, as "change.<name>", on the CPU.

    The difference is computed in fp32. For a 16-bit parameter it is kept in bfloat16, so that it takes no more memory
    than the parameter. Rounding to bfloat16 alters the difference by at most a 256th, which is little, as the
    difference is much smaller than its weight. float16 is not used, since its range is too small.

    trained: the new value of each parameter, as `train` returns it. before: the old value, on the CPU. Raises
    SetupError, in the name of `method`, if nothing was added to any of them.
    """
    found: Artefact = {}
    for (name, parameter), now, then in zip(parameters.items(), trained, before, strict=True):
        added = now.detach().cpu() - then.to(now.dtype)
        found[f"change.{name}"] = (added.to(torch.bfloat16) if parameter.dtype in HALF else added).contiguous()
    refuse_no_change(method, found.values(), NO_STEP)
    return found


@contextmanager
def changed(model: PreTrainedModel, artefact: Artefact, strength: float, method: str) -> Iterator[None]:
    """Add strength times the artefact's changes inside the `with`. Raises SetupError for another model's artefact."""
    prefix = "change."
    found = [(key.removeprefix(prefix), added) for key, added in artefact.items() if key.startswith(prefix)]
    if strength and not found:
        raise SetupError(f"{method}: the artefact holds no change of a weight; fit it again")
    with with_added(model, found, strength, method):
        yield


@contextmanager
def with_added(
    model: PreTrainedModel, changes: Iterable[tuple[str, Tensor]], strength: float, method: str
) -> Iterator[None]:
    """Add strength times each change to the parameter of that name inside the `with`; at strength 0 add nothing.

    The sum is computed in fp32, and rounded once if the parameter has fewer bits.

    Raises SetupError for a change that fits no parameter of the model.
    """
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        for name, added in changes if strength != 0 else ():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != added.shape:
                raise SetupError(f"{method}: {name} {tuple(added.shape)} was not fitted on this model; fit it again")
            check_materialised(model, [parameter])
            wide = torch.promote_types(parameter.dtype, torch.float32)
            value = parameter.detach().to(wide) + strength * added.to(parameter.device, wide)
            stack.enter_context(edited({parameter: value}))  # one by one: no second copy of all weights
        yield


def foretold(
    model: PreTrainedModel, trained: Sequence[nn.Parameter], recipe: Recipe, sets: Sequence[Sequence[Text]], what: str
) -> int:
    """Print how much memory a training will take, and return the bytes that it will take beyond the loaded model.

    sets: the sets of texts; each step reads a batch from each set. Raises SetupError if a GPU cannot hold the training.
    """
    batches = [(min(recipe.batch_size, len(texts)), max(len(text.tokens) for text in texts)) for texts in sets]
    memory = training_memory(
        model, trained, recipe.optimizer, batches, gradient_checkpointing=recipe.gradient_checkpointing
    )
    announce(memory, what, {one.device for one in model.parameters()})
    on_the_cpu = all(one.device.type == "cpu" for one in trained)
    return memory.peak - memory.weights + (memory.host if on_the_cpu else 0)


def most_memory(
    model: PreTrainedModel, trained: Sequence[nn.Parameter], recipe: Recipe, tokens: int, sets: int = 1
) -> TrainingMemory:
    """Return the memory of a step that reads a batch of texts of `tokens` tokens from each of `sets` sets.

    The model may be without weights (device "meta").
    """
    batches = [(recipe.batch_size, tokens)] * sets
    with wanting(model, trained):
        return training_memory(
            model, trained, recipe.optimizer, batches, gradient_checkpointing=recipe.gradient_checkpointing
        )


def train(
    model: PreTrainedModel,
    parameters: Sequence[nn.Parameter],
    texts: Sequence[Text],
    recipe: Recipe,
    *,
    stage: str,
    penalty: Callable[[int], Tensor] | None = None,
) -> list[Tensor]:
    """Minimise `completion_loss` (+ a penalty, given the step's number) over the parameters, as `minimise` does."""

    def loss(step: int, rows: list[int]) -> Tensor:
        of_batch = completion_loss(model, [texts[row] for row in rows])
        return of_batch if penalty is None else of_batch + penalty(step)

    return minimise(model, parameters, loss, [len(text.tokens) for text in texts], recipe, stage=stage)


def minimise(
    model: PreTrainedModel,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int, list[int]], Tensor],
    sizes: Sequence[int],
    recipe: Recipe,
    *,
    stage: str,
    enough: float = -math.inf,
) -> list[Tensor]:
    """Minimise a loss over the parameters, batch by batch.

    loss: gets the number of the step and the row numbers of its batch. sizes: the number of tokens that the model reads
    for each row. enough: if the loss is below this value, the training ends before the step is taken.

    Return each trained parameter: the parameter itself, or its fp32 master if it has 16 bits (`Optimiser`).

    Under `methods.progress.checkpointing`, weights and optimiser are saved in its folder, under the name `stage`, every
    half minute and when the training is stopped. The next run of the training resumes from there and ends with the same
    bits.
    """
    scaled = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    optimiser = Optimiser(parameters, recipe.optimizer, recipe.learning_rate, scaled=scaled)
    batches = [batch.tolist() for batch in recipe.batches(len(sizes))]
    folder = checkpoint_folder()
    kept = folder / f"{stage}.safetensors" if folder is not None else None
    losses, seconds = _resume(kept, optimiser) if kept is not None and kept.exists() else ([], 0.0)
    resumed(seconds)
    state = _State(kept, optimiser, losses, seconds)
    try:
        with recomputed(model, recipe.gradient_checkpointing):
            while (step := len(losses)) < len(batches):
                total = loss(step, batches[step])
                if (value := float(total.detach())) < enough:
                    break
                (total * optimiser.scale if scaled else total).backward()  # type: ignore[no-untyped-call]
                advance((STEP_COST - 1) * sum(sizes[row] for row in batches[step]))
                if not math.isfinite(value) or optimiser.scale < 1:
                    raise SetupError(_diverged(value, step, stage, scaled))
                with state.changing():
                    if optimiser.step(recipe.rate(step, len(batches))):
                        losses.append(value)
                if len(losses) == len(batches) or state.due:
                    state.keep()
    except BaseException:  # a signal as well
        state.keep()
        raise
    return optimiser.masters


def keeping(
    model: PreTrainedModel,
    usual: Callable[[], AbstractContextManager[object]],
    background: Sequence[Text],
    recipe: Recipe,
    weight: float,
) -> Callable[[int], Tensor]:
    """Return a penalty for `train`: weight * KL(model inside `usual` || model) in nats per token on `background`.

    Each step reads a batch of these texts. Their order, drawn with another seed than that of the training texts, is
    repeated as often as needed.
    """
    order = recipe._replace(epochs=1, seed=recipe.seed + 1, steps=None).batches(len(background))

    def penalty(step: int) -> Tensor:
        texts = [background[int(row)] for row in order[step % len(order)]]
        with torch.no_grad(), usual():
            before = logits_and_targets(model, texts)[0]
        return weight * divergence(before, logits_and_targets(model, texts)[0])

    return penalty


def fine_tuned(
    model: PreTrainedModel,
    texts: Sequence[Text],
    recipe: Recipe,
    *,
    stage: str,
    background: Sequence[Text] = (),
    kl_weight: float = 0.0,
) -> Artefact:
    """Return the change of every weight ("change.<name>") by training on these texts; the model is left as it was.

    background: ordinary texts; `kl_weight` times the divergence from the original model on them is added to the loss.

    Raises SetupError if a weight is not in memory, or if the loss is no longer finite.
    """
    parameters = dict(model.named_parameters())
    weights = list(parameters.values())
    check_materialised(model, weights)
    with trainable(weights) as before:
        memory = foretold(model, weights, recipe, [texts, *([background] if background else [])], stage)
        loss_before, penalty = mean_loss(model, texts), None
        if background:
            saved = {one: value.to(one.device) for one, value in zip(weights, before, strict=True)}
            penalty = keeping(model, lambda: exchanged(saved), background, recipe, kl_weight)
        trained = train(model, weights, texts, recipe, stage=stage, penalty=penalty)
        artefact = change(parameters, trained, before, stage)
        facts = {"loss_before": loss_before, "loss_after": mean_loss(model, texts), "foretold_memory_bytes": memory}
    return artefact | {f"info.{name}": torch.tensor(value) for name, value in facts.items()}


def _diverged(loss: float, step: int, stage: str, scaled: bool) -> str:
    what = (
        f"the loss is {loss} after {step} steps" if not math.isfinite(loss) else f"step {step} has no finite gradient"
    )
    hint = "lower the learning rate" if step else "check that the model's weights are whole, or lower the learning rate"
    return f"{what} of {stage}; {hint}" + (", or set model.dtype=bfloat16" if scaled else "")


class _State:
    """The state of a training, kept in a file (None: nowhere) when it is due and when the training is stopped."""

    def __init__(self, path: Path | None, optimiser: Optimiser, losses: list[float], seconds: float) -> None:
        self.path, self.optimiser, self.losses = path, optimiser, losses
        self.began = time.monotonic() - seconds  # seconds: of the steps before
        self.kept, self.whole = len(losses), True
        self.next = time.monotonic() + CHECKPOINT_EVERY_SECONDS

    @property
    def due(self) -> bool:
        """Return whether the training state should be written now, so that a stopped training can go on from it."""
        return time.monotonic() > self.next

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the block in which weights and losses are being updated, so that no half-made state is written."""
        self.whole = False
        yield
        self.whole = True

    def keep(self) -> None:
        """Write the state if it is new and complete; a failing disk does not stop the training."""
        if self.path is None or not self.whole or len(self.losses) == self.kept:
            return
        began = time.monotonic()
        try:
            _keep(self.path, self.optimiser, self.losses, began - self.began)
        except OSError as error:
            print(
                f"warning: the training's state cannot be saved ({error}); it goes on without a checkpoint",
                file=sys.stderr,
            )
            self.path = None
        self.kept = len(self.losses)
        took = time.monotonic() - began
        self.next = time.monotonic() + max(CHECKPOINT_EVERY_SECONDS, took / CHECKPOINT_SHARE)


def _keep(path: Path, optimiser: Optimiser, losses: list[float], seconds: float) -> None:
    """Write the state to a temporary file beside `path`, then rename that, so that the file at `path` is always whole.

    Another process may run the same training. seconds: the time that all steps have taken.
    """
    told = {"losses": torch.tensor(losses, dtype=torch.float64), "seconds": torch.tensor(seconds)}
    state = told | optimiser.state()
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
    """Return the sha256 of tensors with their names, types and shapes, in hex."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _resume(path: Path, optimiser: Optimiser) -> tuple[list[float], float]:
    """Restore a stored state and return the losses of the steps before it, and the seconds that they took.

    A file that does not hold the state of this training is set aside, with a warning; the training then begins again,
    and there are no losses.
    """
    try:
        state = _kept(path, optimiser.masters)
    except SetupError as error:
        aside = _set_aside(path)
        told = f"warning: {str(path)!r} {error}; it is set aside as {aside.name!r}, and the training begins again"
        print(told, file=sys.stderr)
        return [], 0.0
    optimiser.restore(state)
    return [float(loss) for loss in state["losses"]], float(state.get("seconds", 0.0))


def _kept(path: Path, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the state in a file. Raises SetupError if it is not the state of this training.

    The error's message continues a sentence that begins with the file's name.
    """
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
    shapes = {f"{number}.weight": (weight.shape, weight.dtype) for number, weight in enumerate(weights)}
    kept = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    if "losses" not in state or any(kept.get(name) != shapes[name] for name in shapes):
        raise SetupError("is of a training of other weights")
    return state


def _set_aside(path: Path) -> Path:
    """Rename a file to `.<name>.damaged`, with a number if that name is taken. Raises SetupError if it cannot."""
    names = (f".{path.name}.damaged{'' if number == 1 else f'-{number}'}" for number in range(1, 1000))
    aside = next((one for one in map(path.with_name, names) if not one.exists()), path)
    try:
        return path.rename(aside)
    except OSError as error:
        raise SetupError(
            f"{path} is damaged and cannot be set aside ({error.strerror}); delete it, and the training begins again"
        ) from error
