"""The steering file of lm-eval's own `steered` model.

The layout is taken from lm_eval/models/hf_steered.py of version 0.4.13: a dict from a module's name below
`model.base_model` to the vector, a coefficient and an action; "add" adds coefficient * vector to the module's output
at every position (of prompt, padding and continuation), and allows neither a bias nor a range of positions. lm-eval
unpickles the file without `weights_only`, so load only your own files. A file written here also loads with
`weights_only`.
"""

import io
from pathlib import Path

import torch
from torch import Tensor

from bench.export.effect import Steered
from bench.files import atomic
from methods import layout

USE = """lm-eval run --model steered --model_args pretrained={base},steer_path={output} --tasks piqa"""


def write(path: Path, steered: Steered) -> None:
    """Save the vectors, multiplied by the strength, under the names that lm-eval looks for."""
    model = steered.lm.model
    blocks = layout.blocks(model)
    names = {module: name for name, module in model.base_model.named_modules()}
    content: dict[str, dict[str, Tensor | float | str | None]] = {
        names[blocks[layer]]: {
            "steering_vector": vector.detach().float().cpu(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, vector in sorted(steered.effect.vectors.items())
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic.write_whole(path, buffer.getvalue())
