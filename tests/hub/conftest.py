"""A hub on this machine, to which the hub's client is pointed; every cache is a folder of the test."""

import pytest

from bench.data import sources
from bench.model import checkpoint
from tests.hub_server import Hub, serving


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    with serving() as found:
        client(found, tmp_path, monkeypatch)
        yield found
    forget()


def client(hub: Hub, tmp_path, monkeypatch) -> None:
    """Let the client of this process ask that hub, and keep what it gets in a folder of the test."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    assert constants.ENDPOINT == hub.url
    monkeypatch.setenv("STEERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    forget()


def forget() -> None:
    """What this process remembers, as a new one would not."""
    for cached in (
        checkpoint.commit, checkpoint._text_rules, checkpoint._skeleton, sources._locate, sources._local_rows,
    ):  # fmt: skip
        cached.cache_clear()
