"""New weights, for `intervention.edited`, with which a linear module or LayerNorm scales and shifts its outputs."""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.errors import SetupError


def has_bias(module: nn.Module) -> bool:
    """Return whether a module can take up a scale and a shift: a linear map or LayerNorm with a bias, in memory."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter):
        return False
    return (weight.dim() == 2 or isinstance(module, nn.LayerNorm)) and not weight.is_meta


def folded(module: nn.Module, scale: Tensor, shift: Tensor | None = None) -> dict[nn.Parameter, Tensor]:
    """Return the parameters with which a module gives scale * y + shift instead of y = W x + b.

        W' = diag(scale) W;   b' = scale * b + shift

    The weight of a LayerNorm is the diagonal of W. scale, shift: (outputs,). The product is rounded once to the type of
    the weights. Raises SetupError for a module without a weight of that many outputs, and for a shift if the module has
    no bias.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    columns = isinstance(module, Conv1D | nn.LayerNorm)  # their weights are (inputs, outputs), and (outputs,)
    known = isinstance(weight, nn.Parameter) and (weight.dim() == 2 or isinstance(module, nn.LayerNorm))
    outputs = weight.shape[-1 if columns else 0] if known and weight is not None else None
    if not isinstance(weight, nn.Parameter) or outputs != len(scale):
        raise SetupError(
            f"a {type(module).__name__} with {f'{outputs} outputs' if outputs else 'no weight matrix'} cannot take up "
            f"{len(scale)} factors; fit on this model again"
        )
    if shift is not None and bias is None:
        raise SetupError(f"a {type(module).__name__} without a bias cannot take up a shift of its outputs")
    own = scale.to(weight.device)
    new = {weight: (weight.detach().float() * (own if columns else own[:, None])).to(weight.dtype)}
    if bias is not None:
        moved = bias.detach().float() * own
        new[bias] = (moved if shift is None else moved + shift.to(bias.device)).to(bias.dtype)
    return new
