"""Thinking: what some chat models write before their answer, and where in a text the answer begins.

model.thinking=off     the template's own switch turns thinking off. A template without a switch stays as it is.
model.thinking=strip   the model thinks, and its answer alone is judged: what comes after the first closing tag, and
                       after the white space there. A text whose thinking was never closed has no answer.
model.thinking=judge   the model thinks, and all that it wrote is judged.

The switch is a variable of the template. It is set by a line before the template, in the tokenizer itself, so prompts,
lm-eval's chats and training data are worded alike; a caller that passes the variable overrides it.

If a likelihood is asked for, the answer follows the prompt at once. So in a model that thinks, no thought comes before
the answer; if the prompt itself opens the thinking, the answer is read as the first words of a thought.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from bench.model.decoding import Outcome, check_chat
from bench.model.tokenizer import HELLO, rendered, user_message
from methods.errors import SetupError

Mode = Literal["off", "strip", "judge"]
SWITCHES = ("enable_thinking", "thinking")  # of Qwen3, SmolLM3, GLM-4.5; of DeepSeek-V3.1
TAGS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3, GLM-4.5
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi-VL
)
TAIL = 64  # tokens that hold any closing tag, even if each of its bytes is a token


class Thinking(NamedTuple):
    """A model's way of thinking. tags: the tags that open and close a thought, None if they are not looked for.

    opened: whether the prompt itself opens the thought, so that a text only holds the closing tag.
    """

    mode: Mode
    tags: tuple[str, str] | None = None
    opened: bool = False


class Begin(NamedTuple):
    """The beginning of an answer: the number of tokens before it, and what its first token holds besides the answer."""

    start: int
    rest: str
    outcome: Outcome


def set_thinking(tokenizer: PreTrainedTokenizerBase, mode: str, chat: bool) -> tuple[Thinking | None, dict[str, str]]:
    """Set the template's switch of thinking as `mode` says.

    Returns how the model thinks (None: it does not), and the values that enter the hash of the model. Older versions
    did not set the switch, and judged everything; only differences from them are hashed: `thinking` ("on", "off") if
    the switch changes the prompt, and `judged` ("answer") if only the answer is judged.

    Raises SetupError if this template does not support the mode.
    """
    if mode not in get_args(Mode):
        raise SetupError(f"model.thinking={mode!r}: allowed are {', '.join(get_args(Mode))}")
    check_chat(mode, chat)
    if not chat:
        return None, {}
    before = _prompt(tokenizer)
    switch = _switch(tokenizer)
    if switch is not None:
        _set(tokenizer, switch, mode != "off")
    prompt, tags = _prompt(tokenizer), _tags(tokenizer)
    tags = tags or next((pair for pair in TAGS if prompt.rstrip().endswith(pair[0])), None)
    opened = tags is not None and prompt.rstrip().endswith(tags[0])
    _check(tokenizer, mode, switch, tags, opened)
    hashed = {"thinking": "off" if mode == "off" else "on"} if prompt != before else {}
    if mode == "off":
        return (None if switch is None else Thinking("off")), hashed
    return Thinking(mode, tags, opened), hashed | ({"judged": "answer"} if mode == "strip" else {})  # type: ignore[arg-type]


def _check(
    tokenizer: PreTrainedTokenizerBase, mode: str, switch: str | None, tags: tuple[str, str] | None, opened: bool
) -> None:
    """Raises SetupError if the model does not support the mode."""
    own = f"model.thinking={mode}, but the chat template of {tokenizer.name_or_path!r}"
    known = ", ".join(f"{opening}...{closing}" for opening, closing in TAGS)
    if mode == "off" and opened:
        raise SetupError(
            f"{own} opens a thought in every prompt, and has no switch ({', '.join(SWITCHES)}) that prevents it; set "
            "model.thinking=strip to judge the answers, or judge to judge the thoughts with them"
        )
    if mode != "off" and switch is None and tags is None:
        raise SetupError(
            f"{own} has no switch ({', '.join(SWITCHES)}), and neither it nor the tokenizer knows tags of thinking "
            f"({known}): this model does not think; set model.thinking=off"
        )
    if mode == "strip" and tags is None:
        raise SetupError(
            f"{own} has none of the tags that are known ({known}), so it is not known where an answer begins; set "
            "model.thinking=judge or off"
        )


def _prompt(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    return rendered(tokenizer, [user_message(HELLO)], **settings)


def _switch(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the name of the template's variable that switches thinking on and off; None if there is none."""
    found = (one for one in SWITCHES if _prompt(tokenizer, **{one: True}) != _prompt(tokenizer, **{one: False}))
    return next(found, None)


def _set(tokenizer: PreTrainedTokenizerBase, switch: str, on: bool) -> None:
    """Give the switch this value unless a caller passes another; the line adds nothing to the text (`trim_blocks`)."""
    value = str(on).lower()
    line = f"{{% if {switch} is not defined %}}{{% set {switch} = {value} %}}{{% endif %}}\n"
    own: Any = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: line + one for name, one in own.items()} if isinstance(own, Mapping) else f"{line}{own}"
    )


def _tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the first known tags whose closing tag is in the template, else in the tokenizer's added vocabulary."""
    template, added = str(tokenizer.chat_template), tokenizer.get_added_vocab()
    named = [pair for pair in TAGS if pair[1] in template] or [pair for pair in TAGS if pair[1] in added]
    return named[0] if named else None


def closes(tokenizer: PreTrainedTokenizerBase, thinking: Thinking, tokens: Sequence[int]) -> bool:
    """Return whether the closing tag stands at the end of these sampled tokens, or shortly before."""
    return thinking.tags is not None and thinking.tags[1] in _raw(tokenizer, tokens[-TAIL:])


def begin(tokenizer: PreTrainedTokenizerBase, thinking: Thinking, tokens: Sequence[int], ended: bool) -> Begin:
    """Return where the answer begins in sampled tokens; special tokens are kept in the searched text.

    They are kept because some tags are special tokens. A token that holds both the end of the thought and the beginning
    of the answer belongs to the answer. A text without a closing tag is "unfinished", and has no answer, if the text or
    its prompt opens a thought; otherwise all of the text is the answer, and it is "without" a thought. ended: whether
    the model closed the text; if so, a half-written opening tag does not count.
    """
    assert thinking.tags is not None
    opening, closing = thinking.tags
    text = _raw(tokenizer, tokens)
    thought, tag, behind = text.partition(closing)
    if tag:
        place = len(text) - len(behind.lstrip())
        start = bisect_right(range(len(tokens) + 1), place, key=lambda n: len(_raw(tokenizer, tokens[:n]))) - 1
        return Begin(start, text[len(_raw(tokenizer, tokens[:start])) : place], "thought")
    begun = thought.strip()
    if thinking.opened or opening in thought or (begun and not ended and opening.startswith(begun)):
        return Begin(len(tokens), "", "unfinished")
    return Begin(0, "", "without")


def _raw(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    ids = list(tokens)
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
