"""The word filter: an oracle that reads the text, words across tokens, what it leaves alone, learning a list."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from bench.model.lm import Request
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import sample
from methods import word_list
from methods.base import FitData, Pairs
from methods.errors import SetupError
from methods.word_filter import WordFilter, read
from tests.decoding import gap_to_sampling, steered_logits, step
from tests.tiny import metaspace_tokenizer, tiny_lm, tiny_tokenizer

PROMPTS = ["the old tree", "a small bird sings in the", "rain"]
WORDS = ["The", "river", "old", "a", "sings", "olden"]
PAIRS = Pairs(
    ["The fox"] * 6,
    [" sings", " walks home", " is here", " and the bird", " sings here", " walks"],
    [" is Lazy", " is lazy, here", " and hate", " LAZY", " the hate", " is old"],
)
TOKENIZERS = {"bytes": tiny_tokenizer, "metaspace": metaspace_tokenizer}


@pytest.fixture
def listed(tmp_path):
    """A method whose words are in a file."""

    def made(words, **options):
        (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        return WordFilter(words=str(tmp_path / "words.txt"), **options)

    return made


def fit(method, lm, pairs=None):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs))


def completes(words, before, after):
    """Whether a listed word of the text `after` ends in what it has more than `before`."""
    known = {word.casefold() for word in words}
    return any(one.end() > len(before) and one[0].casefold() in known for one in re.finditer(r"\w+", after))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_penalised_tokens_are_those_that_complete_a_word(kind):
    """Over every way in which the tokenizer writes each text, and over byte and letter tokens at random."""
    tokenizer = TOKENIZERS[kind]()
    count = len(tokenizer)
    own = word_list.automaton({word.casefold() for word in WORDS}, word_list.token_texts(tokenizer, count))
    texts = ["The old", "the ol", " o", "fold o", "a big riv", "sing", "b-a and the olde", "t", "walk al", "river"]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    rows += [[one for letter in text for one in tokenizer.encode(letter, add_special_tokens=False)] for text in texts]
    generator = torch.Generator().manual_seed(0)
    rows += torch.randint(3, count, (20, 6), generator=generator).tolist()
    checked = 0
    start = len(tokenizer.decode([*tokenizer("a", add_special_tokens=False).input_ids]))
    for ids in rows:
        given = step(torch.zeros(1, 1, count), ids=torch.tensor([ids]))
        got = own.penalised(given.logits, own.states(given), 1.0)[0, 0]
        assert set(got.unique().tolist()) <= {0.0, -1.0}, "no token twice"
        front = tokenizer("a", add_special_tokens=False).input_ids  # so that no leading space is dropped
        before = tokenizer.decode([*front, *ids])[start:]
        for token in range(count):
            after = tokenizer.decode([*front, *ids, token])[start:]
            if token in tokenizer.all_special_ids or not after.startswith(before) or "\ufffd" in after:
                continue
            assert bool(got[token]) == completes(WORDS, before, after), (before, after)
            checked += bool(got[token])
    assert checked > {"bytes": 50, "metaspace": 5}[kind], "metaspace has single letters alone"


def test_a_token_of_several_words_is_penalised_once():
    texts = ["o", "ld", "ld old", " old", " old, old", "ld,", "x old x", " o"]
    own = word_list.automaton({"old"}, texts)
    got = {}
    for before in (0, 7, 6, 1):  # "o", " o", behind a word, and "ld"
        given = step(torch.zeros(1, 1, 8), ids=torch.tensor([[6, before] if before else [before]]))
        got[before] = own.penalised(given.logits, own.states(given), 1.0)[0, 0].tolist()
    assert got[0] == got[7] == [0, -1, -1, -1, -1, -1, -1, 0]
    assert got[6] == got[1] == [0, 0, -1, -1, -1, 0, -1, 0]


def plainly(own, ids):
    """The state after a row of tokens, one after the other, from the start of the text."""
    state, none = 0, len(own.first) - 2
    ids = [token for token in ids if own.after[token] != word_list.NOTHING]
    going_on = dict(zip(own.key.tolist(), own.to.tolist(), strict=True))
    for token in ids:
        state = int(own.after[token]) if own.after[token] >= 0 else going_on.get(state * len(own.after) + token, none)
    return state


def test_states_of_all_columns_with_padding_anywhere():
    tokenizer = tiny_tokenizer()
    own = word_list.automaton({"river", "olden", "the"}, word_list.token_texts(tokenizer, 300))
    letters = [tokenizer.encode(one, add_special_tokens=False)[0] for one in "river the olden, ol"]
    rows = [letters, letters[3:], [1, *letters[:3], 2, *letters[3:5]]]  # with BOS and EOS, which add no text
    width = len(letters) + 4
    for pads in ((0, 0), (4, 0), (2, 2), (1, 3)):  # so many before the text, the rest in its middle or behind it
        ids, real = torch.full((3, width), letters[0]), torch.zeros(3, width, dtype=torch.bool)  # padded with a letter
        for row, text in enumerate(rows):
            places = [pads[0] + i + (pads[1] if i >= 5 else 0) for i in range(len(text))]
            ids[row, places] = torch.tensor(text)
            real[row, places] = True
        given = step(torch.zeros(3, width, 300), ids=ids)._replace(real=real)
        states = own.states(given)
        for row in range(3):
            for column in real[row].nonzero()[:, 0].tolist():
                text = ids[row, : column + 1][real[row, : column + 1]].tolist()
                assert states[row, column] == plainly(own, text)
        some = torch.tensor([width - 1, 5])
        assert torch.equal(own.states(given._replace(columns=some)), states[:, some])
    assert len(states.unique()) > 6


def test_a_listed_word_is_never_written_at_infinity(listed):
    """Also across tokens: the corpus of the tiny model has hardly a word in one token."""
    lm = tiny_lm()
    words = ["the", "e", "o", "i", "lo", "he"]
    method = listed(words)
    artefact = fit(method, lm)
    prompts = ["People walk al", "an old", "th", "a small bird h", "it said: "]

    def held(texts):
        """Words that end in what was written; the prompt may have begun them."""
        return [
            (prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row
            if completes(words, prompt, prompt + text)
        ]  # fmt: skip

    assert len(held(sample(lm, prompts, 12, 30))) > 5
    with lm.steered(method, artefact, float("inf")) as steered:
        assert held(sample(steered, prompts, 12, 30)) == []


def test_what_merely_holds_a_word_survives(listed):
    lm = tiny_lm()
    method = listed(["al", "alk", "ing"])
    ids = lm.tokenizer(" walk", add_special_tokens=False).input_ids
    assert lm.tokenizer.convert_ids_to_tokens(ids) == ["Ġw", "alk"]
    artefact = fit(method, lm)
    zeros = torch.zeros(1, 3, 300)
    text = [lm.encode(" ")[-1], ids[0], ids[1]]
    got = steered_logits(method, artefact, 4.0, lm.model, step(zeros, ids=torch.tensor([text])))
    alk, al, ing = (lm.tokenizer.convert_tokens_to_ids(one) for one in ("alk", "al", "ing"))
    assert got[0, 0, [alk, al, ing]].tolist() == [-4, -4, -4], "after a space"
    assert got[0, 1, [alk, al, ing]].tolist() == [0, 0, 0], "after ' w'"
    assert got[0, 2, [alk, al, ing]].tolist() == [0, 0, 0], "after ' walk'"


def test_a_likelihood_falls_by_the_words_that_a_text_has(listed):
    """By the penalty each, but for the normaliser, which the oracle takes from the logits."""
    lm = tiny_lm()
    method = listed(["old", "sings"])
    artefact = fit(method, lm)
    context = lm.encode("The quick")
    ids = lm.tokenizer(" old bird sings fold", add_special_tokens=False).input_ids
    rows = torch.tensor([context + ids])
    with torch.no_grad():
        logits = lm.model(rows).logits[0, len(context) - 1 : -1].double()
    words, wanted = ["old", "sings"], 0.0
    for number, token in enumerate(ids):
        known = context[1:] + ids[:number]
        texts = {t: lm.tokenizer.decode([*known, t]) for t in range(3, 300)}
        bad = [t for t, text in texts.items() if completes(words, lm.tokenizer.decode(known), text)]
        moved = logits[number].clone()
        moved[bad] -= 3
        wanted += float(moved.log_softmax(-1)[token])
        if token in bad:
            assert lm.tokenizer.decode(ids[: number + 1]).split()[-1] in words
    with lm.steered(method, artefact, 3) as steered:
        (found,) = likelihoods(steered, [Request(context, ids)])
    assert found.logprob == pytest.approx(wanted, abs=1e-4)
    assert found.logprob < likelihoods(lm, [Request(context, ids)])[0].logprob - 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_likelihood_is_steered_as_sampling_is(architecture, listed):
    lm = tiny_lm(architecture)
    method = listed(["the", "and", "lo"])
    tokens = lm.tokenizer(" and the long", add_special_tokens=False).input_ids
    with lm.steered(method, fit(method, lm), 8) as steered:
        assert gap_to_sampling(steered, PROMPTS, tokens) < 1e-3


def log_odds(undesired, desired, texts):
    return sum(
        sign * torch.tensor([(held + 0.5) / (texts - held + 0.5)], dtype=torch.double).log().item()
        for sign, held in ((1, undesired), (-1, desired))
    )


def test_words_are_learnt_from_the_undesired_texts():
    """Planted: "lazy" is in three undesired texts, "hate" in two, "is" in three and one, "old" in one alone."""
    lm = tiny_lm()
    assert log_odds(3, 0, 6) > log_odds(2, 0, 6) > log_odds(3, 1, 6) > 1 > log_odds(1, 1, 6)

    def learnt(**options):
        return sorted(WordFilter(**options)._learnt(PAIRS))

    assert learnt() == ["hate", "is", "lazy"]
    assert learnt(count=1) == ["lazy"] and learnt(count=2) == ["hate", "lazy"]
    assert learnt(min_texts=1) == ["hate", "is", "lazy", "old"]
    assert learnt(min_log_odds=(log_odds(2, 0, 6) + log_odds(3, 1, 6)) / 2) == ["hate", "lazy"]
    swapped = Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired)
    assert sorted(WordFilter()._learnt(swapped)) == ["sings", "walks"]
    artefact = fit(WordFilter(), lm, PAIRS)
    assert artefact["info.words"] == 3
    assert float(artefact["info.undesired_share"]) == pytest.approx(1.0)
    assert float(artefact["info.desired_share"]) == pytest.approx(1 / 6)


def test_the_same_words_make_the_same_list(listed):
    lm = tiny_lm()
    learnt = fit(WordFilter(), lm, PAIRS)
    given = fit(listed(["Lazy", "", "is", " HATE "]), lm)
    assert learnt.keys() - given.keys() == {"info.undesired_share", "info.desired_share"}
    assert all(torch.equal(given[key], learnt[key]) for key in given)
    digest = hashlib.sha256(b"hate\nis\nlazy").hexdigest()[:13]
    assert f"{int(given['info.list_hash']):013x}" == digest
    assert fit(listed(["lazy", "is"]), lm)["info.list_hash"] != given["info.list_hash"]


def test_a_changed_file_is_another_method(listed):
    one, same, other = listed(["lazy"]), listed(["lazy"]), listed(["hate"])
    assert one == same and one != other and one.file_hash is not None and WordFilter().file_hash is None
    assert (one.needs, WordFilter().needs) == (frozenset(), {"pairs"})
    assert replace(one, count=3).file_hash == other.file_hash, "read again"


def test_strength_zero_is_the_model_itself(listed):
    lm = tiny_lm()
    method = listed(["the"])
    with method.apply(lm.model, fit(method, lm), 0) as steering:
        assert steering.next_logits is None


def test_the_given_logits_stay_as_they_are(listed):
    lm = tiny_lm()
    method = listed(["the"])
    logits = torch.randn(2, 3, 300).bfloat16()
    before = logits.clone()
    ids = torch.full((2, 3), 40)
    got = steered_logits(method, fit(method, lm), 8, lm.model, step(logits, ids=ids))
    assert torch.equal(logits, before) and got.dtype == torch.bfloat16 and not torch.equal(got, logits)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it holds no word"),
        (b"\n \n", "it holds no word"),
        (b"one\ntwo words\n", "line 2 is not one word"),
        (b"can't\n", "line 1 is not one word"),
        (b"caf\xe9\n", "is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_list(tmp_path, content, told):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SetupError, match=rf"method.words=.*list\.txt: .*{told}"):
        read(str(path))
    with pytest.raises(SetupError, match=told):
        WordFilter(words=str(path)).check(tiny_lm().model)


def test_errors_name_no_word(tmp_path):
    """The words may be toxic."""
    path = tmp_path / "list.txt"
    path.write_text("two words\n")
    with pytest.raises(SetupError) as error:
        read(str(path))
    assert "two" not in str(error.value)


@pytest.mark.parametrize("options", [{"count": 0}, {"min_texts": 0}, {"min_log_odds": float("inf")}])
def test_wrong_settings(options):
    with pytest.raises(SetupError, match="at least 1, min_log_odds a finite number"):
        WordFilter(**options).check(tiny_lm().model)


def test_pairs_that_differ_in_no_word():
    lm = tiny_lm()
    with pytest.raises(SetupError, match="no word of at least 2 undesired texts has log odds of"):
        fit(WordFilter(), lm, Pairs(PAIRS.prompt, PAIRS.desired, PAIRS.desired))
    with pytest.raises(SetupError, match="learns from contrast pairs and got none"):
        fit(WordFilter(), lm)


def test_a_word_in_letters_that_no_token_has(listed):
    lm = tiny_lm()
    lm = replace(lm, tokenizer=metaspace_tokenizer())
    with pytest.raises(SetupError, match="no token completes any of the 1 words"):
        fit(listed(["\u4e2d\u6587"]), lm)


def test_an_artefact_of_another_vocabulary(listed):
    lm = tiny_lm()
    method = listed(["the"])
    artefact = fit(method, lm)
    short = artefact | {"after": artefact["after"][:-1]}
    with pytest.raises(SetupError, match="was fitted for 299 tokens, and this model has 300"):
        with method.apply(lm.model, short, 1):
            pass


def test_tokens_beyond_the_tokenizer_are_of_no_word():
    texts = word_list.token_texts(tiny_tokenizer(), 310)
    assert texts[300:] == [""] * 10 and texts[:3] == [""] * 3
    assert len(set(texts)) > 100


def test_a_text_counts_once_however_often_it_has_a_word():
    """Said three times in one text, a word is still in one text of six."""
    pairs = PAIRS._replace(undesired=[" old, old and old", *PAIRS.undesired[1:5], " here"])
    assert "old" not in WordFilter()._learnt(pairs)
    assert "old" in WordFilter(min_texts=1)._learnt(pairs)
