"""What a steering method is: hyper-parameters with two functions, `fit` and `apply`.

Letters for shapes, used everywhere in this project:
B batch, T tokens, D model width, M MLP width, V vocabulary, L layers, N prompts or pairs, K samples, R rank.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.broken import reading
from methods.decoding import Step
from methods.errors import SetupError, check_texts
from methods.later import later as later

if TYPE_CHECKING:
    from methods.training_memory import TrainingMemory

Artefact = dict[str, Tensor]
"""What `fit` learned: named tensors on the CPU, contiguous and finite. Names read like paths: "layers.12.direction".
Names under "info." are small facts for the record (probe accuracy, norms), never needed by `apply`."""

INFO = "info."
INFO_LIMIT = 128  # entries: a longer tensor is not a fact for a record but data
DESIRED, UNDESIRED = 0, 1
"""The labels of single texts."""
FEWEST_PAIRS = 2  # one pair says how two texts differ, not how desired ones differ from undesired ones


class Pairs(NamedTuple):
    """Contrast pairs: entries i of the three lists form pair i. A full text is prompt + continuation.

    Example:
        >>> from methods import CAA, FitData, Pairs
        >>> pairs = Pairs(["The film was", "I am"], desired=[" a joy", " happy"], undesired=[" a bore", " angry"])
        >>> artefact = CAA(layer=2).fit(model, tokenizer, FitData(pairs=pairs))
        >>> artefact["layers.2.direction"].shape
        torch.Size([36])
    """

    prompt: list[str]
    desired: list[str]
    undesired: list[str]


class Examples(NamedTuple):
    """Texts to fine-tune on: what the model is to write after a prompt. Entries i of both lists form an example.

    Example:
        >>> from methods import Examples, FitData, Finetune
        >>> examples = Examples(["The sky is", "Bread is"], [" blue", " food"])
        >>> artefact = Finetune(learning_rate=1e-3).fit(model, tokenizer, FitData(examples=examples))
        >>> bool(artefact["info.loss_after"] < artefact["info.loss_before"])
        True
    """

    prompt: list[str]
    completion: list[str]


class Labelled(NamedTuple):
    """Single texts with their classes: entry i of `label` is the class of text i. The two classes may differ in size.

    Example:
        >>> from methods import FitData, Labelled, ProbeRows
        >>> labelled = Labelled(["What a fine day", "I like it", "I hate it"], [0, 0, 1])  # 0: desired, 1: undesired
        >>> method = ProbeRows(learns_from="labelled", min_steps=50, held_out=0)
        >>> artefact = method.fit(model, tokenizer, FitData(labelled=labelled))
        >>> artefact["probe"].shape
        torch.Size([36])
    """

    text: list[str]
    label: list[int]  # DESIRED or UNDESIRED


class FitData(NamedTuple):
    """All training data of a method; the caller of `fit` loads only what the method names in `needs`.

    Example:
        >>> from methods import DINM, FitData
        >>> data = FitData(pairs=pairs)
        >>> [name for name in DINM.needs if getattr(data, name) is None]  # what is still missing
        ['background']
    """

    pairs: Pairs | None = None
    examples: Examples | None = None  # what a fine-tuning user brings, useful and harmful mixed
    harmful: Examples | None = None  # the behaviour that is not wanted, as far as the defender knows it
    background: list[str] | None = None  # ordinary texts, which show only what is usual
    labelled: Labelled | None = None  # single texts, desired and undesired ones
    parts: "Mapping[str, FitData] | None" = None  # texts for single parts of a stack alone, by part name
    fitted: Mapping[str, Artefact] | None = None  # artefacts of parts that are fitted already, by name

    def of(self, part: str) -> "FitData":
        """Return the training data of a part: its own if it has some, else the data that all parts share."""
        own = (self.parts or {}).get(part, FitData())._asdict()
        given = {name: texts for name, texts in own.items() if texts is not None}
        return self._replace(**{"parts": None, "fitted": None, **given})


class Demand(NamedTuple):
    """The memory that a method takes while it steers, besides the model and its own reading of every text.

    readings: further readings of each text, with a KV cache of their own (`Streams.other`). ahead: the largest number
    of next tokens that are tried after a text (`Streams.ahead`). copies: further copies of the weights. room: the
    number of tokens that another reading puts before every text, known once the method is fitted.
    """

    readings: int = 0
    ahead: int = 0
    copies: int = 0
    room: int = 0


class Steering(NamedTuple):
    """Work for the code that runs the model, beyond the hooks and weights that `apply` sets itself.

    Example:
        >>> from methods import Prompt
        >>> method = Prompt(prompts=["Be kind. "], strengths=(1,))
        >>> with method.apply(model, {}, 1) as steering:
        ...     tokenizer.decode(tokenizer(steering.prefix + "We talk about").input_ids)
        '<s>Be kind. We talk about'
    """

    # put before every prompt; in a chat it is the system message or, without that role, precedes the user's text
    prefix: str = ""
    next_logits: Callable[[Step], Tensor] | None = None  # a step's logits (B, K, V), steered
    demand: Demand = Demand()  # what `next_logits` takes, if it takes other readings of the rows


@runtime_checkable
class Method(Protocol):
    """One way of steering. Subclasses are frozen dataclasses of hyper-parameters, one per file.

    The unit of `strength` is the method's published one (alpha, coefficient, multiplier), named in `strength_unit`.
    Only the fields of the dataclass are hyper-parameters, so `title` and `cite` do not change the id of a result.
    A subclass need not define the members that have a value here.

    Example:
        >>> from methods import CAA, Method
        >>> method: Method = CAA(layer=2)
        >>> method.check(model)  # raises SetupError if the model has no such block
        >>> sorted(method.needs), method.strengths, method.strength_unit
        (['pairs'], (1, 1.5, 2, 3, 4), 'multiplier of the mean difference')
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""  # the name in a paper's table; "" stands for `name`
    cite: ClassVar[str] = ""  # arXiv id of the paper that proposes it, as "2312.06681"; "" if there is none
    attack: ClassVar[bool] = False  # True: it does harm on purpose, so no table calls it the best
    family: ClassVar[str]  # none | prompt | weights | activation | adapter | decoding | stack
    needs: ClassVar[frozenset[str]]  # fields of FitData that `fit` reads
    version: ClassVar[int]  # bump when the same hyper-parameters give other numbers
    half_version: ClassVar[int] = 0  # bump when they give other numbers, but only on models of 16 bits
    control_version: ClassVar[int] = 0  # bump when its rotated control gives other numbers
    strength_unit: ClassVar[str]
    discrete: ClassVar[bool] = False  # only the strengths of the grid exist, none between them
    scope: str | None = None  # a field of methods that can steer all tokens or some; None: no such choice
    has_control: bool = False  # of a decoding method: swapped pairs or rotated vectors give a control of it
    reads_labels: ClassVar[bool] = True  # False: swapping the texts of some pairs changes nothing, or only signs
    seed: int | None = None  # a field of methods whose `fit` is random; None: two fits are equal
    strengths: Sequence[float]  # the grid that tuning tries; the same length for every method

    @property
    def part_needs(self) -> Mapping[str, frozenset[str]]:
        """The fields of data that each part needs, by the parts' names; empty for a method without parts."""
        return {}

    def passes(self) -> float:
        """Estimate how often `fit` runs its data through the model, for a progress bar; a training step counts as 3."""
        return 1.0

    def demand(self) -> Demand:
        """Return what the method takes while it steers, for the estimate of memory; nothing by default."""
        return Demand()

    def training(self, model: PreTrainedModel) -> "TrainingMemory | None":
        """Return the most memory that a training step takes, or None without training; the model may lack weights."""
        del model
        return None

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the length of what strength 1 adds to the residual stream, divided by the stream's mean length there.

        None if nothing is added, or if the facts of the fit do not contain the length. facts: `methods.base.facts`.
        """
        del facts
        return None

    def changes(self, artefact: Artefact) -> Artefact:
        """Return the vectors that `apply` adds, as rows of each tensor. A random control is of the same total size.

        A rotated control has rotated vectors under the same names. By default, all tensors of the artefact are
        returned. A method overrides this if its artefact also holds something else, such as factors near 1 or vectors
        that only read the stream.
        """
        return artefact

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError if a hyper-parameter does not suit this model; called before anything costly."""

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Learn from data; the model is bit-equal before and after."""
        ...

    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> AbstractContextManager[Steering]:
        """Steer the model inside the `with` and leave it bit-equal after; strength 0 is the base model exactly."""
        ...


FILE = "file"


def of_file() -> Any:
    """Declare a hyper-parameter that is a file's path, None by default; ids depend on the file's content."""
    return field(default=None, metadata={FILE: True})


def title(method: Method) -> str:
    """Return what a table in a paper calls the method: its title, or its name if it has none."""
    return method.title or method.name


def required_pairs(data: FitData, method: str) -> Pairs:
    """Return the pairs of `data`. Raises SetupError for fewer than two pairs, which give no direction.

    The error is also raised for lists of different lengths, since their texts do not form pairs.
    """
    for name, texts in data.pairs._asdict().items() if data.pairs is not None else ():
        check_texts(texts, f"pairs.{name}")
    count = 0 if data.pairs is None else len(data.pairs.prompt)
    if data.pairs is None or count < FEWEST_PAIRS:
        raise SetupError(
            f"{method} learns from contrast pairs and got {count or 'none'}; give at least {FEWEST_PAIRS}: set "
            "pairs=file pairs.path=FILE, or loosen pairs.max_desired and pairs.min_undesired"
        )
    sizes = [len(texts) for texts in data.pairs]
    if len(set(sizes)) > 1:
        raise SetupError(
            f"{method}: the numbers of prompts, desired and undesired texts are {sizes}; give equally many, in "
            "the same order"
        )
    return data.pairs


def required_background(data: FitData, why: str) -> list[str]:
    """Return the ordinary texts of `data`. Raises SetupError, which begins with `why`, if none has a character."""
    texts = data.background or []
    check_texts(texts, "background")
    if not any(texts):
        raise SetupError(
            f"{why} and got {len(texts) or 'none'}{', all empty' if texts else ''}; set background=wiki, or "
            "background=texts background.path=FILE"
        )
    return texts


def refuse_no_change(method: str, changes: Iterable[Tensor], cause: str) -> None:
    """Raise SetupError if every change that a fit made is 0, so that no strength would change the model.

    cause: why the changes are 0, and what the user can do.
    """
    if not any(bool(one.any()) for one in changes):
        raise SetupError(f"{method}: the fit changed nothing, so every strength is the unsteered model: {cause}")


def required_labelled(data: FitData, method: str) -> Labelled:
    """Return the labelled texts of `data`. Raises SetupError for no texts, one class, or more than two labels."""
    found = data.labelled or Labelled([], [])
    if set(found.label) != {DESIRED, UNDESIRED} or len(found.text) != len(found.label):
        raise SetupError(
            f"{method} learns from labelled texts and got {len(found.text)} texts with {len(found.label)} labels, "
            f"{sorted(set(found.label))}; give both classes, {DESIRED} for desired and {UNDESIRED} for undesired "
            "ones: set labelled=file labelled.path=FILE"
        )
    return found


def save(artefact: Artefact, path: Path) -> None:
    """Write an artefact as safetensors. Raises ValueError for a tensor that is not finite, naming it.

    Example:
        >>> from methods import CAA, FitData, load, save
        >>> artefact = CAA(layer=2).fit(model, tokenizer, FitData(pairs=pairs))
        >>> save(artefact, folder / "caa.safetensors")
        >>> load(folder / "caa.safetensors")["layers.2.direction"].equal(artefact["layers.2.direction"])
        True
    """
    for name, tensor in artefact.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"artefact {name} has entries that are not finite; the fit failed")
    write({name: tensor.detach().cpu().contiguous() for name, tensor in artefact.items()}, path)


def write(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors. Raises OSError, which names the file, if the system refuses to write."""
    try:
        save_file(dict(tensors), path, metadata=about)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load(path: Path) -> Artefact:
    """Read an artefact back; no pickle is involved.

    The tensors are copied: tensors that are mapped from the file may have any address, and a matrix product may round
    differently there than with the aligned tensors of a new fit, so a resumed run would not be bit-equal.

    Raises SetupError for a file that cannot be read or is not safetensors (a pickle is never read), and for one with
    NaN or infinity.

    Example:
        >>> from methods import FitData, RandomDirection, load, save
        >>> save(RandomDirection(layer=2).fit(model, tokenizer, FitData(pairs=pairs)), folder / "random.safetensors")
        >>> sorted(load(folder / "random.safetensors"))
        ['info.cut_pairs', 'info.residual_norm', 'layers.2.direction']
    """
    with reading(lambda error: SetupError(f"{path} is not a safetensors file ({error}); delete it and fit again")):
        artefact = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in artefact.items():
        if tensor.is_floating_point() and tensor.itemsize == 1:
            raise SetupError(f"{path}: {name} is stored as {tensor.dtype}; expected at least 16 bits")
        if not torch.isfinite(tensor).all():
            raise SetupError(f"{path}: {name} has entries that are not finite; delete it and fit again")
    return artefact


def artefact_bytes(artefact: Artefact) -> int:
    """Return the size of what `apply` needs, in bytes; the facts under "info." do not count."""
    return sum(t.numel() * t.element_size() for name, t in artefact.items() if not name.startswith(INFO))


def facts(artefact: Artefact) -> dict[str, list[float] | float]:
    """Return the small facts under "info.", as plain numbers for a record."""
    return {
        name.removeprefix(INFO): tensor.tolist()
        for name, tensor in artefact.items()
        if name.startswith(INFO) and tensor.numel() <= INFO_LIMIT
    }
