"""Sampling: which characters may come, how often, and that pieces and streams change nothing of it."""

from __future__ import annotations

import numpy as np
import pytest

from lstmfast import CharLM, reference
from lstmfast.data import Vocabulary
from lstmfast.sampler import Sampler

VOCABULARY = Vocabulary.characters("\n abcde")
DRAWS = 4000


@pytest.fixture
def model(rng: np.random.Generator) -> CharLM:
    """A model whose next character is far from certain and far from uniform."""
    model = CharLM(VOCABULARY.size, 6, num_layers=2, embedding_size=3, rng=rng)
    model.parameter_buffer *= 3
    return model


def next_probabilities(model: CharLM, prime: str, temperature: float = 1.0) -> np.ndarray:
    """Probabilities [vocabulary] of the character after a prime, by the model's own forward pass."""
    logits, _ = model(VOCABULARY.encode(prime).astype(np.int32)[:, None])
    return reference.softmax(logits[-1, 0].astype(np.float64) / temperature)


def frequencies(texts: list[str]) -> np.ndarray:
    """How often each character of the vocabulary stands first."""
    return np.bincount([VOCABULARY.encode(text[0])[0] for text in texts], minlength=VOCABULARY.size) / len(texts)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_come_as_often_as_the_model_says(
    model: CharLM, rng: np.random.Generator, temperature: float
) -> None:
    texts = Sampler(model, VOCABULARY, temperature=temperature).generate(1, rng=rng, prime="abba ", streams=DRAWS)
    wanted = next_probabilities(model, "abba ", temperature)
    five_deviations = 5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1 / DRAWS
    assert (np.abs(frequencies(texts) - wanted) < five_deviations).all()


def test_temperature_zero_always_takes_the_likeliest(model: CharLM, rng: np.random.Generator) -> None:
    text = Sampler(model, VOCABULARY, temperature=0).generate(30, rng=rng, prime="ab")[0]
    likeliest = [VOCABULARY.decode(next_probabilities(model, "ab" + text[:end]).argmax()) for end in range(30)]
    assert text == "".join(likeliest)


def test_top_k_keeps_only_the_likeliest(model: CharLM, rng: np.random.Generator) -> None:
    texts = Sampler(model, VOCABULARY, top_k=2).generate(1, rng=rng, prime="cab", streams=DRAWS)
    likeliest = np.argsort(-next_probabilities(model, "cab"))[:2]
    assert set(texts) == set(VOCABULARY.decode(likeliest))


def test_top_p_keeps_the_fewest_that_reach_it(model: CharLM, rng: np.random.Generator) -> None:
    wanted = next_probabilities(model, "cab")
    order = np.argsort(-wanted)
    halfway_through_third = wanted[order[:2]].sum() + wanted[order[2]] / 2
    sampler = Sampler(model, VOCABULARY, top_p=float(halfway_through_third))
    texts = sampler.generate(1, rng=rng, prime="cab", streams=DRAWS)
    assert set(texts) == set(VOCABULARY.decode(order[:3]))


@pytest.mark.parametrize("piece_length", [1, 7, 100])
def test_text_does_not_depend_on_the_size_of_the_pieces(model: CharLM, piece_length: int) -> None:
    sampler = Sampler(model, VOCABULARY)
    pieces = sampler.pieces(50, rng=np.random.default_rng(1), prime="a", streams=2, piece_length=piece_length)
    texts = ["".join(text) for text in zip(*pieces, strict=True)]
    assert texts == sampler.generate(50, rng=np.random.default_rng(1), prime="a", streams=2)


def test_the_same_generator_gives_the_same_text(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    assert sampler.generate(50, rng=np.random.default_rng(1)) == sampler.generate(50, rng=np.random.default_rng(1))


def test_streams_are_as_many_and_as_long_as_asked_for_and_differ(model: CharLM, rng: np.random.Generator) -> None:
    texts = Sampler(model, VOCABULARY).generate(40, rng=rng, streams=3)
    assert ([len(text) for text in texts], len(set(texts))) == ([40, 40, 40], 3)


def test_without_a_prime_text_begins_as_after_a_line_break(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    with_line_break = sampler.generate(50, rng=np.random.default_rng(1), prime="\n")
    assert sampler.generate(50, rng=np.random.default_rng(1)) == with_line_break


def test_no_characters_is_an_empty_text(model: CharLM, rng: np.random.Generator) -> None:
    assert Sampler(model, VOCABULARY).generate(0, rng=rng, streams=2) == ["", ""]


def test_a_model_that_is_trained_on_does_not_change_a_text_begun(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    undisturbed = sampler.generate(20, rng=np.random.default_rng(1))
    pieces = sampler.pieces(20, rng=np.random.default_rng(1), piece_length=5)
    text = next(pieces)[0]
    model.parameter_buffer += 1
    assert [text + "".join(piece for [piece] in pieces)] == undisturbed


def test_a_character_of_two_bytes_may_lie_in_two_pieces(rng: np.random.Generator) -> None:
    """The model is made to answer 0xC3 with 0xA9 and 0xA9 with 0xC3: together they are é in UTF-8."""
    model = CharLM(256, 2, forget_bias=0.0, rng=rng)
    model.parameter_buffer[:] = 0
    gates = model.parameters["lstm.layer0.bias"].reshape(4, 2)
    gates[:] = [[20, 20], [-20, -20], [0, 0], [20, 20]]  # the cell holds only the last input
    cell_columns = model.parameters["lstm.layer0.kernel"].reshape(-1, 4, 2)[:, 2]
    cell_columns[0xC3], cell_columns[0xA9] = [20, 0], [0, 20]
    projection = model.parameters["projection.kernel"]
    projection[0, 0xA9], projection[1, 0xC3] = 20, 20
    pieces = Sampler(model, Vocabulary.bytes_(), temperature=0).pieces(6, rng=rng, prime="é", piece_length=1)
    assert [piece for [piece] in pieces] == ["", "é", "", "é", "", "é"]


def test_unknown_character_of_the_prime_is_named(model: CharLM, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="prime: character 'x'"):
        Sampler(model, VOCABULARY).generate(5, rng=rng, prime="axe")


def test_vocabulary_of_another_size_is_refused_with_both_numbers(model: CharLM) -> None:
    with pytest.raises(ValueError, match="the model knows 7 symbols, but the vocabulary has 27"):
        Sampler(model, Vocabulary.udacity())


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_wrong_option_is_refused_by_name(model: CharLM, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Sampler(model, VOCABULARY, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("length", -1), ("streams", 0), ("piece_length", 0)])
def test_wrong_number_is_refused_by_name(model: CharLM, rng: np.random.Generator, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Sampler(model, VOCABULARY).pieces(**{"length": 5, "rng": rng, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_weights_in_fewer_bits_write_what_their_own_stream_does(
    model: CharLM, rng: np.random.Generator, weights: str
) -> None:
    stream = model.stream(weights=weights)
    token, uniforms = VOCABULARY.encode("\n").astype(np.int32), np.random.default_rng(5).random((200, 1))
    expected = VOCABULARY.decode(stream.generate(token, uniforms).ravel())
    sampler = Sampler(model, VOCABULARY, weights=weights)
    assert sampler.generate(200, rng=np.random.default_rng(5)) == [expected]


def test_a_float64_model_is_sampled_as_it_is(rng: np.random.Generator) -> None:
    model = CharLM(VOCABULARY.size, 6, dtype="float64", rng=rng)
    with pytest.raises(ValueError, match="weights must be float32.* for a float64 layer, got 'int8'"):
        Sampler(model, VOCABULARY, weights="int8")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 5, slice(None)])
def test_logits_that_are_not_finite_are_an_error(
    model: CharLM, rng: np.random.Generator, value: float, where: int | slice
) -> None:
    if value == -np.inf and where != slice(None):
        pytest.skip("minus infinity says never, where another token may come")
    model.parameters["projection.bias"][where] = value
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(model, VOCABULARY).generate(1, rng=rng)


def test_a_token_of_logit_minus_infinity_never_comes(model: CharLM, rng: np.random.Generator) -> None:
    model.parameters["projection.bias"][3:] = -np.inf
    text = Sampler(model, VOCABULARY).generate(2000, rng=rng)[0]
    assert set(text) == set(VOCABULARY.decode(np.arange(3)))


# --- while it is drawn, up to a stop, the best of several -------------------------------------------------------------


def model_that_writes(text: str) -> CharLM:
    """A model whose greedy text after the last character of `text`, all distinct, is `text` over and over."""
    ids = VOCABULARY.encode(text).astype(int)
    model = CharLM(VOCABULARY.size, VOCABULARY.size, forget_bias=0.0, rng=np.random.default_rng(0))
    model.parameter_buffer[:] = 0
    size = VOCABULARY.size
    model.parameters["lstm.layer0.bias"].reshape(4, size)[:] = [[20], [-20], [0], [20]]  # the cell: the last input
    model.parameters["lstm.layer0.kernel"][:size].reshape(size, 4, size)[:, 2] = 20 * np.eye(size)
    model.parameters["projection.kernel"][ids, np.roll(ids, -1)] = 20
    return model


@pytest.mark.parametrize("piece_length", [1, 7, 100])
def test_a_text_is_the_same_while_it_is_drawn(model: CharLM, piece_length: int) -> None:
    sampler = Sampler(model, VOCABULARY, temperature=0.7)
    pieces = sampler.stream(50, rng=np.random.default_rng(1), prime="a", piece_length=piece_length)
    assert "".join(pieces) == sampler.generate(50, rng=np.random.default_rng(1), prime="a")[0]


def test_a_stream_yields_each_character_when_it_is_drawn(model: CharLM, rng: np.random.Generator) -> None:
    assert [len(piece) for piece in Sampler(model, VOCABULARY).stream(20, rng=rng)] == [1] * 20


@pytest.mark.parametrize("piece_length", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("d", "abc"), ("cd", "ab"), ("abc", ""), ("ea", "abcd"), ("deab", "abc"), (("ed", "de"), "abc"),
        (("bcde", "c"), "ab"), (("c", "bc"), "a"), ("aa", "abcdeabcdeab"), ((), "abcdeabcdeab"),
    ],
)
def test_a_text_ends_before_the_stop_that_is_complete_first(
    rng: np.random.Generator, stop: str | tuple[str, ...], text: str, piece_length: int
) -> None:
    sampler = Sampler(model_that_writes("abcde"), VOCABULARY, temperature=0)
    assert "".join(sampler.stream(12, rng=rng, prime="e", stop=stop, piece_length=piece_length)) == text


def test_a_stop_in_the_prime_or_across_its_end_does_not_count(rng: np.random.Generator) -> None:
    sampler = Sampler(model_that_writes("abcde"), VOCABULARY, temperature=0)
    assert sampler.generate(4, rng=rng, prime="cde", stop=["de", "ea"]) == ["abcd"]


def test_each_stream_has_its_own_end(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    texts = sampler.generate(200, rng=np.random.default_rng(1), streams=6)
    stopped = sampler.generate(200, rng=np.random.default_rng(1), streams=6, stop="ab")
    assert stopped == [text.partition("ab")[0] for text in texts]


def test_a_stop_of_characters_of_several_bytes_is_found_in_a_byte_vocabulary(rng: np.random.Generator) -> None:
    model = CharLM(256, 4, rng=rng)
    model.parameter_buffer[:] = 0
    model.parameters["projection.bias"][:] = -50
    model.parameters["projection.bias"][[0xC3, 0xA9, 0x61]] = 0
    sampler = Sampler(model, Vocabulary.bytes_())
    whole = sampler.generate(300, rng=np.random.default_rng(3))[0]
    stopped = "".join(sampler.stream(300, rng=np.random.default_rng(3), stop="aé"))
    assert ("aé" in whole, stopped) == (True, whole.partition("aé")[0])


def mean_log_probability(model: CharLM, prime: str, text: str) -> float:
    """By one forward pass over the prime and the text."""
    ids = VOCABULARY.encode(prime + text).astype(np.int32)
    logits, _ = model(ids[:-1, None])
    p = reference.softmax(logits[:, 0].astype(np.float64))
    return float(np.log(p[np.arange(len(ids) - 1), ids[1:]])[len(prime) - 1 :].mean())


@pytest.mark.parametrize("prime", ["a", "cab "])
def test_the_best_is_the_text_of_the_highest_mean_log_probability(model: CharLM, prime: str) -> None:
    sampler = Sampler(model, VOCABULARY, temperature=1.3, top_k=6)
    texts = sampler.generate(30, rng=np.random.default_rng(4), prime=prime, streams=8)
    best = max(texts, key=lambda text: mean_log_probability(model, prime, text))
    assert sampler.best_of(8, 30, rng=np.random.default_rng(4), prime=prime) == best


def test_the_best_of_texts_that_stop_counts_their_stops(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    texts = sampler.generate(60, rng=np.random.default_rng(4), prime="a", streams=8)
    ended = [text.partition("b") for text in texts if not text.startswith("b")]
    best = max(ended, key=lambda parts: mean_log_probability(model, "a", parts[0] + parts[1]))[0]
    assert sampler.best_of(8, 60, rng=np.random.default_rng(4), prime="a", stop="b") == best


def test_the_score_does_not_depend_on_the_portions_it_is_computed_in(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(model, VOCABULARY)
    whole = sampler.best_of(5, 40, rng=np.random.default_rng(2), prime="cab")
    monkeypatch.setattr("lstmfast.training.sampler._SCORED_LOGITS", 100)
    assert sampler.best_of(5, 40, rng=np.random.default_rng(2), prime="cab") == whole


def test_the_best_of_one_is_the_text_itself(model: CharLM) -> None:
    sampler = Sampler(model, VOCABULARY)
    assert [sampler.best_of(1, 30, rng=np.random.default_rng(1))] == sampler.generate(30, rng=np.random.default_rng(1))


@pytest.mark.parametrize("length", [0, 1])
def test_the_best_of_short_texts_is_one_of_them(model: CharLM, rng: np.random.Generator, length: int) -> None:
    assert len(Sampler(model, VOCABULARY).best_of(3, length, rng=rng)) == length


@pytest.mark.parametrize("stop", [[""], ["a", ""], ["x"]])
def test_a_stop_that_cannot_come_is_refused(model: CharLM, rng: np.random.Generator, stop: list[str]) -> None:
    with pytest.raises(ValueError, match="^stop"):
        Sampler(model, VOCABULARY).stream(5, rng=rng, stop=stop)


def test_no_candidates_are_refused(model: CharLM, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="^candidates must be at least 1"):
        Sampler(model, VOCABULARY).best_of(0, 5, rng=rng)
