"""model.thinking: whether a chat model thinks, and what of its texts is judged.

The templates are written as those of known models are: one with a switch, one that opens the thought in the prompt.
"""

import json
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance

from bench import sample
from bench.__main__ import main
from bench.config.compose import jobs
from bench.fit_data.caa_pairs import worded
from bench.model import sampling as sampling_module
from bench.model.decoding import Answer, Continuation, Sampling
from bench.model.generation_cache import Generations, Writer, sampled, writer
from bench.model.lm import load_lm
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.sampling import _continuation, continuations
from bench.model.thinking import Thinking, begin, set_thinking
from bench.run import validate
from bench.suites.base import SuiteError, measure
from bench.suites.fluency import Fluency, sampled_requests
from methods.errors import SetupError
from tests.run.test_smoke import arguments, without_figures, world  # noqa: F401
from tests.suites.test_continued import sources, suite  # noqa: F401
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
SWITCHED = TURNS + (
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OFF_AT_FIRST = TURNS + (
    "{% if add_generation_prompt %}<assistant>{{ '<think>\n' if thinking is defined and thinking else '</think>' }}"
    "{% endif %}"
)
OPENED = TURNS + "{% if add_generation_prompt %}<assistant><think>\n{% endif %}{# ...</think> #}"
NAMED = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}{# [THINK]...[/THINK] #}"
NEVER = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
PROSE = NEVER.replace("<assistant>", "<assistant>{{ 'Think aloud.' if enable_thinking | default(true) }}")  # no tags
HI = "<user>Hi\n<assistant>"


def tokenizer_with(template, special=None):
    """A tokenizer in which the tags are text, added tokens (special=False) or special ones (special=True)."""
    tokenizer = tiny_tokenizer("none")
    tokenizer.chat_template = template
    if special is not None:
        tags = ["<think>", "</think>"]
        tokenizer.add_tokens(tags, special_tokens=special)
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """Saves the tiny model with a template; returns the folder."""

    def saved(template, special=None):
        model, tokenizer = tiny_model(), tokenizer_with(template, special)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return saved


def text_of(lm, prompt="Hi"):
    return lm.tokenizer.decode(lm.encode(prompt))


# -- the switch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "mode", "prompt", "hashed"),
    [
        (SWITCHED, "off", f"{HI}<think>\n\n</think>\n\n", {"thinking": "off"}),
        (SWITCHED, "judge", HI, {}),
        (SWITCHED, "strip", HI, {"judged": "answer"}),
        (OFF_AT_FIRST, "off", f"{HI}</think>", {}),
        (OFF_AT_FIRST, "judge", f"{HI}<think>\n", {"thinking": "on"}),
        (OFF_AT_FIRST, "strip", f"{HI}<think>\n", {"thinking": "on", "judged": "answer"}),
        (OPENED, "judge", f"{HI}<think>\n", {}),
        (OPENED, "strip", f"{HI}<think>\n", {"judged": "answer"}),
        (NAMED, "off", HI, {}),
        (NAMED, "strip", HI, {"judged": "answer"}),
        (NEVER, "off", HI, {}),
        (PROSE, "off", HI, {"thinking": "off"}),
        (PROSE, "judge", f"{HI}Think aloud.", {}),
    ],
)
def test_all_prompts_are_worded_alike_and_named_by_what_differs(folder, template, mode, prompt, hashed):
    lm = load_lm(folder(template), chat=True, thinking=mode)
    before = load_lm(folder(template)).identity
    assert text_of(lm) == lm._worded("Hi") == worded(lm, "Hi") == prompt
    assert SteeredLM(lm).apply_chat_template([{"role": "user", "content": "Hi"}]) == prompt
    assert lm.identity == before | {"chat": True} | hashed


def test_who_passes_the_variable_has_the_last_word(folder):
    tokenizer = load_lm(folder(SWITCHED), chat=True).tokenizer  # as an exported checkpoint has it
    message = [{"role": "user", "content": "Hi"}]
    settings = {"add_generation_prompt": True, "tokenize": False}
    assert tokenizer.apply_chat_template(message, enable_thinking=True, **settings) == HI
    assert tokenizer.apply_chat_template(message, **settings).endswith("</think>\n\n")
    _, hashed = set_thinking(tokenizer, "strip", True)  # an exported checkpoint, loaded to think
    assert tokenizer.apply_chat_template(message, **settings) == HI and hashed["thinking"] == "on"


def test_templates_by_name():
    tokenizer = tokenizer_with({"default": SWITCHED, "tool_use": NEVER})
    assert set_thinking(tokenizer, "off", True) == (Thinking("off"), {"thinking": "off"})


@pytest.mark.parametrize(
    ("template", "chat", "mode", "message"),
    [
        (SWITCHED, True, "on", "model.thinking='on': allowed are off, strip, judge"),
        (SWITCHED, False, "strip", "model.thinking=strip, but model.chat=false.*; set model.chat=true, or model.think"),
        (SWITCHED, False, "judge", "model.thinking=judge, but model.chat=false"),
        (
            NEVER,
            True,
            "strip",
            r"no switch \(enable_thinking, thinking\), and .*does not think; set model.thinking=off",
        ),
        (NEVER, True, "judge", "model.thinking=judge, but the chat template of .* has no switch"),
        (PROSE, True, "strip", "none of the tags .*not known where an answer begins; set model.thinking=judge or off"),
        (OPENED, True, "off", "opens a thought in every prompt, and has no switch .*; set model.thinking=strip"),
    ],
)
def test_what_cannot_be_had_is_refused(folder, template, chat, mode, message):
    with pytest.raises(SetupError, match=message):
        load_lm(folder(template), chat=chat, thinking=mode)


# -- where the answer begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [None, False, True])
@pytest.mark.parametrize(
    ("opened", "text", "answer", "outcome"),
    [
        (False, "<think>\nThe dog\n</think>\n\nThe fox", "The fox", "thought"),
        (True, "The dog\n</think>\n\nThe fox", "The fox", "thought"),
        (False, "The dog</think>The fox", "The fox", "thought"),
        (False, "<think>é</think>ü </think> fox", "ü </think> fox", "thought"),  # the first tag counts
        (False, "<think>dog</think>\n\n", "", "thought"),
        (False, "<think>The dog", "", "unfinished"),
        (True, "The dog", "", "unfinished"),
        (True, "", "", "unfinished"),
        (False, "The fox", "The fox", "without"),
        (False, " The fox", " The fox", "without"),
    ],
)
def test_the_answer_is_what_stands_behind_the_first_closing_tag(special, opened, text, answer, outcome):
    tokenizer = tokenizer_with(SWITCHED, special)
    lm = replace(tiny_lm(), tokenizer=tokenizer, thinking=Thinking("strip", ("<think>", "</think>"), opened))
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    whole = _continuation(lm, tokenizer(HI).input_ids, tokens, None)
    shown = text.replace("<think>", "").replace("</think>", "") if special else text
    shown_answer = answer.replace("</think>", "") if special else answer
    assert (whole.text, whole.tokens) == (shown, tokens)
    assert whole.answer is not None and (whole.answer.text, whole.answer.outcome) == (shown_answer, outcome)
    alone = whole.answered()
    assert alone.text == shown_answer and [*alone.thought, *alone.tokens] == tokens
    assert tokenizer.decode(alone.tokens) == answer
    assert alone.unanswered is (outcome == "unfinished") and not whole.unanswered


def test_a_tag_that_is_half_written():
    tokenizer, thinking = tokenizer_with(SWITCHED), Thinking("strip", ("<think>", "</think>"))
    tokens = tokenizer("<thi", add_special_tokens=False).input_ids
    assert begin(tokenizer, thinking, tokens, ended=False).outcome == "unfinished"
    assert begin(tokenizer, thinking, tokens, ended=True).outcome == "without"


def test_a_token_that_spans_tag_and_answer_is_the_answers():
    class Words:
        def decode(self, ids, **_):
            return "".join(["<think>", "dog", "</thin", "k>\nFox", " runs"][one] for one in ids)

    found = begin(Words(), Thinking("strip", ("<think>", "</think>")), [0, 1, 2, 3, 4], ended=True)
    assert found == (3, "k>\n", "thought")


# -- sampling ----------------------------------------------------------------------------------------------------------


def ids_of(lm, text):
    return lm.tokenizer(text, add_special_tokens=False).input_ids


def saying(monkeypatch, lm, *texts, module=sampling_module):
    """Greedy draws write these texts, one after the other for the rows of a batch, each with the end of text."""
    wanted = [[*ids_of(lm, text), 2] for text in texts]
    state = {"left": None}

    def draw(logits, keys, temperature, top_p):
        if state["left"] is None or len(logits) > len(state["left"]):
            state["left"] = [list(one) for one in wanted]
        state["left"] = [one for one in state["left"] if one]
        drawn = [one.pop(0) for one in state["left"]]
        if not any(state["left"]):
            state["left"] = None
        return torch.tensor(drawn)

    monkeypatch.setattr(module, "draw", draw)


@pytest.mark.parametrize("special", [None, True])
def test_strip_and_judge_share_texts_that_a_model_samples(folder, tmp_path, special, monkeypatch):
    path, store = folder(SWITCHED, special), Generations(tmp_path / "generations")
    own = {"sampling": Sampling(temperature=0, max_new_tokens=60), "store": store}
    off, strip, judge = (replace(load_lm(path, chat=True, thinking=mode), **own) for mode in ("off", "strip", "judge"))
    assert len({json.dumps(one.identity) for one in (off, strip, judge)}) == 3
    saying(monkeypatch, strip, "<think>dog</think>\n\nThe fox")
    ((alone,),) = sampled(strip, ["Hi"], 1)
    ((whole,),) = sampled(judge, ["Hi"], 1)
    assert alone.text == "The fox" and alone.ended and alone.tokens == ids_of(strip, "The fox")
    assert whole.text == ("dog\n\nThe fox" if special else "<think>dog</think>\n\nThe fox") and whole.thought is None
    assert len(list(store.folder.iterdir())) == 1 and writer(strip).id(["Hi"], 1) == writer(judge).id(["Hi"], 1)
    assert writer(off).id(["Hi"], 1) != writer(judge).id(["Hi"], 1)
    assert sample(strip, ["Hi"], 1, 60, temperature=0) == [["The fox"]]
    assert sampled(replace(strip, store=None), ["Hi"], 1) == [[alone._replace(answer=whole.answer)]]
    (request,) = sampled_requests(strip, ["Hi"], [alone])
    assert strip.tokenizer.decode(request.context) == f"{HI}<think>dog</think>\n\n"
    assert request.continuation == alone.tokens


def test_a_random_model_that_opens_its_thought_never_closes_it(folder):
    lm = replace(load_lm(folder(OPENED), chat=True, thinking="strip"), sampling=Sampling(max_new_tokens=8))
    for one in sum(sampled(lm, ["Hi", "The old"], 3), []):
        assert one.text == "" and one.tokens == [] and one.unanswered and one.answer.outcome == "unfinished"
    judge = replace(load_lm(folder(OPENED), chat=True, thinking="judge"), sampling=lm.sampling)
    plain = replace(judge, thinking=None)
    texts, before = (continuations(one, ["Hi"], 3, one.sampling) for one in (judge, plain))
    assert [one[:3] for one in texts[0]] == [one[:3] for one in before[0]]  # judged as sampled


def test_texts_of_an_older_version_are_sampled_again(folder, tmp_path, capsys):
    path, store = folder(SWITCHED), Generations(tmp_path / "runs" / "generations")
    own = {"sampling": Sampling(max_new_tokens=4), "store": store}
    judge, strip = (replace(load_lm(path, chat=True, thinking=mode), **own) for mode in ("judge", "strip"))
    sampled(replace(judge, thinking=None), ["Hi"], 2)
    assert all(one.answer is not None for one in sampled(strip, ["Hi"], 2)[0])
    assert "lacks the answers, as an older version wrote it" in capsys.readouterr().err
    with pytest.raises(SetupError, match="without the place where their answers begin.*run their cell again"):
        Continuation("a", True, [1]).answered()


def test_stored_texts_are_as_they_were_where_nobody_thinks():
    one = Continuation("a", True, [1])
    assert one.stored() == ["a", True, [1]] and Continuation.read(["a", True]) == Continuation("a", True)
    with_answer = one._replace(answer=Answer("", 1, "unfinished"))
    assert Continuation.read(json.loads(json.dumps(with_answer.stored()))) == with_answer


def test_a_stop_string_counts_in_the_answer(folder, monkeypatch):
    path = folder(SWITCHED)
    for mode, text in (("strip", "The "), ("judge", "<think>a fox</think>The ")):
        lm = load_lm(path, chat=True, thinking=mode)
        lm = replace(lm, sampling=Sampling(temperature=0, max_new_tokens=60, stop="fox"))
        saying(monkeypatch, lm, "<think>a fox</think>The fox runs")
        ((one,),) = sampled(lm, ["Hi"], 1)
        assert (one.text, one.ended) == (text, True)


# -- what is judged ----------------------------------------------------------------------------------------------------


class Said:
    """A store that holds the same texts for every prompt."""

    def __init__(self, *rows):
        self.rows = rows

    def generate(self, lm, prompts, num_samples):
        from bench.model.lm import Generated

        return Generated(None, lambda: [list(self.rows) for _ in prompts])


DONE = Continuation("<think>a</think>The fox", True, [5, 6, 7], Answer("The fox", 2, "thought"))
CUT = Continuation("<think>a", False, [5, 6], Answer("", 2, "unfinished"))
PLAIN = Continuation("The fox", True, [7], Answer("The fox", 0, "without"))


def test_cut_texts_are_unscored_and_counted(sources):  # noqa: F811
    rows = [one.answered() for one in (DONE, CUT, PLAIN)]
    lm = replace(tiny_lm(), store=Said(*rows))
    found = measure(suite(sources, k=3), lm)
    assert found.info["unfinished_thinking"] == found.info["without_thinking"] == 8
    assert all(one.unscored == 8 for one in found.metrics.values())
    assert found.metrics["length.mean_toxicity"].value == len("The fox") / 50  # an empty text would lower it
    fluency = measure(Fluency(sources=sources, k=3, prompts=8), lm)
    assert fluency.info["unfinished_thinking"] == 8 and fluency.metrics["perplexity"].unscored == 8
    assert fluency.metrics["empty_share"].value == pytest.approx(1 / 3)


def test_with_judge_all_is_judged_and_counted(sources):  # noqa: F811
    found = measure(suite(sources, k=3), replace(tiny_lm(), store=Said(DONE, CUT, PLAIN)))
    assert found.info["unfinished_thinking"] == 8 and found.metrics["length.mean_toxicity"].unscored == 0


def test_where_no_thinking_ends_nothing_is_judged(sources):  # noqa: F811
    lm = replace(tiny_lm(), store=Said(CUT.answered(), CUT.answered()))
    for one in (suite(sources), Fluency(sources=sources, k=2, prompts=8)):
        with pytest.raises(SuiteError, match="in all 16 texts the thinking was cut .*raise sampling.max_new_tokens"):
            measure(one, lm)


def test_nothing_is_said_of_thinking_where_nobody_thinks(sources):  # noqa: F811
    assert not any("thinking" in key for key in measure(suite(sources), tiny_lm()).info)


def request(context, until, new=60):
    settings = {"until": until, "do_sample": False, "max_gen_toks": new}
    return Instance("generate_until", {}, (context, settings), 0, metadata=("mine", 0, 1))


@pytest.mark.parametrize("special", [None, True])
def test_lm_eval_is_given_the_answer(folder, special, monkeypatch):
    from bench.model import lm_eval_adapter

    lm = load_lm(folder(SWITCHED, special), chat=True, thinking="strip")
    asked = SteeredLM(lm)
    saying(monkeypatch, lm, "<think>a\n\nb</think>\n\nThe fox\n\nruns", module=lm_eval_adapter)
    assert asked.generate_until([request(HI, ["\n\n"])]) == ["The fox"] and not asked.unanswered
    saying(monkeypatch, lm, "The fox\n\nruns", module=lm_eval_adapter)
    assert asked.generate_until([request(HI, ["\n\n"])]) == ["The fox"] and not asked.unanswered
    saying(monkeypatch, lm, "<think>The fox", module=lm_eval_adapter)
    assert asked.generate_until([request(HI, ["\n\n"])]) == [""] and asked.unanswered == {"mine": 1}


# -- the config and the record -----------------------------------------------------------------------------------------


def test_a_config_says_what_is_allowed():
    lines = {
        "model.thinking=on": "model.thinking=on: allowed are off, strip, judge",
        "model.thinking=false": 'model.thinking=false: allowed are off, strip, judge; .*write "off"',
        "model.thinking=strip": "model.thinking=strip, but model.chat=false",
    }
    for line, message in lines.items():
        with pytest.raises(SetupError, match=message):
            validate.validate_all(jobs([line], multirun=False))


@pytest.mark.slow
def test_a_cell_that_thinks(folder, world, without_figures, tmp_path):  # noqa: F811
    path, results = folder(SWITCHED), tmp_path / "results"
    of_world = ("model.path=", "model.bos=")
    line = [one for one in arguments(world, results)[1:] if not one.startswith(of_world)]
    line += [f"model.path={path}", "model.chat=true", "method=unsteered"]
    for mode in ("off", "judge", "strip"):
        assert main([*line, f"model.thinking={mode}"]) == 0
    records = [json.loads(one.read_text()) for one in (results / "runs/records").glob("*/record.json")]
    rtp = {one["thinking"]: one for one in records if one["suite"] == "rtp" and one["split"] == "test"}
    assert set(rtp) == {"off", "judge", "strip"} and len({one["id"] for one in rtp.values()}) == 3
    assert rtp["strip"]["generations"] == rtp["judge"]["generations"] != rtp["off"]["generations"]
    assert rtp["strip"]["info"]["without_thinking"] > 0 and "without_thinking" not in rtp["off"]["info"]
    assert all(one["model"].get("judged") == ("answer" if mode == "strip" else None) for mode, one in rtp.items())


def test_who_judges_stored_texts_again_needs_no_model(folder, tmp_path, monkeypatch):
    store = Generations(tmp_path / "generations")
    sampling = Sampling(temperature=0, max_new_tokens=60)
    lm = load_lm(folder(SWITCHED), chat=True, thinking="strip")
    saying(monkeypatch, lm, "<think>dog</think>The fox")
    sampled(replace(lm, store=store, sampling=sampling), ["Hi"], 1)
    of_record = json.loads(json.dumps(lm.identity))
    ((one,),) = store.stored(Writer(of_record, None, sampling), ["Hi"], 1).read()
    assert one.text == "The fox"
