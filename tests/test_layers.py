"""Rules of the house: who may import what, who alone touches Hydra, lm-eval and a model's insides, names of tests."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = """
methods stats
console
files
hub
records data
model leaderboard
config scorers plots
suites fit_data report
run
selftest export prefetch agreement rescore reproduction speed dpo_link tampering api
__main__ ls status
steerbench
"""
"""Folders of bench/, and methods, from the bottom to the top: each imports from the lines above its own, and itself."""

PUBLIC = {"bench", "methods"}  # the names that their __init__.py give are loaded when they are asked for
HYDRA = {"config", "run", "model.checkpoint", "__main__"}
LM_EVAL = {"model.lm_eval_adapter", "data.lm_eval_tasks"}
SHARED = (
    "adapter base blockwise broken decoding directions erasing errors folding foreign intervention later layout "
    "layout_search maps optimiser options papers placement positions preference_gradient probes progress recompute "
    "separation sites tokens training training_memory untying vectors verdicts word_list"
).split()
"""Modules of methods/ that its methods may import; the others are methods."""
INSIDES = {f"methods.{name}" for name in ("intervention", "layout", "layout_search", "positions", "sites")}
TOUCH_THE_MODEL = {"model.lm", "model.padding", "model.streams", "selftest", "export"}
NO_TORCH = {
    "stats",
    "console",
    "files",
    "hub",
    "records",
    "leaderboard",
    "plots",
    "report",
    "reproduction",
    "tampering",
    "api",
    "ls",
    "status",
    "steerbench",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it, for types alone included; `from a import b`: a and a.b."""
    found = set()
    package = module_name(path).split(".") + ["x"] * (path.stem == "__init__")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def graph() -> dict[str, set[str]]:
    """Each module of ours with the modules of ours that it imports."""
    names = {module_name(path): path for folder in ("bench", "methods") for path in files(folder)}
    return {name: (imported(path) & set(names)) - {name} for name, path in names.items()}


def room(module: str) -> str:
    top, _, rest = module.partition(".")
    return "methods" if top == "methods" else rest.partition(".")[0]


def within(module: str, places: set[str]) -> bool:
    name = module.removeprefix("bench.")
    return any(name == place or name.startswith(f"{place}.") for place in places)


def under(names: set[str], *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in names for package in packages)


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """Modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen, left = set[str](), [start]
        while left:
            for one in edges[left.pop()] - seen:
                seen.add(one)
                left.append(one)
        reached[start] = seen
    for a, b in itertools.combinations(edges, 2):
        if b in reached[a] and a in reached[b]:
            yield [a, b]


def test_imports_point_to_lower_layers():
    level = {name: number for number, line in enumerate(LAYERS.split("\n")) for name in line.split()}
    edges = graph()
    rooms = {room(name) for name in edges} - {""}
    assert rooms == set(level), "each folder of bench/ has its place in the table"
    wrong = [
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in others
        if not {name, other} & PUBLIC and room(name) != room(other) and level[room(other)] >= level[room(name)]
    ]
    assert wrong == []


def by_public_names(path: Path, known: set[str]) -> list[str]:
    """Imports by which names of bench or methods come from whatever layer, so that no table can say which."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in PUBLIC and not node.level:
            found += [f"from {node.module} import {one.name}" for one in node.names
                      if f"{node.module}.{one.name}" not in known]  # fmt: skip
        if isinstance(node, ast.Import):
            found += [f"import {one.name}" for one in node.names if one.name.partition(".")[0] in PUBLIC]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [f"import_module({one.value})" for one in node.args
                      if isinstance(one, ast.Constant) and str(one.value).partition(".")[0] in PUBLIC]  # fmt: skip
    return found


def test_the_packages_do_not_import_by_public_names():
    known = set(graph())
    wrong = {module_name(path): by_public_names(path, known) for folder in PUBLIC for path in files(folder)}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "text", ["from bench import collect", "from bench import *", "import bench", "import bench.run.cell",
             "from methods import CAA", "import importlib\nimportlib.import_module('bench.run.cell')"]
)  # fmt: skip
def test_the_rule_sees_public_names(text, tmp_path):
    (tmp_path / "x.py").write_text(text)
    known = {"bench.rescore", "bench.run.cell", "methods.base"}
    assert by_public_names(tmp_path / "x.py", known)
    (tmp_path / "x.py").write_text("from bench import rescore\nfrom bench.run import cell\nfrom methods import base\n")
    assert not by_public_names(tmp_path / "x.py", known)


def test_no_two_modules_import_each_other():
    assert list(circles({name: others - PUBLIC for name, others in graph().items() if name not in PUBLIC})) == []


def test_methods_are_a_library_of_their_own():
    shared, known, wrong = {f"methods.{name}" for name in SHARED}, set(graph()), []
    for path in files("methods"):
        me, names = module_name(path), imported(path)
        ours = {name for name in names if name.startswith("methods.") and name.count(".") == 1} & known
        if under(names, "bench", "hydra", "omegaconf") or (me != "methods" and not ours <= shared - {me}):
            wrong.append(f"{me} imports {sorted(ours - shared)}")
    assert wrong == []


def test_bench_knows_no_method_and_few_know_a_library():
    shared, known, wrong = {f"methods.{name}" for name in SHARED}, set(graph()), []
    for path in files("bench"):
        me, names = module_name(path), imported(path)
        ours = {name for name in names if name.startswith("methods.")} & known
        wrong += [f"{me} knows {name}" for name in ours - shared]
        wrong += [f"{me} touches {name}" for name in ours & INSIDES if not within(me, TOUCH_THE_MODEL)]
        wrong += [f"{me}: hydra"] if under(names, "hydra", "omegaconf") and not within(me, HYDRA) else []
        wrong += [f"{me}: lm_eval"] if under(names, "lm_eval") and not within(me, LM_EVAL) else []
        wrong += [f"{me}: torch"] if under(names, "torch", "transformers") and within(me, NO_TORCH) else []
    assert wrong == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("import a.b as c", "a.b"),
        ("from methods import caa", "methods.caa"),
        ("from . import y", "bench.y"),
        ("def f():\n    from .z import w", "bench.z"),
    ],
)
def test_the_rule_sees_every_form_of_import(text, found, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    file = tmp_path / "bench" / "x.py"
    file.write_text(text)
    assert found in imported(file)


LONGEST_NAME = 60


def test_names_of_tests_are_short():
    found = [(path, node.name) for path in files("tests") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.FunctionDef)]  # fmt: skip
    assert len(found) > 1000
    assert [f"{path.name}: {name}" for path, name in found if len(name) > LONGEST_NAME] == []


def test_the_rule_sees_a_circle():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == [["a", "b"], ["a", "c"], ["b", "c"]]
