"""Training steps by AdamW or Adafactor, on fp32 copies of weights that have fewer bits.

At a learning rate of 3e-5 a step moves a weight by about 3e-5. Two neighbouring bfloat16 numbers near 0.02, a common
size of a weight, lie 1.2e-4 apart, so in bfloat16 nearly every step would be rounded away. A 16-bit weight therefore
has a copy in fp32, its master. The step, its gradient and its moments are in fp32, and the model's weight is the
master, rounded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "adafactor"]
HALF = (torch.bfloat16, torch.float16)
LOSS_SCALE = 2.0**12  # a power of 2, so that scaling rounds nothing; float16 has no number between 0 and 6e-8


class Optimiser:
    """Takes training steps for these parameters, using and then freeing their gradients.

    scaled: whether the model computes in float16. If so, the loss must be multiplied by `scale` before the backward
    pass, since small gradients would be 0 in float16. The scale only falls: it is halved if a gradient is not finite.

    There is no weight decay. Of a matrix's second moment, Adafactor (arXiv 1804.04235) keeps only the means of the rows
    and columns, and it keeps no first moment. Here Adafactor takes the learning rate as it is, as AdamW does, not
    relative to the weights.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], name: OptimizerName, learning_rate: float, *, scaled: bool = False
    ) -> None:
        self.parameters = list(parameters)
        self.scaled, self.scale = scaled, LOSS_SCALE if scaled else 1.0
        self.masters: list[Tensor] = [one.detach().float() if one.dtype in HALF else one for one in self.parameters]
        """The tensors that are trained: each is the parameter itself, or its master."""
        numbers = range(len(self.parameters))
        whole = [number for number in numbers if self.parameters[number].dtype not in HALF]
        single = [
            [number] for number in numbers if self.parameters[number].dtype in HALF
        ]  # groups of one, so that only one fp32 gradient exists at a time
        self._groups = [
            (group, _made(name, [self.masters[number] for number in group], learning_rate))
            for group in ([whole] if whole else []) + single
        ]

    def step(self, rate: float) -> bool:
        """Move the weights. Return False if a gradient is not finite; then nothing has moved, and `scale` is halved."""
        if self.scaled and not all(one.grad is None or one.grad.isfinite().all() for one in self.parameters):
            self.scale /= 2
            self.clear()
            return False
        for group, optimiser in self._groups:
            for options in optimiser.param_groups:
                options["lr"] = rate
            for number in group:
                self._give_gradient(number)
            optimiser.step()
            for number in group:
                self._take_weight(number)
        return True

    def _give_gradient(self, number: int) -> None:
        parameter, master = self.parameters[number], self.masters[number]
        if parameter.grad is None:
            return
        if master is not parameter:
            master.grad, parameter.grad = parameter.grad.float(), None
        if self.scaled:
            assert master.grad is not None
            master.grad /= self.scale

    def _take_weight(self, number: int) -> None:
        parameter, master = self.parameters[number], self.masters[number]
        master.grad = None
        if master is not parameter:
            with torch.no_grad():
                parameter.copy_(master)

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments by the number of their parameter, as "0.weight"; `restore` takes them back."""
        found: dict[str, Tensor] = {"scale": torch.tensor(self.scale)} if self.scaled else {}
        for group, optimiser in self._groups:
            for number in group:
                found[f"{number}.weight"] = self.masters[number].detach()
                for name, value in optimiser.state.get(self.masters[number], {}).items():
                    found[f"{number}.{name}"] = torch.as_tensor(value)
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if "scale" in state:
            self.scale = float(state["scale"])
        for group, optimiser in self._groups:
            for number in group:
                parameter, master = self.parameters[number], self.masters[number]
                with torch.no_grad():
                    master.copy_(state[f"{number}.weight"])
                    parameter.copy_(master)
                own = {name.removeprefix(f"{number}."): value for name, value in state.items()
                       if name.startswith(f"{number}.") and name != f"{number}.weight"}  # fmt: skip
                if own:
                    optimiser.state[master] = {name: _number_or_tensor(value, master) for name, value in own.items()}


def _number_or_tensor(value: Tensor, master: Tensor) -> Tensor | int:
    """Return an entry of an optimiser's state as the optimiser needs it; Adafactor counts its steps in an int."""
    return int(value) if value.dtype == torch.long else value.to(master.device, copy=True)


def _made(name: OptimizerName, masters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    if name == "adafactor":
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(masters, lr=learning_rate, scale_parameter=False, relative_step=False)  # type: ignore[no-untyped-call]
        return made
    return torch.optim.AdamW(masters, lr=learning_rate, weight_decay=0.0, fused=True)


def gradients(loss: Tensor, of: Sequence[Tensor], scale: float) -> tuple[list[Tensor], float]:
    """Return the gradients of a loss, computed with `scale` times the loss, and the scale for the next step.

    A scale above 1 is for a model in float16 (LOSS_SCALE). The scale is halved until the gradients are finite or the
    scale is 1.
    """
    found = torch.autograd.grad(loss * scale, list(of), retain_graph=scale > 1)
    while scale > 1 and not all(one.isfinite().all() for one in found):
        scale /= 2
        found = torch.autograd.grad(loss * scale, list(of), retain_graph=True)
    return [one / scale for one in found], scale


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Return each value moved towards 0 by the threshold; a value whose absolute value is smaller becomes 0."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def moment_bytes(name: OptimizerName, shape: Sequence[int]) -> int:
    """Return the bytes that the moments of a weight of this shape take."""
    entries = math.prod(shape)
    if name == "adamw":
        return 4 * 2 * entries
    return 4 * (entries // shape[-1] + entries // shape[-2]) if len(shape) > 1 else 4 * entries
