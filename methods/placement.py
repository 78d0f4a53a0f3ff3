"""Where the weights of a model are: on one device, or spread by accelerate over several, the CPU and the disk.

If accelerate keeps a weight elsewhere, the weight is on torch's meta device until its module runs: it then has a shape
but no values, and whatever is written to it is silently lost.
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
    """Return the device of the embedding, to which token ids go; meta for a model without any weights in memory."""
    for module in (model.get_input_embeddings(), model):  # accelerate may hook either
        if (found := computing_device(module)) is not None:
            return found
    return model.device


def check_materialised(model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> None:
    """Raises SetupError if any of these parameters has no values in memory; the message names the first of them.

    A model that was made without any weights, only to look at its shapes, raises no error.
    """
    missing = {id(one) for one in parameters if one.is_meta}
    if not missing or input_device(model).type == "meta":
        return
    name = next((name for name, one in model.named_parameters() if id(one) in missing), "a weight")
    raise SetupError(f"{name} is not in memory: accelerate keeps it on the CPU or the disk until it is used; {REMEDY}")
