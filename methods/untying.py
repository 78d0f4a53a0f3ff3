"""Temporarily gives a model with tied embeddings (Llama 3.2 1B, GPT-2, SmolLM) a separate unembedding."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

TIED = "tie_word_embeddings"


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether token embedding and unembedding are one parameter."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head is not None and head.weight is model.get_input_embeddings().weight


@contextmanager
def untied(model: PreTrainedModel) -> Iterator[None]:
    """Inside the `with`, the unembedding is a copy of the token embedding, so edits of the embedding do not change it.

    Meanwhile, config and model say that the two are not tied, so that they stay separate in `save_pretrained` and in
    `tie_weights`, which lm-eval calls on the model that it is given. At the end, the unembedding is the original
    parameter again, and config and model say the same as before. A model without tied embeddings does not change.
    """
    if not is_tied(model):
        yield
        return
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    shared, keys = head.weight, model.all_tied_weights_keys
    configs = [one for one in {id(c): c for c in (model.config, model.config.get_text_config())}.values()]
    told = [(config, getattr(config, TIED)) for config in configs if hasattr(config, TIED)]
    assert isinstance(shared, nn.Parameter)
    try:
        head.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)
        model.all_tied_weights_keys = {}
        for config, _ in told:
            setattr(config, TIED, False)
        yield
    finally:
        head.weight = shared
        model.all_tied_weights_keys = keys
        for config, value in told:
            setattr(config, TIED, value)
