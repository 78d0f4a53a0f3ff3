"""Instructions with chat templates that know no system message: they stand before the user's text, on every path alike.

The templates are written as those of known models are.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from bench.__main__ import main
from bench.model.decoding import Sampling
from bench.model.lm import load_lm
from bench.model.lm_eval_adapter import SteeredLM, evaluated, quiet, untouched_randomness
from bench.model.sampling import sample
from bench.model.tokenizer import PROBE, has_system_role, instructed
from methods.base import Steering
from methods.errors import SetupError
from methods.prompt import Prompt
from tests.run.test_smoke import arguments, without_figures, world  # noqa: F401
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA_TURNS = (
    ALTERNATE + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + GEMMA_TURNS
)
GEMMA_3 = (  # which does itself what is done here
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set messages = messages[1:] if first else messages %}"
    + GEMMA_TURNS.replace("{{ m.content", "{{ first if loop.first }}{{ m.content")
)
SILENT = (  # a role that it does not know is passed over
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n"
    "{% elif m.role == 'assistant' %}<|assistant|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEFAULT = (  # has a system message of its own, whatever it is given
    "<|system|>\nYou are a helpful assistant.\n{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>\n"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST = (
    "{% set said = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set messages = messages[1:] if said else messages %}"
)
LLAMA_2 = (
    FIRST + ALTERNATE + "{% if m.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and said %}"
    "<<SYS>>\n{{ said }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (  # the system message stands in the last turn of the user
    FIRST
    + ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ said + '\n\n' if loop.last and said }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
WITHOUT = {"gemma": GEMMA, "silent": SILENT, "default": DEFAULT}
WITH = {"gemma_3": GEMMA_3, "chatml": CHATML, "llama_2": LLAMA_2, "mistral": MISTRAL}
EVERY = WITHOUT | WITH

SAY, SAID = "Be kind. ", "Be kind."
USER, SYSTEM = {"role": "user", "content": " Hi you"}, {"role": "system", "content": "Answer by a letter.\n\n"}
SHOTS = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "A"}, USER]


@dataclass(frozen=True)
class Say:
    """A prefix and nothing else."""

    name: ClassVar[str] = "say"
    family: ClassVar[str] = "prompt"
    prefix: str = SAY

    @contextmanager
    def apply(self, model, artefact, strength):
        yield Steering(prefix=self.prefix)


def chatting(template):
    lm = replace(tiny_lm(), chat=True, sampling=Sampling(temperature=0, max_new_tokens=4))
    lm.tokenizer.chat_template = template
    return lm


def plainly(lm, messages, **settings):
    """Return the messages as the tokenizer's own chat template words them."""
    settings = {"add_generation_prompt": True} | settings
    return lm.tokenizer.apply_chat_template(messages, tokenize=False, **settings)


def users(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize("name", EVERY)
def test_which_templates_have_a_system_role(name):
    lm = chatting(EVERY[name])
    assert has_system_role(lm.tokenizer) is lm.system_role is (name in WITH)
    assert replace(lm, chat=False).system_role is None


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_system_role_the_user_text_has_the_prompt(name):
    base = chatting(WITHOUT[name])
    with base.steered(Say(), {}, 1.0) as lm:
        text = lm._worded(" Hi you")
        assert text == plainly(base, [users("Be kind.\n\n Hi you")]) and text.count("Be kind.\n\n Hi you") == 1
        assert lm.encode(" Hi you") == base.encode("Be kind.\n\n Hi you")
        assert lm.encode_pairs([" Hi you"], ["a"]) == base.encode_pairs(["Be kind.\n\n Hi you"], ["a"])
        assert sample(lm, [" Hi you"], 1, 4, temperature=0) == sample(
            base, ["Be kind.\n\n Hi you"], 1, 4, temperature=0
        )
        assert SteeredLM(lm).apply_chat_template([USER]) == text
    assert base._worded(" Hi you") == plainly(base, [USER])  # and nothing is left of it


@pytest.mark.parametrize("name", WITH)
def test_with_a_system_role_all_is_as_the_tokenizer_words_it(name):
    base = chatting(WITH[name])
    system = {"role": "system", "content": SAY}
    both = {"role": "system", "content": f"{SAY}\n\n{SYSTEM['content']}"}
    with base.steered(Say(), {}, 1.0) as lm:
        assert lm._worded(" Hi you") == plainly(base, [system, USER])
        steered, plain = SteeredLM(lm), SteeredLM(base)
        for chat in ([USER], SHOTS):
            assert steered.apply_chat_template(chat) == plainly(base, [system, *chat])
            assert steered.apply_chat_template([SYSTEM, *chat]) == plainly(base, [both, *chat])
            assert plain.apply_chat_template([SYSTEM, *chat]) == plainly(base, [SYSTEM, *chat])
            assert plain.apply_chat_template(chat) == plainly(base, chat)


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_system_role_lm_eval_text_goes_to_the_user(name):
    base = chatting(WITHOUT[name])
    letter = SYSTEM["content"].rstrip()
    with base.steered(Say(), {}, 1.0) as lm:
        for model, said in ((SteeredLM(lm), f"{SAY}\n\n{letter}"), (SteeredLM(base), letter)):
            assert model.apply_chat_template([SYSTEM, USER]) == plainly(base, [users(f"{said}\n\n Hi you")])
            shots = [users(f"{said}\n\nOne?"), *SHOTS[1:]]
            assert model.apply_chat_template([SYSTEM, *SHOTS]) == plainly(base, shots)
            begun = [users(f"{said}\n\n Hi you"), {"role": "assistant", "content": "It is"}]
            settings = {"add_generation_prompt": False, "continue_final_message": True}
            found = model.apply_chat_template([SYSTEM, USER, begun[1]], add_generation_prompt=False)
            assert found == plainly(base, begun, **settings) and found.endswith("It is")
    assert SYSTEM["content"] == "Answer by a letter.\n\n"  # what was given is left as it is


def test_tasks_of_lm_eval_with_a_description():
    rows = [{"q": "What sings?", "choices": ["bird", "tree"], "gold": 0}]
    base, read = chatting(GEMMA), []
    for steered in (False, True):
        with quiet(), untouched_randomness(), base.steered(Say(), {}, float(steered)) as lm:
            task = ConfigurableTask(
                config={
                    "task": "mine", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
                    "test_split": "test", "output_type": "multiple_choice", "description": "Answer by a word.\n\n",
                    "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
                }
            )  # fmt: skip
            (found,) = evaluated(lm, {"mine": task}, {"mine": [0]})["mine"]
            read.append(found["arguments"][0][0])
    said = "Answer by a word.\n\nWhat sings?"
    assert read == [plainly(base, [users(said)]), plainly(base, [users(f"{SAY}\n\n{said}")])]


def test_messages_at_the_edge():
    tokenizer = chatting(GEMMA).tokenizer
    assert instructed(tokenizer, "", []) == [] and instructed(tokenizer, "Go.", []) == [users("Go.")]
    assert instructed(tokenizer, " ", [USER]) == [USER]  # an instruction of blanks says nothing
    assert instructed(tokenizer, "", [{"role": "system", "content": ""}, USER]) == [USER]
    model = {"role": "assistant", "content": "Hello."}
    assert instructed(tokenizer, "Go.\n", [model, USER]) == [model, users("Go.\n\n Hi you")]


def test_it_is_found_out_once_for_each_template(monkeypatch):
    lm, tried = chatting(GEMMA), []
    plain = lm.tokenizer.apply_chat_template

    def watched(messages, **settings):
        tried.append(any(PROBE in message["content"] for message in messages))
        return plain(messages, **settings)

    monkeypatch.setattr(lm.tokenizer, "apply_chat_template", watched)
    with lm.steered(Say(), {}, 1.0) as steered:
        for prompt in ("a", "b", "c"):
            steered.encode(prompt)
        assert tried.count(True) == 1
        lm.tokenizer.chat_template = CHATML
        assert "system\nBe kind. <|im_end|>" in steered._worded("a") and tried.count(True) == 2


NO_KINDNESS = "{{ raise_exception('no') if 'kind' in messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "prefix", "message"),
    [
        (
            "{{ messages[-1].content.split('\n')[-1] }}",
            SAY,
            "content of a system message, also where it is put before the user",
        ),
        (SILENT.replace("{{ m.content }}", "{{ m.content[-9:] }}"), SAY, "also where it is put before"),
        (GEMMA.replace("m.content | trim", "m.content.split('kind.')[-1]"), SAY, "also where it is put before"),
        (NO_KINDNESS + GEMMA, SAY, "cannot be used: TemplateError: no"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content | tojson }}"),
            'Say "no".',
            "the content of a system message, so the",
        ),
        (NO_KINDNESS + CHATML, SAY, "cannot be used, of a prompt with a system message: TemplateError: no"),
    ],
)
def test_an_instruction_that_is_shown_nowhere_is_refused(template, prefix, message):
    lm = chatting(template)
    with pytest.raises(SetupError, match=f"model.chat=true, but the chat template .*{message}.*; set model.chat=false"):
        with lm.steered(Say(prefix=prefix), {}, 1.0):
            pytest.fail("entered")


def test_a_template_that_fails_within_lm_eval_is_no_traceback():
    with pytest.raises(
        SetupError, match="cannot be used: TemplateError: Conversation roles must alternate.*; set model.chat=false"
    ):
        SteeredLM(chatting(GEMMA)).apply_chat_template([USER, USER])


@pytest.mark.slow
def test_a_cell_of_a_model_without_a_system_role(world, without_figures, tmp_path):  # noqa: F811
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer("none")
    tokenizer.chat_template = GEMMA
    tokenizer.save_pretrained(folder)
    lm = load_lm(str(folder), chat=True)
    with lm.steered(Prompt(prompts=[SAID], strengths=(1,)), {}, 1.0) as steered:
        assert "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>" in lm.tokenizer.decode(steered.encode("Hi"))
    of_world = ("model.path=", "model.bos=")
    line = [one for one in arguments(world, tmp_path / "results")[1:] if not one.startswith(of_world)]
    line += [f"model.path={folder}", "model.chat=true", "method=prompt", "strength=1", f"method.prompts=[{SAID}]"]
    assert main([*line, "method.strengths=[1]"]) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "results/runs/records").glob("*/record.json")]
    assert {one["suite"] for one in records} >= {"rtp", "capability"}
    assert all(one["method"]["name"] == "prompt" and one["model"]["chat"] for one in records)
