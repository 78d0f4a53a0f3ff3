"""Removes a direction from all that is written to the residual stream, by hooks on the modules that write."""

from typing import Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from methods import layout, sites
from methods.intervention import Hook

Embeddings = Literal["project", "leave"]


class Erasure(NamedTuple):
    """The map y -> y - strength * u (w^T y - offset); u, w: (D,)."""

    writer: Tensor
    reader: Tensor
    offset: float
    strength: float

    def of_stream(self, hidden: Tensor, *, constant: bool) -> Tensor:
        """Return vectors (..., D) after the map, in their own dtype; constant: whether the offset counts."""
        writer, reader = self.writer.to(hidden.device), self.reader.to(hidden.device)
        along = hidden.float() @ reader  # (...,)
        gone = self.strength * (along - (self.offset if constant else 0.0))
        return (hidden.float() - gone[..., None] * writer).to(hidden.dtype)


def erasing_hooks(model: PreTrainedModel, eraser: Erasure, embeddings: Embeddings) -> list[Hook]:
    """Return hooks that apply `eraser` to all that is written to the stream; its offset is added at the embeddings."""

    def mapped(hidden: Tensor) -> Tensor:
        return eraser.of_stream(hidden, constant=False)

    blocks = layout.blocks(model)
    hooks = [sites.written(model, layer, part).hook(mapped) for layer in range(len(blocks)) for part in sites.PARTS]
    if embeddings == "project":
        hooks.append(Hook(blocks[0], "input", lambda hidden: eraser.of_stream(hidden, constant=True)))
    return hooks
