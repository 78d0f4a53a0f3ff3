"""Names of the cells of a sweep: cells of one name are told apart by the settings in which they differ."""

from dataclasses import dataclass
from itertools import product

from omegaconf import DictConfig, OmegaConf

from bench.run import told_apart


@dataclass
class Named:
    """What the names are made of: a label and a config."""

    cfg: DictConfig

    def label(self) -> str:
        return "caa"


def of(*settings):
    return told_apart.labels([Named(OmegaConf.create(one)) for one in settings])


def test_long_values_are_compared_whole():
    first, second = of({"pairs": {"path": "x" * 90 + "a"}}, {"pairs": {"path": "x" * 90 + "[b]"}})
    assert first.endswith("xa") and second.endswith("x[b]")


def test_as_many_settings_are_named_as_tell_all_apart():
    names = of(*({"a": a, "b": b, "c": c, "d": d} for a, b, c, d in product((0, 1), repeat=4)))
    assert len(set(names)) == 16
    assert of({"a": 0, "b": 0, "c": 0, "d": 0}, {"a": 1, "b": 1, "c": 1, "d": 1}) == [
        "caa a=0 b=0 c=0 ...", "caa a=1 b=1 c=1 ...",
    ]  # fmt: skip


def test_what_is_printed_beside_may_tell_them_apart_already():
    cells = [Named(OmegaConf.create({"strength": one})) for one in (1, 2)]
    assert told_apart.labels(cells) == ["caa strength=1", "caa strength=2"]
    assert told_apart.labels(cells, [1, 2]) == ["caa", "caa"]
