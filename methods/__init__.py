"""Steering methods: a small library that works in a notebook without `bench` or Hydra.

A method is a frozen dataclass of hyper-parameters with two functions, `fit` and `apply`:

    method = CAA(layer=0.45)
    artefact = method.fit(model, tokenizer, FitData(pairs=Pairs(prompts, desired, undesired)))
    with method.apply(model, artefact, 2.0), generating(model):
        model.generate(...)

model and tokenizer are transformers' own. `fit` leaves the model as it was, bit for bit, and so does `apply` at the end
of its `with`. Code that does not run the model by `model.generate` must state the positions of each forward pass with
`methods.intervention.at`. `save` and `load` keep an artefact as safetensors. Every name is loaded when it is first
asked for: `import methods` alone imports neither torch nor transformers.

`help(NAME)` shows an example of how NAME is used. In these examples, `model` and `tokenizer` are those of a Llama with
5 blocks of width 36, `weights` are copies of its weights by name, `inputs` is a prompt of 6 tokens, `logits` and
`stream` (the residual stream after each block) are what the unsteered model computes for it, `pairs`, `examples`,
`harmful` and `background` are the fields of `FitData` of these names, and `folder` is a folder to write to.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.ablation import Ablation as Ablation
    from methods.act import AcT as AcT
    from methods.act_add import ActAdd as ActAdd
    from methods.activation_scaling import ActivationScaling as ActivationScaling
    from methods.argre import ARGRE as ARGRE
    from methods.aura import AurA as AurA
    from methods.base import Artefact as Artefact
    from methods.base import Examples as Examples
    from methods.base import FitData as FitData
    from methods.base import Labelled as Labelled
    from methods.base import Method as Method
    from methods.base import Pairs as Pairs
    from methods.base import Steering as Steering
    from methods.base import load as load
    from methods.base import save as save
    from methods.caa import CAA as CAA
    from methods.caa import matched_norms as matched_norms
    from methods.detox import DeTox as DeTox
    from methods.dexperts import DExperts as DExperts
    from methods.dinm import DINM as DINM
    from methods.dpo import DPO as DPO
    from methods.eigenshift import EigenShift as EigenShift
    from methods.errors import SetupError as SetupError
    from methods.finetune import Finetune as Finetune
    from methods.gate import Gate as Gate
    from methods.imported import Imported as Imported
    from methods.infer_aligner import InferAligner as InferAligner
    from methods.instruction import Instruction as Instruction
    from methods.intervention import generating as generating
    from methods.iti import ITI as ITI
    from methods.itic import ITIC as ITIC
    from methods.kl_then_steer import KLThenSteer as KLThenSteer
    from methods.lineas import LinEAS as LinEAS
    from methods.lora import LoRA as LoRA
    from methods.mean_centring import MeanCentring as MeanCentring
    from methods.probe_rows import ProbeRows as ProbeRows
    from methods.prompt import Prompt as Prompt
    from methods.psa import PSA as PSA
    from methods.random_direction import RandomDirection as RandomDirection
    from methods.repe import RepE as RepE
    from methods.sadi import SADI as SADI
    from methods.sasa import SASA as SASA
    from methods.security_vector import SecurityVector as SecurityVector
    from methods.self_debias import SelfDebias as SelfDebias
    from methods.stack import Stack as Stack
    from methods.task_negation import TaskNegation as TaskNegation
    from methods.unsteered import Unsteered as Unsteered
    from methods.word_filter import WordFilter as WordFilter

_MODULES = {
    "ablation": ["Ablation"],
    "act": ["AcT"],
    "act_add": ["ActAdd"],
    "argre": ["ARGRE"],
    "aura": ["AurA"],
    "activation_scaling": ["ActivationScaling"],
    "base": ["Artefact", "Examples", "FitData", "Labelled", "Method", "Pairs", "Steering", "load", "save"],
    "caa": ["CAA", "matched_norms"],
    "detox": ["DeTox"],
    "dinm": ["DINM"],
    "dpo": ["DPO"],
    "dexperts": ["DExperts"],
    "eigenshift": ["EigenShift"],
    "errors": ["SetupError"],
    "finetune": ["Finetune"],
    "gate": ["Gate"],
    "imported": ["Imported"],
    "infer_aligner": ["InferAligner"],
    "instruction": ["Instruction"],
    "intervention": ["generating"],
    "iti": ["ITI"],
    "itic": ["ITIC"],
    "kl_then_steer": ["KLThenSteer"],
    "lineas": ["LinEAS"],
    "lora": ["LoRA"],
    "mean_centring": ["MeanCentring"],
    "probe_rows": ["ProbeRows"],
    "prompt": ["Prompt"],
    "psa": ["PSA"],
    "random_direction": ["RandomDirection"],
    "repe": ["RepE"],
    "sadi": ["SADI"],
    "sasa": ["SASA"],
    "security_vector": ["SecurityVector"],
    "self_debias": ["SelfDebias"],
    "stack": ["Stack"],
    "task_negation": ["TaskNegation"],
    "unsteered": ["Unsteered"],
    "word_filter": ["WordFilter"],
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
