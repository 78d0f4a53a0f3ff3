"""Steers with vectors that another program, or this one, wrote to a file; `methods.foreign` reads the formats."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, foreign, layout, options
from methods.base import INFO, INFO_LIMIT, Artefact, FitData, Method, Steering, of_file
from methods.erasing import Erasure, erasing_hooks
from methods.errors import SetupError
from methods.foreign import Format, Operation, Side
from methods.intervention import Hook, adding, hooked
from methods.sites import Place
from methods.vectors import clamping, within

Scope = Literal["all", "prompt", "generation"]
SHOWN = 4  # vectors that are named on the line about a file


@dataclass(frozen=True, kw_only=True)
class Imported(Method):
    """h <- h + strength * v, or another operation, at the modules that the file names and the positions of its format.

    | format | place, and number of the first block | operation | positions |
    | --- | --- | --- | --- |
    | gguf (repeng, llama.cpp, ours) | direction.N: output of block N, from 0 | add | all |
    | lm_eval (its `steered` model, ours) | output of a named module, below `base_model` | add or clamp for each | all |
    | caa (nrimsky/CAA: vec_layer_L_NAME.pt) | output of block `layer`, from 0 | add | generation |
    | refusal_direction (direction.pt) | input of block `layer` | `operation` | all |
    | safetensors (ours: layers.N.direction) | `hook` of block N | `operation` | `scope` |

    add: h + strength * coefficient * v. clamp: h + strength * (coefficient - h . u) u with u = v / |v|; with a bias b,
    b . u is added to the coefficient. ablate: the direction of v is taken out of all that is written to the stream
    (`methods.erasing`), strength being the share. So strength 1 is what the file says, in the file's own unit: a unit
    vector stays a unit vector, and a file that we exported already contains its strength.

    Nothing is guessed: what a file does not state must be set (`layer`, `hook`, `operation`, `scope`), and if the file
    or its name states it as well, both must agree. The metadata that our own GGUF export writes is checked.
    Vectors of zeros in a GGUF file are left out. repeng reads its last block after the final norm and adds before it;
    here the file is taken as it is. llama.cpp adds vectors that occur twice in a file or in several files; here that is
    refused.

    These are refused: pickles that hold more than tensors and plain values (steering-vectors), NaN, vectors of another
    width, blocks or modules that the model does not have, a GGUF of another architecture or made for another number of
    blocks, lm-eval's `head_index`, and a bias with `add`, which lm-eval itself does not take.

    `fit` prints on one line what it read. The record has the following numbers, with an entry for each vector:
    `info.blocks` (from 0; -1: a module inside a block), `info.at_outputs` (1: the output of the block or module, 0: its
    input), `info.operations` (0 add, 1 clamp, 2 ablate), `info.lengths` in the file's unit, and the tokens that the
    vector raises most. `info.format` is 1 gguf, 2 lm_eval, 3 caa, 4 refusal_direction, or 5 safetensors, also if `auto`
    chose it. `info.scope` is 0 all, 1 prompt, or 2 generation. No text is read, so lengths in mean residual norms are
    not known.

    The name of a CAA file contains that of its model. If the model here has another name, a warning is printed.

    Example:
        >>> from methods import CAA, FitData, Imported, generating, save
        >>> save(CAA(layer=2).fit(model, tokenizer, FitData(pairs=pairs)), folder / "caa.safetensors")
        >>> method = Imported(path=str(folder / "caa.safetensors"), hook="output", operation="add", scope="generation")
        >>> artefact = method.fit(model, tokenizer, FitData())
        >>> with method.apply(model, artefact, 2.0), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> [name for name in artefact if not name.startswith("info.")], moved.nonzero().flatten().tolist()
        (['add.output.generation.layers.2'], [5])
    """

    name: ClassVar[str] = "imported"
    title: ClassVar[str] = "Imported vectors"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "multiplier of what the file says"

    path: str | None = of_file()
    format: Format = "auto"
    layer: int | None = None
    hook: Side | None = None
    operation: Operation | None = None
    scope: Scope | None = None
    boundary: bool = True
    strengths: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0)

    def passes(self) -> float:
        """Return 0, since no text is read."""
        return 0.0

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for settings that are not allowed, and for a file that does not suit them or the model."""
        options.check_types(self)
        allowed: dict[str, Any] = {"format": Format, "hook": Side, "operation": Operation, "scope": Scope}
        for key, values in allowed.items():
            value = getattr(self, key)
            if value not in (*get_args(values), *((None,) if key != "format" else ())):
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(get_args(values))}")
        if self.layer is not None and type(self.layer) is not int:
            raise SetupError(f"method.layer={self.layer!r}: expected the number of a block, counted from 0, or null")
        self._read(model)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the vectors as "add.output.all.MODULE" (D,), and a target for each `clamp`.

        Raises SetupError as `check` does.
        """
        del tokenizer, data
        self.check(model)
        content = self._read(model)
        found: Artefact = {}
        numbers = {id(block): number for number, block in enumerate(layout.blocks(model))}
        base = model.base_model
        blocks, sides, lengths = [], [], []
        for one in content.vectors:
            key = f"{one.operation}.{one.side}.{self.positions(content)}.{one.module}"
            if one.operation == "add":
                found[key] = one.coefficient * one.vector
            else:
                length = one.vector.double().norm()  # in fp32 its squares may be infinite, or 0
                found[key] = (one.vector.double() / length).float()
                if one.operation == "clamp":
                    found[f"target.{one.module}"] = one.coefficient + one.bias @ found[key]
            blocks.append(numbers.get(id(base.get_submodule(one.module)), -1))
            sides.append(0 if one.side == "input" else 1)
            lengths.append(found[key].double().norm())
        found[INFO + "blocks"] = torch.tensor(blocks)  # -1: a module inside a block
        found[INFO + "at_outputs"] = torch.tensor(sides)  # 1: the output of each, 0: its input
        found[INFO + "lengths"] = torch.stack(lengths)
        found[INFO + "operations"] = torch.tensor([get_args(Operation).index(one.operation) for one in content.vectors])
        found[INFO + "format"] = torch.tensor(get_args(Format).index(content.format))
        found[INFO + "scope"] = torch.tensor(get_args(Scope).index(self.positions(content)))
        print(self._told(content, [float(one) for one in lengths]), file=sys.stderr)
        if (other := _other_model(content.model, model.config.name_or_path or "")) is not None:
            print(f"warning: {Path(str(self.path)).name!r} {other}", file=sys.stderr)
        tokens = directions.top_tokens(model, torch.stack([one.vector for one in content.vectors]))
        if tokens.numel() <= INFO_LIMIT:
            found[INFO + "top_tokens"] = tokens
        return found

    def _told(self, content: foreign.Content, lengths: Sequence[float]) -> str:
        """Return the line that tells the user what was read."""
        vectors = [f"{one.operation} at the {one.side} of {one.module}" for one in content.vectors]
        more = f" and {len(vectors) - SHOWN} more" if len(vectors) > SHOWN else ""
        sizes = " to ".join(dict.fromkeys(f"{one:.3g}" for one in (min(lengths), max(lengths))))
        return (
            f"imported: {Path(str(self.path)).name!r} is read as {content.format}: "
            f"{', '.join(vectors[:SHOWN])}{more}; tokens: {self.positions(content)}; length {sizes} in the file's unit"
        )

    def _read(self, model: PreTrainedModel) -> foreign.Content:
        if self.path is None:
            raise SetupError("method.path has no value; set method.path=FILE")
        told = foreign.Told(self.layer, self.hook, self.operation)
        content = foreign.read(self.path, self.format, told, model)
        if content.scope is None and self.scope is None:
            raise SetupError(
                f"method.path={self.path}: the file does not say at which tokens it is added; set method.scope=all, "
                "generation or prompt"
            )
        if self.positions(content) != "all" and any(one.operation == "ablate" for one in content.vectors):
            raise SetupError("method.operation=ablate acts on every token; set method.scope=all, or leave it null")
        return content

    def positions(self, content: foreign.Content) -> Scope:
        """Return the tokens that are steered: those of `scope` if it is set, else those of the format."""
        scope = self.scope or content.scope
        assert scope is not None
        return scope

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Steer inside the `with`. Raises SetupError for an artefact of another model."""
        hooks: list[Hook] = []
        for key in sorted(artefact) if strength else ():
            if key.partition(".")[0] in get_args(Operation):
                vector = directions.fitted(model, artefact, key, self.name)
                target = artefact.get(f"target.{key.split('.', 3)[3]}")
                if key.startswith("ablate."):
                    hooks += erasing_hooks(model, Erasure(vector, vector, 0.0, strength), "project")
                    continue
                hooks.append(self._hook(model, key, vector, target, strength))
        with hooked(hooks):
            yield Steering()

    def _hook(self, model: PreTrainedModel, key: str, vector: Tensor, target: Tensor | None, strength: float) -> Hook:
        operation, side, scope, name = key.split(".", 3)
        function = adding(strength * vector, "all")
        if operation == "clamp":
            assert target is not None
            function = clamping(vector, float(target), strength)
        try:
            module = model.base_model.get_submodule(name)
        except AttributeError as error:
            raise SetupError(f"imported: {model.config.model_type} has no module {name} ({error})") from error
        place = Place(module, "input" if side == "input" else "output", layout.width(model))
        return place.hook(within(function, cast(Scope, scope), boundary=self.boundary))


def _other_model(named: str | None, here: str) -> str | None:
    """Return what is wrong if a file's name says that it is of another model than this one; None if that is not known.

    here: the hub id or the folder of the model, which may be in the hub's cache.
    """
    plain = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in re.split(r"[/\\]|--", here)]
    if named is None or not here or re.sub(r"[^a-z0-9]", "", named.lower()) in plain:
        return None
    return f"names the model {named!r}, and the model here is {here!r}; check that the vector was made with this model"
