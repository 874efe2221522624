"""`lstmfast bench --device cuda`: one layer on a GPU against PyTorch's own, which is cuDNN there.

Agreement comes first: a case whose values differ is not timed. Then both take turns, each round between two events of
the device, and the ratio is that of the rounds' medians; above 1 lstmfast is faster. Runs unattended, needs PyTorch
with CUDA, and says in one sentence what is missing if it cannot run. Figures hold for the device it names.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lstmfast as lf
from lstmfast.cuda import _library
from lstmfast.cuda._library import PATHS, CudaUnavailableError

from .harness import Spread
from .shapes import Shape

# A character model, streams, the shapes of published measurements of persistent kernels, and sizes that cuDNN's
# persistent kernels do not take. batch, time_steps, input_size, hidden_size.
SHAPES = [
    Shape(64, 64, 128, 256), Shape(16, 1024, 768, 768), Shape(16, 256, 512, 512), Shape(64, 256, 1024, 1024),
    Shape(128, 128, 1024, 1024), Shape(16, 256, 650, 650), Shape(32, 128, 2048, 2048), Shape(1, 512, 256, 256),
    Shape(32, 100, 256, 256),
]
# bfloat16: one rounding of h in each step, carried on; float32: the order of sums alone.
TOLERANCES = {"float32": 2e-4, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Row:
    """One case: milliseconds per call, and the other's divided by lstmfast's."""

    shape: Shape
    dtype: str
    work: str
    kernel: str
    lstmfast: Spread
    lstmfast_graph: Spread | None
    """The same call replayed as a CUDA graph; None where it could not be captured."""
    torch: Spread
    difference: float
    estimated_us_per_step: float
    """Of the recurrence alone, forward: what the plan was chosen by. To be held against milliseconds / time_steps."""

    @property
    def ratio(self) -> float:
        """The other's time divided by ours, both called as usual."""
        return self.torch.median / self.lstmfast.median

    def line(self) -> str:
        """The case as a row of the table."""
        graph = f"{self.lstmfast_graph.median:9.3f}" if self.lstmfast_graph else f"{'-':>9}"
        return (
            f"{str(self.shape):20} {self.dtype:8} {self.work:8} {self.kernel:8} {self.lstmfast.median:9.3f} {graph} "
            f"{self.torch.median:9.3f} {self.ratio:6.2f}x  {self.difference:.1e}"
        )


def run(*, rounds: int, seconds: float, json_path: str = "", shapes: Sequence[Shape] = ()) -> int:
    """Measure and print; return 0, or 1 after a sentence if there is nothing to measure on."""
    try:
        library = _library.require()
        torch = _torch(library)
    except CudaUnavailableError as error:
        print(f"lstmfast bench --device cuda cannot run: {error}")
        return 1
    device = library.device(0)
    header = {
        "device": device.name.decode(), "sm": f"{device.compute_major}.{device.compute_minor}",
        "lstmfast": lf.__version__, "torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version()),
        "method": f"{rounds} rounds in turns, {seconds:g} s for each contender in each case; float32 without TF32",
    }
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print("  ".join(f"{name} {value}" for name, value in header.items()))
    print(
        f"{'BxTxIxH':20} {'dtype':8} {'work':8} {'kernel':8} {'lstmfast':>9} {'in graph':>9} {'torch':>9} {'ratio':>7}"
    )
    rows = []
    for row in _measure(torch, library, shapes or SHAPES, rounds, seconds):
        rows.append(row)
        print(row.line(), flush=True)
        if json_path:
            result = {**header, "rows": [asdict(row) for row in rows]}
            Path(json_path).write_text(json.dumps(result, indent=2), encoding="utf-8")
    for work in ("infer", "train"):
        ratios = [row.ratio for row in rows if row.work == work]
        if ratios:
            mean, least, most = statistics.geometric_mean(ratios), min(ratios), max(ratios)
            print(f"{work}: {mean:.2f}x, geometric mean ({least:.2f} to {most:.2f})")
    return 0


def _torch(library: _library.Library) -> Any:
    try:
        import torch
    except ImportError:
        raise CudaUnavailableError("it compares with PyTorch, which is not installed here") from None
    if not (torch.cuda.is_available() or library.is_emulated):
        raise CudaUnavailableError(f"this PyTorch ({torch.__version__}) has no CUDA device")
    return torch


def _measure(
    torch: Any, library: _library.Library, shapes: Sequence[Shape], rounds: int, seconds: float
) -> Iterator[Row]:
    where = "cpu" if library.is_emulated else "cuda"
    for shape in shapes:
        time_steps, batch, hidden_size = shape.time_steps, shape.batch, shape.hidden_size
        for dtype in ("bfloat16", "float32"):
            torch.manual_seed(0)
            peer = torch.nn.LSTM(shape.input_size, hidden_size, device=where, dtype=getattr(torch, dtype))
            with torch.no_grad():
                x = torch.randn(time_steps, batch, shape.input_size, device=where).to(getattr(torch, dtype))
                d_h = torch.randn(time_steps, batch, hidden_size, device=where).to(getattr(torch, dtype))
                kernel = torch.cat([peer.weight_ih_l0.T, peer.weight_hh_l0.T]).contiguous()
                bias = (peer.bias_ih_l0 + peer.bias_hh_l0).contiguous()
            for work in ("infer", "train"):
                ours, theirs = _works(torch, work, peer, x, d_h, kernel, bias)
                difference = _difference(ours(), theirs())
                if not difference <= TOLERANCES[dtype]:
                    print(f"{shape} {dtype} {work}: values differ by {difference:.1e}, not timed")
                    continue
                clock = _Clock(torch, on_gpu=not library.is_emulated)
                graph = None if library.is_emulated else _captured(torch, ours)
                contenders = {"ours": ours, "theirs": theirs, **({"graph": graph} if graph else {})}
                spreads = clock.in_turns(contenders, rounds, seconds)
                plan = library.plan(0, hidden_size, batch, dtype, work == "train").forward
                yield Row(
                    shape, dtype, work, PATHS[plan.path],
                    spreads["ours"], spreads.get("graph"), spreads["theirs"], difference,
                    float(plan.microseconds_per_step),
                )


def _works(
    torch: Any, work: str, peer: Any, x: Any, d_h: Any, kernel: Any, bias: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same work by both: h, or the derivative by x with all other gradients computed too."""

    def ours_infer() -> Any:
        return lf.lstm(x, kernel, bias).h

    def theirs_infer() -> Any:
        with torch.no_grad():
            return peer(x)[0]

    def ours_train() -> Any:
        return lf.lstm_backward(lf.lstm(x, kernel, bias, keep_for_backward=True), d_h).x

    needing = x.detach().clone().requires_grad_(True)
    parameters = list(peer.parameters())

    def theirs_train() -> Any:
        return torch.autograd.grad(peer(needing)[0], [needing, *parameters], d_h)[0]

    peer.train(work == "train")
    return (ours_infer, theirs_infer) if work == "infer" else (ours_train, theirs_train)


def _difference(ours: Any, theirs: Any) -> float:
    ours, theirs = ours.float(), theirs.float()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))


def _captured(torch: Any, work: Callable[[], Any]) -> Callable[[], Any] | None:
    """The work as a CUDA graph, if it can be captured."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with contextlib.suppress(RuntimeError):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], Any] = graph.replay
        return replay
    return None


class _Clock:
    """Milliseconds of calls: by events on the device's stream, or by the host's clock if it emulates the device."""

    def __init__(self, torch: Any, *, on_gpu: bool) -> None:
        self._torch, self._on_gpu = torch, on_gpu

    def in_turns(self, works: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, Spread]:
        """The spread of each one's rounds; a round repeats the work for its share of the time, measured as a whole."""
        counts = {}
        for name, work in works.items():
            work()
            counts[name] = max(1, int(1e3 * seconds / rounds / max(self._time(work, 1), 1e-3)))
        samples: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                samples[name].append(self._time(work, counts[name]))
        return {name: Spread.of(values) for name, values in samples.items()}

    def _time(self, work: Callable[[], Any], count: int) -> float:
        if not self._on_gpu:
            started = time.perf_counter()
            for _ in range(count):
                work()
            return 1e3 * (time.perf_counter() - started) / count
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / count
