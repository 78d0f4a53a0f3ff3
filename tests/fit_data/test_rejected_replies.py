import pytest

from bench.data.sources import Sources
from bench.fit_data.rejected_replies import CONFIG, HH, SPLIT, RejectedReplies, exchange
from methods.base import Examples
from methods.errors import SetupError
from tests.data.test_sources import make_mirror

DIALOGUES = [f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Ask {i}\n\nAssistant: Reply {i}." for i in range(20)]
REFUSED = "\n\nHuman: Ask 30\n\nAssistant: I cannot do that."
UNANSWERED = "\n\nHuman: Ask 31\n\nAssistant:"


def replies(root, rows, **options) -> RejectedReplies:
    make_mirror(root, HH, rows, config=CONFIG, split=SPLIT)
    return RejectedReplies(sources=Sources(mirror=str(root), cache=root / "cache", offline=True), **options)


@pytest.fixture
def source(tmp_path) -> RejectedReplies:
    rows = [{"chosen": "no", "rejected": text} for text in [REFUSED, UNANSWERED, *DIALOGUES, DIALOGUES[0]]]
    return replies(tmp_path, rows, count=20, template="Q: {prompt}\nA:")


def test_an_example_is_the_last_request_with_its_reply(source):
    examples, facts = source.load(None)
    assert set(zip(*examples, strict=True)) == {(f"Q: Ask {i}\nA:", f" Reply {i}.") for i in range(20)}
    assert facts["texts"] == 20 and facts["sources"][0]["config"] == CONFIG


def test_skip_splits_two_sets(source):
    first, second = (
        RejectedReplies(sources=source.sources, count=8, skip=skip, template=source.template).load(None)[0]
        for skip in (0, 8)
    )
    both = source.load(None)[0]
    assert Examples(first.prompt + second.prompt, first.completion + second.completion) == Examples(
        both.prompt[:16], both.completion[:16]
    )


def test_the_hash_and_not_the_file_gives_the_order(source, tmp_path):
    rows = [{"chosen": "no", "rejected": text} for text in reversed(DIALOGUES)]
    assert replies(tmp_path / "other", rows, count=20, template=source.template).load(None)[0] == source.load(None)[0]


def test_refusals_and_empty_replies_do_not_count(source):
    with pytest.raises(SetupError, match="21 were asked for, and there are 20; lower count or skip"):
        RejectedReplies(sources=source.sources, count=21).load(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"count": 0}, "count=0"), ({"skip": -1}, "skip=-1"), ({"template": "Q:"}, "has no {prompt}")],
)
def test_options_that_cannot_be_right_are_refused(source, options, message):
    with pytest.raises(SetupError, match=message):
        RejectedReplies(sources=source.sources, **options).check()


def test_a_copy_without_its_column_is_refused(tmp_path):
    with pytest.raises(SetupError, match="no column rejected; it has chosen"):
        replies(tmp_path, [{"chosen": "a"}]).load(None)


def test_the_recipe_names_all_that_changes_the_examples(source):
    other = {"count": 9, "skip": 1, "template": "{prompt}"}
    ids = [str(RejectedReplies(sources=source.sources, **{key: one}).identity()) for key, one in other.items()]
    assert len({*ids, str(RejectedReplies(sources=source.sources).identity())}) == 4


def test_an_exchange_may_lack_a_part():
    assert exchange("\n\nHuman: A\n\nAssistant: B\n\nHuman: C") == ("A", "B")
    assert exchange("plain text") == ("", "plain text")
