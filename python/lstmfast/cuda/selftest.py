"""`python -m lstmfast.cuda.selftest`: compares every kernel this device can run with the CPU's.

Then whole calls: `lstm` with its products in the framework, layers, the character model, a captured graph. Prints one
line per case with the largest error as a fraction of its bound, and a verdict at the end. Exit status: 0 if all agree,
1 if one does not, 2 if there is nothing to test. `--device N` selects a device, `--quick` small shapes. For speed see
`lstmfast bench --device cuda`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import functional
from lstmfast._core import __version__
from lstmfast.cuda import _health, _library
from lstmfast.cuda._arrays import default_device
from lstmfast.cuda._health import Agreement
from lstmfast.cuda._kernels import Context
from lstmfast.cuda._library import DTYPES, PATHS, CudaUnavailableError, Plan
from lstmfast.layers import LSTM
from lstmfast.models import CharLM

# batch, hidden_size, time_steps: single cells and rows, sizes near powers of two, and common sizes.
SHAPES = [
    (1, 1, 3), (1, 16, 5), (3, 37, 5), (5, 64, 4), (4, 33, 7), (9, 100, 4), (2, 129, 5), (17, 7, 6), (16, 128, 9),
    (64, 256, 9), (16, 512, 9), (33, 768, 5), (128, 1024, 5), (8, 2048, 5), (1, 1024, 17),
]
QUICK_SHAPES = [(1, 1, 3), (3, 37, 5), (17, 64, 4)]


@dataclass(frozen=True)
class Case:
    """One line of the report; agreement is None if it could not be run."""

    name: str
    agreement: Agreement | None
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it ran and agrees."""
        return self.agreement is not None and self.agreement.is_good

    def line(self) -> str:
        """The report line."""
        if self.agreement is None:
            return f"{self.name:45}  FAILED  {self.problem}"
        worst = max(self.agreement.errors, key=self.agreement.errors.__getitem__)
        verdict = "ok" if self.is_good else "WRONG"
        return f"{self.name:45}  {verdict:6}  {self.agreement.worst:8.3g} of the bound, in {worst}"


def run(on: Context, shapes: Sequence[tuple[int, int, int]]) -> list[Case]:
    """Run all cases and print them as they come."""
    cases = []
    for name, test in (*_kernel_tests(on, shapes), *_whole_tests(on)):
        try:
            errors: dict[str, float] = {}
            for agreement in test():
                for result, error in agreement.errors.items():
                    errors[result] = max(errors.get(result, 0.0), float("inf") if np.isnan(error) else error)
            case = Case(name, Agreement(errors))
        except Exception as error:  # run the other cases whatever happened
            case = Case(name, None, f"{type(error).__name__}: {error}")
        cases.append(case)
        print(case.line(), flush=True)
    return cases


Test = Callable[[], Iterator[Agreement]]


# --- kernels ----------------------------------------------------------------------------------------------------------


def _kernel_tests(on: Context, shapes: Sequence[tuple[int, int, int]]) -> Iterator[tuple[str, Test]]:
    """Every path, dtype and supported shape, forward and reverse in time, with and without ragged rows."""
    for batch, hidden_size, time_steps in shapes:
        for dtype in DTYPES:
            for path, path_name in PATHS.items():
                if not path:
                    continue
                try:
                    plan = on.library.plan(on.device, hidden_size, batch, dtype, True, path)
                except ValueError:
                    continue  # this path has no kernel for this shape
                name = f"{path_name:8}  {dtype:8}  B {batch:4}  H {hidden_size:4}  T {time_steps:3}"
                yield name, _kernel_test(on, plan, dtype, time_steps)


def _kernel_test(on: Context, plan: Plan, dtype: str, time_steps: int) -> Test:
    def test() -> Iterator[Agreement]:
        for seed, (reverse, ragged) in enumerate([(False, False), (False, True), (True, True)]):
            yield _health.compare(on, plan, dtype, seed=seed, time_steps=time_steps, reverse=reverse, ragged=ragged)

    return test


# --- whole calls ------------------------------------------------------------------------------------------------------

_TIME_STEPS, _BATCH, _INPUTS, _UNITS = 7, 6, 20, 48
# As in `_health`: a float32 product of up to I + H = 68 terms, and ten times that for gradients, sums over 42 rows; for
# bfloat16, h through seven steps, and gradients from products with bfloat16 factors and results.
_ALLOWED = {"float32": (7e-6, 7e-5), "bfloat16": (2.0**-6, 2.0**-4)}


def _whole_tests(on: Context) -> Iterator[tuple[str, Test]]:
    dtypes = ("float32", "bfloat16") if on.framework.has_bfloat16 else ("float32",)
    for dtype in dtypes:
        for kind in ("dense", "ids"):
            yield f"lstm and lstm_backward, {kind}, {dtype}", _call_test(on, dtype, kind == "ids")
    yield "LSTM, two layers, both directions", lambda: iter([_layer_agreement(on)])
    if on.device == 0:  # the model uses the first device
        yield "CharLM, loss and gradients", lambda: iter([_model_agreement()])
    if on.framework.name == "torch" and not on.library.is_emulated:
        yield "lstm in a CUDA graph, replayed", lambda: iter([_graph_agreement(on)])


def _call_test(on: Context, dtype: str, ids: bool) -> Test:
    framework = on.framework
    forward_bound, backward_bound = _ALLOWED[dtype]

    def send(values: npt.NDArray[Any]) -> Any:
        return framework.cast(framework.from_host(values, on.like), dtype)

    def test() -> Iterator[Agreement]:
        for seed, reverse in enumerate((False, True)):
            rng = np.random.default_rng(seed)
            x = rng.integers(0, _INPUTS, (_TIME_STEPS, _BATCH)) if ids else _draw(rng, _TIME_STEPS, _BATCH, _INPUTS)
            floats = [
                _draw(rng, _INPUTS + _UNITS, 4 * _UNITS, scale=(_INPUTS + _UNITS) ** -0.5), _draw(rng, 4 * _UNITS),
                _draw(rng, _BATCH, _UNITS), _draw(rng, _BATCH, _UNITS), _draw(rng, _TIME_STEPS, _BATCH, _UNITS),
            ]
            sent = [framework.from_host(x, on.like) if ids else send(x), *map(send, floats)]
            seen = [x if ids else framework.to_host(sent[0]), *map(framework.to_host, sent[1:])]
            options: dict[str, Any] = {
                "lengths": _TIME_STEPS - np.arange(_BATCH), "resets": rng.random((_TIME_STEPS, _BATCH)) < 0.1,
                "reverse": reverse, "forget_bias": 1.0, "keep_for_backward": True, "matmul_precision": "highest",
            }
            out, wanted = functional.lstm(*sent[:5], **options), functional.lstm(*seen[:5], **options)
            d = functional.lstm_backward(out, sent[5])
            wanted_d = functional.lstm_backward(wanted, seen[5])
            errors = {}
            for names, got, want, bound in (
                (("h", "h_n", "c_n"), out, wanted, forward_bound),
                (("x", "kernel", "bias", "h0", "c0"), d, wanted_d, backward_bound),
            ):
                for name in names:
                    if (array := getattr(got, name)) is not None:
                        errors[name] = _error(framework.to_host(array), getattr(want, name), bound)
            yield Agreement(errors)

    return test


def _layer_agreement(on: Context) -> Agreement:
    framework = on.framework
    on_device, on_cpu = (
        LSTM(
            _INPUTS, _UNITS, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2,
            rng=np.random.default_rng(1),
        )
        for _ in range(2)
    )
    rng = np.random.default_rng(2)
    x, d_h = _draw(rng, _BATCH, _TIME_STEPS, _INPUTS), _draw(rng, _BATCH, _TIME_STEPS, 2 * _UNITS)
    h, _ = on_device(framework.from_host(x, on.like), training=True)
    wanted, _ = on_cpu(x, training=True)
    d_x, _ = on_device.backward(framework.from_host(d_h, on.like))
    wanted_d_x, _ = on_cpu.backward(d_h)
    forward_bound, backward_bound = _ALLOWED["float32"]
    return Agreement({
        "h": _error(framework.to_host(h), wanted, forward_bound),
        "d_x": _error(framework.to_host(d_x), wanted_d_x, backward_bound),
        "gradients": _error(on_device.gradient_buffer, on_cpu.gradient_buffer, backward_bound),
    })


def _model_agreement() -> Agreement:
    on_device, on_cpu = (
        CharLM(
            _INPUTS, _UNITS, num_layers=2, embedding_size=9, dropout=0.2, rng=np.random.default_rng(1), device=device
        )
        for device in ("cuda", "cpu")
    )
    ids = np.random.default_rng(2).integers(0, _INPUTS, (_TIME_STEPS + 1, _BATCH))
    losses = [
        model.loss_and_gradients(ids[:-1], ids[1:], rng=np.random.default_rng(3))[0] for model in (on_device, on_cpu)
    ]
    forward_bound, backward_bound = _ALLOWED["float32"]
    return Agreement({
        "loss": abs(losses[0] - losses[1]) / forward_bound,
        "gradients": _error(on_device.gradient_buffer, on_cpu.gradient_buffer, backward_bound),
    })


def _graph_agreement(on: Context) -> Agreement:
    """A graph captured once and replayed with another x must equal a direct call bit for bit."""
    import torch

    framework, rng = on.framework, np.random.default_rng(0)
    x, kernel, bias = (
        framework.from_host(_draw(rng, *shape, scale=0.2), on.like)
        for shape in ((_TIME_STEPS, _BATCH, _INPUTS), (_INPUTS + _UNITS, 4 * _UNITS), (4 * _UNITS,))
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        functional.lstm(x, kernel, bias)  # tests its kernels, which is impossible during the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = functional.lstm(x, kernel, bias).h
    x.copy_(framework.from_host(_draw(rng, *x.shape), on.like))
    graph.replay()
    wanted = functional.lstm(x, kernel, bias).h
    return Agreement({"h": _error(framework.to_host(h), framework.to_host(wanted), 1e-30)})


def _draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return values


def _error(got: npt.NDArray[Any], want: npt.NDArray[Any] | None, bound: float) -> float:
    assert want is not None
    scale = max(float(np.abs(want).max()), 1.0)
    return float(np.abs(np.asarray(got, np.float64) - want).max()) / scale / bound


# --- the program ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Test and report; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m lstmfast.cuda.selftest", description="Every kernel that this device can run, against the CPU's."
    )
    parser.add_argument("--device", type=int, default=0, help="number of the device")
    parser.add_argument("--quick", action="store_true", help="kernels at three small shapes only")
    options = parser.parse_args(argv)
    try:
        library = _library.require()
        framework, like = default_device(options.device)
    except (CudaUnavailableError, ValueError) as error:
        print(f"Nothing to test: {error}")
        return 2
    device = library.device(options.device)
    print(
        f"lstmfast {__version__} on {device.name.decode()}, sm_{device.compute_major}{device.compute_minor}, "
        f"{device.sm_count} multiprocessors, arrays by {framework.name}"
    )
    started = time.perf_counter()
    cases = run(Context(library, framework, like, options.device), QUICK_SHAPES if options.quick else SHAPES)
    bad = [case for case in cases if not case.is_good]
    seconds = time.perf_counter() - started
    if bad:
        print(f"{len(bad)} of {len(cases)} cases are wrong ({seconds:.0f} s). Please report this with the lines above.")
        return 1
    print(f"All {len(cases)} cases agree with the CPU ({seconds:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
