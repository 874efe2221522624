"""Every LSTM of a process, or of a program that knows nothing of lstmfast: patch, the command, and what is reported."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from lstmfast.torch import recording  # noqa: E402
from support.torch_models import Around, Tagger  # noqa: E402

T, B, INPUT, H = 5, 4, 3, 6
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _unpatched():
    """Every test begins and ends in a process that nobody has patched."""
    torch.compiler.reset()
    yield
    if ours.serving.EVERYWHERE:
        ours.unpatch()


class Forecaster(nn.LSTM):
    """A subclass that adds to what torch computes."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return 2 * output, state


class WithReset(nn.LSTM):
    """A subclass that draws its weights in another way."""

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.2, 0.2)


class Stepwise(nn.LSTM):
    """Computes by itself."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return input, hx


def served(module: Any) -> bool:
    return "lstmfast's kernels" in ours.explain(module, torch.zeros(T, B, module.input_size))


# --- patch and unpatch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.LSTM, Forecaster, WithReset])
@pytest.mark.parametrize("made", ["before", "after"])
def test_modules_made_before_and_after_patch_are_served(cls, made):
    module = cls(INPUT, H)
    ours.patch()
    assert served(module if made == "before" else cls(INPUT, H))


def test_a_patched_cell_is_served():
    cell = nn.LSTMCell(INPUT, H)
    ours.patch()
    assert "lstmfast's kernels" in ours.explain(cell, torch.zeros(B, INPUT))


@pytest.mark.parametrize("cls", [nn.LSTM, Forecaster, WithReset])
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 2}, {"batch_first": True, "bias": False}],
    ids=str,
)
def test_results_and_gradients_are_torchs(cls, options):
    module, x, found = cls(INPUT, H, **options), torch.randn(T, B, INPUT), []
    for patched in (False, True):
        module.zero_grad()
        if patched:
            ours.patch()
        output, state = module(x)
        output.square().sum().backward()
        found.append([output, *state, *(weight.grad.clone() for weight in module.parameters())])
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_packed_sequences_are_served():
    module, x = nn.LSTM(INPUT, H), pack_sequence([torch.randn(n, INPUT) for n in (2, 5, 3)], enforce_sorted=False)
    expected = module(x)[0].data
    with ours.patched(report=True):
        torch.testing.assert_close(module(x)[0].data, expected, **CLOSE)
    assert "1 by lstmfast's kernels" in ours.report()


def test_a_subclass_that_computes_by_itself_keeps_its_forward():
    module, x = Stepwise(INPUT, H), torch.randn(T, B, INPUT)
    ours.patch()
    assert module(x)[0] is x
    assert "Stepwise.forward, which does not call" in ours.explain(module, x)


def test_unpatch_gives_modules_back_to_torch():
    module = nn.LSTM(INPUT, H)
    ours.patch()
    ours.unpatch()
    assert not served(module)


def test_modules_that_were_converted_stay_converted():
    module = nn.LSTM(INPUT, H)
    ours.convert(module)
    with ours.patched():
        pass
    assert served(module)


def test_a_with_block_unpatches_after_an_error():
    with pytest.raises(KeyError), ours.patched():
        raise KeyError
    assert not served(nn.LSTM(INPUT, H))


def test_frozen_weights_are_used_in_a_patched_process():
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    ours.patch()
    with torch.no_grad():
        before = module(x)[0]
        assert ours.freeze(module) == 1
        module.weight_ih_l0.data.mul_(2)
        torch.testing.assert_close(module(x)[0], before, rtol=0, atol=0)
    ours.unfreeze(module)


def test_classes_state_dicts_and_pickles_are_torchs():
    model, file = Tagger(), io.BytesIO()
    ours.patch()
    torch.save(model, file)
    assert b"lstmfast" not in file.getvalue() + pickle.dumps(model)
    assert (type(model.cell), repr(model)) == (nn.LSTMCell, repr(Tagger()))
    assert copy.deepcopy(model).body[1].__dict__.keys() == model.body[1].__dict__.keys()


def test_script_trace_and_export_write_torchs_operations():
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    with ours.patched(report=True):
        for made in (torch.jit.script(Around(module)), torch.jit.trace(Around(module), (x,))):
            torch.testing.assert_close(made(x), module(x)[0], **CLOSE)
        program = torch.export.export(Around(module), (x,))
    assert not any("lstmfast" in str(node.target) for node in program.graph.nodes)


# --- torch.compile ----------------------------------------------------------------------------------------------------


def test_a_patched_process_compiles_with_our_operators():
    graphs: list[Any] = []
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    expected = module(x)[0]
    ours.patch()
    compiled = torch.compile(Around(module), backend=lambda graph, inputs: (graphs.append(graph), graph.forward)[1])
    torch.testing.assert_close(compiled(x), expected, **CLOSE)
    assert any("lstmfast" in str(node.target) for node in graphs[0].graph.nodes)


def compiled_and_run(how: str) -> tuple[Any, Any]:
    """A module and a compiled one around it that has a graph of it."""
    module = nn.LSTM(INPUT, H)
    around = Around(module)
    if how == "torch.compile":
        around = torch.compile(around, backend="eager")
    else:
        around.compile(backend="eager")
    around(torch.randn(T, B, INPUT))
    return module, around


@pytest.mark.parametrize("how", ["torch.compile", "compile"])
@pytest.mark.parametrize("of", ["LSTM", "whole"])
def test_convert_while_a_compiled_graph_holds_the_module_is_an_error_and_changes_nothing(how, of):
    module, around = compiled_and_run(how)
    with pytest.raises(RuntimeError, match="graph of torch.compile holds an LSTM of this model"):
        ours.convert(module if of == "LSTM" else around)
    assert not served(module)
    torch.compiler.reset()
    assert ours.convert(around) == 1


def test_convert_takes_a_module_that_no_compiled_graph_holds():
    _, _around = compiled_and_run("torch.compile")
    assert ours.convert(nn.LSTM(INPUT, H)) == 1


def test_a_module_that_was_compiled_and_never_called_is_converted():
    assert ours.convert(torch.compile(Around(nn.LSTM(INPUT, H)), backend="eager")) == 1


def test_patch_while_a_compiled_graph_holds_an_lstm_is_an_error_and_changes_nothing():
    module, _around = compiled_and_run("torch.compile")
    with pytest.raises(RuntimeError, match="graph of torch.compile holds an LSTM; patch before"):
        ours.patch()
    assert not served(module)
    torch.compiler.reset()
    ours.patch()


@pytest.mark.parametrize("undo", ["unpatch", "revert"])
def test_a_graph_of_a_served_module_is_compiled_again_once_torch_serves_it(undo):
    graphs: list[Any] = []
    around, x = Around(nn.LSTM(INPUT, H)), torch.randn(T, B, INPUT)
    if undo == "unpatch":
        ours.patch()
    else:
        ours.convert(around)
    compiled = torch.compile(around, backend=lambda graph, inputs: (graphs.append(graph), graph.forward)[1])
    compiled(x)
    if undo == "unpatch":
        ours.unpatch()
    else:
        ours.revert(around)
    compiled(x)
    assert ["lstmfast" in str(graph.graph) for graph in graphs] == [True, False]


# --- wrong uses -------------------------------------------------------------------------------------------------------


def test_patching_twice_is_an_error_and_changes_nothing():
    ours.patch()
    with pytest.raises(RuntimeError, match="patched already"):
        ours.patch(report=True)
    assert not recording.is_on
    ours.unpatch()
    assert not served(nn.LSTM(INPUT, H))


def test_unpatch_without_patch_is_an_error():
    with pytest.raises(RuntimeError, match="not patched"):
        ours.unpatch()


# --- the report -------------------------------------------------------------------------------------------------------


def test_calls_of_a_model_are_reported_by_the_names_of_its_modules():
    model = Tagger()
    with ours.patched(report=True):
        for _ in range(4):
            model(torch.randn(T, B, INPUT)).sum().backward()
    text = ours.report(width=100)
    assert re.search(r"^Tagger\.body\.1 +4 .* [mu]s .* [mu]s +[\d.]+%$", text, re.MULTILINE)
    assert "LSTM(3, 6, num_layers=2, bidirectional=True)\n  backward passes: 4\n  4 by lstmfast's kernels" in text


def test_a_module_that_nobody_holds_is_reported_by_class_and_sizes():
    module = nn.LSTM(INPUT, H)
    with ours.patched(report=True):
        module(torch.randn(T, B, INPUT))
    assert re.search(r"^LSTM\(3, 6\) +1 ", ours.report(), re.MULTILINE)


def test_refusals_are_reported_with_their_reasons():
    module = nn.LSTM(INPUT, H, device="meta")
    with ours.patched(report=True):
        module(torch.randn(T, B, INPUT, device="meta"))
    assert "1 by torch's own forward: there is a tensor on meta" in ours.report(width=120)


def test_wrong_arguments_are_torchs_error_and_reported():
    module = nn.LSTM(INPUT, H)
    with ours.patched(report=True), pytest.raises(RuntimeError):
        module(torch.randn(T, B, INPUT + 1))
    assert "torch's own forward" in ours.report()


def test_calls_of_our_own_classes_are_reported():
    module = ours.LSTM(INPUT, H)
    with ours.patched(report=True):
        module(torch.randn(T, B, INPUT), lengths=torch.ones(B, dtype=torch.int64))
    assert re.search(r"^LSTM\(3, 6\) +1 ", ours.report(), re.MULTILINE)


def test_subclasses_that_compute_by_themselves_are_named():
    with ours.patched(report=True):
        pass
    assert "Stepwise: its own forward" in ours.report(width=120)


def test_comparing_with_torch_leaves_random_numbers_and_results_alone():
    module, x, found = nn.LSTM(INPUT, H, num_layers=2, dropout=0.5), torch.randn(T, B, INPUT), []
    for report in (False, True):
        torch.manual_seed(0)
        with ours.patched(report=report):
            found.append([module(x)[0] for _ in range(5)])
    assert "times as" in ours.report()
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_the_report_is_wider_than_the_terminal(width):
    model = nn.ModuleDict({"a_module_with_a_name_that_no_table_has_room_for" * 2: nn.LSTM(INPUT, H)})
    model.forward = lambda x: next(iter(model.values()))(x)
    with ours.patched(report=True):
        model(torch.randn(T, B, INPUT))
    assert max(map(len, ours.report(width=width).splitlines())) <= width


def test_what_somebody_puts_for_torchs_forward_meanwhile_stays(monkeypatch):
    calls, module = [], nn.LSTM(INPUT, H)
    monkeypatch.setattr(nn.LSTM, "forward", nn.LSTM.forward)  # to be put back at the end
    with ours.patched(report=True):
        before = nn.LSTM.forward

        @functools.wraps(before)
        def forward(self, *args):
            calls.append(1)
            return before(self, *args)

        nn.LSTM.forward = forward
    module(torch.randn(T, B, INPUT))
    assert calls == [1]


def test_without_calls_the_report_says_so():
    with ours.patched(report=True):
        pass
    assert "no LSTM or LSTMCell was called" in ours.report()


def test_without_a_record_report_is_an_error(monkeypatch):
    monkeypatch.setattr(recording, "_started_ns", 0)
    with pytest.raises(RuntimeError, match="nothing is recorded"):
        ours.report()


# --- the command ------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import torch
from torch import nn
import lstmfast.torch as ours

if __name__ == "__main__":
    module = nn.LSTM(3, 6)
    print(sys.argv, sys.path[0], __file__, __name__, __package__, sorted(n for n in globals() if n[0] == '_'))
    print("lstmfast's kernels" in ours.explain(module, torch.zeros(5, 4, 3)))
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lstmfast.torch", *command], cwd=cwd, capture_output=True, text=True, check=False
    )


def write(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_script_runs_as_python_would_run_it_and_its_modules_are_served(tmp_path):
    path = write(tmp_path, PROGRAM, "inner/program.py")
    done = run("inner/program.py", "--report", "a b", cwd=tmp_path)
    plain = subprocess.run(
        [sys.executable, "inner/program.py", "--report", "a b"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    assert str(path.parent) in done.stdout
    assert done.stdout.splitlines()[1] == "True"


@pytest.mark.parametrize("name", ["package.inner", "package"])
def test_a_module_runs_as_python_would_run_it(tmp_path, name):
    write(tmp_path, "", "package/__init__.py")
    write(tmp_path, PROGRAM, "package/inner.py")
    write(tmp_path, PROGRAM, "package/__main__.py")
    done = run("-m", name, "a", cwd=tmp_path)
    plain = subprocess.run(
        [sys.executable, "-m", name, "a"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [plain.stdout.splitlines()[0], "True"]


@pytest.mark.parametrize(
    ("statement", "status"), [("sys.exit(7)", 7), ("sys.exit('no')", 1), ("1 / 0", 1), ("pass", 0), ("x = (", 1)]
)
def test_the_exit_status_and_what_is_printed_are_pythons(tmp_path, statement, status):
    path = write(tmp_path, f"import sys\n{statement}\n")
    done = run(str(path), cwd=tmp_path)
    plain = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (plain.returncode, plain.stderr)
    assert done.returncode == status


def test_an_interrupted_program_ends_as_the_shell_expects(tmp_path):
    program = """
    import os, signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    """
    path = write(tmp_path, textwrap.dedent(program))
    done = run(str(path), cwd=tmp_path)
    assert done.returncode == 130
    assert "lstmfast" not in done.stderr


def test_what_a_program_registers_runs_when_it_ends_and_finds_its_globals(tmp_path):
    path = write(
        tmp_path,
        "import atexit, threading, time\nword = 'there'\natexit.register(lambda: print('exit', word))\n"
        "def later():\n    time.sleep(0.2)\n    print('thread', word)\nthreading.Thread(target=later).start()\n",
    )
    assert run(str(path), cwd=tmp_path).stdout == "thread there\nexit there\n"


WORKERS = """
import multiprocessing
import sys
import torch
from torch import nn

def ask(module):
    import lstmfast.torch as ours
    return "lstmfast's kernels" in ours.explain(module, torch.zeros(5, 4, 3))

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.apply(ask, (nn.LSTM(3, 6),)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_a_program_starts_are_served(tmp_path, method):
    done = run(str(write(tmp_path, WORKERS)), method, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_the_report_comes_at_the_end_on_stderr(tmp_path):
    text = "import torch\ntorch.nn.LSTM(3, 6)(torch.randn(5, 4, 3))\nprint('done')\nraise SystemExit(3)\n"
    path = write(tmp_path, text)
    done = run("--report", str(path), cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("done\n", 3)
    assert "LSTM(3, 6)" in done.stderr


def mistakes(folder: Path) -> dict[str, list[str]]:
    return {
        "cannot read": ["nothing.py"],
        "is a directory": [str(folder)],
        "no module": ["-m", "no_such_module_at_all"],
        "cannot find the module": ["-m", "no_such_module_at_all.inner"],
        "package without __main__": ["-m", "email"],
        "unknown option": ["--fast", "program.py"],
        "usage: ": [],
    }


@pytest.mark.parametrize("sentence", mistakes(Path()))
def test_a_program_that_is_not_there_is_one_sentence_and_status_2(tmp_path, sentence):
    done = run(*mistakes(tmp_path)[sentence], cwd=tmp_path)
    assert sentence in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_without_pytorch_the_command_is_one_sentence_and_status_2(tmp_path):
    write(
        tmp_path,
        "import sys\nclass Blocked:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n            raise ModuleNotFoundError(name)\n"
        "import importlib.util\nreal = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        "sys.meta_path.insert(0, Blocked())\n",
        "sitecustomize.py",
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "lstmfast.torch", "program.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stderr) == (2, "lstmfast.torch needs PyTorch: pip install 'lstmfast[torch]'\n")
