"""What the text pipeline promises: sources, vocabularies, the corpus cache, the classic batches and every complaint.

Downloads have a file of their own, test_download.py. Nothing here reads the network.
"""

import contextlib
import copy
import io
import itertools
import os
import pickle
import resource
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmfast.data import Batches, CacheFolderError, Corpus, Vocabulary, fold_to_udacity, load_corpus, split
from lstmfast.text.corpus import Reader
from lstmfast.text.sources import standard_library_parts


class NotebookBatchGenerator:
    """The BatchGenerator of the Udacity 6_lstm notebook in plain Python, with ids in place of one-hot rows."""

    def __init__(self, text, batch_size, num_unrollings):
        segment = len(text) // batch_size
        self.text, self.num_unrollings = text, num_unrollings
        self.cursors = [stream * segment for stream in range(batch_size)]
        self.last_batch = self.next_characters()

    def next_characters(self):
        characters = [self.text[cursor] for cursor in self.cursors]
        self.cursors = [(cursor + 1) % len(self.text) for cursor in self.cursors]
        return characters

    def next(self):
        batches = [self.last_batch] + [self.next_characters() for _ in range(self.num_unrollings)]
        self.last_batch = batches[-1]
        return batches[:-1], batches[1:]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def text_of(corpus: Corpus) -> str:
    return corpus.vocabulary.decode(corpus.ids)


@pytest.fixture
def load(tmp_path):
    return lambda *sources, **options: load_corpus(sources, cache_folder=tmp_path / "cache", **options)


@pytest.fixture
def encodings_made(monkeypatch):
    """The vocabulary of every encoding made from here on: a cache that is used leaves this list as it is."""
    made = []
    encoded_pieces = Reader.encoded_pieces
    monkeypatch.setattr(
        Reader,
        "encoded_pieces",
        lambda reader, vocabulary: made.append(vocabulary) or encoded_pieces(reader, vocabulary),
    )
    return made


# Vocabularies


def test_udacity_ids_are_space_then_the_letters():
    assert Vocabulary.udacity().encode(" abz").tolist() == [0, 1, 2, 26]


def test_characters_take_their_ids_in_code_point_order():
    assert Vocabulary.characters("banana\u00e9").symbols == "abn\u00e9"


@given(st.text(min_size=1, max_size=50))
def test_decoding_the_ids_of_a_text_gives_the_text_back(text):
    vocabulary = Vocabulary.characters(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.binary())
def test_ids_of_the_byte_vocabulary_are_the_bytes(content):
    assert Vocabulary.bytes_().encode(content).tobytes() == content


def test_bytes_that_are_no_text_decode_to_replacement_characters():
    assert Vocabulary.bytes_().decode([0x61, 0xFF]) == "a\ufffd"


@pytest.mark.parametrize("size, dtype", [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(size, dtype):
    symbols = map(chr, range(0x10000, 0x10000 + size))
    assert Vocabulary.characters(symbols).dtype == np.dtype(dtype)


@pytest.mark.parametrize("vocabulary", [Vocabulary.characters("xyz\n"), Vocabulary.udacity(), Vocabulary.bytes_()])
def test_a_vocabulary_survives_its_json(vocabulary):
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {},
        {"kind": "bytes"},
        {"kind": 1, "symbols": None},
        {"kind": "words", "symbols": "ab"},
        {"kind": "udacity", "symbols": "ab"},
        {"kind": "characters", "symbols": ""},
        {"kind": "characters", "symbols": "ba"},
    ],
)
def test_json_that_is_no_vocabulary_is_refused(stored):
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary.from_json(stored)


@pytest.mark.parametrize("ids", [[27], [-1], [0.5]])
def test_decoding_ids_outside_the_vocabulary_names_the_range(ids):
    with pytest.raises(ValueError, match="from 0 to 26"):
        Vocabulary.udacity().decode(ids)


def test_a_character_outside_the_27_symbols_is_named_with_its_position_and_fold_explained():
    with pytest.raises(ValueError) as caught:
        Vocabulary.udacity().encode("to Be", where="play.txt")
    assert str(caught.value) == (
        "play.txt: character 'B' (U+0042) at position 3 is not one of the 27 symbols of the udacity vocabulary "
        "(space and a to z); --fold reduces a text to them: lower case, and every run of other characters becomes "
        "one space"
    )


def test_a_character_outside_a_given_vocabulary_is_named_with_its_position():
    with pytest.raises(
        ValueError, match=r"character '\u20ac' \(U\+20AC\) at position 2 is not one of the 3 characters"
    ):
        Vocabulary.characters("abc").encode("ab\u20ac")


# Folding


@pytest.mark.parametrize(
    "text, folded",
    [
        ("The  Cat!\n", "the cat "),
        ("... dots", " dots"),
        ("caf\u00e9s", "caf s"),
        ("\u212aelvin", " elvin"),  # the Kelvin sign is no letter K
        ("12", " "),
        ("", ""),
    ],
)
def test_folding_lowers_case_and_makes_every_other_run_one_space(text, folded):
    assert fold_to_udacity(text) == folded


@given(st.text())
def test_folding_a_folded_text_changes_nothing(text):
    assert fold_to_udacity(fold_to_udacity(text)) == fold_to_udacity(text)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7])
def test_a_corpus_folds_as_its_whole_text_does_however_it_is_cut(load, tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", piece_bytes)
    parts = ["Alas, ", "  poor\u00e9\u00e9 \n", "!!", "Yorick ... "]
    sources = [write(tmp_path / f"{index}.txt", part) for index, part in enumerate(parts)]
    assert text_of(load(*sources, fold=True)) == fold_to_udacity("".join(parts))


# Sources


def test_files_are_joined_in_the_order_given(load, tmp_path):
    sources = write(tmp_path / "b.txt", "first "), write(tmp_path / "a.txt", "second")
    assert text_of(load(*sources)) == "first second"


def test_the_one_member_of_a_zip_is_the_text_whatever_its_name(load, tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", " anarchism")
    assert text_of(load(str(tmp_path / "text8.zip"), vocabulary="udacity")) == " anarchism"


def test_text_members_of_a_zip_are_joined_in_archive_order_without_folders_and_binaries(load, tmp_path):
    with zipfile.ZipFile(tmp_path / "books.ZIP", "w") as archive:
        for name, content in [("z.txt", "one "), ("folder/", ""), ("cover.png", "\0\1"), ("__MACOSX/z.txt", "x")]:
            archive.writestr(name, content)
        archive.writestr("a.txt", "two")
    assert text_of(load(str(tmp_path / "books.ZIP"))) == "one two"


def test_a_zip_without_text_says_so(load, tmp_path):
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(ValueError, match=r"empty\.zip holds no text file"):
        load(str(tmp_path / "empty.zip"))


def test_a_file_that_is_only_called_zip_is_refused_by_name(load, tmp_path):
    with pytest.raises(ValueError, match=r"fake\.zip is not a readable zip archive"):
        load(write(tmp_path / "fake.zip", "text"))


def test_a_damaged_zip_member_is_refused_by_name(load, tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", "anarchism")
    content = (tmp_path / "text8.zip").read_bytes()
    with pytest.raises(ValueError, match=r"text8\.zip:text8 cannot be unpacked"):
        load(write(tmp_path / "text8.zip", content.replace(b"anarchism", b"anarchist", 1)))


def test_a_dash_reads_standard_input(load, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("na\u00efve".encode())))
    assert text_of(load("-")) == "na\u00efve"


def test_a_corpus_from_standard_input_can_be_loaded_again_from_its_sources(load, monkeypatch, encodings_made):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    first = load("-")
    assert (text_of(load(*first.sources)), len(encodings_made)) == ("piped", 1)


def test_the_same_text_piped_again_is_not_encoded_again(load, monkeypatch, encodings_made):
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
        load("-")
    assert len(encodings_made) == 1


def test_a_named_pipe_is_read_like_standard_input(load, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=("through the pipe",), daemon=True).start()
    assert text_of(load(str(tmp_path / "pipe"))) == "through the pipe"


def test_standard_input_named_twice_is_refused(load):
    with pytest.raises(ValueError, match="only once"):
        load("-", "-")


def test_no_source_means_the_standard_library_in_printable_ascii(load):
    corpus = load()
    assert set(corpus.vocabulary.symbols) == {"\n", *map(chr, range(32, 127))}


def test_the_standard_library_leaves_out_tests_and_what_others_installed():
    names = [part.name for part in standard_library_parts()]
    assert names and not [name for name in names if "/test/" in name or "-packages/" in name]


def test_relative_sources_are_remembered_as_absolute_paths(load, tmp_path, monkeypatch):
    write(tmp_path / "poem.txt", "tyger")
    monkeypatch.chdir(tmp_path)
    assert load("poem.txt").sources == (str(tmp_path / "poem.txt"),)


def test_the_description_is_one_line_with_name_length_and_symbols(load, tmp_path):
    assert load(write(tmp_path / "poem.txt", "tyger " * 200)).description == "poem.txt: 1,200 characters, 6 symbols"


def test_a_missing_file_is_named(load):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        load("nowhere.txt")


@pytest.fixture
def folder(tmp_path):
    """A folder of text files, and what is none."""
    files = {
        "b.txt": "two ", "a.txt": "one ", "sub/c.md": "three ", "z": "four", ".hidden": "no", ".git/config": "no",
        "picture.png": "\0\1", "runs/lstmfast-cache/corpus": "no", "runs/stdlib-1/metrics.jsonl": "{}",
        "runs/stdlib-1/samples.txt": "no",
    }
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    return tmp_path / "folder"


def test_a_folder_is_its_text_files_and_those_below_in_sorted_order(load, folder):
    assert text_of(load(str(folder))) == "one two fourthree "


def test_the_description_counts_what_is_left_out_of_a_folder(load, folder):
    assert load(str(folder)).description == "folder: 18 characters, 10 symbols; left out: 3 hidden or binary"


def test_a_folder_and_a_file_are_joined_in_the_order_given(load, folder, tmp_path):
    assert text_of(load(write(tmp_path / "first.txt", "zero "), str(folder))).startswith("zero one ")


def test_files_of_a_folder_may_be_of_two_bytes_a_character(load, tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "poem.txt", "tyger".encode("utf-16"))
    assert text_of(load(str(tmp_path / "folder"), encoding="utf-16")) == "tyger"


def test_a_folder_without_text_says_so(load, tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / ".hidden", "no")
    with pytest.raises(ValueError, match=r"folder .*folder holds no text file \(1 hidden or binary\)"):
        load(str(tmp_path / "folder"))


def test_a_file_added_to_a_folder_is_read(load, folder):
    load(str(folder))
    write(folder / "new.txt", "!")
    assert "!" in text_of(load(str(folder)))


def test_expected_bytes_of_a_folder_is_refused(load, folder):
    with pytest.raises(ValueError, match="expected_bytes is the size of one file or address, and .*folder is a folder"):
        load(str(folder), expected_bytes=5)


@pytest.mark.parametrize("options", [{}, {"vocabulary": "bytes"}, {"fold": True}])
def test_an_empty_text_is_refused_by_name(load, tmp_path, options):
    with pytest.raises(ValueError, match=r"the text is empty: .*blank\.txt holds no characters"):
        load(write(tmp_path / "blank.txt", ""), **options)


def test_a_file_of_another_size_is_refused_with_both_numbers(load, tmp_path):
    with pytest.raises(ValueError, match="has 5 bytes, but expected_bytes is 31344016"):
        load(write(tmp_path / "poem.txt", "tyger"), expected_bytes=31344016)


def test_expected_bytes_of_several_sources_is_refused(load, tmp_path):
    source = write(tmp_path / "poem.txt", "tyger")
    with pytest.raises(ValueError, match="expected_bytes is the size of one file or address, got 2 sources"):
        load(source, source, expected_bytes=5)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(OSError, match=r"the cache folder .*poem\.txt cannot be created"):
        load_corpus([write(tmp_path / "poem.txt", "tyger")], cache_folder=tmp_path / "poem.txt")


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be", "latin-1", "shift_jis"])
def test_characters_cut_by_a_piece_are_decoded_whole(load, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", 3)
    text = "\u3042\u3044 na" * 5 if encoding == "shift_jis" else "\u00fcber na\u00efve" * 5
    assert text_of(load(write(tmp_path / "text", text.encode(encoding)), encoding=encoding)) == text


@pytest.mark.parametrize("piece_bytes", [1, 4, 1 << 20])
@pytest.mark.parametrize("tail", [b"\xff more", b"\xe2\x82"], ids=["invalid", "cut short"])
def test_invalid_utf8_names_file_byte_and_offset_and_offers_a_way_out(load, tmp_path, monkeypatch, piece_bytes, tail):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", piece_bytes)
    with pytest.raises(ValueError) as caught:
        load(write(tmp_path / "odd.txt", "caf\u00e9".encode() + tail))
    assert str(caught.value) == (
        f"{tmp_path / 'odd.txt'}: byte 0x{tail[0]:02x} at offset 5 is not valid utf-8; "
        "name the encoding with --encoding, or train on bytes with --vocabulary bytes"
    )


TWO_LINES = "a line\nand another\n"


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "cp1252"])
def test_line_ends_of_any_system_are_one_line_break(load, tmp_path, monkeypatch, encoding, line_end, piece_bytes):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", piece_bytes)
    path = write(tmp_path / "text", TWO_LINES.replace("\n", line_end).encode(encoding))
    assert text_of(load(path, encoding=encoding)) == TWO_LINES


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030"])
def test_a_byte_order_mark_is_no_part_of_the_text(load, tmp_path, monkeypatch, encoding, piece_bytes):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", piece_bytes)
    paths = [write(tmp_path / name, ("\ufeff" + TWO_LINES).encode(encoding)) for name in "ab"]
    assert text_of(load(*paths, encoding=encoding)) == 2 * TWO_LINES


def test_a_mark_within_the_text_is_a_character_of_it(load, tmp_path):
    assert text_of(load(write(tmp_path / "text", "\ufeffa\ufeffb"))) == "a\ufeffb"


def test_a_text_of_a_mark_alone_is_empty(load, tmp_path):
    with pytest.raises(ValueError, match="the text is empty"):
        load(write(tmp_path / "text", "\ufeff"))


@pytest.mark.parametrize("how", ["verbatim", "by a vocabulary that knows CR"])
def test_line_ends_and_marks_stay_where_that_is_asked_for(load, tmp_path, how):
    text = "\ufeffa\r\nb\r"
    options = {"verbatim": True} if how == "verbatim" else {"vocabulary": Vocabulary.characters(text)}
    assert text_of(load(write(tmp_path / "text", text), **options)) == text


def test_bytes_keep_their_line_ends_and_marks(load, tmp_path):
    content = b"\xef\xbb\xbfa\r\nb\r"
    assert load(write(tmp_path / "text", content), vocabulary="bytes").ids.tobytes() == content


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "utf-16"), ("utf-32", "utf-32")])
def test_text_of_two_or_four_bytes_a_character_is_refused_with_its_encoding(load, tmp_path, encoding, name):
    with pytest.raises(ValueError, match=f"text begins with the byte order mark of {name} .*: give --encoding {name}$"):
        load(write(tmp_path / "text", TWO_LINES.encode(encoding)))


def test_without_a_cache_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    corpus = load_corpus([write(tmp_path / "text", TWO_LINES)], cache_folder=None)
    assert (text_of(corpus), [path.name for path in tmp_path.iterdir()]) == (TWO_LINES, ["text"])


def test_a_cache_folder_that_cannot_be_written_is_named(load, tmp_path, monkeypatch):
    path = write(tmp_path / "text", TWO_LINES)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(CacheFolderError, match="cannot write to the cache folder .*cache: Permission denied"):
        load(path)


@pytest.mark.parametrize("stdin", [None, io.StringIO("no bytes below it")], ids=["closed", "of a window"])
def test_standard_input_that_is_not_there_is_a_sentence(load, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(ValueError, match="standard input \\('-'\\) is closed; name a text file"):
        load("-")


@pytest.mark.parametrize("vocabulary", [Vocabulary.characters("abc"), Vocabulary.udacity(), Vocabulary.bytes_()])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_vocabularies_can_be_copied_and_pickled(vocabulary, again):
    vocabulary.encode("abc")  # leaves a table behind
    assert (again(vocabulary), again(vocabulary).encode("cab").tolist()) == (
        vocabulary,
        vocabulary.encode("cab").tolist(),
    )


def test_bytes_are_learnt_from_what_is_no_text(load, tmp_path):
    assert load(write(tmp_path / "odd", b"\xff\x00a"), vocabulary="bytes").ids.tolist() == [255, 0, 97]


@pytest.mark.parametrize("encoding", ["klingon", "rot13"])
def test_an_encoding_python_does_not_know_is_refused_by_name(load, encoding):
    with pytest.raises(ValueError, match=f"encoding must name .*{encoding}"):
        load("-", encoding=encoding)


# Vocabularies of a corpus


def test_an_unknown_vocabulary_error_lists_the_known_ones(load):
    with pytest.raises(ValueError, match="one of characters, udacity, bytes, words, bpe, got 'syllables'"):
        load("-", vocabulary="syllables")


def test_folding_into_bytes_is_refused(load):
    with pytest.raises(ValueError, match=r"fold .* needs the udacity vocabulary"):
        load("-", vocabulary="bytes", fold=True)


def test_a_folded_text_has_the_27_symbols_even_if_it_uses_fewer(load, tmp_path):
    assert load(write(tmp_path / "poem.txt", "Tyger!"), fold=True).vocabulary == Vocabulary.udacity()


def test_a_given_vocabulary_keeps_its_ids_in_a_text_that_uses_fewer(load, tmp_path):
    corpus = load(write(tmp_path / "poem.txt", "cab"), vocabulary=Vocabulary.characters("abcdef"))
    assert (corpus.ids.tolist(), corpus.vocabulary.size) == ([2, 0, 1], 6)


def test_the_position_of_a_stranger_counts_from_the_start_of_its_file(load, tmp_path, monkeypatch):
    monkeypatch.setattr("lstmfast.text.files.PIECE_BYTES", 4)
    sources = write(tmp_path / "good.txt", "abc"), write(tmp_path / "bad.txt", "abcabcabc?")
    with pytest.raises(ValueError, match=r"bad\.txt: character '\?' \(U\+003F\) at position 9"):
        load(*sources, vocabulary=Vocabulary.characters("abc"))


def test_a_failed_encoding_leaves_nothing_in_the_cache(load, tmp_path):
    with pytest.raises(ValueError):
        load(write(tmp_path / "bad.txt", "ABC"), vocabulary="udacity")
    assert list((tmp_path / "cache").iterdir()) == []


# The cache


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond 1,000 bytes: not even pytest's own report, so for as short as can be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_cache_folder_and_leaves_nothing_in_it(load, tmp_path):
    source = write(tmp_path / "long.txt", "tyger " * 1000)
    message = r"cannot write to the cache folder .*/cache: File too large"
    with pytest.raises(OSError, match=message), full_disk():
        load(source)
    assert list((tmp_path / "cache").iterdir()) == []


def test_ids_are_mapped_read_only(load, tmp_path):
    ids = load(write(tmp_path / "poem.txt", "tyger")).ids
    assert isinstance(ids, np.memmap) and not ids.flags.writeable


def test_a_second_load_does_not_encode_again(load, tmp_path, encodings_made):
    source = write(tmp_path / "poem.txt", "tyger")
    assert (text_of(load(source)), text_of(load(source)), len(encodings_made)) == ("tyger", "tyger", 1)


def test_loading_with_the_vocabulary_that_was_found_does_not_encode_again(load, tmp_path, encodings_made):
    source = write(tmp_path / "poem.txt", "tyger")
    load(source, vocabulary=load(source).vocabulary)
    assert len(encodings_made) == 1


@pytest.mark.parametrize("options", [{"vocabulary": "bytes"}, {"fold": True}, {"encoding": "latin-1"}])
def test_other_options_encode_again(load, tmp_path, encodings_made, options):
    source = write(tmp_path / "poem.txt", "tyger")
    load(source)
    load(source, **options)
    assert len(encodings_made) == 2


def test_a_changed_file_is_encoded_again(load, tmp_path):
    load(write(tmp_path / "poem.txt", "tyger"))
    os.utime(write(tmp_path / "poem.txt", "other"), ns=(1, 1))
    assert text_of(load(str(tmp_path / "poem.txt"))) == "other"


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"",
        lambda content: b"not a corpus at all, but long enough to be looked at",
        lambda content: content[:-1],
        lambda content: content[1:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content.replace(b'"egrty"', b'"egrtz"'),
        lambda content: content[:-24] + b"\xff" * 8 + content[-16:],
    ],
    ids=["empty", "foreign", "cut at the end", "cut at the start", "one bit", "vocabulary", "absurd length"],
)
def test_a_damaged_or_foreign_cache_is_made_again(load, tmp_path, harm):
    source = write(tmp_path / "poem.txt", "tyger")
    load(source)
    (cache,) = (tmp_path / "cache").iterdir()
    write(cache, harm(cache.read_bytes()))
    assert text_of(load(source)) == "tyger"


def test_the_cache_of_another_text_is_not_taken_for_ones_own(load, tmp_path):
    source = write(tmp_path / "poem.txt", "tyger")
    load(source)
    (cache,) = (tmp_path / "cache").iterdir()
    load(write(tmp_path / "other.txt", "other"))
    (other,) = set((tmp_path / "cache").iterdir()) - {cache}
    other.replace(cache)
    assert text_of(load(source)) == "tyger"


def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(load, tmp_path):
    here, there = write(tmp_path / "a.txt", "tyger"), write(tmp_path / "b.txt", "tyger")
    assert load(here).fingerprint == load(there).fingerprint


@pytest.mark.parametrize("options", [{"vocabulary": "bytes"}, {"vocabulary": "udacity"}])
def test_the_fingerprint_tells_vocabularies_apart(load, tmp_path, options):
    source = write(tmp_path / "poem.txt", "tyger")
    assert load(source).fingerprint != load(source, **options).fingerprint


def test_progress_reaches_its_total_in_reading_and_in_encoding(load, tmp_path):
    calls = []
    load(write(tmp_path / "poem.txt", "tyger"), progress=lambda *call: calls.append(call))
    assert calls == [("read", 5, 5), ("encode", 5, 5)]


def test_memory_does_not_grow_with_the_text(tmp_path):
    """96 MB of text, read, encoded and batched to its end, in under 64 MB more than an idle interpreter has."""
    with (tmp_path / "big.txt").open("wb") as file:
        for _ in range(96):
            file.write(b"0123456789abcdef" * 62_500)
    script = """
import resource, sys
from lstmfast.data import Batches, load_corpus

def peak_bytes():
    # ru_maxrss begins at what the parent process had; VmHWM, where there is one, is this program's own
    try:
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

before = peak_bytes()
ids = load_corpus([sys.argv[1]], cache_folder=sys.argv[2]).ids
for streams in 1, 64:
    batches = Batches(ids, streams, 64_000 // streams)
    while batches.position < len(ids) // streams:
        batches.next()
print(len(ids), peak_bytes() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "big.txt"), str(tmp_path / "cache")]
    length, growth_bytes = map(int, subprocess.check_output(command, text=True).split())
    assert length == 96_000_000 and growth_bytes < 64_000_000


# Splitting


def test_valid_first_validates_on_the_beginning():
    train, valid = split(np.arange(10), valid_first=3)
    assert (train.tolist(), valid.tolist()) == ([3, 4, 5, 6, 7, 8, 9], [0, 1, 2])


def test_valid_fraction_validates_on_the_end():
    train, valid = split(np.arange(10), valid_fraction=0.25)
    assert (train.tolist(), valid.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9])


def test_without_either_nothing_is_set_aside():
    train, valid = split(np.arange(4))
    assert (train.tolist(), valid.tolist()) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"valid_first": 10}, "valid_first must be at least 0 and below the text length 10, got 10"),
        ({"valid_first": -1}, "valid_first must be at least 0"),
        ({"valid_fraction": 1.0}, "valid_fraction must be at least 0 and below 1, got 1.0"),
        ({"valid_fraction": float("nan")}, "valid_fraction must be at least 0 and below 1, got nan"),
        ({"valid_first": 1, "valid_fraction": 0.5}, "exclude each other"),
    ],
)
def test_a_split_that_leaves_nothing_or_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split(np.arange(10), **options)


# Batches


@given(batch_size=st.integers(1, 6), unroll=st.integers(1, 5), extra=st.integers(1, 40), count=st.integers(1, 30))
def test_batches_are_those_of_the_notebook(batch_size, unroll, extra, count):
    text = np.arange(batch_size * unroll + extra, dtype=np.uint8)
    ours, notebook = Batches(text, batch_size, unroll), NotebookBatchGenerator(text.tolist(), batch_size, unroll)
    for _ in range(count):
        assert tuple(array.tolist() for array in ours.next()) == notebook.next()


@settings(max_examples=25)
@given(position=st.integers(0, 1000))
def test_a_generator_set_to_a_position_goes_on_from_there(position):
    ours, notebook = Batches(np.arange(101), 4, 1), NotebookBatchGenerator(range(101), 4, 1)
    ours.next()
    ours.position = position
    for _ in range(position):
        notebook.next()
    assert tuple(array.tolist() for array in ours.next()) == notebook.next()


def test_inputs_and_targets_are_contiguous_int32_and_time_major():
    arrays = Batches(np.arange(200, dtype=np.uint8), 8, 5).next()
    assert [(a.dtype.name, a.shape, a.flags.c_contiguous) for a in arrays] == [("int32", (5, 8), True)] * 2


def test_earlier_batches_are_not_overwritten_by_later_ones():
    batches = Batches(np.arange(50), 2, 3)
    first, _ = batches.next()
    batches.next()
    assert first.tolist() == [[0, 25], [1, 26], [2, 27]]


@pytest.mark.parametrize("ahead_bytes", [1, 100, 1 << 20])
def test_copying_ahead_does_not_change_the_batches(load, tmp_path, monkeypatch, ahead_bytes):
    monkeypatch.setattr("lstmfast.text.batches._AHEAD_BYTES", ahead_bytes)
    ids = load(write(tmp_path / "text", bytes(range(256)) * 100), vocabulary="bytes").ids
    ours, notebook = Batches(ids, 10, 9), NotebookBatchGenerator(ids.tolist(), 10, 9)
    assert all(tuple(array.tolist() for array in ours.next()) == notebook.next() for _ in range(300))


def test_a_text_shorter_than_a_batch_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="has 640 characters, but batch_size 64 and unroll 10 need at least 641"):
        Batches(np.zeros(640, np.uint8), 64, 10)


@pytest.mark.parametrize("batch_size, unroll", [(0, 1), (1, 0), (-2, 3)])
def test_a_batch_of_nothing_is_refused(batch_size, unroll):
    with pytest.raises(ValueError, match=f"must be at least 1, got {batch_size} and {unroll}"):
        Batches(np.zeros(10, np.uint8), batch_size, unroll)


@pytest.mark.parametrize("ids", [np.zeros((4, 4), np.uint8), np.zeros(16)], ids=["two dimensions", "floats"])
def test_ids_that_are_no_line_of_integers_are_refused(ids):
    with pytest.raises(ValueError, match="one-dimensional integer array"):
        Batches(ids, 1, 1)


def test_streams_start_a_segment_apart():
    inputs, _ = Batches(np.arange(100), 7, 2).next()
    assert set(itertools.pairwise(inputs[0].tolist())) == {(14 * b, 14 * b + 14) for b in range(6)}
