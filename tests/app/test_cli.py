"""The command line: results on standard output, one line for each mistake, and what a terminal shows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmfast import _core, runtime
from lstmfast.command.display import printable
from lstmfast.command.main import COMMANDS, main
from lstmfast.config import DataConfig, ModelConfig, OptimizerConfig, TrainingConfig, preset
from lstmfast.data import Vocabulary
from lstmfast.run_folder import RunFolder, load_model
from lstmfast.sampler import Sampler

TEXT = "the cat sat on the mat\n" * 60
TINY = [
    "--steps", "12", "--hidden-size", "8", "--batch-size", "4", "--unroll", "5", "--summary-every", "5",
    "--sample-length", "30", "--seed", "1",
]
FIELDS = [
    "step", "loss", "perplexity", "bits_per_char", "learning_rate", "chars_per_second", "valid_loss", "valid_perplexity"
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run, beside its text. Tests must not change it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT)
    flags = ["--num-layers", "2", "--embedding-size", "3"]
    assert main(["train", str(folder / "text.txt"), "--out", str(folder / "run"), *TINY, *flags]) == 0
    return folder / "run"


@pytest.fixture
def lstmfast(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder of its own that holds text.txt: status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run_folder_with_these_files(trained: Path) -> None:
    files = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "samples.txt"}
    assert {path.name for path in trained.iterdir()} - {"loss.png"} == files


def test_loss_is_drawn_where_matplotlib_is(trained: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_one_object_a_line_with_these_fields(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], list(line)) for line in lines] == [
        (0, FIELDS), (5, FIELDS[:6]), (10, FIELDS[:6]), (11, FIELDS)
    ]


def test_perplexity_and_bits_are_those_of_the_loss(trained: Path) -> None:
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["perplexity"], line["bits_per_char"], line["valid_perplexity"]) == pytest.approx(
        (math.exp(line["loss"]), line["loss"] / math.log(2), math.exp(line["valid_loss"]))
    )


def test_flags_override_the_preset_and_are_written_down(trained: Path) -> None:
    config = RunFolder(trained).read_config()
    base = preset("stdlib", hidden_size=8, characters=len(TEXT))
    wanted = ModelConfig(hidden_size=8, num_layers=2, embedding_size=3, dropout=base.model.dropout)
    assert (config.preset, config.model, config.optimizer) == ("stdlib", wanted, base.optimizer)


def test_minutes_are_turned_into_steps_which_are_written_down(lstmfast: Run) -> None:
    status, _, _ = lstmfast("train", "text.txt", "--minutes", "0.01", "--hidden-size", "8", "--out", "run")
    training = RunFolder("run").read_config().training
    last = json.loads(Path("run", "metrics.jsonl").read_text().splitlines()[-1])
    assert (status, training.minutes, last["step"]) == (0, 0.01, training.steps - 1)


def test_a_run_of_minutes_is_that_of_its_steps(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", "--minutes", "0.005", "--hidden-size", "8", "--out", "a")
    steps = RunFolder("a").read_config().training.steps
    lstmfast("train", "text.txt", "--steps", steps, "--hidden-size", "8", "--out", "b")
    a, b = (load_model(name)[0].parameter_buffer.tobytes() for name in "ab")
    assert a == b


def test_train_ends_with_the_line_to_type_next(lstmfast: Run) -> None:
    status, out, err = lstmfast("train", "text.txt", *TINY)
    assert (status, out) == (0, "")
    assert err.endswith("Done. Run folder: runs/stdlib-1\nNext: lstmfast sample runs/stdlib-1 --length 500\n")


def test_the_next_run_takes_the_next_number(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", *TINY)
    lstmfast("train", "text.txt", *TINY, "--preset", "stdlib")
    assert sorted(path.name for path in Path("runs").glob("stdlib-*")) == ["stdlib-1", "stdlib-2"]


def test_without_a_terminal_there_is_a_plain_line_for_each_summary(lstmfast: Run) -> None:
    _, _, err = lstmfast("train", "text.txt", *TINY)
    line = r"step +{}/12  loss \d\.\d{{4}}  \d\.\d{{3}} bits/char +[\d,]+ chars/s  \d:\d\d left.*\n"
    assert re.search(".*".join(line.format(step) for step in (0, 5, 10, 11)), err, re.DOTALL)


def test_the_same_seed_gives_the_same_run_and_another_one_another(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", *TINY, "--out", "a")
    lstmfast("train", "text.txt", *TINY, "--out", "b")
    lstmfast("train", "text.txt", *TINY, "--out", "c", "--seed", "2")
    a, b, c = (load_model(name)[0].parameter_buffer.tobytes() for name in "abc")
    assert (a == b, a == c) == (True, False)


def test_preset_udacity_trains_on_a_folded_text(lstmfast: Run) -> None:
    Path("text.txt").write_text(TEXT * 3)
    status, _, _ = lstmfast("train", "text.txt", "--preset", "udacity", "--fold", "--steps", "3")
    model, vocabulary, _ = load_model("runs/udacity-1")
    assert (status, model.hidden_size, vocabulary) == (0, 64, Vocabulary.udacity())


def test_several_texts_are_joined(lstmfast: Run) -> None:
    Path("other.txt").write_text("XYZ" * 100)
    lstmfast("train", "text.txt", "other.txt", *TINY)
    assert set("catXYZ") < set(load_model("runs/stdlib-1")[1].symbols or "")


def test_without_a_text_the_standard_library_is_learnt(lstmfast: Run) -> None:
    status, _, err = lstmfast("train", *TINY, "--valid-fraction", "0", "--sample-every", "0")
    assert (status, err.startswith("Text:  the standard library of Python ")) == (0, True)


def test_overwrite_replaces_the_run_and_leaves_other_files_alone(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", *TINY, "--out", "run")
    Path("run/notes.txt").write_text("mine")
    status, _, _ = lstmfast("train", "text.txt", *TINY, "--out", "run", "--overwrite", "--hidden-size", "4")
    model, _, _ = load_model("run")
    assert (status, model.hidden_size, Path("run/notes.txt").read_text()) == (0, 4, "mine")


def test_an_empty_folder_needs_no_overwrite(lstmfast: Run) -> None:
    Path("run").mkdir()
    assert lstmfast("train", "text.txt", *TINY, "--out", "run")[0] == 0


def test_a_run_that_cannot_begin_leaves_no_folder(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", "--out", "run", "--batch-size", "100000")
    assert not Path("run").exists()


def test_threads_are_those_asked_for(lstmfast: Run, threads: Any) -> None:
    lstmfast("train", "text.txt", *TINY, "--threads", "3")
    assert threads.get_num_threads() == 3


def test_matmul_precision_is_the_one_asked_for(lstmfast: Run) -> None:
    lstmfast("train", "text.txt", *TINY, "--matmul-precision", "medium")
    asked = runtime.get_matmul_precision()
    runtime.set_matmul_precision("highest")
    assert asked == "medium"


def on_terminal(*arguments: str | Path, status: int = 0) -> str:
    """What a command that ends with this status writes to a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-m", "lstmfast", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux's end of file of a terminal
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(timeout=60) == status, shown
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_on_a_terminal_a_bar_shows_step_loss_bits_speed_and_time_left(lstmfast: Run) -> None:
    shown = on_terminal("train", "text.txt", *TINY, "--out", "run")
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    numbers = f"12/12  loss {last['loss']:.3f}  {last['bits_per_char']:.3f} bits/char  valid {last['valid_loss']:.3f}"
    assert re.search(rf"Training ━+ {numbers}  [\d,]+ chars/s  0:00 left", shown), shown


def test_on_a_terminal_the_loss_is_drawn_at_the_end(lstmfast: Run) -> None:
    shown = on_terminal("train", "text.txt", *TINY, "--out", "run")
    assert re.search(r"loss in nats: ⠒⠒ training  ● validation\r\n( .*\r\n){13} +0 +step 11\r\n.*Done\.", shown, re.S)


def test_in_a_log_no_loss_is_drawn(lstmfast: Run) -> None:
    assert "loss in nats" not in lstmfast("train", "text.txt", *TINY)[2]


def test_on_a_terminal_a_mistake_is_one_line_as_well(lstmfast: Run) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    shown = on_terminal("train", "text.txt", "--out", "full", status=2)
    assert (shown.startswith("lstmfast: error: run folder full"), shown.count("\n")) == (True, 1), shown


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\f"])
def test_line_breaks_of_a_sample_are_shown_as_line_breaks(line_end: str) -> None:
    assert printable(f"a{line_end}b{line_end}") == "a\nb\n"


@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
@pytest.mark.parametrize("line_end", ["\r\n", "\r"], ids=["windows", "old mac"])
def test_samples_of_a_text_with_other_line_ends_show_no_replacement_characters(
    lstmfast: Run, line_end: str, vocabulary: str
) -> None:
    Path("other.txt").write_bytes(TEXT.replace("\n", line_end).encode())
    flags = [*TINY, "--sample-every", "3", "--vocabulary", vocabulary, "--sample-length", "200"]
    status, _, err = lstmfast("train", "other.txt", "--out", "run", *flags)
    assert (status, vocabulary == "characters" and "\ufffd" in err, "\r" in err) == (0, False, False)


def test_a_prime_may_have_the_line_ends_that_its_text_had(trained: Path, lstmfast: Run) -> None:
    assert lstmfast("sample", trained, "--prime", "the\r\ncat") == lstmfast("sample", trained, "--prime", "the\ncat")


def test_control_characters_of_a_sample_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\x07é\t\n\x9b") == "a\ufffd[2J\ufffdé\t\n\ufffd"


# --- sample, eval, inspect, info --------------------------------------------------------------------------------------


def test_sample_writes_the_prime_and_the_text_and_nothing_else(trained: Path, lstmfast: Run) -> None:
    status, out, err = lstmfast("sample", trained, "--length", "100", "--prime", "the ")
    assert (status, out[:4], len(out), out[-1], err) == (0, "the ", 105, "\n", "")


def test_sample_is_the_samplers_text(trained: Path, lstmfast: Run) -> None:
    model, vocabulary, _ = load_model(trained)
    sampler = Sampler(model, vocabulary, temperature=1.5, top_k=4, top_p=0.9)
    texts = sampler.generate(50, rng=np.random.default_rng(9), streams=2)
    choice = ["--temperature", "1.5", "--top-k", "4", "--top-p", "0.9"]
    _, out, _ = lstmfast("sample", trained, "--length", "50", "--seed", "9", "--streams", "2", *choice)
    assert out == "\n\n".join(texts) + "\n"


def test_sample_with_fewer_bits_is_that_samplers_text(trained: Path, lstmfast: Run) -> None:
    model, vocabulary, _ = load_model(trained)
    text = Sampler(model, vocabulary, temperature=0.7, weights="int8").generate(50, rng=np.random.default_rng(9))[0]
    _, out, _ = lstmfast("sample", trained, "--length", "50", "--seed", "9", "--weights", "int8")
    assert out == f"{text}\n"


def test_sample_without_options_is_500_characters_at_the_default_temperature(trained: Path, lstmfast: Run) -> None:
    model, vocabulary, _ = load_model(trained)
    text = Sampler(model, vocabulary, temperature=0.7).generate(500, rng=np.random.default_rng(0))[0]
    assert lstmfast("sample", trained)[1] == f"{text}\n"


@pytest.mark.parametrize("streams", ["1", "3"])
def test_sample_ends_before_the_first_of_its_stops(trained: Path, lstmfast: Run, streams: str) -> None:
    _, whole, _ = lstmfast("sample", trained, "--streams", streams, "--temperature", "0.9")
    flags = ["--stop", "at", "--stop", "\r\n"]
    _, out, _ = lstmfast("sample", trained, "--streams", streams, "--temperature", "0.9", *flags)
    assert out.rstrip("\n").split("\n\n")[0] == re.split("at|\n", whole)[0]


def test_sample_best_of_is_the_samplers_best(trained: Path, lstmfast: Run) -> None:
    model, vocabulary, _ = load_model(trained)
    best = Sampler(model, vocabulary, temperature=0.7).best_of(5, 40, rng=np.random.default_rng(3), prime="the ")
    _, out, _ = lstmfast("sample", trained, "--best-of", "5", "--length", "40", "--seed", "3", "--prime", "the ")
    assert out == f"the {best}\n"


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """The command in a process that Ctrl-C interrupts, also where a shell in the background has had it ignored."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lstmfast.command.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    # Unbuffered, because `communicate` does not see what a buffered read took beyond its count.
    return subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_sample_writes_while_it_draws_and_ctrl_c_ends_it_with_what_was_drawn(trained: Path) -> None:
    with started("sample", trained, "--length", "2000000000") as process:
        assert process.stdout
        begun = process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    with started("sample", trained, "--length", str(len(begun + rest))) as another:
        whole, _ = another.communicate(timeout=60)
    drawn = begun + rest
    assert (process.returncode, drawn[-1:], whole.startswith(drawn[:-1]), said) == (
        130, b"\n", True, b"lstmfast: interrupted\n"
    )


def test_ctrl_c_ends_several_texts_with_what_was_drawn(
    trained: Path, lstmfast: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = lstmfast("sample", trained, "--streams", "2", "--length", "32")
    pieces = Sampler.pieces

    def interrupted(*arguments: Any, **options: Any) -> Iterator[list[str]]:
        yield from itertools.islice(pieces(*arguments, **options), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "pieces", interrupted)
    assert lstmfast("sample", trained, "--streams", "2") == (130, whole, "lstmfast: interrupted\n")


def test_sample_takes_a_checkpoint_file_as_well(trained: Path, lstmfast: Run) -> None:
    assert lstmfast("sample", trained / "checkpoint.safetensors") == lstmfast("sample", trained)


def test_a_reader_that_has_seen_enough_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m lstmfast sample '{trained}' --length 3000000 | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (len(done.stdout), done.stderr) == (10, "")


def test_eval_says_loss_bits_and_perplexity(trained: Path, lstmfast: Run) -> None:
    status, out, _ = lstmfast("eval", trained, "text.txt")
    pattern = r"text\.txt: 1,380 characters, 11 symbols\n"
    pattern += r"loss +\d\.\d{4} nats per character, \d\.\d{4} bits per character\nperplexity +\d+\.\d{4}\n"
    assert (status, bool(re.fullmatch(pattern, out))) == (0, True), out


def test_eval_json_is_one_object_of_numbers_that_agree(trained: Path, lstmfast: Run) -> None:
    result = json.loads(lstmfast("eval", trained, "text.txt", "--json")[1])
    loss = result["loss"]
    assert result == {
        "characters": len(TEXT), "loss": loss, "bits_per_char": loss / math.log(2), "perplexity": math.exp(loss)
    }


def test_eval_of_the_validation_part_is_the_validation_loss(trained: Path, lstmfast: Run) -> None:
    Path("end.txt").write_text(TEXT[-int(len(TEXT) * 0.05) :])
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(lstmfast("eval", trained, "end.txt", "--json")[1])["loss"] == last["valid_loss"]


def test_inspect_json_lists_variables_from_input_to_output(trained: Path, lstmfast: Run) -> None:
    variables = json.loads(lstmfast("inspect", trained, "--json")[1])["variables"]
    assert [(variable["name"], variable["shape"], variable["count"]) for variable in variables] == [
        ("embedding", [11, 3], 33),
        ("lstm.layer0.kernel", [11, 32], 352),
        ("lstm.layer0.bias", [32], 32),
        ("lstm.layer1.kernel", [16, 32], 512),
        ("lstm.layer1.bias", [32], 32),
        ("projection.kernel", [8, 11], 88),
        ("projection.bias", [11], 11),
    ]


def test_inspect_json_says_which_columns_are_which_gate(trained: Path, lstmfast: Run) -> None:
    kernel = json.loads(lstmfast("inspect", trained, "--json")[1])["variables"][1]
    assert [(gate["name"], gate["letter"], gate["columns"], gate["count"]) for gate in kernel["gates"]] == [
        ("input", "i", [0, 8], 88),
        ("forget", "f", [8, 16], 88),
        ("cell", "g", [16, 24], 88),
        ("output", "o", [24, 32], 88),
    ]


def test_inspect_explains_counts_that_add_up_to_the_total(trained: Path, lstmfast: Run) -> None:
    found = json.loads(lstmfast("inspect", trained, "--json")[1])
    counts = [int(line.rstrip(".").rpartition(" = ")[2].replace(",", "")) for line in found["formula"] if " = " in line]
    model, _, _ = load_model(trained)
    assert found["total"] == sum(counts) == model.parameter_buffer.size


def test_inspect_shows_the_formula_in_words(trained: Path, lstmfast: Run) -> None:
    _, out, _ = lstmfast("inspect", trained / "checkpoint.safetensors")
    assert "lstm.layer1: I = 8 (the layer below), H = 8: 4 x 8 x (8 + 8 + 1) = 544." in out


def test_info_json_says_what_is_in_use(lstmfast: Run) -> None:
    facts = json.loads(lstmfast("info", "--json")[1])
    assert set(facts) == {"version", "compiler", "isas_built", "isas_available", "isa", "threads", "cuda"}
    assert facts["isa"] in facts["isas_available"]


def test_info_is_readable(lstmfast: Run) -> None:
    assert re.search(r"^cuda +not available: .*LSTMFAST_CUDA=1", lstmfast("info")[1], re.MULTILINE)


def test_info_warns_of_a_build_without_the_kernels_for_this_cpu(
    lstmfast: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "unbuilt_isas", lambda: ["avx2", "avx512"])
    assert lstmfast("info")[2] == (
        "lstmfast: this CPU has avx2, avx512, but this build has no kernels for that and is slower than it could be; "
        "build lstmfast from source on this machine: docs/platforms.md\n"
    )


# --- what surrounds a program -----------------------------------------------------------------------------------------


def in_shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which LSTMFAST is the command; `say` writes where no redirection reaches."""
    before = f"exec 9>&1; say() {{ echo \"$@\" >&9; }}; LSTMFAST='{sys.executable} -m lstmfast'; "
    known = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", before + line], capture_output=True, text=True, cwd=folder, timeout=120,
        env={**known, **environment}, errors="surrogateescape",
    )


LINES = {  # the command, its status where streams are as usual, and whether it writes to standard output
    "train": ("train text.txt --out run " + " ".join(TINY), 0, False),
    "sample": ("sample RUN --length 10", 0, True),
    "eval": ("eval RUN text.txt", 0, True),
    "inspect": ("inspect RUN", 0, True),
    "info": ("info --json", 0, True),
    "usage": ("--help", 0, True),
    "help": ("train --help", 0, True),
    "mistake": ("sample nowhere", 2, True),
}
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
FULL = [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]


# Every combination for a few commands, the telling ones for all.
COMBINATIONS = [(name, streams, "") for name in ("train", "sample", "mistake") for streams in (*CLOSED, *FULL)]
COMBINATIONS += [(name, streams, "") for name in ("eval", "info", "usage", "help") for streams in (">&-", ">/dev/full")]
COMBINATIONS += [(name, ">/dev/full", "1") for name in ("sample", "info", "help")]


@pytest.mark.parametrize(("name", "streams", "unbuffered"), COMBINATIONS)
def test_streams_that_are_closed_or_full_cost_no_more_than_what_goes_there(
    trained: Path, tmp_path: Path, name: str, streams: str, unbuffered: str
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    line, status, has_results = LINES[name]
    done = in_shell(
        f"{{ $LSTMFAST {line.replace('RUN', str(trained))} ; say rc $?; }} {streams}", tmp_path,
        PYTHONUNBUFFERED=unbuffered,
    )
    no_results = (
        has_results and ">&-" in streams.replace("2>&-", "") or streams.startswith(">/dev/full") and has_results
    )
    assert f"rc {2 if no_results else status}" in done.stdout, done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    if no_results and "2>" not in streams and name != "mistake":
        assert re.fullmatch(
            r"lstmfast: error: standard output (is closed|cannot be written: No space).*\n", done.stderr
        )
    if "2>" in streams and not (has_results and status == 0):
        assert done.stdout == f"rc {status}\n"  # no error on standard output in the place of standard error
    if name == "train":
        assert (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("streams", ["<&-", "<&- 2>&-"])
def test_a_text_from_standard_input_that_is_closed_is_one_sentence(tmp_path: Path, streams: str) -> None:
    done = in_shell(f"{{ $LSTMFAST train - --out run; say rc $?; }} {streams}", tmp_path)
    said = "" if "2>" in streams else "lstmfast: error: standard input ('-') is closed; name a text file\n"
    assert (done.stdout, done.stderr, (tmp_path / "run").exists()) == ("rc 2\n", said, False)


@pytest.mark.parametrize("name", [name for name in LINES if name not in ("train", "mistake")])
def test_a_reader_that_leaves_after_a_line_gets_that_line_and_no_traceback(
    trained: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = in_shell(f"$LSTMFAST {LINES[name][0].replace('RUN', str(trained))} | head -n 1 | wc -l", tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_a_training_goes_on_when_nobody_reads_its_log_any_more(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    done = in_shell(f"{{ $LSTMFAST {LINES['train'][0]}; say rc $?; }} 2>&1 | head -n 1 >&2", tmp_path)
    assert (done.stdout, done.stderr.count("\n")) == ("rc 0\n", 1)


ENVIRONMENTS = {
    "no HOME": {"HOME": ""},
    "a dumb terminal": {"TERM": "dumb"},
    "no terminal": {"TERM": ""},
    "ASCII": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "no docstrings": {"PYTHONOPTIMIZE": "2"},
}


NAMES = ["text.txt", "with spaces and 'quotes'", "größe", os.fsdecode(b"\xff\xfe not UTF-8")]
SURROUNDINGS = [
    *((where, NAMES[2]) for where in ENVIRONMENTS),
    *(("no HOME", name) for name in NAMES),
    ("ASCII", NAMES[3]),
]


@pytest.mark.parametrize(("environment", "name"), SURROUNDINGS)
def test_a_run_works_in_any_environment_and_under_any_name(tmp_path: Path, environment: str, name: str) -> None:
    (tmp_path / name).write_text("Füße und Größe, жёлтый\n" * 60, encoding="utf-8")
    run = f"run {name}"
    commands = [
        ["train", name, "--out", run, *TINY], ["train", "--resume", run, "--steps", "14"],
        ["sample", run, "--length", "9"], ["eval", run, name], ["inspect", run], ["info"],
    ]
    program = """
import itertools, sys
from lstmfast.command.main import main
commands = [list(words) for end, words in itertools.groupby(sys.argv[1:], ";".__eq__) if not end]
print([main(words) for words in commands])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *(word for words in commands for word in (*words, ";"))],
        capture_output=True, cwd=tmp_path, env={**os.environ, **ENVIRONMENTS[environment]}, timeout=120,
    )
    assert done.stdout.splitlines()[-1] == b"[0, 0, 0, 0, 0, 0]", done.stderr


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_the_commands_are_listed(lstmfast: Run, arguments: list[str]) -> None:
    status, out, _ = lstmfast(*arguments)
    assert (status, [name for name in COMMANDS if f"\n  {name} " in out]) == (0, list(COMMANDS))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_the_same_without_docstrings(command: str) -> None:
    shown = [
        subprocess.run(
            [sys.executable, *flags, "-m", "lstmfast", *filter(None, [command]), "--help"],
            capture_output=True, text=True, timeout=60,
        ).stdout
        for flags in ([], ["-OO"])
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(lstmfast: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        lstmfast(command, "--help")
    options = re.split(
        r"\n(?=--[a-z]|[A-Z]{2})", re.sub(r"^[│ ]+|[│ ]+$", "", capsys.readouterr().out, flags=re.MULTILINE)
    )
    bare = [option for option in options[1:] if not re.search(r"[a-z]{3,} [a-z\d]+", option.split("(default")[0])]
    assert (len(options) > 1, bare) == (True, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(lstmfast: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        lstmfast(command, "--help")
    assert (stopped.value.code, f"usage: lstmfast {command}" in capsys.readouterr().out) == (0, True)


def test_help_of_train_explains_every_setting_by_a_flag_of_its_name(
    lstmfast: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        lstmfast("train", "--help")
    shown = " ".join(re.sub(r"[│\n]", " ", capsys.readouterr().out).split())
    groups = (DataConfig, ModelConfig, OptimizerConfig, TrainingConfig)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert [name for name in names if not re.search(rf"--{name.replace('_', '-')}[ ,]", shown)] == []


def test_help_shows_the_values_of_the_preset_named(lstmfast: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lstmfast("train", "--preset", "udacity", "--help")
    assert "(default: 7001)" in capsys.readouterr().out


def test_version_is_that_of_the_package(lstmfast: Run) -> None:
    from lstmfast import __version__

    assert lstmfast("--version")[1] == f"lstmfast {__version__}\n"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("tarin", "the command must be one of train, sample, eval, report, inspect, bench, info, got 'tarin'"),
        ("train text.txt --hiden-size 3", "--hiden-size"),
        ("train text.txt --hidden-size", "--hidden-size"),
        ("train text.txt --hidden-size many", "--hidden-size must be a whole number, got 'many'"),
        ("train text.txt --zoneout 0.1,much", "--zoneout must be a number, got 'much'"),
        ("train text.txt --hidden-size 0", "hidden_size must be 1 or more, got 0"),
        ("train text.txt --learning-rate nan", "learning_rate must be a finite number, got nan"),
        ("train text.txt --learning-rate -1", "learning_rate must be above 0, got -1.0"),
        ("train text.txt --dropout 1", "dropout must be at least 0 and below 1, got 1.0"),
        ("train text.txt --vocabulary syllables", "invalid choice 'syllables' for argument '--vocabulary'"),
        ("train text.txt --vocabulary bpe --vocabulary-size 9", "vocabulary_size must be 256 or more for bpe"),
        ("train text.txt --tied --hidden-size 8", "one-hot characters have none: give embedding_size 8"),
        ("train text.txt --tied --hidden-size 8 --embedding-size 9", "embedding_size must be 8, the length of"),
        ("train text.txt --threads -1", "threads must be 0 or more, got -1"),
        ("train text.txt --preset text8", "preset must be one of stdlib, udacity, got 'text8'"),
        ("train missing.txt", "missing.txt does not exist"),
        ("train empty.txt", "the text is empty"),
        ("train text.txt --batch-size 64", "batch_size 64 and unroll 64 need at least 4097; give a longer text, or"),
        ("train text.txt --minutes 1 --steps 9", "--minutes and --steps both say how long to train; give one of them"),
        ("train bare", "bare holds no text file"),
        ("train . --expected-bytes 7", "expected_bytes is the size of one file or address, and . is a folder"),
        ("train capital.txt --preset udacity", "--fold reduces a text to them"),
        ("train latin.txt", "byte 0xe9 at offset 2 is not valid utf-8; name the encoding with --encoding"),
        ("train text.txt --encoding klingon", "encoding must name a text encoding that Python knows, got 'klingon'"),
        ("train text.txt --expected-bytes 7", "text.txt has 1380 bytes, but expected_bytes is 7"),
        (
            "train text.txt --out full",
            "run folder full is not empty: give --resume full to go on with its run, --overwrite",
        ),
        ("train text.txt --out text.txt", "run folder text.txt cannot be written: File exists"),
        ("train text.txt --out text.txt/run", "run folder text.txt/run cannot be written: Not a directory"),
        ("train --resume nowhere", "nowhere is no run folder: it holds no config.json"),
        ("train --resume full", "full is no run folder: it holds no config.json"),
        ("sample", "RUN"),
        ("sample nowhere", "checkpoint nowhere does not exist"),
        ("sample full", "full is no run folder that can be used: it holds no checkpoint.safetensors"),
        ("sample text.txt", "text.txt is not a usable checkpoint"),
        ("sample RUN --temperature nan", "temperature must be finite, got nan"),
        ("sample RUN --top-p 2", "top_p must be above 0 and at most 1, got 2.0"),
        ("sample RUN --top-k -1", "top_k must be at least 0, got -1"),
        ("sample RUN --length -1", "length must be at least 0, got -1"),
        ("sample RUN --streams 0", "streams must be at least 1, got 0"),
        ("sample RUN --best-of 0", "best_of must be at least 1, got 0"),
        ("sample RUN --best-of 2 --streams 2", "best_of writes one text, but streams is 2; give one of the two"),
        ("sample RUN --stop XYZ", "stop: character 'X' (U+0058) at position 0 is not one of the 11 characters"),
        ("sample RUN --seed -1", "seed must be 0 or more, got -1"),
        ("sample RUN --prime XYZ", "prime: character 'X' (U+0058) at position 0 is not one of the 11 characters"),
        ("eval RUN", "TEXT is missing"),
        ("eval RUN missing.txt", "missing.txt does not exist"),
        ("eval RUN capital.txt", "character 'T' (U+0054) at position 0 is not one of the 11 characters"),
        ("eval RUN one.txt", "a text to validate on must have at least 2 characters, got 1"),
        ("inspect text.txt", "text.txt is not a supported weight file (supported: "),
        ("info please", "please"),
    ],
)
def test_a_mistake_is_said_in_one_line_with_status_2(trained: Path, lstmfast: Run, arguments: str, words: str) -> None:
    Path("empty.txt").touch()
    Path("one.txt").write_text("t")
    Path("bare").mkdir()
    Path("capital.txt").write_text(TEXT.title() * 5)
    Path("latin.txt").write_bytes(b"caf\xe9"[1:] * 100)
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    status, out, err = lstmfast(*(str(trained) if word == "RUN" else word for word in arguments.split()))
    assert (status, out, err.count("\n"), err[:17]) == (2, "", 1, "lstmfast: error: "), err
    assert words in err


def test_a_checkpoint_that_does_not_fit_its_settings_is_refused(trained: Path, lstmfast: Run, tmp_path: Path) -> None:
    from lstmfast.training import checkpoint

    saved = checkpoint.load(trained / "checkpoint.safetensors")
    config = json.loads(json.dumps(saved.metadata["config"]))
    config["model"]["hidden_size"] = 9
    checkpoint.save(tmp_path / "odd.safetensors", saved.tensors, {**saved.metadata, "config": config})
    assert (
        "its lstm.layer0.kernel is float32 [11, 32], but the settings ask for"
        in lstmfast("sample", "odd.safetensors")[2]
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(lstmfast: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    _, _, err = lstmfast("train", "text.txt", "--out", "locked/run")
    assert err == "lstmfast: error: run folder locked/run cannot be written: Permission denied\n"


def test_with_traceback_the_error_is_raised(lstmfast: Run) -> None:
    with pytest.raises(ValueError, match="hidden_size must be 1 or more"):
        lstmfast("train", "text.txt", "--hidden-size", "0", "--traceback")


def test_an_error_of_ours_is_one_line_too(lstmfast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: object) -> int:
        raise KeyError("odd")

    monkeypatch.setitem(COMMANDS, "info", fail)
    assert lstmfast("info") == (2, "", "lstmfast: error: KeyError: 'odd' (--traceback shows where)\n")


@pytest.mark.parametrize("name", ["pentium", "avx2,avx512"])
def test_an_unknown_isa_is_one_line_that_lists_the_known(name: str) -> None:
    environment = {**os.environ, "LSTMFAST_ISA": name}
    command = [sys.executable, "-m", "lstmfast", "info"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "generic" in done.stderr
