import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = {"peft", "vaderSentiment", "optuna", "hydra_plugins", "ray"}
"""Packages, by the names that are imported, that an installation without extras has not."""
HIDE = f"""
import sys
HIDDEN = {sorted(OPTIONAL)}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def without_extras(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", HIDE + code], cwd=ROOT, capture_output=True, text=True)


def plain(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower()


def test_an_extra_is_what_nothing_else_needs():
    mandatory = {plain(one) for one in PROJECT["dependencies"]}
    extras = {plain(one) for name, own in EXTRAS.items() if name not in ("all", "dev") for one in own}
    plugins = {one for one in extras if one.endswith("-launcher")}
    assert extras - plugins == {name.lower() for name in OPTIONAL - {"hydra_plugins"}} and not extras & mandatory
    (every,) = EXTRAS["all"]
    assert set(re.findall(r"\w+", every)) - {"steerbench"} == set(EXTRAS) - {"all", "dev", "ray"}, "Ray is large"
    assert "steerbench[all]" in EXTRAS["dev"], "make installs .[dev]"
    pinned = {plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.replace("_", "-") for name in extras | mandatory} - {"pip"} <= {
        one.replace("_", "-") for one in pinned
    }


IMPORTED_AS = {
    "alt-profanity-check": "profanity_check", "hydra-core": "hydra", "lm-eval": "lm_eval",
    "pyspellchecker": "spellchecker", "pyyaml": "yaml", "scikit-learn": "sklearn",
}  # fmt: skip
"""Distributions whose package has another name."""


def test_what_is_imported_is_declared_and_nothing_else():
    found = set()
    for path in [*(ROOT / "bench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    ours = {"bench", "methods", "submitit", "joblib"}  # the last two come with their launchers
    declared = {IMPORTED_AS.get(one, one.replace("-", "_")) for one in map(plain, PROJECT["dependencies"])}
    others = {"pip", "accelerate"}  # run as a command; needed by transformers for GGUF
    assert found - set(sys.stdlib_module_names) - ours - OPTIONAL == declared - others


def test_the_page_says_which_extra_all_leaves_out():
    (every,) = EXTRAS["all"]
    apart = set(EXTRAS) - {"all", "dev"} - set(re.findall(r"\w+", every))
    said = " ".join((ROOT / "conf/README.md").read_text().split())
    assert apart == {"ray"} and "`'.[all]'` installs all of them but Ray, which is large (`'.[ray]'`" in said
    assert "installs them all" not in said


def test_every_extra_that_a_message_names_is_there():
    named = set()
    for path in [*(ROOT / "bench").rglob("*.py"), *(ROOT / "methods").glob("*.py")]:
        text = path.read_text()
        named |= set(re.findall(r"steerbench\[(\w+)\]", text)) | set(re.findall(r'require\(.*"(\w+)"\)', text))
    assert named == set(EXTRAS) - {"all", "dev"}


NEEDED = {  # code -> what it says where its extra is missing
    "import bench.export.__main__ as t; sys.exit(t.main(['method=caa', 'strength=1', 'format=peft']))":
        "format=peft needs peft; run: pip install 'steerbench[export]'",
    "from methods import SecurityVector; SecurityVector().check(None)":
        "method=security_vector needs peft; run: pip install 'steerbench[security_vector]'",
    "from methods import DPO; DPO().check(None)":
        "method=dpo needs peft; run: pip install 'steerbench[adapters]'",
    "from bench.scorers.vader import Vader; Vader()":
        "scorer=vader needs vaderSentiment; run: pip install 'steerbench[sentiment]'",
    "from bench.config.hydra_launcher import launcher_of as t; t(['launcher=ray'], [], None, None).__enter__()":
        "launcher=ray needs ray; run: pip install 'steerbench[ray]'",
    "import tests.run.test_search as t; t.asked(t.Plain(), search='tpe', trials=5)":
        "tuning.search=tpe needs Optuna; run: pip install 'steerbench[tpe]', or set tuning.search=random",
}  # fmt: skip


@pytest.mark.slow
def test_without_extras_all_imports_work_and_errors_name_them():
    """And what is hidden is hidden. One process: each would import torch for seconds."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in ("bench", "methods")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    ran = without_extras(f"""
import importlib
for name in {modules}:
    importlib.import_module(name)
for name in HIDDEN:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{{name}} is there")
for code in {[*NEEDED]}:
    try:
        exec(code, {{"sys": sys}})
        sys.exit("it ran: " + code)
    except Exception as error:
        print(error, file=sys.stderr)
    except SystemExit as end:
        assert end.code == 2, end.code
    print("--", file=sys.stderr)
""")
    assert ran.returncode == 0, ran.stderr
    told = ran.stderr.split("--\n")[:-1]
    assert [message in text for message, text in zip(NEEDED.values(), told, strict=True)] == [True] * len(NEEDED)


@pytest.mark.slow
def test_a_wheel_in_another_folder_has_conf_and_runs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".yaml")}
    assert inside == {f"bench/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "steerbench = bench.steerbench:script" in archive.read(entries).decode()
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    code = "import bench.config.compose as c, bench.run.validate as v; print(c.folder()); v.validate(['method=caa'])"
    elsewhere = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == str(tmp_path / "site" / "bench" / "conf")
