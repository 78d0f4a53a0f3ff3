"""The papers' experiments: each says what it takes and what was published, and runs to its end in miniature."""

import copy
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
)

from bench.__main__ import _compute
from bench.config import compose, folders
from bench.records.table import read_records
from bench.reproduction import NEEDS, reproduction
from bench.run import validate
from bench.run.cell import Cell
from bench.run.names import Names
from bench.run.session import Session
from methods import layout
from methods.errors import SetupError
from tests.data.test_sources import make_mirror
from tests.fit_data.test_caa_pairs import make_caa, row
from tests.run.test_smoke import PROMPTS, write_set
from tests.tiny import VOCABULARY, tiny_tokenizer

FIELDS = {"method", "metric", "value", "unsteered", "ours", "source"}
EXPERIMENTS = {path.stem: OmegaConf.load(path) for path in sorted((folders.folder() / "experiment").glob("*.yaml"))}
PAPERS = [name for name, file in EXPERIMENTS.items() if "published" in file]


def wrong_figures(experiment: str) -> Iterator[str]:
    """What the published figures of an experiment lack, a line each."""
    cfg, about = compose.cell([f"experiment={experiment}"])
    if not about.differs:
        yield f"{experiment} says nowhere how it differs from the paper"
    if set(about.needs) != set(NEEDS):
        yield f"{experiment} needs {', '.join(about.needs) or 'nothing'}; wanted are {', '.join(NEEDS)}"
    for figure in about.published:
        ours, numbers = figure.get("ours"), (figure.get("value"), figure.get("unsteered"))
        found = {
            "other fields": FIELDS <= set(figure) <= FIELDS | {"options", "strength"},
            "source": re.search(r"\barXiv \d{4}\.\d{5}\b|^model card of [\w.-]+/[\w.-]+", str(figure.get("source"))),
            "ours": ours is None or re.fullmatch(r"\w+(\.[\w -]+)+", ours),
            "suite": ours is None or ours.partition(".")[0] in cfg.suite,
            "number": all(isinstance(number, int | float | None) for number in numbers),
        }
        yield from (f"{experiment}: {what} of {figure}" for what, sound in found.items() if not sound)


@pytest.mark.every(3)
@pytest.mark.parametrize("experiment", PAPERS)
def test_a_published_figure_says_what_and_where(experiment):
    assert list(wrong_figures(experiment)) == [] and len(PAPERS) > 12


def keys(job: list[str]) -> tuple[str, ...]:
    """What a job sets, whatever to; methods count as different."""
    return tuple(one if one.startswith("method=") else one.partition("=")[0] for one in job)


def wrong_cells(experiment: str) -> Iterator[str]:
    """What is wrong with the cells of an experiment, and with the figures that are held against them, a line each."""
    jobs = compose.jobs([f"experiment={experiment}"], multirun=False)
    asked = [f"{option}=x" for option in compose.cell(jobs[0])[1].asks]
    if len(jobs) < 2:
        yield f"{experiment} has {len(jobs)} cells"
    try:
        for job in {keys(job): job for job in jobs}.values():  # those that set the same keys are alike
            validate.validate([*job, *asked])
        if experiment in PAPERS:
            states = {one["status"] for one in reproduction(experiment, []).rows}
            yield from (f"{experiment}: {state}" for state in states - {"not run", "not measured"})
            yield from () if states else (f"{experiment}: no figure",)
    except SetupError as error:
        yield f"{experiment}: {error}"


@pytest.fixture
def composed_once(monkeypatch):
    """The comparison takes the cells that were validated."""
    composed = functools.cache(compose.cell)
    monkeypatch.setattr(compose, "cell", lambda overrides: copy.deepcopy(composed(tuple(overrides))))


@pytest.mark.usefixtures("composed_once")
@pytest.mark.parametrize(
    "names", [[*EXPERIMENTS][1::13], pytest.param([*EXPERIMENTS], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_it_validates_and_each_published_figure_is_of_one_cell(names):
    assert [told for experiment in names for told in wrong_cells(experiment)] == []


def test_whose_data_are_asked_is_told_what_they_are():
    with pytest.raises(SetupError, match=r"labelled.path has no value; set labelled.path=\.\.\. \(the paper has"):
        validate.validate(["experiment=model_surgery_llama2_7b_chat"])


# -- each runs to its end on a tiny random model with as many blocks as the real one ---------------------------------

SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
LLAMA = SMALL | {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 32, "num_attention_heads": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 24, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}
OPT = SMALL | {"hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 40, "num_hidden_layers": 32}
TINY = {  # conf/model -> the same architecture and number of blocks
    "gpt2_medium": lambda: GPT2Config(**GPT2, n_layer=24),
    "gpt_j_6b": lambda: GPTJConfig(**GPT2, n_layer=28, rotary_dim=4),
    "opt_6_7b": lambda: OPTConfig(**OPT, num_attention_heads=4, pad_token_id=0),
    "llama2_7b": lambda: LlamaConfig(**LLAMA),
    "llama2_7b_chat": lambda: LlamaConfig(**LLAMA),
    "llama3_8b": lambda: LlamaConfig(**LLAMA, num_key_value_heads=2),
    "gemma2_2b": lambda: Gemma2Config(**LLAMA | {"num_hidden_layers": 26}, num_key_value_heads=2, head_dim=6),
    "codellama_7b": lambda: LlamaConfig(**LLAMA),
    "mistral_7b": lambda: MistralConfig(**LLAMA, num_key_value_heads=2),
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
FEWER = [  # of everything; the experiment's method, strength, seeds and manner of decoding stay
    "scorer=[profanity_check]", "runtime.offline=true", "sampling.max_new_tokens=3",
]  # fmt: skip
ASKED = {  # suites that a tiny mirror can answer, with fewer prompts
    "rtp": ["suite.rtp.prompts=3", "suite.rtp.dev_prompts=2", "suite.rtp.k=1", "suite.rtp.dev_k=1"],
    "fluency": [],
    "rtp_act": ["suite.rtp_act.prompts=3", "suite.rtp_act.decoding.max_new_tokens=3"],
    "rtp_challenging": ["suite.rtp_challenging.prompts=3"],
    "rtp_profs": ["suite.rtp_profs.prompts=3"],
    "ab": ["suite.ab.limit=2", "suite.ab.behaviours=[sycophancy]"],
    "jailbreak": ["suite.jailbreak.prompts=2", "suite.jailbreak.decoding.max_new_tokens=3"],
    "sentiment": ["suite.sentiment.prompts=2"],
    "attitude": ["suite.attitude.prompts=2", "suite.attitude.decoding.max_new_tokens=3"],
}
SHORTER = {  # options that cost most
    "probe_rows": ["method.min_steps=20"],
    "stack": ["method.parts.first.min_steps=20", "method.parts.second.min_steps=20"],
    "security_vector": ["method.vector_epochs=1"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Prompts as on the hub, and pairs, examples and texts in files."""
    root = tmp_path_factory.mktemp("world")
    asked = [{"prompt": {"text": p, "toxicity": 0.9}, "challenging": True} for p in PROMPTS]
    write_set(root / "mirror/allenai/real-toxicity-prompts", asked, "train")
    requests = [{"prompt": p, "category": "none"} for p in PROMPTS]
    make_mirror(root / "mirror", "walledai/HarmBench", requests, config="standard")
    reviews = [{"text": f"{p}, film {i}", "label": i % 2} for i, p in enumerate(PROMPTS[:8])]
    make_mirror(root / "mirror", "stanfordnlp/imdb", reviews, "plain_text", "test")
    moods = [{"text": f"{p}, mood {i}", "label": i % 6} for i, p in enumerate(PROMPTS[:12])]
    make_mirror(root / "mirror", "dair-ai/emotion", moods, "split", "test")
    tweets = [{"tweet": f"{p} {'now' if i % 3 else 'not'}", "class": i % 3} for i, p in enumerate(PROMPTS[:12])]
    make_mirror(root / "mirror", "tdavidson/hate_speech_offensive", tweets)
    rows = {
        "labelled": [{"text": p, "label": i % 3 // 2} for i, p in enumerate(PROMPTS[:12])],
        "pairs": [
            {"prompt": prompt, "desired": f" with love {i}", "undesired": f" with hate {i}{i}"}
            for i, prompt in enumerate(PROMPTS[:14])
        ],
        "examples": [{"prompt": p, "completion": " with hate"} for p in PROMPTS[:8]],
        "texts": [{"text": p} for p in PROMPTS[:8]],
        "asked": asked,
    }  # fmt: skip
    make_caa(root, {("sycophancy", split): [row(number) for number in range(6)] for split in ("generate", "test_ab")})
    for name, lines in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


STEERED = [name for name in PAPERS if not name.startswith("capability_")]
QUICK = ("model_surgery_llama2_7b", "detox_gpt2_medium", "act_add_llama3_8b", "caa_llama2_7b_chat")
# one a paper; the others take minutes, and test_examples.py runs fine-tuning and its answer
MANY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STEERED]


@pytest.mark.every(8)
@pytest.mark.parametrize("experiment", MANY)
def test_it_runs_to_its_end_in_miniature(experiment, world, tmp_path):
    composed = compose.compose([f"experiment={experiment}"])
    real, suites = composed.model, [name for name in composed.suite if name in ASKED]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY[real.name]()).save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer(real.bos)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    places = [place for place in ("labelled", "part_data.second.labelled")
              if OmegaConf.select(composed, f"{place}._target_", default="").endswith("LabelledFile")]  # fmt: skip
    letters, behaviour = "caa" in experiment, ["pairs.behaviour=sycophancy", "pairs.norm_over.behaviour=[sycophancy]"]
    pairs = ["pairs=file", f"pairs.path={world / 'pairs.jsonl'}"]
    given = [
        f"experiment={experiment}", "model=local", f"model.path={tmp_path / 'model'}", f"model.name={real.name}",
        f"model.dtype={real.dtype}", f"model.bos={real.bos}", f"model.chat={real.chat}",
        f"runtime.mirror={world / 'mirror'}", *(behaviour if letters else pairs),
        "examples=file", f"examples.path={world / 'examples.jsonl'}", "harmful=file",
        f"harmful.path={world / 'examples.jsonl'}", "background=texts", f"background.path={world / 'texts.jsonl'}",
        *[f"{place}.path={world / 'labelled.jsonl'}" for place in places],
        *([f"suite.rtp_act.path={world / 'asked.jsonl'}"] if "rtp_act" in suites else []),
        f"runtime.results={tmp_path / 'results'}", f"runtime.cache={world / 'cache'}", *FEWER,
        f"suite=[{','.join(suites)}]", *[option for name in suites for option in ASKED[name]],
    ]  # fmt: skip
    jobs = compose.jobs(given, multirun=False)
    jobs = [[*job, *next((more for name, more in SHORTER.items() if f"method={name}" in job), [])] for job in jobs]
    cells = [validate.validate(job) for job in jobs]
    assert _compute(cells) == []
    found = [one.record for one in read_records(tmp_path / "results/runs")[0]]
    found = [one for one in found if (one.split, one.suite) == ("test", suites[-1])]
    assert len(found) == len(cells) > 1
    assert {one.method.name for one in found} == {cell.method._target_.split(".")[1] for cell in cells}
    for one in found:
        assert one.model.identity["dtype"] == real.dtype and np.isfinite([m.value for m in one.metrics.values()]).all()


def test_they_set_suites_that_there_are():
    known = set(folders.groups()["suite"])
    assert {name: set(file.get("suite", {})) - known for name, file in EXPERIMENTS.items()} == dict.fromkeys(
        EXPERIMENTS, set()
    )


BLOCKS = {  # arXiv 2405.13967, authors' configs: directions, blocks edited
    "detox_gpt2_medium": (2, range(10, 24)),
    "detox_gpt_j_6b": (10, range(10, 27)),
    "detox_opt_6_7b": (10, range(10, 32)),
    "detox_mistral_7b": (10, range(15, 32)),
}


@pytest.mark.parametrize("experiment", BLOCKS)
def test_profs_edits_the_blocks_of_its_configs(experiment):
    cfg = compose.compose(compose.jobs([f"experiment={experiment}"], multirun=False)[-1])
    model = AutoModelForCausalLM.from_config(TINY[cfg.model.name]())
    edited = layout.layer_range(model, cfg.method.layer_start, cfg.method.layer_stop)
    assert (cfg.method.rank, edited) == BLOCKS[experiment]
    assert cfg.sampling.max_new_tokens == 10 and cfg.sampling.temperature == 0 and cfg.seed.fit == cfg.method.seed == 42


def test_model_surgery_moves_as_many_rows_as_the_paper():
    cfg = compose.compose(compose.jobs(["experiment=model_surgery_llama2_7b"], multirun=False)[-1])
    assert round(cfg.method.row_fraction * 32 * 11008) == 16384  # Table 14
    assert (cfg.strength, cfg.sampling.max_new_tokens, cfg.sampling.temperature) == (1.08, 20, 0)


def test_what_a_config_calls_its_keys_is_no_part_of_an_id(tmp_path, monkeypatch):
    """Pinned while the group was named data and held mirror and offline: stored results stay known."""
    asked = [{"prompt": {"text": f"We walk along road {number}", "toxicity": 0.9}} for number in range(40)]
    write_set(tmp_path / "mirror/allenai/real-toxicity-prompts", asked, "train")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "desired": "b", "undesired": "c"}\n' * 3)
    monkeypatch.setattr(Names, "model", {"wheel": "w"})
    pinned = {
        ("pairs=file", f"pairs.path={tmp_path / 'pairs.jsonl'}"): ("7e267dbc659f", "28e10df2f1cc", "8fd0bef527c3"),
        ("pairs.limit=5",): ("c89054b8b58d", "2d439660a09c", "d5cef506a6b2"),
    }
    general = [f"runtime.mirror={tmp_path / 'mirror'}", "scorer=[lexicon]", "pairs.scorer=lexicon"]
    general += ["tuning.scorer=lexicon", "method=caa", "suite=[rtp,fluency]", "suite.rtp.prompts=10"]
    for own, ids in pinned.items():
        cell = Cell(compose.compose([*general, *own]), Session())
        assert (
            cell.names.fit_id,
            cell.names.source_id("pairs"),
            cell.names.record_id(cell.parts.suites["fluency"], "test", 2.0),
        ) == ids
