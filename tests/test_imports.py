"""Who may import what: the rule that keeps a method one file and a suite ignorant of methods."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("bench", "methods") for path in (ROOT / folder).rglob("*.py"))
SHARED = {"methods.base", "methods.errors", "methods.anatomy", "methods.intervention", "methods.directions"}
SHARED |= {"methods.broken", "methods.fitting", "methods.tokens", "methods.training"}
HYDRA = {"bench.__main__", "bench.config", "bench.config_checks", "bench.runner", "bench.cell", "bench.models"}
HYDRA |= {"bench.plugins"}
LM_EVAL = {"bench.likelihood", "bench.suites.tasks"}
TOUCH_THE_MODEL = {"bench.lm", "bench.selftest", "bench.export"}  # may use methods.intervention and methods.anatomy


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    found = set()
    package = module_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str], package: str) -> set[str]:
    """Of `names`, the modules of a package of ours."""
    existing = {module_name(path) for path in FILES}
    return {name for name in names if name in existing and name.startswith(f"{package}.")}


def under(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_import_rule(path: Path):
    me, names = module_name(path), imported(path)
    if me.startswith("methods"):
        assert not under(names, "bench") and not under(names, "hydra"), "methods are a library of their own"
        assert ours(names, "methods") <= SHARED - {me}, "a method never imports a sibling"
    else:
        touches = me in TOUCH_THE_MODEL or under({me}, "bench.exports")
        allowed = {"methods.base", "methods.broken", "methods.errors", "methods.fitting", "methods.tokens"} | (
            {"methods.intervention", "methods.anatomy"} if touches else set()
        )
        assert ours(names, "methods") <= allowed, "only conf/ knows a particular method"
        assert me in HYDRA or not (under(names, "hydra") or under(names, "omegaconf"))
        assert me in LM_EVAL or not under(names, "lm_eval")


def test_the_rule_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    file = tmp_path / "bench" / "x.py"
    file.write_text("import a.b as c\nfrom methods import caa\nfrom . import y\ndef f():\n    from .z import w\n")
    assert imported(file) >= {"a.b", "methods.caa", "bench.y", "bench.z"}
