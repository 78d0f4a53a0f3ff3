"""A method's control: the same method at the same size, without the information that it claims to have learnt.

A method that reads pairs learns from the same pairs with their labels swapped at random (`pairs.flip=0.5`). If a method
reads no pairs, or finds the same axis whichever text of a pair is the desired one (`Method.reads_labels`), its vectors
are turned by a random rotation: they keep their lengths and their angles to each other. Both kinds of control act where
the method acts. Their strength is the method's chosen strength, times the length of the method's vectors divided by
that of the control's, since a mean over swapped pairs is short. `Method.changes` says which vectors these are.
"""

import math
from typing import Literal

import torch

from methods.base import INFO, Artefact, Method
from methods.errors import SetupError

How = Literal["flipped pairs", "random rotation"]
FLIP = 0.5  # so that the labels say nothing


def how(method: Method) -> How:
    """Return how the method's control is made.

    Raises SetupError for a stack, and if the method learns nothing that swapped pairs or a rotation would change.
    """
    if method.family == "stack":
        raise SetupError(
            "a stack has no control, since each of its parts has a unit of strength of its own; leave control=null, "
            "and run the control of each part alone"
        )
    if method.family in ("none", "prompt", "decoding") and not method.has_control:
        raise SetupError(
            f"{method.name} has no control, since it learns nothing that swapped pairs or a rotation of vectors would "
            "change; leave control=null"
        )
    learns_otherwise = "harmful" in method.needs  # texts that keep their label whatever is swapped
    swaps = "pairs" in method.needs and method.reads_labels and not learns_otherwise
    return "flipped pairs" if swaps else "random rotation"


def rotated(artefact: Artefact, seed: int) -> Artefact:
    """Rotate an artefact's vectors, which are the rows of each tensor of floats, at random; keeps their Gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _turned(one, generator) if is_vectors(name, one) else one for name, one in artefact.items()}


def is_vectors(name: str, tensor: torch.Tensor) -> bool:
    """Return whether an entry of an artefact holds vectors, rather than indices or a fact."""
    return tensor.is_floating_point() and tensor.dim() > 0 and not name.startswith(INFO)


def _turned(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = tensor.double().reshape(-1, tensor.shape[-1])  # (R, D)
    triangle = torch.linalg.qr(rows.T).R  # (min(R, D), R): rows = triangle.T @ an orthonormal frame
    drawn = torch.randn(rows.shape[1], len(triangle), generator=generator, dtype=torch.float64)
    frame, own = torch.linalg.qr(drawn)
    frame = (frame * own.diagonal().sign()).T  # (min(R, D), D); without the signs LAPACK prefers one side
    turned: torch.Tensor = (triangle.T @ frame).reshape(tensor.shape).to(tensor.dtype)
    return turned


def size(artefact: Artefact) -> float:
    """Return the joint length of an artefact's vectors, the root of the sum of their squared norms."""
    squares = [float(one.double().square().sum()) for name, one in artefact.items() if is_vectors(name, one)]
    return math.sqrt(sum(squares))


def strength(of_method: float, method: Artefact, control: Artefact) -> float:
    """Return the control's strength at which both artefacts are equally large; 6 digits, so that machines agree.

    method, control: what the method and its control change (`Method.changes`). If the method's changes hold no vectors,
    but only name the parts of the model that are acted on, the strength is the method's own.
    """
    if not any(is_vectors(name, one) for name, one in method.items()):
        return of_method
    if not size(control):
        raise SetupError(
            "the control cannot be scaled: the vector learnt from swapped pairs has length 0; give other pairs, or more"
        )
    return float(f"{of_method * size(method) / size(control):.6g}")
