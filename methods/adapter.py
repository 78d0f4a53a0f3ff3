"""A LoRA as several methods use it: put onto a model by peft, trained there, and kept as two factors for each matrix.

W <- W + (alpha / rank) B A,   A (R, inputs), B (outputs, R), B = 0 at the start   (arXiv 2106.09685)
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from methods import layout, options
from methods.base import Artefact, Demand, Method, Steering
from methods.errors import SetupError, require
from methods.optimiser import OptimizerName
from methods.training import Recipe, check_recipe, most_memory, with_added
from methods.training_memory import TrainingMemory

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora.layer import ParamWrapper

PREFIX, UP, DOWN = "adapter.", ".up", ".down"


@dataclass(frozen=True, kw_only=True)
class AdapterMethod(Method):
    """The base class of methods that learn a LoRA: it holds the training options and adds the change to the weights.

    The LoRA is on every linear layer but the unembedding, and on every expert of a mixture. In a mixture, peft leaves
    out shared experts (DeepSeek-V3) and the ordinary MLPs of blocks without experts. There is no dropout.
    """

    sets: ClassVar[int] = 1  # how many sets of texts a training step takes a batch from

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    epochs: int = 1
    batch_size: int = 8
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5)

    @property
    def recipe(self) -> Recipe:
        """The recipe by which the adapter is trained."""
        return Recipe(
            self.learning_rate, self.epochs, self.batch_size, self.seed, self.optimizer, self.gradient_checkpointing
        )

    def demand(self) -> Demand:
        """Return the memory of the original weights, which are restored at the end."""
        return Demand(copies=1)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a recipe that trains nothing, a rank or an alpha below 1, and if peft is missing."""
        del model
        options.check_types(self)
        require("peft", f"method={self.name}", "adapters")
        check_recipe(self.recipe)
        if type(self.rank) is not int or self.rank < 1 or not 1 <= self.alpha < math.inf:
            raise SetupError(
                f"method.rank={self.rank}, method.alpha={self.alpha}: both must be at least 1, and rank a whole number"
            )

    def training(self, model: PreTrainedModel) -> TrainingMemory | None:
        """Return the memory for training the adapter."""
        with torch.device(model.device), adapter(model, self.rank, self.alpha, self.seed):
            own = list(lora_parameters(model).values())
            return most_memory(model, own, self.recipe, self.max_tokens, self.sets)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add strength times the adapter's change inside the `with`. Raises SetupError for another model's artefact."""
        with adapted(model, artefact, strength, self.name):
            yield Steering()


def experts(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that hold a matrix for each expert of a mixture."""
    inside = f"{layout.of(model).blocks}."
    return [name for name, one in model.named_parameters() if one.dim() == 3 and name.startswith(inside)]


@contextmanager
def adapter(model: PreTrainedModel, rank: int, alpha: int, seed: int) -> Iterator["PeftModel"]:
    """Inside the `with`, put a LoRA on every linear layer but the unembedding, and on every expert of a mixture.

    B starts at zero. In a mixture, peft leaves out shared experts and the ordinary MLPs of blocks without experts; a
    router that returns more than its product with the weight (Llama 4) is left out as well. The LoRA's parameters
    require no gradient; the code that trains them switches gradients on.
    """
    from peft import LoraConfig, get_peft_model

    training, own, wanted = model.training, set(vars(model)), [p.requires_grad for p in model.parameters()]
    order = {path: [name for name, _ in one.named_parameters(recurse=False)] for path, one in model.named_modules()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=_no_tensor(model) or None,
        target_parameters=experts(model) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses names of transformers that will change
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)  # peft's own rules
        torch.manual_seed(seed)
        lora = get_peft_model(model, config)
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.train(training)
        yield lora  # type: ignore[misc]
    finally:
        lora.unload()
        _put_in_order(model, order)
        for name in set(vars(model)) - own:  # peft leaves its config behind
            delattr(model, name)
        for parameter, want in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)
        model.train(training)


def _put_in_order(model: PreTrainedModel, order: Mapping[str, list[str]]) -> None:
    """Put each module's parameters into this order; peft moves an expert's parameter to the end when it is used."""
    for path, module in model.named_modules():
        if [name for name, _ in module.named_parameters(recurse=False)] != order[path]:
            for name in order[path]:
                parameter = module.get_parameter(name)
                delattr(module, name)
                module.register_parameter(name, parameter)


def _no_tensor(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers that return something else than one tensor, to which peft cannot add."""
    own = [
        (name, one)
        for name, one in layout.blocks(model).named_modules(prefix=layout.of(model).blocks)
        if isinstance(one, nn.Linear) and type(one).forward is not nn.Linear.forward
    ]
    with torch.no_grad():
        return [name for name, one in own if not isinstance(one(one.weight.new_zeros(1, one.in_features)), Tensor)]


def lora_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the adapter's tensors by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


@torch.no_grad()
def factors(model: PreTrainedModel) -> Artefact:
    """Return "adapter.<name>.up" and "adapter.<name>.down", whose product is added to the weight <name>, in fp32.

    Both have the layout of the weight, (outputs, inputs) or transposed (Conv1D); `up` includes alpha / rank, and a
    mixture has a pair of factors for each expert: (E, ., R) and (E, R, .).
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    found: Artefact = {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        (which,) = module.lora_A
        down, up = (_weight(part[which]) for part in (module.lora_A, module.lora_B))  # (R, inputs), (outputs, R)
        if isinstance(module, ParamWrapper) and _parameter(module).dim() == 2:  # a router
            name, flip = module.parameter_name, False
        elif isinstance(module, ParamWrapper):
            name, count = module.parameter_name, module.num_experts
            down = down.reshape(count, -1, down.shape[-1])  # (E, R, inputs)
            up = up.reshape(len(up), -1, count).permute(2, 0, 1)  # (E, outputs, R), numbered as peft does
            flip = not getattr(module, "_did_swap_in_out_features", False)
        else:
            name, flip = "weight", bool(getattr(module, "fan_in_fan_out", False))
        if flip:
            up, down = down.mT, up.mT
        key = f"{PREFIX}{path.replace('.base_layer', '')}.{name}"
        found[f"{key}{UP}"] = (up * module.scaling[which]).cpu().contiguous()
        found[f"{key}{DOWN}"] = down.cpu().clone(memory_format=torch.contiguous_format)
    return found


def ups(artefact: Artefact) -> list[Tensor]:
    """Return the `factors` that are 0 before the training."""
    return [one for key, one in artefact.items() if key.startswith(PREFIX) and key.endswith(UP)]


@contextmanager
def adapted(model: PreTrainedModel, artefact: Artefact, strength: float, method: str) -> Iterator[None]:
    """Inside the `with`, add strength times the change of these `factors` to the weights themselves.

    Raises SetupError if the artefact holds no adapter, or the adapter of another model.
    """
    keys = [key.removesuffix(UP) for key in artefact if key.startswith(PREFIX) and key.endswith(UP)]
    if not keys and strength != 0:
        raise SetupError(f"{method}: the artefact holds no adapter; fit it again")
    with with_added(model, ((key.removeprefix(PREFIX), _product(artefact, key)) for key in keys), strength, method):
        yield


def _product(artefact: Artefact, key: str) -> Tensor:
    return artefact[f"{key}{UP}"] @ artefact[f"{key}{DOWN}"]


def _weight(module: nn.Module) -> Tensor:
    found = module.weight
    assert isinstance(found, Tensor)
    return found.detach().float()


def _parameter(wrapper: "ParamWrapper") -> Tensor:
    found = getattr(wrapper.get_base_layer(), wrapper.parameter_name)
    assert isinstance(found, Tensor)
    return found
