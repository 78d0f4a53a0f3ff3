"""A control vector in the layout that llama.cpp's --control-vector and repeng read.

Tensors `direction.N` (D,) in float32, architecture "controlvector". N is the number of a block, counted from 0, to
whose output the vector is added. llama.cpp's loader puts direction.N at offset (N - 1) D of its buffer
(common/common.cpp), and its adapter fills the tensor of layer il from offset (il - 1) D (src/llama-adapter.cpp), so the
two subtractions cancel; the graph adds that tensor to the output of layer il (build_cvec in src/models/). repeng, too,
writes and adds direction.N at the output of block N. Neither has a vector for block 0: llama.cpp refuses direction.0.

Blocks that are not steered get zeros, since repeng asks for every block from 1 on, and llama.cpp keeps an earlier
vector in blocks that a file does not reach. llama.cpp adds at every position.

Neither program stores how the vectors are meant to be used. Our own metadata, under "steerbench.", states it:
operation, hook, positions, the blocks that are steered, the unit, width and depth of the model.
"""

from pathlib import Path

import numpy as np

from bench.console.escape import visible
from bench.export.effect import Steered
from bench.files.atomic import temporary_folder
from methods import layout
from methods.errors import SetupError

ARCHITECTURE = "controlvector"
OWN = "steerbench"
UNIT = "1 adds the vector to the residual stream as it is; the method's strength is in it"
USE = """llama-cli -m MODEL.gguf --control-vector {output}   # MODEL.gguf: {base}, converted to GGUF"""


def write(path: Path, steered: Steered) -> None:
    """Save the vectors, multiplied by the strength. Raises SetupError for a vector at block 0."""
    import gguf

    model, vectors = steered.lm.model, steered.effect.vectors
    if 0 in vectors:
        raise SetupError(
            "a GGUF control vector begins at block 1, and this vector is added at the output of block 0; set "
            "method.layer=1 or higher, or use format=bias or format=lm_eval"
        )
    with temporary_folder(path.parent, path.name) as folder:
        temporary = folder / path.name
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model.config.model_type)
        layers = range(1, len(layout.blocks(model)))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
        writer.add_description(visible(f"{steered.method.name} at strength {steered.strength:g} on {steered.base}"))
        width = layout.width(model)
        for key, text in (("operation", "add"), ("hook", "block output"), ("positions", "all"), ("unit", UNIT)):
            writer.add_string(f"{OWN}.{key}", text)
        writer.add_array(f"{OWN}.layers", sorted(vectors))
        writer.add_uint32(f"{OWN}.width", width)
        writer.add_uint32(f"{OWN}.blocks", len(layers) + 1)
        for layer in layers:
            zeros = np.zeros(width, dtype=np.float32)
            vector = vectors[layer].float().cpu().numpy() if layer in vectors else zeros
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
