"""Where the weights of a model are: on one device, or spread by accelerate over several, the CPU and the disk.

A weight that accelerate keeps elsewhere until its module runs is on torch's meta device in between: it has a shape and
no numbers, and whatever is written to it is silently lost.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from methods.errors import SetupError

REMEDY = (
    "the method changes weights, so all of them have to be in memory: choose a smaller model or model.dtype=bfloat16, "
    "raise runtime.max_memory, or set runtime.device to one device that holds the model; a method that adds a vector "
    "(caa, act_add, mean_centring) needs none of this"
)


def computing_device(module: nn.Module) -> torch.device | None:
    """Return the device on which accelerate runs a module, wherever its weights are kept; None without accelerate."""
    hook = getattr(module, "_hf_hook", None)
    devices = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,))]
    return next((torch.device(one) for one in devices if one is not None), None)


def input_device(model: PreTrainedModel) -> torch.device:
    """The device that token ids go to: that of the embedding. It is meta for a model without any weights in memory."""
    for module in (model.get_input_embeddings(), model):  # accelerate's hooks on either
        if (found := computing_device(module)) is not None:
            return found
    return model.device


def check_materialised(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> None:
    """Raises SetupError, which names the first of these parameters that has no numbers in memory.

    A model that was made without any weights, to look at its shapes alone, passes.
    """
    missing = {id(one) for one in parameters if one.is_meta}
    if not missing or input_device(model).type == "meta":
        return
    name = next((name for name, one in model.named_parameters() if id(one) in missing), "a weight")
    raise SetupError(f"{name} is not in memory: accelerate keeps it on the CPU or the disk until it is used; {REMEDY}")
