"""What a notebook user types: the names of `methods` and `bench`, what importing them costs, and README's example."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import methods
from bench.model.sampling import sample
from methods import layout
from tests.tiny import tiny_lm

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "hydra", "omegaconf", "lm_eval", "pandas", "matplotlib")
PAIRS = methods.Pairs(["The quick brown", "People walk"], [" fox jumps", " and talk"], [" dog is lazy", " in hate"])


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY this code imports."""
    told = python(f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])")
    assert told.returncode == 0, told.stderr
    return set(told.stdout.split())


def lazy_names(package) -> tuple[set[str], set[str]]:
    """The names that type checkers see, and those that the package gives."""
    (block,) = (one for one in ast.parse(Path(package.__file__).read_text()).body if isinstance(one, ast.If))
    return {alias.asname for node in block.body for alias in node.names}, set(package.__all__)


def test_importing_the_methods_costs_nothing():
    assert loaded_by("import methods; dir(methods); methods.SetupError") == set()


def test_every_name_of_methods_is_there_and_explained():
    seen, given = lazy_names(methods)
    assert seen == given <= set(dir(methods))
    for name in given - {"Artefact"}:
        assert getattr(methods, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'methods' has no attribute 'CAAA'"):
        getattr(methods, "CAAA")  # noqa: B009


def test_every_method_is_public():
    classes = {getattr(methods, name) for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    names = {one.name for one in classes if hasattr(one, "name")}
    assert names == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}


def test_the_example_in_the_readme_runs_without_bench_and_hydra(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    after = "import sys; assert not {'bench', 'hydra'} & set(sys.modules)"
    ran = python(f"{code.replace('FOLDER', str(tmp_path))}\n{after}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("<s>The weather today is") and len(ran.stdout) > 40


@pytest.mark.parametrize("scope", ["generation", "prompt", "all"])
def test_generate_is_steered_as_our_own_sampling_is(scope):
    """A batch with padding on the left, greedy, against bench.sample at temperature 0."""
    lm = tiny_lm()
    method = methods.CAA(layer=2, scope=scope)
    artefact = method.fit(lm.model, lm.tokenizer, methods.FitData(pairs=PAIRS))
    prompts = ["The old tree near the river", "We"]
    lm.tokenizer.padding_side = "left"
    inputs = lm.tokenizer(prompts, return_tensors="pt", padding=True)
    texts = {}
    for strength in (0.0, 8.0):
        with method.apply(lm.model, artefact, strength), methods.generating(lm.model):
            ids = lm.model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
        texts[strength] = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        with lm.steered(method, artefact, strength) as steered:
            wanted = sample(steered, prompts, num_samples=1, max_new_tokens=12, temperature=0)
        assert texts[strength] == [prompt + text for prompt, (text,) in zip(prompts, wanted, strict=True)]
    assert texts[0.0] != texts[8.0]
    assert not lm.model._forward_pre_hooks


def test_steering_that_needs_positions_says_how_to_give_them():
    lm = tiny_lm()
    method = methods.CAA()
    artefact = method.fit(lm.model, lm.tokenizer, methods.FitData(pairs=PAIRS))
    with (
        method.apply(lm.model, artefact, 1.0),
        pytest.raises(RuntimeError, match=r"inside `with methods\.generating\(model\)`"),
    ):
        lm.model(input_ids=torch.tensor([[1, 5]]))
    assert not any(block._forward_hooks for block in layout.blocks(lm.model))
