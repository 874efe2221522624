"""Vocabularies of words and byte pairs: what they keep of a text, what they count, and whole runs with them."""

from __future__ import annotations

import json
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmfast.command.main import main
from lstmfast.data import Batches, load_corpus
from lstmfast.text import corpus as corpus_module
from lstmfast.text import files, tokens
from lstmfast.text.tokens import KINDS, TokenVocabulary, vocabulary_from_json
from lstmfast.training import checkpoint
from lstmfast.training.config import Config, DataConfig, ModelConfig
from lstmfast.training.run_folder import load_model

TEXT = (
    "The cat's tail, says Ann, is \u00e9l\u00e9gant.\n    def f(x):\n\n\treturn 3\n"
    "the cat sat; the Cat sat <unk> again!\n"
) * 20
kinds = pytest.mark.parametrize("kind", KINDS)


def test_a_missing_library_is_one_sentence_with_the_way_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["train", str(tmp_path / "text.txt"), "--vocabulary", "bpe", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "lstmfast: error: vocabularies of words and byte pairs need the tokenizers library: "
        "pip install lstmfast[tokenizers]\n"
    )


pytest.importorskip("tokenizers")


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request):
    return TokenVocabulary.train(request.param, 300, [TEXT])


@pytest.fixture(scope="module")
def byte_pairs():
    return TokenVocabulary.train("bpe", 300, [TEXT])


@pytest.fixture(scope="module")
def words():
    return TokenVocabulary.train("words", 300, [TEXT])


def write(path: Path, content: str) -> str:
    path.write_bytes(content.encode())
    return str(path)


# --- encoding and decoding --------------------------------------------------------------------------------------------


@given(text=st.text())
def test_byte_pairs_give_every_text_back(byte_pairs, text):
    assert byte_pairs.decode(byte_pairs.encode(text)) == text


def test_byte_pairs_cut_within_a_character_decode_to_replacement_characters(byte_pairs):
    ids = byte_pairs.encode("\U0001f600")
    assert byte_pairs.decode(ids[:1]) == "\ufffd"


def test_words_give_the_text_they_were_learnt_from_back_with_its_white_space(words):
    assert words.decode(words.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog sat", "the <unk> sat"),
        ("THE cat", "<unk> cat"),
        ("the\ndog\nsat", "the\n<unk>\n<unk>"),
        ("<unk> again, <unk>", "<unk> again, <unk>"),
        ("", ""),
    ],
)
def test_words_that_are_not_in_the_vocabulary_become_one_unknown_word(words, text, expected):
    assert words.decode(words.encode(text)) == expected


def test_a_small_vocabulary_keeps_the_most_frequent_words():
    vocabulary = TokenVocabulary.train("words", 3, [" b a b a b c\n"])
    assert [vocabulary.decode([id]) for id in range(vocabulary.size)] == ["<unk>", " b", " a"]


def test_pieces_of_ids_decode_as_the_whole(vocabulary):
    ids = vocabulary.encode("the dog \u00e9l\u00e9gant\ndog <unk> \U0001f600")
    decode = vocabulary.decoder(after_space=True)
    assert "".join(decode(ids[k : k + 1], k == len(ids) - 1) for k in range(len(ids))) == vocabulary.decode(ids)


def test_half_a_character_is_refused_by_its_position(vocabulary):
    with pytest.raises(ValueError, match=r"prime: character '\\ud800' at position 1 is half of a character"):
        vocabulary.encode("a\ud800", where="prime")


@pytest.mark.parametrize("ids", [[-1], [10**6], [0.5]])
def test_decoding_ids_outside_the_vocabulary_names_the_range(vocabulary, ids):
    with pytest.raises(ValueError, match=rf"ids must be integers from 0 to {vocabulary.size - 1}"):
        vocabulary.decode(ids)


@pytest.mark.parametrize(("size", "dtype"), [(256, "<u1"), (257, "<u2")])
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(size, dtype):
    assert TokenVocabulary.train("bpe", size, [TEXT]).encode("a").dtype == dtype


@kinds
def test_the_same_text_gives_the_same_vocabulary_in_another_process(kind, tmp_path):
    script = (
        "import sys; from lstmfast.text.tokens import TokenVocabulary\n"
        "print(TokenVocabulary.train(sys.argv[1], 400, [open(sys.argv[2]).read()]).tokenizer)"
    )
    text = "".join(random.Random(0).choices(["ab ", "ba ", "cab", "\n", "bac ", "acab "], k=3000))
    command = [sys.executable, "-c", script, kind, write(tmp_path / "text.txt", text)]
    found = {subprocess.check_output(command, text=True) for _ in range(3)}
    assert len(found) == 1


def test_a_vocabulary_survives_its_json_and_a_pickle(vocabulary):
    stored = json.loads(json.dumps(vocabulary.to_json()))
    assert vocabulary_from_json(stored) == vocabulary == pickle.loads(pickle.dumps(vocabulary))


@pytest.mark.parametrize(
    "stored",
    [
        {"kind": "syllables", "tokenizer": "{}"},
        {"kind": "bpe", "tokenizer": "not JSON"},
        {"kind": "bpe", "tokenizer": '{"model": {"vocab": {"a": 1}}}'},
        {"kind": "bpe", "tokenizer": None},
        {"kind": "bpe", "tokenizer": "{}", "symbols": ""},
    ],
)
def test_json_that_is_no_vocabulary_is_refused(stored):
    with pytest.raises(ValueError, match="vocabulary"):
        vocabulary_from_json(stored)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _random_text(seed):
    parts = ["word", "it's", *5 * " ", "  ", "\n", "\n\n", "\t", ".", "\u00e9t\u00e9", "\u4e2d", "<unk>", "a\u0301"]
    return "".join(random.Random(seed).choices(parts, k=2000))


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
def test_pieces_depend_on_the_text_not_on_how_it_comes(monkeypatch, length):
    monkeypatch.setattr(tokens, "_PIECE", 64)
    text = _random_text(0)
    cut = [text[start : start + length] for start in range(0, len(text), length)]
    pieces = list(tokens._pieces_between_words(cut))
    assert pieces == list(tokens._pieces_between_words([text]))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 65


@kinds
@pytest.mark.parametrize("seed", range(5))
def test_ids_of_pieces_are_those_of_the_whole_text(monkeypatch, kind, seed):
    text = _random_text(seed)
    vocabulary = TokenVocabulary.train(kind, 400, [text])
    expected = vocabulary.encode(text)
    monkeypatch.setattr(tokens, "_PIECE", 300)
    np.testing.assert_array_equal(vocabulary.encode(text), expected)


# --- counts -----------------------------------------------------------------------------------------------------------


@given(text=st.text(st.sampled_from("ab .,\n\t\u00e9\u4e2d\U0001f600")))
def test_counts_of_byte_pairs_are_those_of_the_text(byte_pairs, text):
    counts = byte_pairs.count(byte_pairs.encode(text))
    assert (counts.characters, counts.words) == (len(text), len(text.split()))


def test_counts_do_not_depend_on_how_many_ids_are_counted_at_once(vocabulary, monkeypatch):
    ids = vocabulary.encode(TEXT)
    expected = vocabulary.count(ids)
    monkeypatch.setattr(tokens, "_COUNTED", 7)
    assert vocabulary.count(ids) == expected


def test_a_corpus_counts_the_characters_of_unknown_words_too(tmp_path):
    source = write(tmp_path / "text.txt", TEXT)
    corpus = load_corpus([source], vocabulary="words", vocabulary_size=12, cache_folder=None)
    counts = corpus.count(corpus.ids)
    assert corpus.vocabulary.unknown in corpus.ids
    assert counts.characters == pytest.approx(len(TEXT))


def test_equal_losses_of_a_text_in_other_units():
    counts = tokens.Counts(tokens=100, characters=500.0, words=50)
    assert counts.bits_per_character(math.log(2)) == pytest.approx(0.2)
    assert counts.word_perplexity(math.log(2)) == pytest.approx(4)


# --- corpora ----------------------------------------------------------------------------------------------------------


@kinds
def test_a_corpus_is_the_text_of_all_its_files_as_tokens(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 100)
    sources = [write(tmp_path / "a.txt", TEXT[:700]), write(tmp_path / "b.txt", TEXT[700:])]
    corpus = load_corpus(sources, vocabulary=kind, vocabulary_size=300, cache_folder=tmp_path / "cache")
    assert corpus.vocabulary.decode(corpus.ids) == TEXT


@kinds
def test_a_second_load_and_one_with_the_vocabulary_found_encode_nothing(kind, tmp_path, monkeypatch):
    source = write(tmp_path / "a.txt", TEXT)
    options = {"vocabulary_size": 300, "cache_folder": tmp_path / "cache"}
    first = load_corpus([source], vocabulary=kind, **options)
    monkeypatch.setattr(corpus_module, "_encode_to", None)
    again = [load_corpus([source], vocabulary=which, **options) for which in (kind, first.vocabulary)]
    assert [corpus.fingerprint for corpus in again] == [first.fingerprint] * 2


def test_another_size_is_another_vocabulary(tmp_path):
    source = write(tmp_path / "a.txt", TEXT)
    sizes = [
        load_corpus([source], vocabulary="bpe", vocabulary_size=size, cache_folder=tmp_path).vocabulary.size
        for size in (260, 270)
    ]
    assert sizes == [260, 270]


@kinds
def test_an_empty_text_is_refused_by_name(kind, tmp_path):
    with pytest.raises(ValueError, match=r"the text is empty: .*blank\.txt holds no characters"):
        load_corpus([write(tmp_path / "blank.txt", "")], vocabulary=kind, cache_folder=None)


@kinds
def test_the_description_counts_characters_and_tokens(kind, tmp_path):
    corpus = load_corpus(
        [write(tmp_path / "a.txt", TEXT)], vocabulary=kind, vocabulary_size=300, cache_folder=None
    )
    expected = f"a.txt: {len(TEXT):,} characters, {len(corpus.ids):,} tokens of {corpus.vocabulary.size}"
    assert corpus.description.startswith(expected)


def test_memory_does_not_grow_with_the_text(tmp_path):
    """Reading, learning and encoding 24 MB takes at most 32 MB more than 6 MB do, with the ids left on the disk."""
    script = """
import random, sys
from pathlib import Path
from lstmfast.data import load_corpus

path = Path(sys.argv[1])
words = [f"w{number}" for number in range(3000)]
some = " ".join(random.Random(0).choices(words, k=170_000)) + chr(10)
with path.open("w") as file:
    for _ in range(int(sys.argv[2])):
        file.write(some)
load_corpus([str(path)], vocabulary="words", vocabulary_size=1000, cache_folder=path.parent)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc to read a process's peak memory")
    peaks = []
    for megabytes in (6, 24):
        command = [sys.executable, "-c", script, str(tmp_path / f"{megabytes}.txt"), str(megabytes)]
        peaks.append(int(subprocess.check_output(command, text=True)))
    assert peaks[1] - peaks[0] < 32_000


# --- settings ---------------------------------------------------------------------------------------------------------


def _config(vocabulary="characters", **model):
    return Config(data=DataConfig(vocabulary=vocabulary), model=ModelConfig(hidden_size=8, **model))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (_config(), (0, False)),
        (_config("bpe"), (8, True)),
        (_config("words", projection_size=4), (4, True)),
        (_config("words", embedding_size=5), (5, False)),
        (_config("words", embedding_size=8, tied=True), (8, True)),
        (_config(embedding_size=8, tied=True), (8, True)),
    ],
)
def test_tokens_are_tied_vectors_unless_their_length_is_given(config, expected):
    assert (config.embedding_size, config.tied) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": True}, "tied shares the vectors of an embedding, and one-hot characters have none: give embedding_"),
        ({"tied": True, "embedding_size": 5}, "embedding_size must be 8, the length of the outputs, where tied, got 5"),
    ],
)
def test_settings_that_cannot_be_tied_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _config(**options)


def test_a_vocabulary_of_byte_pairs_below_256_is_refused():
    with pytest.raises(ValueError, match="vocabulary_size must be 256 or more for bpe, which has every byte, got 255"):
        DataConfig(vocabulary="bpe", vocabulary_size=255)


# --- runs -------------------------------------------------------------------------------------------------------------


SMALL = [
    "--vocabulary-size", "300", "--hidden-size", "16", "--batch-size", "4", "--unroll", "8", "--schedule", "constant",
    "--sample-length", "5", "--threads", "1",
]


@pytest.fixture(params=KINDS)
def run(request, tmp_path, monkeypatch):
    """A run of six steps in the folder "run", on text.txt."""
    monkeypatch.chdir(tmp_path)
    write(Path("text.txt"), TEXT)
    assert main(["train", "text.txt", "--vocabulary", request.param, "--steps", "6", "--out", "run", *SMALL]) == 0
    return Path("run")


def test_metrics_are_per_token_per_word_and_per_character(run):
    corpus = load_corpus(["text.txt"], vocabulary=load_model(run)[1], cache_folder=None)
    valid = corpus.ids[len(corpus.ids) - int(len(corpus.ids) * 0.05) :]
    text = corpus.vocabulary.decode(valid[1:])
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    nats = line["valid_loss"] * (len(valid) - 1)
    assert line["valid_bits_per_char"] == pytest.approx(nats / len(text) / math.log(2))
    assert line["valid_word_perplexity"] == pytest.approx(math.exp(nats / len(text.split())))
    assert line["valid_perplexity"] == pytest.approx(math.exp(line["valid_loss"]))
    assert line.keys() >= {"word_perplexity", "bits_per_char", "perplexity", "chars_per_second"}


def test_a_run_holds_the_table_once_and_its_vocabulary(run):
    model, vocabulary, _ = load_model(run)
    assert model.tied and "projection.kernel" not in checkpoint.load(run / "checkpoint.safetensors").tensors
    assert vocabulary.decode(vocabulary.encode(TEXT)) == TEXT


def test_eval_reports_both_units(run, capsys):
    assert main(["eval", "run", "text.txt", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    nats = result["loss"] * (result["tokens"] - 1)
    assert result["bits_per_char"] == pytest.approx(nats / result["characters"] / math.log(2))
    assert result["word_perplexity"] == pytest.approx(math.exp(nats / result["words"]))
    assert main(["eval", "run", "text.txt"]) == 0
    assert "bits per character" in (out := capsys.readouterr().out) and "per word" in out


def test_sample_goes_on_from_a_prime_by_tokens(run, capsys):
    model, vocabulary, _ = load_model(run)
    assert main(["sample", "run", "--prime", "the cat", "--length", "5", "--temperature", "0"]) == 0
    stream, token = model.stream(1), None
    for id in vocabulary.encode("the cat")[:-1]:
        stream.step(np.array([id], np.int32))
    token = vocabulary.encode("the cat")[-1:].astype(np.int32)
    drawn = stream.generate(token, np.zeros((5, 1)), temperature=0.0)
    assert capsys.readouterr().out == f"the cat{vocabulary.decode(drawn)}\n"


def test_sample_without_a_prime_begins_after_a_line_break(run, capsys):
    assert main(["sample", "run", "--length", "5"]) == 0
    assert capsys.readouterr().out


def test_sample_of_words_that_know_no_white_space_has_a_beginning():
    assert TokenVocabulary.train("words", 10, ["one two one two two"]).beginning() == " two"


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(run):
    kind = load_model(run)[1].kind
    assert main(["train", "text.txt", "--vocabulary", kind, "--steps", "3", "--out", "cut", *SMALL]) == 0
    for path in Path("lstmfast-cache").iterdir():
        path.unlink()  # the vocabulary then comes from the checkpoint
    assert main(["train", "--resume", "cut", "--steps", "6"]) == 0
    whole, cut = (checkpoint.load(Path(name, "checkpoint.safetensors")).tensors for name in ("run", "cut"))
    for name, values in whole.items():
        np.testing.assert_array_equal(cut[name], values)


def test_the_display_names_both_units(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("text.txt"), TEXT)
    assert main(["train", "text.txt", "--vocabulary", "bpe", "--steps", "2", "--out", "run", *SMALL]) == 0
    shown = capsys.readouterr().err
    assert "steps of 4 x 8 tokens" in shown and "bits/char, perplexity" in shown and "per word)" in shown


def test_batches_are_of_tokens(tmp_path):
    corpus = load_corpus([write(tmp_path / "a.txt", TEXT)], vocabulary="words", cache_folder=None)
    inputs, targets = Batches(corpus.ids, 1, 5).next()
    np.testing.assert_array_equal(np.append(inputs[:, 0], targets[-1, 0]), corpus.ids[:6])
