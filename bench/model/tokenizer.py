"""How a text begins and ends with a model, and how a chat is worded: the tokenizer's part of a language model.

An instruction is the chat's system message. Some templates know no such message: they refuse it, or leave out what it
says. With these, an instruction comes before the text of the first user message, with a blank line between.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from bench.model.weights import cannot_load
from methods.broken import reading
from methods.errors import SetupError, loading_failure

BOS = Literal["tokenizer", "prepend", "none"]
TEMPLATE = (
    "set model.chat=false, or correct the template (chat_template.jinja, or chat_template in tokenizer_config.json)"
)
HELLO = "Hello"  # the user's message when a template is tried
PROBE = "Speak of the weather alone."  # the system message when a template is tried


TOKENIZER = "the tokenizer (tokenizer.json, tokenizer_config.json) of "


def load_tokenizer(path: str, revision: str | None = None, *, offline: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder or on the hub. Raises SetupError without it, or without a sound config."""
    from transformers import AutoTokenizer

    from bench.model.model_folder import check_config

    try:
        check_config(path, revision=revision, local_files_only=offline)
    except ValueError as error:
        raise cannot_load(path, error) from error
    with reading(lambda error: cannot_load(path, error, TOKENIZER), Exception):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, local_files_only=offline, trust_remote_code=False
        )
    return tokenizer


def set_bos(tokenizer: PreTrainedTokenizerBase, bos: BOS) -> str | list[int]:
    """Make `tokenizer(text)` put BOS before the text once, never, or as the tokenizer does by itself.

    bos: "prepend" (once), "none" (never) or "tokenizer" (as by itself). Returns what a text now begins with, in the
    form that enters the hash: "prepend", "none", or the ids of any other beginning.

    Raises SetupError for "prepend" without a BOS token, and for "tokenizer" if the tokenizer puts tokens after a text,
    which a model could not continue.
    """
    if bos not in ("tokenizer", "prepend", "none"):
        raise SetupError(f"model.bos={bos!r}: allowed are tokenizer, prepend, none")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SetupError(f"{type(tokenizer).__name__} has no fast tokenizer, which model.bos needs; convert it first")
    resolved: str | list[int] = _beginning(tokenizer) if bos == "tokenizer" else bos
    if resolved == "prepend" and tokenizer.bos_token is None:
        raise SetupError("model.bos=prepend, but the tokenizer has no BOS token; set model.bos=none")
    named: dict[str, list[int]] = {"none": [], "prepend": [tokenizer.bos_token_id]}
    ids = named[resolved] if isinstance(resolved, str) else resolved
    first = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    special = sorted(set(zip(first, ids, strict=True)))
    backend.post_processor = TemplateProcessing(
        single=[*first, "$A"], pair=[*first, "$A", *first, "$B"], special_tokens=special
    )
    return resolved


def _beginning(tokenizer: PreTrainedTokenizerBase) -> str | list[int]:
    """Return what the tokenizer itself puts before a text. Raises SetupError if it puts a token behind the text."""
    names = map(str, tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), 300)))))
    texts = ["a", *(name for name in names if name not in tokenizer.all_special_tokens)]
    text = next((one for one in texts if tokenizer(one, add_special_tokens=False).input_ids), "")
    plain, whole = (list(tokenizer(text, add_special_tokens=special).input_ids) for special in (False, True))
    begin = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    if whole[begin + len(plain) :]:
        behind = tokenizer.convert_ids_to_tokens(whole[begin + len(plain) :])
        raise SetupError(
            f"model.bos=tokenizer, but this tokenizer puts {behind} behind every text, so a prompt could not be "
            "continued; set model.bos=none or model.bos=prepend"
        )
    if not whole[:begin]:
        return "none"
    return "prepend" if whole[:begin] == [tokenizer.bos_token_id] else whole[:begin]


def stop_tokens(generation: int | list[int] | None, tokenizer: int | None) -> frozenset[int]:
    """Return the tokens that end a text: those of the model's generation config and those of its tokenizer.

    Raises SetupError for an entry that is not a token's number.
    """
    listed = generation if isinstance(generation, list) else [generation]
    for token in listed:
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise SetupError(
                f"eos_token_id in the model's generation_config.json (or its config.json) is {generation!r}; "
                "expected a token's number, or a list of numbers; correct it there"
            )
    return frozenset(int(token) for token in (*listed, tokenizer) if token is not None)


def system_message(prefix: str) -> list[dict[str, str]]:
    """Return a steering prefix as the chat's first message; no message for an empty prefix."""
    return [{"role": "system", "content": prefix}] if prefix else []


def user_message(prompt: str) -> dict[str, str]:
    """Return a prompt as the user's message."""
    return {"role": "user", "content": prompt}


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template takes a system message and shows its text; each template is tried once."""
    return _shows_system(tokenizer, repr(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _shows_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    del template  # a part of the key: a tokenizer may be given another one
    try:
        return PROBE in rendered(tokenizer, [*system_message(PROBE), user_message(HELLO)])
    except SetupError:
        return False


def loses_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template accepts a system message but leaves it out of the text."""
    try:
        return PROBE not in rendered(tokenizer, [*system_message(PROBE), user_message(HELLO)])
    except SetupError:
        return False


def instructed(
    tokenizer: PreTrainedTokenizerBase, instruction: str, messages: Sequence[Mapping[str, str]]
) -> list[dict[str, str]]:
    """Return the messages with an instruction before them, as the chat template takes it; an empty one adds nothing.

    It becomes the system message, or the beginning of the one that exists. Without a system role (`has_system_role`)
    the text of the system message, even of one that already exists, is put into the first user message.
    """
    given = [dict(message) for message in messages]
    own = given.pop(0) if given and given[0]["role"] == "system" else None
    if own is not None and instruction:
        own["content"] = f"{instruction}\n\n{own['content']}"
    system = system_message(instruction) if own is None else [own]
    if not system or has_system_role(tokenizer):
        return [*system, *given]
    said = system[0]["content"].rstrip()
    user = next((message for message in given if message["role"] == "user"), None)
    if user is None:
        return [user_message(said), *given]
    user["content"] = f"{said}\n\n{user['content']}" if said else user["content"]
    return given


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], begun: bool = False, **variables: Any
) -> str:
    """Word messages in the chat template, up to where the answer begins.

    begun: whether the last message is the beginning of the answer. variables: the template's variables whose values
    differ from those set in the tokenizer.

    Raises SetupError if the template, which is a program of the model's author, fails.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=not begun, continue_final_message=begun, tokenize=False, **variables
            )
        )
    except Exception as error:
        system = ", of a prompt with a system message" if messages and messages[0]["role"] == "system" else ""
        raise SetupError(
            f"model.chat=true, but the chat template of {tokenizer.name_or_path!r} cannot be used{system}: "
            f"{loading_failure(error)}; {TEMPLATE}"
        ) from error


def check_template(tokenizer: PreTrainedTokenizerBase, instruction: str = "") -> None:
    """Raises SetupError if the template cannot word a chat, or leaves out what a message says."""
    text = rendered(tokenizer, instructed(tokenizer, instruction, [user_message(HELLO)]))
    for role, said in (("user", HELLO), ("system", instruction)):
        if said.strip() not in text:
            nowhere = "" if role == "user" or has_system_role(tokenizer) else ", also where it is put before the user's"
            raise SetupError(
                f"model.chat=true, but the chat template of {tokenizer.name_or_path!r} leaves out the "
                f"content of a {role} message{nowhere}, so the model would never read it; {TEMPLATE}"
            )
