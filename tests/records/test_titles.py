"""Titles of methods, read without importing them."""

import importlib
import os
import subprocess
import sys

import methods
from bench.records import titles
from methods import base


def test_every_method_has_the_title_of_its_class():
    known = [getattr(methods, name) for name in methods.__all__]
    classes = [one for one in known if isinstance(one, type) and "name" in vars(one)]
    assert len(classes) >= 11
    assert {one.name: titles.title(one.name) for one in classes} == {one.name: one.title or one.name for one in classes}
    assert base.title(importlib.import_module("methods.caa").CAA()) == titles.title("caa")


def test_a_control_has_the_title_of_its_method():
    assert titles.title("caa control") == "CAA control"
    assert titles.title("of no package") == "of no package"


def test_a_title_with_the_name_in_brackets_unless_they_are_alike():
    """A title that ends in brackets takes the name into them."""
    assert titles.with_names(["caa", "probe_rows", "detox", "detox control", "unknown"]) == {
        "caa": "CAA", "probe_rows": "Model Surgery (probe_rows)", "detox": "DeTox (ProFS; detox)",
        "detox control": "DeTox (ProFS; detox) control", "unknown": "unknown",
    }  # fmt: skip


def test_titles_that_two_methods_share_are_their_names(monkeypatch):
    monkeypatch.setattr(titles, "theirs", lambda: {"a": "Same", "b": "Same", "c": "Other"})
    assert titles.called(["a", "b", "c"]) == {"a": "a", "b": "b", "c": "Other"}


def test_only_what_states_both_as_strings_counts():
    good = "class A:\n    name: ClassVar[str] = 'a'\n    title: ClassVar[str] = 'The A'\n"
    bad = "class B:\n    name: ClassVar[str] = 'b'\n    title: ClassVar[str] = made()\n"
    assert dict(titles.in_source(good + bad)) == {"a": "The A"}
    assert dict(titles.in_source("class :")) == {}


def test_a_plugin_that_is_not_there_has_no_sources(tmp_path, monkeypatch):
    (tmp_path / "lone_module_of_a_method.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert titles.sources("lone_module_of_a_method") == [tmp_path / "lone_module_of_a_method.py"]
    assert titles.sources("no_such_package_at_all") == []


def test_torch_is_not_imported():
    code = "import sys; from bench.records import titles; titles.title('caa'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
