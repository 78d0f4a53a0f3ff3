"""lm-eval's view of our model, steered or not.

lm-eval's own HFLM passes neither a mask nor the prompt's length, so a position scope (the rule for which tokens a
method steers) could not tell where the prompt ends. HFLM also reads a context again for each of its answers. Here a
context is read once, and a scope takes the request's context as "the prompt". If the steering has a prefix, the prefix
comes before every context.

The answer's tokens are found as follows. Context and answer are tokenised as one text, and the answer begins with the
first token that holds a character of it, or of the white space at the end of the context (which lm-eval counts as part
of the answer). So a token that spans the join belongs to the answer. lm-eval itself counts the context's tokens, which
may leave the answer without any; its log p would then be 0, more than that of every other answer. An empty answer
stands for the end of the text.
"""

import functools
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task
import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from bench.model import batches, kv_cache, memory
from bench.model.lm import LM, Request
from bench.model.log_likelihood import likelihoods
from bench.model.nucleus import draw
from bench.model.sampling import prefill, stream
from bench.model.thinking import Thinking, begin, closes
from bench.model.tokenizer import instructed, rendered
from bench.records import unfinished
from methods import tokens
from methods.progress import advance

SAMPLED_WITH = {"until", "do_sample", "temperature", "top_p", "max_gen_toks"}  # what sampled decoding supports


class SteeredLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """An `LM` as lm-eval wants it. If the LM uses a chat template, evaluate with `apply_chat_template=True`."""

    backend = "causal"

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self.lm = lm
        self.unanswered: Counter[str] = Counter()  # texts of each task whose thinking was never closed
        self.tokenizer = lm.tokenizer
        self._device = lm.device
        self._prefix = "" if lm.chat else lm.steering.prefix  # in a chat it is part of a message

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return int(end) if end is not None else self.lm.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        return self.lm.end_of_text

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self.lm.max_length

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, with BOS as the tokenizer was set up, but never twice (a chat template may write it)."""
        if add_special_tokens is None:
            add_special_tokens = not self._begins_a_text(string)
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids)

    def _begins_a_text(self, string: str) -> bool:
        """Return whether the text already begins with BOS (or EOS, if there is no BOS; some tokenizers lack both)."""
        opening = self.tokenizer.bos_token or self.tokenizer.eos_token
        return bool(opening) and has_bos_prefix(string, opening)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the chat as text; the steering prefix is, or begins, its system message (`tokenizer.instructed`)."""
        prefix = self.lm.steering.prefix if self.lm.chat else ""
        messages = instructed(self.tokenizer, prefix, chat_history)
        return rendered(self.tokenizer, messages, begun=not add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log p(continuation | prefix + context) of each request, and whether greedy decoding would give it."""
        del disable_tqdm
        return self._loglikelihood_tokens([(request.args, *self.encode(request.args)) for request in requests])

    def encode(self, asked: tuple[str, str]) -> tuple[list[int], list[int]]:
        """Return token ids of the context, with the steering prefix before it, and of the answer."""
        return self._encode_pair(self._prefix + asked[0], asked[1])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of both, by the rule above; a text that brings its own BOS gets no other one."""
        own_bos = self._begins_a_text(context + continuation)
        trimmed = context.rstrip()
        joined = [trimmed], [context[len(trimmed) :] + continuation]
        (text,) = tokens.split(self.tokenizer, *joined, special_tokens=not own_bos)
        if not context and own_bos and len(text.tokens) > 1:  # as lm-eval: the BOS in the text is the context
            text = text._replace(prompt=1)
        (request,) = self.lm.requests([text])
        return request.context, request.continuation

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        read = likelihoods(self.lm, [Request(context, continuation) for _, context, continuation in requests])
        return [(one.logprob, one.greedy) for one in read]

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Return log p of whole texts, read in windows of the model's length; each token is predicted once.

        The steering prefix comes before every window; in the first it replaces the token that opens a text.
        """
        windows: list[Request] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            prefix, ids = list[int](), self.tok_encode(request.args[0])
            if self._prefix:
                (whole,) = tokens.split(self.tokenizer, [self._prefix], [request.args[0]])
                prefix, ids = whole.tokens[: whole.prompt], whole.continuation
            rolling = utils.get_rolling_token_windows(
                token_list=ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - len(prefix),
                context_len=1,
            )
            for number, window in enumerate(map(utils.make_disjoint_window, rolling)):
                context, continuation = window
                if prefix:
                    context = prefix if number == 0 else prefix + context
                windows.append(Request(context, continuation))
                owner.append(i)
        totals = [0.0] * len(requests)
        for i, one in zip(owner, likelihoods(self.lm, windows), strict=True):
            totals[i] += one.logprob
        return totals

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Return texts up to a stop string, greedy or sampled as each request says.

        With model.thinking=strip the texts are only the answers, and a stop string only counts in an answer; a text
        whose thinking was never closed is "", which `unanswered` counts.

        A sampled text has its own random stream, from the LM's seed, its context, and how often that context came
        before. Raises ValueError for a setting of sampled decoding that is not in SAMPLED_WITH.
        """
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for members in groups.values():
            settings = normalize_gen_kwargs(requests[members[0]].args[1], 256)  # 256 is HFLM's default
            if settings["do_sample"] and (unknown := set(settings) - SAMPLED_WITH):
                raise ValueError(
                    f"sampled decoding does not support {sorted(unknown)}; it supports {sorted(SAMPLED_WITH)}"
                )
            contexts = [self._prefix + requests[i].args[0] for i in members]
            for i, (text, answered) in zip(members, self._generate(contexts, settings), strict=True):
                texts[i] = text
                if not answered:
                    self.unanswered[str(requests[i].task_name)] += 1
        return texts

    def _generate(self, contexts: list[str], settings: Any) -> list[tuple[str, bool]]:
        """Return the text that follows each context, and whether there is an answer in it."""
        new, room = settings["max_gen_toks"], self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise ValueError(f"max_gen_toks={new} leaves no room for a context in a model of {self.max_length} tokens")
        ids = [(self.tok_encode(context) or [self.prefix_token_id])[-room:] for context in contexts]
        until = handle_stop_sequences(list(settings["until"]), eos=str(self.tokenizer.decode([self.eot_token_id])))
        temperature = float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0
        seen: Counter[str] = Counter()
        keys = []
        for context in contexts:
            keys.append(torch.from_numpy(stream(self.lm.sampling.seed, context, seen[context], new)))
            seen[context] += 1
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), contexts[i]))

        def size(batch: list[int]) -> memory.Estimate:
            width, demand = max(len(ids[i]) for i in batch), self.lm.steering.demand
            return memory.estimate(self.lm.model, len(batch), len(batch), width, new + kv_cache.ROOM, demand)

        texts = [("", True)] * len(ids)
        top_p = float(settings.get("top_p", 1.0))

        def what() -> Any:
            lm, decoding = self.lm, [self.lm.sampling.seed, new, until, temperature, top_p]
            return ["answers", lm.identity, lm.steering_identity, lm.steered_by, ids, contexts, decoding]

        def compute(batch: list[int]) -> list[tuple[str, bool]]:
            drawn = torch.stack([keys[i] for i in batch]).to(self.lm.device)
            return self._decode([ids[i] for i in batch], drawn, until, temperature, top_p)

        with unfinished.batches(what, self.lm.sampling.batch_size) as kept:
            for start, rows in batches.planned(self.lm, order, kept, size):
                batch = order[start : start + rows]
                decode = functools.partial(batches.in_halves, self.lm, batch, size, batches.halved, compute)
                for i, (text, answered) in zip(batch, kept.once(start, decode), strict=True):
                    texts[i] = text, answered
        return texts

    def _decode(
        self, contexts: Sequence[list[int]], keys: torch.Tensor, until: list[str], temperature: float, top_p: float
    ) -> list[tuple[str, bool]]:
        """Return the texts of one batch, cut before the first stop string; keys (B, steps) draw the tokens."""
        rows, logits = prefill(self.lm, contexts)  # (B, V)
        new: list[list[int]] = [[] for _ in contexts]
        texts = [""] * len(contexts)
        strips = self.lm.thinking if self.lm.identity.get("judged") == "answer" else None
        closed: dict[int, int] = {}  # tokens of each row up to the end of its thinking, if that is left out
        alive = list(range(len(contexts)))
        for step in range(keys.shape[1]):
            drawn = draw(logits, keys[:, step], temperature, top_p)  # (A,)
            advance(len(drawn))
            going = [True] * len(alive)
            for place, (row, token) in enumerate(zip(alive, drawn.tolist(), strict=True)):
                new[row].append(token)
                if strips is not None and row not in closed:
                    if closes(self.tokenizer, strips, new[row]):
                        closed[row] = len(new[row])
                    going[place] = token not in self.lm.stop_tokens
                    continue
                behind = new[row][closed.get(row, 0) :]
                whole = str(self.tokenizer.decode(behind, skip_special_tokens=True))
                whole = whole if strips is None else whole.lstrip()
                texts[row] = postprocess_generated_text(whole, until, None)
                going[place] = token not in self.lm.stop_tokens and texts[row] == whole
            if not any(going) or step + 1 == keys.shape[1]:
                break
            if not all(going):
                left = [place for place, goes in enumerate(going) if goes]
                kept = torch.tensor(left, device=self.lm.device)
                rows.select(kept)
                alive, drawn, keys = [alive[place] for place in left], drawn[kept], keys[kept]
            logits = self.lm.read(rows, drawn[:, None], torch.ones_like(drawn[:, None], dtype=torch.bool), keep=1)[:, 0]
        if strips is None:
            return [(text, True) for text in texts]
        found = [self._answer(strips, tokens) for tokens in new]
        return [(postprocess_generated_text(text, until, None), answered) for text, answered in found]

    def _answer(self, thinking: Thinking, tokens: list[int]) -> tuple[str, bool]:
        """Return the answer in the tokens of a whole text, and whether there is one."""
        ended = tokens[-1] in self.lm.stop_tokens
        found = begin(self.tokenizer, thinking, tokens[:-1] if ended else tokens, ended)
        text = str(self.tokenizer.decode(tokens[found.start :], skip_special_tokens=True))
        if found.outcome == "thought":
            text = text.removeprefix(found.rest).lstrip()
        return ("", False) if found.outcome == "unfinished" else (text, True)


class Recorder(SteeredLM):
    """Records the likelihood requests of lm-eval without answering them."""

    def __init__(self, lm: LM) -> None:
        super().__init__(lm)
        self.requests: list[Instance] = []

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Record the requests."""
        del disable_tqdm
        self.requests += requests
        return [(0.0, False)] * len(requests)


def requests(lm: LM, tasks: dict[str, Any], documents: dict[str, list[int]]) -> list[Instance]:
    """Return the likelihood requests that lm-eval makes for these documents; the model is not run."""
    asked = Recorder(lm)
    _evaluate(asked, tasks, documents)
    return asked.requests


def huggingface(lm: LM, batch_size: int) -> HFLM:
    """Return lm-eval's own view of the model, for comparison. Methods that steer by position do not work in it."""
    return HFLM(
        pretrained=lm.model,
        tokenizer=lm.tokenizer,
        batch_size=batch_size,
        max_length=lm.max_length,
        trust_remote_code=False,
    )


def evaluated(
    lm: LM, tasks: dict[str, Any], documents: dict[str, list[int]], unanswered: Counter[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return what lm-eval records about each document of each task.

    documents: the numbers of each task's documents, ascending. unanswered: is increased by the number of each task's
    texts whose thinking was never closed, so that they have no answer.
    """
    asked = SteeredLM(lm)
    samples: dict[str, list[dict[str, Any]]] = _evaluate(asked, tasks, documents)
    if unanswered is not None:
        unanswered.update(asked.unanswered)
    return samples


def _evaluate(asked: SteeredLM, tasks: dict[str, Any], documents: dict[str, list[int]]) -> Any:
    return evaluate(
        lm=asked,
        task_dict={"tasks": dict(tasks), "groups": {}},
        samples=documents,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=asked.lm.chat,
    )["samples"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and all log lines below errors of lm-eval and datasets."""
    shown, bar = datasets.is_progress_bar_enabled(), lm_eval.api.task.tqdm
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bar()
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if shown:
            datasets.enable_progress_bar()


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restore the global random generators after the `with`, whatever lm-eval seeds."""
    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(tensors)
