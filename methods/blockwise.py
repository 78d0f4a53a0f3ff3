"""Texts that wait between two blocks, so that fitting in one block only runs that block.

To fit something at every block with all earlier changes active, whole forwards would have to read each text once per
block. Here each text is read once, the arguments with which every block is called are kept, and then the blocks run one
by one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import layout
from methods.directions import check_finite
from methods.errors import SetupError
from methods.intervention import Hook, Positions, at, current_positions, hooked, stopped_behind
from methods.progress import advance

PARTIAL = 0.5  # rough share of a block's work up to the end of attention; only for the progress bar


class Call(NamedTuple):
    """The arguments of a block besides the stream."""

    device: torch.device
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Batch:
    """Some texts that wait between two blocks. stream: (B, T, D) on the CPU, as the next block gets it.

    Its positions keep what hooks note about each row (`Positions.noted`), so a hook in a later block finds what a hook
    in an earlier block decided about this batch.
    """

    positions: Positions
    stream: Tensor
    calls: list[Call]
    written: Tensor | None = None


@contextmanager
def kept(model: PreTrainedModel) -> Iterator[list[Batch]]:
    """Inside the `with`, add the batch of each whole forward to the yielded list; the batches wait before block 0.

    Raises SetupError inside the `with` if a model changes the stream between two of its blocks.
    """
    batches: list[Batch] = []

    def before(layer: int) -> Any:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            hidden = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                batches.append(Batch(current_positions()._replace(noted={}), hidden.detach().to("cpu", copy=True), []))
            batch = batches[-1]
            if batch.written is not None and not torch.equal(batch.written.to(hidden), hidden):
                check_finite(hidden)  # NaN is not equal to itself
                raise SetupError(
                    f"{model.config.model_type} changes the residual stream between blocks {layer - 1} and {layer}, so "
                    "its blocks cannot be run one by one; set method.causal=false, or choose another method"
                )
            batch.calls.append(Call(hidden.device, args[1:], named))

        return keep

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        batches[-1].written = (output[0] if isinstance(output, tuple) else output).detach()

    with ExitStack() as stack:
        for layer, block in enumerate(layout.blocks(model)):
            first = block.register_forward_pre_hook(before(layer), with_kwargs=True, prepend=True)
            stack.callback(first.remove)
            stack.callback(block.register_forward_hook(after).remove)
        yield batches
    for batch in batches:
        batch.written = None


@torch.inference_mode()
def run(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    layer: int,
    hooks: Sequence[Hook] = (),
    *,
    until: nn.Module | None = None,
    onward: bool = False,
) -> None:
    """Run block `layer`, before which the batches wait, on all of them with these hooks.

    until: the block's attention or a part of it; the run ends as soon as that module has written its output. onward: if
    true, the batches wait before the next block afterwards; if false, the block's output is dropped, and only the hooks
    have seen it.
    """
    blocks = layout.blocks(model)
    share = (1 if until is None else PARTIAL) / len(blocks)
    with hooked(hooks):
        for batch in batches:
            call = batch.calls[layer]
            with at(batch.positions), stopped_behind(until) if until is not None else nullcontext():
                output = blocks[layer](batch.stream.to(call.device), *call.args, **call.kwargs)
                if onward:
                    batch.stream = (output[0] if isinstance(output, tuple) else output).cpu()
            advance(share * int(batch.positions.length.sum()))


def reading(positions: Positions, columns: int, first: int, *, continuation: bool) -> Tensor:
    """Return a mask (B, T), true at the tokens that are read in the text or in its continuation.

    first: the number of tokens that are left out at the beginning of the text. If no token remains to be read, the
    text's last token is read, as in `directions.pooled_features`.
    """
    index = positions.in_text(columns)  # (B, T), -1 at padding
    start = positions.prompt if continuation else torch.zeros_like(positions.prompt)
    start = start.clamp(min=first).minimum(positions.length - 1)  # (B,)
    return (index >= 0) & (index >= start[:, None])
