"""Downloads that are cut, that are refused, that do not fit on the disk."""

import errno
import os

import pytest

from bench.files.digests import DamagedError
from bench.hub import download
from bench.hub.failures import MissingError, Repo, UnreachableError
from bench.hub.listing import listing
from bench.model import checkpoint
from methods.errors import SetupError
from tests.hub.test_models import NAME, node
from tests.hub_server import TOKEN, Handler

MODEL = Repo("model", NAME, "model")
WEIGHTS = os.urandom(300_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)


def fetched(offline=False):
    found = listing(MODEL, "main", offline)
    return (download.fetch(MODEL, found, found.files, offline) / "model.safetensors").read_bytes()


def test_a_download_that_is_cut_goes_on_at_once(hub):
    hub.add("models", NAME, FILES)
    hub.fails("/large/", cut=100_000, times=2)
    assert fetched() == WEIGHTS
    assert len(hub.ranges) == 2 and sum(hub.bytes_sent[path] for path in hub.bytes_sent if "large" in path) < 301_000


def test_a_stopped_download_goes_on_in_the_next_command(hub):
    hub.add("models", NAME, FILES)
    fault = hub.fails("/large/", cut=40_000)
    blocked = hub.fails("/resolve/.*safetensors", status=500)
    hub.faults.remove(blocked)
    fault.times = 1
    hub.faults.append(blocked)
    blocked.pattern = "/large/"  # after the cut nothing comes any more
    with pytest.raises(UnreachableError, match="model.safetensors of the model org/tiny.*what was fetched is kept"):
        fetched()
    hub.faults.clear()
    before = sum(hub.bytes_sent.values())
    assert fetched() == WEIGHTS
    assert hub.ranges == ["bytes=40000-"] or hub.ranges[-1] == "bytes=40000-"
    assert sum(hub.bytes_sent.values()) - before < 265_000
    assert fetched(offline=True) == WEIGHTS


def test_what_arrives_with_other_bytes_is_thrown_away(hub):
    commit = hub.add("models", NAME, FILES)
    found = listing(MODEL, "main")
    wrong = found._replace(files=found.files | {"model.safetensors": found.files["model.safetensors"]._replace(
        sha256="0" * 64)})  # fmt: skip
    with pytest.raises(SetupError, match="model.safetensors of the model org/tiny arrived with other bytes"):
        download.fetch(MODEL, wrong, wrong.files)
    assert fetched() == WEIGHTS and found.commit == commit


def test_a_byte_that_flips_in_the_cache_is_found(hub):
    hub.add("models", NAME, FILES)
    fetched()
    found = listing(MODEL, "main")
    blob = (download.fetch(MODEL, found, found.files) / "model.safetensors").resolve()
    blob.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    with pytest.raises(DamagedError, match="is not the file that the hub has; delete .*, and it is fetched again"):
        fetched(offline=True)


def test_a_full_disk_says_what_is_full_and_how_to_move_the_cache(hub, monkeypatch, tmp_path):
    hub.add("models", NAME, FILES)
    real = download.Path.open

    class Full:
        """A file of a disk that has room for 30,000 bytes."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, content):
            if self.file.tell() + len(content) > 30_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

    monkeypatch.setattr(download.Path, "open", lambda self, mode="r", *more, **named: (
        Full(real(self, mode)) if self.suffix == ".part" and "a" in mode else real(self, mode, *more, **named)
    ))  # fmt: skip
    with pytest.raises(SetupError, match=rf"the disk of {tmp_path / 'hub'} is full \(.* GB are free\)") as caught:
        fetched()
    assert "model.safetensors of the model org/tiny (0.00 GB)" in str(caught.value)
    assert "HF_HUB_CACHE=FOLDER" in str(caught.value) and "what has arrived is kept" in str(caught.value)
    monkeypatch.setattr(download.Path, "open", real)
    assert fetched() == WEIGHTS and hub.ranges == ["bytes=30000-"]


# -- what the hub says -----------------------------------------------------------------------------------------------


def test_a_gated_model_without_a_login_says_how_to_log_in(hub, monkeypatch):
    hub.add("models", NAME, FILES, gated=True)
    with pytest.raises(SetupError, match="the model org/tiny is gated.*hf auth login.*HF_TOKEN") as caught:
        checkpoint.identity(node(id=NAME))
    assert "https://huggingface.co/org/tiny" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(SetupError, match="is gated"):
        checkpoint.identity(node(id=NAME))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetched() == WEIGHTS


@pytest.mark.parametrize("status", [500, 502, 503, 429])
@pytest.mark.parametrize("pattern", ["/api/models", "config.json", "model.safetensors"])
def test_an_error_of_the_hub_is_never_a_missing_file(hub, pattern, status):
    hub.add("models", NAME, FILES)
    hub.fails(pattern, status=status)
    with pytest.raises(SetupError, match="so it is not known whether it is there.*same command again") as caught:
        fetched()
    assert not isinstance(caught.value, MissingError) and str(status) in str(caught.value)
    hub.faults.clear()
    assert fetched() == WEIGHTS


def test_a_hub_that_is_not_reached_is_not_one_that_lacks_it(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="could not be asked for main of the model org/tiny"):
        listing(MODEL, "main")
    with pytest.raises(
        SetupError, match="model.revision=main is not a commit, and the commit of .* could not be looked up.*COMMIT"
    ) as caught:
        checkpoint.identity(node(id=NAME))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 500])
def test_no_message_repeats_a_password_or_a_signature(hub, monkeypatch, status):
    hub.add("models", NAME, FILES)
    ours = hub.url.replace("://", "://somebody:s3cret@")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", ours)
    send = Handler.send_header
    signed = "?Expires=9&Signature=s3cret"
    monkeypatch.setattr(
        Handler, "send_header", lambda self, key, value: send(self, key, value + signed * (key == "Location"))
    )
    for pattern in ("/large/", "/api/models"):
        hub.fails(pattern, status=status)
        with pytest.raises(UnreachableError, match=str(status)) as caught:
            fetched()
        assert "s3cret" not in str(caught.value) and (
            "/large/" in str(caught.value) or "127.0.0.1" in str(caught.value)
        )


def test_a_token_that_can_be_none_is_named_without_it(hub, monkeypatch):
    hub.add("models", NAME, FILES, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr\u00e9t")
    with pytest.raises(
        SetupError, match="the token for the hub holds a character that no token has.*HF_TOKEN"
    ) as caught:
        fetched()
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("answer", [[], {"sha": None, "siblings": []}])
def test_an_answer_of_something_else_is_not_taken_for_the_hubs(hub, monkeypatch, answer):
    hub.add("models", NAME, FILES)
    real = Handler.json
    monkeypatch.setattr(Handler, "json", lambda self, value: real(self, value | answer if answer else answer))
    with pytest.raises(UnreachableError, match="is not the hub.*HF_ENDPOINT"):
        fetched()


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_hub(hub, tmp_path):
    hub.add("models", NAME, FILES)
    (tmp_path / "hub").write_text("a file in the place of the folder")
    with pytest.raises(SetupError, match="cannot be kept in the cache.*HF_HUB_CACHE=FOLDER") as caught:
        fetched()
    assert not isinstance(caught.value, UnreachableError)


def test_a_revision_of_null_is_refused(hub):
    with pytest.raises(SetupError, match="model.revision=None: expected a commit or branch of org/tiny"):
        checkpoint.identity(node(id=NAME, revision=None))


def test_what_is_not_there_is_named(hub):
    with pytest.raises(MissingError, match="the hub shows no model org/tiny: is the name right"):
        checkpoint.identity(node(id=NAME))
    hub.add("models", NAME, {"model.safetensors": WEIGHTS})
    with pytest.raises(MissingError, match="no revision v9 of the model org/tiny; set model.revision=COMMIT"):
        checkpoint.identity(node(id=NAME, revision="v9"))
    with pytest.raises(SetupError, match="has no config.json"):
        checkpoint.identity(node(id=NAME))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "adapter_config.json": b"{}"}, "is an adapter"),
        ({"config.json": b"{}", "model.gguf": b"x"}, "has no weights in a format"),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'},
         "names model-1.safetensors|lacks a part of its weights: model-1.safetensors"),
    ],
)  # fmt: skip
def test_repositories_that_are_no_whole_model(hub, files, message):
    hub.add("models", NAME, files)
    with pytest.raises(SetupError, match=message):
        checkpoint.identity(node(id=NAME))
