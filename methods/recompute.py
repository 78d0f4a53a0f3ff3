"""Gradient checkpointing: only the input of each block is kept, and the backward pass computes the rest again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from methods import layout


@contextmanager
def recomputed(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Inside the `with`, the backward pass recomputes the activations of one transformer block at a time.

    If `wanted` is False, nothing changes. The gradients are the same, but a step takes a third longer. Transformers'
    own switch only works in training mode, which would turn dropout on; this function leaves the mode as it is, and
    uses no random numbers.
    """
    with ExitStack() as stack:
        for block in layout.blocks(model) if wanted else ():
            _wrap(block, stack)
        yield


def _wrap(block: nn.Module, stack: ExitStack) -> None:
    own = vars(block).get("forward")  # set if something has already replaced the class's forward, as accelerate does
    forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    object.__setattr__(block, "forward", forward)
    if own is None:
        stack.callback(object.__delattr__, block, "forward")
    else:
        stack.callback(object.__setattr__, block, "forward", own)
