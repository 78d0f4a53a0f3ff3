"""`python -m bench.dpo_link`: subspaces of a fit beside the gradient of DPO's first step."""

import json

import pandas as pd
import pytest

from bench import dpo_link
from tests.methods.test_contract import PAIRS
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    rows = [{"prompt": p, "desired": d, "undesired": u} for p, d, u in zip(*PAIRS, strict=True)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=local", f"model.path={root / 'model'}", "pairs=file", f"pairs.path={root / 'pairs.jsonl'}",
        f"runtime.cache={root / 'cache'}",
    ]  # fmt: skip


def test_each_layer_has_its_share_beside_random_ones(settings, tmp_path, capsys):
    assert dpo_link.main([*settings, "method.layer_start=1", "method.rank=2", "--results", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "dpo_link.csv")
    assert frame["layer"].tolist() == [1, 2, 3, 4] and set(frame["rank"]) == {2} and set(frame["width"]) == {36}
    (fit,) = (path.name for path in (tmp_path / "runs" / "artefacts").iterdir())
    assert set(zip(frame["model"], frame["method"], frame["fit_id"], strict=True)) == {("local", "detox", fit)}
    assert frame["expected"].tolist() == pytest.approx([2 / 36] * 4)
    assert (frame["random_low"] <= frame["random"]).all() and (frame["random"] <= frame["random_high"]).all()
    assert frame["share"].between(0, 1).all() and set(frame["pairs"]) == {len(PAIRS.prompt)}
    assert (tmp_path / "figures" / "dpo_link.png").stat().st_size > 1000
    assert "expected" in capsys.readouterr().out


def test_a_method_without_subspaces_is_refused(settings, tmp_path, capsys):
    assert dpo_link.main([*settings, "method=caa", "--results", str(tmp_path)]) == 2
    assert "does not learn a subspace" in capsys.readouterr().err
