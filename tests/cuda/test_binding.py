"""Arrays on a GPU through lf.lstm, lstm_backward, LSTM and the trainer, here on a device that the emulator plays.

The whole way is walked: framework, ctypes, C ABI, kernels, and back; what comes out is held against the CPU's kernels.
The kernels themselves are tested elsewhere. Without a device, everything says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import cuda
from lstmfast.cuda import _health, _library, _sequences, selftest
from lstmfast.cuda._engine import CudaEngine
from support.cuda_host import HostArray, emulated_device, host_cupy_arrays
from support.kernel_builds import CSRC, compiler
from support.tolerances import gradients, states

torch = pytest.importorskip("torch", reason="needs PyTorch, whose tensors play device arrays")

Array = npt.NDArray[Any]
_STRUCTURES = (_library.Device, _library.DirectionPlan, _library.Plan, _library.Forward, _library.Backward)
needs_emulator = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

# A chain of roundings of h to bfloat16, 2**-9 of its size each, through sums over H of either sign; gradients of sums
# over some rows and steps more than that.
BFLOAT16, BFLOAT16_GRADIENTS = {"rtol": 0.0, "atol": 2.0**-6}, {"rtol": 2.0**-5, "atol": 2.0**-4}


class Maker:
    """How NumPy arrays come to a "device" and back."""

    def __init__(self, name: str) -> None:
        self.name = name

    def send(self, values: Array | None, dtype: str | None = None) -> Any:
        if values is None:
            return None
        if self.name == "cupy":
            return HostArray(values.astype(dtype) if dtype else values.copy())
        sent = torch.from_numpy(np.array(values))
        return sent.to(getattr(torch, dtype)) if dtype else sent

    def fetch(self, array: Any) -> Array:
        if self.name == "cupy":
            assert isinstance(array, HostArray)
            return array.values
        assert isinstance(array, torch.Tensor)
        values: Array = array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
        return values


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    """The emulated device, for all tests that do not ask for none."""
    if compiler() is None or sys.platform != "linux":
        yield
        return
    with emulated_device(), host_cupy_arrays(), warnings.catch_warnings():
        warnings.simplefilter("error", cuda.KernelMismatchWarning)
        yield


@pytest.fixture(params=["torch", "cupy"])
def maker(request: pytest.FixtureRequest) -> Maker:
    return Maker(request.param)


@pytest.fixture
def no_library() -> Iterator[None]:
    """An installation without CUDA kernels."""
    before = _library._path
    _library._use(None)
    yield
    _library._use(before)
    _library.load()


def problem(
    rng: np.random.Generator, time_steps: int, batch: int, input_size: int, hidden_size: int, ids: bool
) -> dict[str, Array]:
    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    rows = input_size + hidden_size
    x = rng.integers(0, input_size, (time_steps, batch)) if ids else draw(time_steps, batch, input_size)
    return {
        "x": x, "kernel": draw(rows, 4 * hidden_size, scale=rows**-0.5), "bias": draw(4 * hidden_size),
        "h0": draw(batch, hidden_size), "c0": draw(batch, hidden_size),
    }


def upstream(rng: np.random.Generator, p: dict[str, Array]) -> list[Array]:
    state = p["h0"].shape
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((len(p["x"]), *state), state, state)]


NAMES, GRADIENTS = ("h", "h_n", "c_n", "cells", "gates"), ("x", "kernel", "bias", "h0", "c0")
ALL = {"return_cells": True, "return_gates": True, "keep_for_backward": True}
PLAIN: dict[str, Any] = {"lengths": None, "resets": None, "reverse": False, "matmul_precision": "highest"}


def check_against_cpu(
    maker: Maker, rng: np.random.Generator, p: dict[str, Array], dtype: str = "float32", **options: Any
) -> None:
    """Forward and backward on the device and by the CPU's kernels."""
    floats = {
        name: maker.send(value, dtype if name != "c0" else None) for name, value in p.items() if value.dtype.kind == "f"
    }
    seen = {**p, **{name: maker.fetch(value) for name, value in floats.items()}}  # with bfloat16's rounding
    derivatives = upstream(rng, p)
    sent = [maker.send(value, dtype) for value in derivatives]
    out = lf.lstm(**{**{"x": maker.send(p["x"])}, **floats}, **ALL, **options)
    wanted = lf.lstm(**seen, **ALL, **options)
    d = lf.lstm_backward(out, *sent)
    wanted_d = lf.lstm_backward(wanted, *map(maker.fetch, sent))
    hidden_size = p["h0"].shape[1]
    narrow = dtype == "bfloat16" or options.get("matmul_precision") == "medium"
    for name in NAMES:
        bound = BFLOAT16 if narrow else states("float32", len(p["kernel"]))
        assert_allclose(maker.fetch(getattr(out, name)), getattr(wanted, name), **bound, err_msg=name)
    for name in GRADIENTS:
        if getattr(wanted_d, name) is None:
            assert getattr(d, name) is None
            continue
        bound = BFLOAT16_GRADIENTS if narrow else gradients("float32", p["x"].shape[0] * p["x"].shape[1] + hidden_size)
        assert_allclose(maker.fetch(getattr(d, name)), getattr(wanted_d, name), **bound, err_msg=name)


pytestmark = needs_emulator


# --- the C ABI --------------------------------------------------------------------------------------------------------


def test_structures_lie_in_memory_as_the_header_has_them(tmp_path: Path) -> None:
    header = (CSRC / "cuda" / "lstmfast_cuda.h").read_text()
    names = {"LstmfastCuda" + kind.__name__: kind for kind in _STRUCTURES}
    lines = []
    for name, kind in names.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{f} %zu\\n", offsetof({name}, {f}));' for f, *_ in kind._fields_]
    program = tmp_path / "layout.c"
    program.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{header}\nint main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    subprocess.run([str(compiler()), "-x", "c++", program, "-o", tmp_path / "layout"], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout
    ours = []
    for name, kind in names.items():
        ours.append(f"{name} {ctypes.sizeof(kind)}")
        ours += [f"{name}.{f} {getattr(kind, f).offset}" for f, *_ in kind._fields_]
    assert printed.splitlines() == ours
    # A field that only the header has might hide in padding.
    for name, kind in names.items():
        (body,) = re.findall(r"typedef struct \{([^{}]*)\} " + name + ";", header)
        declared = re.findall(r"(\w+)(?:\[\d+\])?\s*(?=[,;])", re.sub(r"//[^\n]*", "", body))
        assert declared == [f for f, *_ in kind._fields_]


# --- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_arrays_on_a_device_give_the_cpus_results_and_gradients(
    maker: Maker, rng: np.random.Generator, ids: bool, reverse: bool
) -> None:
    p = problem(rng, 5, 4, 6, 9, ids)
    check_against_cpu(maker, rng, p, reverse=reverse, forget_bias=1.0)
    lengths, resets = np.array([5, 0, 3, 1]), rng.random((5, 4)) < 0.3
    check_against_cpu(maker, rng, p, reverse=reverse, lengths=lengths, resets=resets)


@pytest.mark.parametrize("reverse", [False, True])
def test_bfloat16_tensors_stay_within_roundings_of_h(rng: np.random.Generator, reverse: bool) -> None:
    options = {"reverse": reverse, "lengths": np.array([4, 2, 0]), "resets": rng.random((4, 3)) < 0.2}
    check_against_cpu(Maker("torch"), rng, problem(rng, 4, 3, 5, 33, False), "bfloat16", **options)


def test_results_have_the_arguments_dtype_but_cells_and_gates_are_float32(rng: np.random.Generator) -> None:
    p = {name: torch.from_numpy(value).bfloat16() for name, value in problem(rng, 2, 3, 4, 8, False).items()}
    out = lf.lstm(**p, **ALL)
    assert [getattr(out, name).dtype for name in NAMES] == [torch.bfloat16] * 2 + [torch.float32] * 3
    d = lf.lstm_backward(out, out.h)
    assert {name: getattr(d, name).dtype for name in GRADIENTS if name != "c0"} == dict.fromkeys(
        ("x", "kernel", "bias", "h0"), torch.bfloat16
    )


def test_precision_medium_runs_float32_tensors_in_bfloat16(rng: np.random.Generator) -> None:
    p = problem(rng, 4, 3, 5, 16, False)
    check_against_cpu(Maker("torch"), rng, p, matmul_precision="medium")
    sent = {name: torch.from_numpy(value) for name, value in p.items()}
    exact, medium = lf.lstm(**sent).h, lf.lstm(**sent, matmul_precision="medium").h
    assert medium.dtype == torch.float32
    assert not torch.equal(exact, medium)


@pytest.mark.parametrize(("time_steps", "batch", "input_size"), [(0, 3, 4), (3, 0, 4), (0, 0, 0), (3, 2, 0)])
def test_no_steps_no_rows_and_no_inputs_are_sequences_too(
    maker: Maker, rng: np.random.Generator, time_steps: int, batch: int, input_size: int
) -> None:
    check_against_cpu(maker, rng, problem(rng, time_steps, batch, input_size, 5, False))


def test_states_that_are_not_given_are_zero(maker: Maker, rng: np.random.Generator) -> None:
    p = {name: value for name, value in problem(rng, 3, 2, 4, 5, False).items() if name not in ("h0", "c0")}
    sent = {name: maker.send(value) for name, value in p.items()}
    out, wanted = lf.lstm(**sent, keep_for_backward=True), lf.lstm(**p, keep_for_backward=True)
    assert_allclose(maker.fetch(out.h), wanted.h, **states("float32", 9))
    d, wanted_d = lf.lstm_backward(out), lf.lstm_backward(wanted)
    assert_allclose(maker.fetch(d.kernel), wanted_d.kernel, **gradients("float32", 6))


def test_lengths_and_resets_may_lie_on_the_device(maker: Maker, rng: np.random.Generator) -> None:
    p = problem(rng, 4, 3, 5, 6, False)
    lengths, resets = np.array([1, 4, 0]), rng.random((4, 3)) < 0.5
    sent = {name: maker.send(value) for name, value in p.items()}
    by_host = lf.lstm(**sent, lengths=lengths, resets=resets)
    by_device = lf.lstm(**sent, lengths=maker.send(lengths), resets=maker.send(resets))
    assert_array_equal(maker.fetch(by_device.h), maker.fetch(by_host.h))


@pytest.mark.parametrize("reverse", [False, True])
def test_what_stands_past_a_rows_end_is_never_used(maker: Maker, rng: np.random.Generator, reverse: bool) -> None:
    p = problem(rng, 4, 3, 5, 6, False)
    lengths = np.array([1, 4, 0])
    past = np.arange(4)[:, None] >= lengths
    p["x"][past] = np.nan
    check_against_cpu(maker, rng, p, lengths=lengths, reverse=reverse)
    p = problem(rng, 4, 3, 5, 6, True)
    sent = {name: maker.send(value) for name, value in p.items()}
    wanted = lf.lstm(**sent, lengths=lengths, reverse=reverse)
    sent["x"] = maker.send(np.where(past, 1 << 30, p["x"]))
    out = lf.lstm(**sent, lengths=lengths, reverse=reverse, keep_for_backward=True)
    assert_array_equal(maker.fetch(out.h), maker.fetch(wanted.h))
    assert np.isfinite(maker.fetch(lf.lstm_backward(out, out.h).kernel)).all()


def test_one_step_is_a_sequence_of_one(maker: Maker, rng: np.random.Generator) -> None:
    p = problem(rng, 1, 3, 4, 5, False)
    x, h, c, kernel, bias = p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"]
    got = lf.lstm_step(*map(maker.send, (x, h, c, kernel, bias)), forget_bias=1.0)
    for array, wanted in zip(got, lf.lstm_step(x, h, c, kernel, bias, forget_bias=1.0), strict=True):
        assert_allclose(maker.fetch(array), wanted, **states("float32", 9))


def test_backward_needs_no_more_than_arrays_of_the_forward_call(rng: np.random.Generator) -> None:
    p = {name: torch.from_numpy(value) for name, value in problem(rng, 4, 3, 5, 6, False).items()}
    options = {"lengths": np.array([4, 1, 2]), "resets": rng.random((4, 3)) < 0.3, "reverse": True}
    out = lf.lstm(**p, **ALL, **options)
    kept = _sequences.saved_from(
        p["x"],
        p["kernel"],
        p["h0"],
        p["c0"],
        out.h,
        out.cells,
        out.gates,
        matmul_precision="highest",
        **options,  # type: ignore[arg-type]
    )
    d, again = lf.lstm_backward(out, out.h, out.h_n, out.c_n), lf.lstm_backward(kept, out.h, out.h_n, out.c_n)
    for name in GRADIENTS:
        assert torch.equal(getattr(d, name), getattr(again, name))


def test_an_autograd_function_of_these_two_gives_pytorchs_own_gradients(rng: np.random.Generator) -> None:
    class Function(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, *given: Any) -> Any:
            out = lf.lstm(*given, return_cells=True, return_gates=True)
            context.save_for_backward(*given, out.h, out.cells, out.gates)
            return out.h, out.h_n, out.c_n

        @staticmethod
        def backward(context: Any, *derivatives: Any) -> Any:
            x, kernel, _, h0, c0, h, cells, gates = context.saved_tensors
            kept = _sequences.saved_from(x, kernel, h0, c0, h, cells, gates, **PLAIN)
            d = lf.lstm_backward(kept, *derivatives)
            return d.x, d.kernel, d.bias, d.h0, d.c0

    theirs = torch.nn.LSTM(5, 6)
    sent = [torch.from_numpy(value) for value in problem(rng, 4, 3, 5, 6, False).values()]
    x, _, _, h0, c0 = (tensor.requires_grad_(True) for tensor in sent)
    kernel = torch.cat([theirs.weight_ih_l0.T, theirs.weight_hh_l0.T])
    h, h_n, c_n = Function.apply(x, kernel, theirs.bias_ih_l0 + theirs.bias_hh_l0, h0, c0)
    wanted, (wanted_h_n, wanted_c_n) = theirs(x, (h0[None], c0[None]))
    leaves = [x, h0, c0, theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0]
    got = torch.autograd.grad((h.sin().sum() + h_n.sum() + c_n.sum()), leaves)
    want = torch.autograd.grad((wanted.sin().sum() + wanted_h_n.sum() + wanted_c_n.sum()), leaves)
    for ours, other in zip(got, want, strict=True):
        assert_allclose(ours.numpy(), other.numpy(), **gradients("float32", 18))


def test_autocast_and_autograd_around_a_call_change_nothing(rng: np.random.Generator) -> None:
    p = {name: torch.from_numpy(value) for name, value in problem(rng, 4, 3, 5, 6, False).items()}
    wanted = lf.lstm(**p).h
    p["kernel"].requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        got = lf.lstm(**p).h
    assert torch.equal(got, wanted)
    assert not got.requires_grad


def test_arrays_of_jax_go_through_torch_and_come_back(rng: np.random.Generator) -> None:
    jax = pytest.importorskip("jax", reason="needs JAX")
    p = problem(rng, 4, 3, 5, 6, False)
    lengths, derivatives = np.array([4, 0, 2], np.int32), upstream(rng, p)
    sent = {name: jax.numpy.asarray(value) for name, value in p.items()}
    out = lf.lstm(**sent, lengths=jax.numpy.asarray(lengths), keep_for_backward=True)
    wanted = lf.lstm(**p, lengths=lengths, keep_for_backward=True)
    assert isinstance(out.h, jax.Array)
    assert_allclose(np.asarray(out.h), wanted.h, **states("float32", 11))
    d = lf.lstm_backward(out, *map(jax.numpy.asarray, derivatives))
    wanted_d = lf.lstm_backward(wanted, *derivatives)
    for name in GRADIENTS:
        assert isinstance(getattr(d, name), jax.Array)
        assert_allclose(np.asarray(getattr(d, name)), getattr(wanted_d, name), **gradients("float32", 18))


def test_strided_tensors_and_those_that_need_gradients_are_taken(rng: np.random.Generator) -> None:
    p = {name: torch.from_numpy(value) for name, value in problem(rng, 4, 3, 5, 6, False).items()}
    wanted = lf.lstm(**p)
    p["x"] = p["x"].transpose(0, 1).contiguous().transpose(0, 1)
    p["kernel"] = p["kernel"].T.contiguous().T.requires_grad_(True)
    p["h0"] = torch.stack([p["h0"], p["h0"]], 2)[:, :, 0]
    assert not p["h0"].is_contiguous()
    assert torch.equal(lf.lstm(**p).h, wanted.h)


def test_the_same_call_gives_the_same_bits(maker: Maker, rng: np.random.Generator) -> None:
    sent = {name: maker.send(value) for name, value in problem(rng, 4, 5, 3, 20, True).items()}

    def once() -> Array:
        out = lf.lstm(**sent, keep_for_backward=True)
        return maker.fetch(lf.lstm_backward(out, out.h).kernel)

    assert_array_equal(once(), once())


# --- errors -----------------------------------------------------------------------------------------------------------


def good() -> dict[str, Any]:
    return {name: torch.from_numpy(v) for name, v in problem(np.random.default_rng(0), 3, 2, 4, 5, False).items()}


def changed(**changes: Callable[[Any], Any]) -> dict[str, Any]:
    p = good()
    return {**p, **{name: change(p.get(name)) for name, change in changes.items()}}


class OfAnotherFramework:
    __module__ = "numba.cuda"
    dtype = "float32"
    shape = (3, 2, 4)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (changed(kernel=lambda k: k.numpy()), TypeError, "kernel must be on the CUDA device like x, got ndarray"),
        (changed(h0=lambda h: HostArray(h.numpy())), TypeError, "h0 must be an array of torch like x, got HostArray"),
        (changed(kernel=lambda k: k.double()), TypeError, "kernel must be float32 or bfloat16 .* got float64"),
        (changed(x=lambda x: x.bfloat16()), TypeError, "x must be float32 like kernel, got bfloat16"),
        (changed(kernel=lambda k: k[1:]), ValueError, r"kernel must have shape \(input_size .* got \(8, 20\)"),
        (changed(bias=lambda b: b[1:]), ValueError, r"bias must have shape \(20\), got \(19,\)"),
        (changed(h0=lambda h: h[:1]), ValueError, r"h0 must have shape \(2, 5\), got \(1, 5\)"),
        (changed(x=lambda x: x[0]), ValueError, r"x must have shape \(time_steps, batch, input_size\)"),
        (changed(x=lambda x: OfAnotherFramework()), TypeError, "x must be an array of torch, .*from_dlpack"),
        (changed(lengths=lambda _: [1, 4]), ValueError, "lengths must lie between 0 and 3 = time_steps, got 4"),
        (changed(lengths=lambda _: torch.ones(3)), TypeError, "lengths must be integers, got float32"),
        (changed(resets=lambda _: torch.ones(3, 2)), TypeError, "resets must be a bool array, got float32"),
        (changed(resets=lambda _: torch.ones(2, 3).bool()), ValueError, r"resets must have shape \(3, 2\)"),
    ],
)
def test_an_error_names_the_argument_and_what_was_wanted(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        lf.lstm(**arguments)


def test_layers_too_wide_for_the_kernels_are_refused_by_their_size() -> None:
    kernel, bias = torch.zeros(2050, 8196), torch.zeros(8196)
    with pytest.raises(ValueError, match="hidden_size of at most 2048 on a CUDA device, got 2049"):
        lf.lstm(torch.zeros(1, 1, 1), kernel, bias)


def test_derivatives_are_checked_like_arguments() -> None:
    out = lf.lstm(**good(), keep_for_backward=True)
    with pytest.raises(ValueError, match=r"d_h must have shape \(3, 2, 5\), got \(2, 5\)"):
        lf.lstm_backward(out, out.h_n)
    with pytest.raises(TypeError, match="d_h_n must be on the CUDA device like x, got ndarray"):
        lf.lstm_backward(out, None, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="keep_for_backward=True"):
        lf.lstm_backward(lf.lstm(**good()))


# --- where there is no device -----------------------------------------------------------------------------------------


def test_build_info_says_whether_the_library_was_built() -> None:
    there = any((_library._FOLDER / name).exists() for name in _library._NAMES)
    assert lf.build_info()["cuda"] == ("built" if there else "not built")


def test_without_the_library_a_device_array_gets_the_reason(no_library: None) -> None:
    assert not cuda.is_available()
    assert "no CUDA kernels: build it with LSTMFAST_CUDA=1" in cuda.describe()
    x = HostArray(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(cuda.CudaUnavailableError, match="LSTMFAST_CUDA=1 pip install"):
        lf.lstm(x, x, x)  # type: ignore[arg-type]
    with pytest.raises(cuda.CudaUnavailableError, match="LSTMFAST_CUDA=1 pip install"):
        lf.LSTM(4, 5)(x)  # type: ignore[call-overload]
    with pytest.raises(cuda.CudaUnavailableError, match="LSTMFAST_CUDA=1 pip install"):
        lf.CharLM(7, 8, device="cuda")


def test_without_the_library_a_host_tensor_is_no_device_array(no_library: None) -> None:
    with pytest.raises(TypeError, match="x must be a NumPy array of float32 or float64"):
        lf.lstm(**good())


def test_a_library_that_cannot_be_loaded_says_why(no_library: None, tmp_path: Path) -> None:
    broken = tmp_path / "liblstmfast_cuda.so"
    broken.write_text("no library")
    _library._use(broken)
    assert "cannot be loaded" in cuda.describe()
    assert not cuda.is_available()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library.Library, "device_count", lambda self: (0, "no CUDA-capable device is detected"))
    assert cuda.describe() == "built, but no device can be used here: no CUDA-capable device is detected"
    with pytest.raises(cuda.CudaUnavailableError, match="can be used here: no CUDA-capable device is detected"):
        lf.lstm(**good())


def test_training_on_cuda_without_it_leaves_nothing_but_a_sentence(
    no_library: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lstmfast.command.main import main

    text = tmp_path / "text.txt"
    text.write_text("some text to learn " * 100)
    assert main(["train", str(text), "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "lstmfast: error: this installation has no CUDA kernels: build it with LSTMFAST_CUDA=1 pip install .\n"
    )
    assert not (tmp_path / "run").exists()


def test_selftest_and_bench_say_in_one_sentence_that_there_is_nothing_to_run_on(
    no_library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from lstmfast.bench import on_cuda

    assert selftest.main([]) == 2
    assert on_cuda.run(rounds=1, seconds=0) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert all("no CUDA kernels" in line for line in printed)


# --- first use --------------------------------------------------------------------------------------------------------


def failing(*paths: int) -> Callable[..., _health.Agreement]:
    def compare(on: Any, plan: _library.Plan, dtype: str, **_: Any) -> _health.Agreement:
        return _health.Agreement({"h": 3.0 if plan.forward.path in paths else 0.5})

    return compare


def test_a_kernel_that_fails_its_first_test_is_replaced_by_the_step_kernel_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = {name: value.bfloat16() for name, value in good().items()}
    monkeypatch.setattr(_health, "compare", failing(2, 3))
    with _health._forgetting():
        with pytest.warns(
            cuda.KernelMismatchWarning, match="hidden_size 5 and bfloat16 is not used .* its h differs 3"
        ):
            first = lf.lstm(**p).h
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(lf.lstm(**p).h, first)


def test_where_no_kernel_can_be_trusted_calls_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "compare", failing(1, 2, 3))
    with _health._forgetting(), pytest.warns(cuda.KernelMismatchWarning), pytest.raises(RuntimeError, match="selftest"):
        lf.lstm(**good())


def test_a_plan_of_two_ways_falls_back_to_steps_too_and_each_way_is_tested_with_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on = _sequences.context_of(good()["x"])
    mixed = _library.Plan.from_buffer_copy(on.library.plan(0, 48, 100, "float32", True, 2))
    mixed.backward = on.library.plan(0, 48, 100, "float32", True, 1).backward
    few = _health._of_few_rows(on, mixed, "float32")
    assert (few.batch, few.forward.path, few.backward.path) == (64, 2, 1)
    real = on.library.plan
    monkeypatch.setattr(on.library, "plan", lambda *shape: mixed if len(shape) == 5 else real(*shape))
    monkeypatch.setattr(_health, "compare", failing(2, 3))
    with _health._forgetting(), pytest.warns(cuda.KernelMismatchWarning):
        plan = _health.trusted_plan(on, 48, 100, "float32", training=True)
    assert (plan.forward.path, plan.backward.path) == (1, 1)


def test_a_kernel_is_tested_once_for_all_later_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = []
    real = _health.compare
    monkeypatch.setattr(_health, "compare", lambda *given, **options: tests.append(given) or real(*given, **options))
    with _health._forgetting():
        for _ in range(3):
            lf.lstm(**good())
    assert len(tests) == 1


def test_nothing_is_tested_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "compare", lambda *_, **__: pytest.fail("must not wait"))
    monkeypatch.setattr("lstmfast.cuda._arrays.Torch.is_capturing", lambda self: True)
    with _health._forgetting():
        lf.lstm(**good())


def test_the_comparison_sees_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _library.require()
    real = library.forward

    def forward_that_forgets_resets(device: int, plan: Any, arguments: Any, stream: int) -> None:
        arguments.resets = None
        real(device, plan, arguments, stream)

    monkeypatch.setattr(library, "forward", forward_that_forgets_resets)
    with _health._forgetting(), pytest.warns(cuda.KernelMismatchWarning), contextlib.suppress(RuntimeError):
        lf.lstm(**good())


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_kernel_that_gave_up_waiting_is_not_used_and_the_warning_says_why(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _library.require()
    real, one = getattr(library, direction), ctypes.c_uint32(1)

    def launch(device: int, plan: Any, arguments: Any, stream: int) -> None:
        real(device, plan, arguments, stream)
        if getattr(plan, direction).path != 1:
            ctypes.memmove(arguments.workspace, ctypes.byref(one), 4)  # its status: the spin limit was reached

    monkeypatch.setattr(library, direction, launch)
    with _health._forgetting(), pytest.warns(cuda.KernelMismatchWarning, match="gave up waiting"):
        lf.lstm(**good(), keep_for_backward=True)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_on_a_device_gives_the_cpus_results_and_gradients(
    maker: Maker, rng: np.random.Generator, bidirectional: bool, batch_first: bool
) -> None:
    def layer() -> lf.LSTM:
        return lf.LSTM(
            5, 6, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, dropout=0.3,
            rng=np.random.default_rng(7),
        )

    on_device, on_cpu = layer(), layer()
    x = rng.standard_normal((3, 4, 5), dtype=np.float32)
    batch, time_steps = (3, 4) if batch_first else (4, 3)
    directions = 2 if bidirectional else 1
    state = tuple(rng.standard_normal((2, 2 * directions, batch, 6), dtype=np.float32))
    options = {"lengths": np.arange(batch) % (time_steps + 1), "resets": rng.random(x.shape[:2]) < 0.2}
    h, final = on_device(maker.send(x), tuple(map(maker.send, state)), **options, training=True)  # type: ignore[arg-type]
    wanted, wanted_final = on_cpu(x, state, **options, training=True)  # type: ignore[arg-type]
    d_h = rng.standard_normal(wanted.shape, dtype=np.float32)
    d_x, d_initial = on_device.backward(maker.send(d_h), tuple(map(maker.send, state)))  # type: ignore[arg-type]
    wanted_d_x, wanted_d_initial = on_cpu.backward(d_h, state)  # type: ignore[arg-type]
    for got, want in zip((h, *final), (wanted, *wanted_final), strict=True):
        assert_allclose(maker.fetch(got), want, **states("float32", 18))
    for got, want in zip((d_x, *d_initial), (wanted_d_x, *wanted_d_initial), strict=True):
        assert_allclose(maker.fetch(got), want, **gradients("float32", 30))  # type: ignore[arg-type]
    assert_allclose(on_device.gradient_buffer, on_cpu.gradient_buffer, **gradients("float32", 30))


@pytest.mark.parametrize("training", [False, True])
def test_weights_that_were_written_are_sent_again(rng: np.random.Generator, training: bool) -> None:
    layer, x = lf.LSTM(3, 4, rng=rng), rng.standard_normal((2, 1, 3), dtype=np.float32)
    before, _ = layer(torch.from_numpy(x), training=training)  # type: ignore[arg-type]
    np.random.default_rng(1).standard_normal(out=layer.parameter_buffer, dtype=np.float32)
    after, _ = layer(torch.from_numpy(x))  # type: ignore[arg-type]
    assert not torch.equal(before, after)  # type: ignore[arg-type]
    assert_allclose(after.numpy(), layer(x)[0], **states("float32", 7))  # type: ignore[attr-defined]


def test_backward_belongs_to_the_last_call_wherever_it_was_made(rng: np.random.Generator) -> None:
    layer, x = lf.LSTM(3, 4, rng=rng), rng.standard_normal((2, 1, 3), dtype=np.float32)
    d_h = np.ones((2, 1, 4), np.float32)
    layer(torch.from_numpy(x), training=True)  # type: ignore[arg-type]
    layer(x, training=True)
    assert isinstance(layer.backward(d_h)[0], np.ndarray)
    layer(torch.from_numpy(x), training=True)  # type: ignore[arg-type]
    assert isinstance(layer.backward(torch.from_numpy(d_h))[0], torch.Tensor)  # type: ignore[arg-type]
    layer(torch.from_numpy(x))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="training=True"):
        layer.backward(d_h)


def test_float64_layers_stay_on_the_cpu() -> None:
    with pytest.raises(TypeError, match="a layer must be float32 to run on a CUDA device, this one is float64"):
        lf.LSTM(3, 4, dtype="float64")(torch.zeros(2, 1, 3))  # type: ignore[arg-type]


def test_a_layer_with_a_variant_of_the_cell_is_refused() -> None:
    layer = lf.LSTM(3, 4, cell_clip=1.0)
    with pytest.raises(ValueError, match="cell_clip is not supported on a CUDA device"):
        layer(torch.zeros(2, 1, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="peepholes is not supported on a CUDA device"):
        lf.CharLM(3, 4, cell=lf.Cell(peepholes=True), device="cuda")
    with pytest.raises(ValueError, match="recurrent_dropout is not supported on a CUDA device"):
        lf.LSTM(3, 4, recurrent_dropout=0.1)(torch.zeros(2, 1, 3))  # type: ignore[arg-type]


# --- the model and the trainer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("projected_classes", [1, 100], ids=["logits inside the loss", "logits"])
@pytest.mark.parametrize(("embedding_size", "tied"), [(None, False), (5, False), (8, True)])
def test_the_character_model_on_a_device_has_the_cpus_loss_and_gradients(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    embedding_size: int | None,
    tied: bool,
    projected_classes: int,
) -> None:
    monkeypatch.setattr(CudaEngine, "projected_classes", projected_classes)

    def model(device: str) -> lf.CharLM:
        rng = np.random.default_rng(1)
        return lf.CharLM(
            11, 8, num_layers=2, embedding_size=embedding_size, tied=tied, dropout=0.25, rng=rng, device=device
        )

    on_device, on_cpu = model("cuda"), model("cpu")
    ids = rng.integers(0, 11, (6, 3))
    state = None
    for _ in range(2):  # the second time with a state carried over
        losses, states_ = [], []
        for one in (on_device, on_cpu):
            loss, final = one.loss_and_gradients(ids[:-1], ids[1:], state, rng=np.random.default_rng(2))
            losses.append(loss)
            states_.append(final)
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert_allclose(on_device.gradient_buffer, on_cpu.gradient_buffer, **gradients("float32", 15))
        for got, want in zip(*states_, strict=True):
            assert_allclose(got, want, **states("float32", 16))
        state = states_[1]
    assert on_device.loss(ids[:-1], ids[1:])[0] == pytest.approx(on_cpu.loss(ids[:-1], ids[1:])[0], rel=1e-6)


def test_training_on_a_device_leaves_a_run_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lstmfast.command.main import main

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    sizes = ["--hidden-size", "8", "--batch-size", "4", "--unroll", "6", "--steps", "6", "--sample-every", "0"]
    runs = {}
    for device in ("cuda", "cpu"):
        run = str(tmp_path / device)
        assert main(["train", str(text), "--device", device, "--out", run, *sizes]) == 0
        assert main(["eval", run, str(text), "--json"]) == 0
        runs[device] = SimpleNamespace(path=run, loss=float(capsys.readouterr().out.split('"loss": ')[1].split(",")[0]))
    assert runs["cuda"].loss == pytest.approx(runs["cpu"].loss, rel=1e-5)
    assert main(["train", "--resume", runs["cuda"].path, "--device", "cuda", "--steps", "8"]) == 0


# --- the tools --------------------------------------------------------------------------------------------------------


def test_selftest_reports_every_kernel_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    for path in ("step", "sequence", "cluster"):
        assert f"{path:8}  bfloat16  B    3  H   37" in printed
    assert "cases agree with the CPU" in printed


def test_selftest_exits_with_one_where_a_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_health, "compare", failing(2))
    assert selftest.main(["--quick"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "are wrong" in printed


def test_the_bench_holds_both_to_the_same_values_and_prints_a_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lstmfast.bench import on_cuda
    from lstmfast.bench.shapes import Shape

    assert on_cuda.run(rounds=1, seconds=0, json_path=str(tmp_path / "r.json"), shapes=[Shape(2, 3, 4, 5)]) == 0
    printed = capsys.readouterr().out
    assert "2x3x4x5" in printed
    assert "geometric mean" in printed
    assert "not timed" not in printed
    assert (tmp_path / "r.json").exists()
