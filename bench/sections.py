"""What is measured: one function per section, which makes tasks and runs them. Prints nothing.

A section yields its comparisons one by one, so they can be shown as they come. SECTIONS is the table of sections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lstmfast.config import PRESETS

from . import problems
from .harness import Comparison, Contender, Crew, Task
from .shapes import SHAPES, Shape

_SEQUENCE_SHAPES = (
    "udacity", "small", "step64", "step256", "stream64", "stream256", "medium", "large", "huge", "long"
)
_PRECISION_SHAPES = (
    "step256", "stream64", "stream256", "passage1024", "udacity", "small", "medium", "large", "wide"
)
_VARIANTS: tuple[tuple[str, dict[str, str], float], ...] = (
    ("lstmfast", {}, 1e-4),
    ("lstmfast medium", {"precision": "medium"}, 0.1),
    ("lstmfast bf16", {"weights": "bfloat16"}, 0.1),
    ("lstmfast int8", {"weights": "int8"}, 0.2),
    ("lstmfast float64", {"dtype": "float64"}, 1e-9),
    ("torch", {}, 1e-4),
    ("torch autocast", {"precision": "autocast"}, 0.1),
    ("torch fp32=bf16", {"precision": "fp32_precision"}, 0.1),
    ("torch bf16", {"dtype": "bfloat16"}, 0.1),
    ("torch int8", {"weights": "int8"}, 0.2),
    ("torch float64", {"dtype": "float64"}, 1e-9),
    ("onnxruntime", {}, 1e-4),
    ("onnxruntime int8", {"weights": "int8"}, 0.2),
    ("openvino", {}, 1e-4),
    ("openvino bf16", {"precision": "bf16"}, 0.1),
    ("ncnn", {}, 1e-4),
)
"""Ways of using a library, for `precision`: label, settings, tolerance. Those called bf16 and int8 do not train."""
_KINDS = ("inference", "training")
_PIECE_LENGTH = 1000


@dataclass(frozen=True)
class Bench:
    """What a section may use. contenders: lstmfast first; shapes: those requested, empty for the section's own."""

    crew: Crew
    contenders: Sequence[Contender]
    shapes: Mapping[str, Shape]
    threads: int
    cores: int

    def shapes_or(self, *names: str) -> Mapping[str, Shape]:
        """The requested shapes, or these."""
        return self.shapes or {name: SHAPES[name] for name in names}

    def only(self, *libraries: str) -> list[Contender]:
        """lstmfast, and the requested ones of these peers."""
        return [contender for contender in self.contenders if contender.label in ("lstmfast", *libraries)]

    def compare(self, task: Task, contenders: Sequence[Contender], threads: int = 0) -> Comparison:
        """Compare a task on this number of threads, by default the bench's."""
        return self.crew.compare(task, contenders, threads or self.threads)


Section = Callable[[Bench], Iterator[Comparison]]
SECTIONS: dict[str, Section] = {}
ABOUT: dict[str, str] = {}
"""What each section measures: the line under its heading. No docstring, because Python may run without them."""


def _section(about: str) -> Callable[[Section], Section]:
    """Enter a function in both tables."""

    def listed(section: Section) -> Section:
        SECTIONS[section.__name__], ABOUT[section.__name__] = section, about
        return section

    return listed


@_section("One step of one stream (B = 1, T = 1), called from Python: latency.")
def step(bench: Bench) -> Iterator[Comparison]:
    for name, shape in bench.shapes_or("step64", "step256", "step1024").items():
        task = _step_task("step", name, "inference", shape)
        yield bench.compare(task, bench.only("torch", "onnxruntime", "jax", "keras"))


@_section("One layer over whole sequences: inference, and training (forward, backward; gradients of x, kernel, bias).")
def sequence(bench: Bench) -> Iterator[Comparison]:
    for kind in _KINDS:
        for name, shape in bench.shapes_or(*_SEQUENCE_SHAPES).items():
            yield bench.compare(_layer_task("sequence", name, kind, shape), bench.contenders)


@_section(
    "The whole training step of the presets: forward, loss, backward, clipping, optimizer. Characters per second."
)
def training(bench: Bench) -> Iterator[Comparison]:
    for name, agreement_steps, tolerance in (("udacity", 20, 1e-4), ("stdlib", 3, 1e-3)):
        config = PRESETS[name]
        model, optimizer, portion = config.model, config.optimizer, config.training
        shape = Shape(portion.batch_size, portion.unroll, problems.vocabulary(config).size, model.hidden_size)
        settings = {
            "optimizer": optimizer.optimizer,
            "learning_rate": optimizer.learning_rate,
            "clip_norm": optimizer.clip_norm,
            "forget_bias": model.forget_bias,
            "agreement_steps": agreement_steps,
        }
        task = Task(
            "training", name, "training", "training", problems.training(config, batch_count=60),
            portion.batch_size * portion.unroll, "characters/s", settings, shape, tolerance,
        )
        yield bench.compare(task, bench.only("torch"))


@_section("Characters drawn one after the other from one stream of 64 units; both must draw the same ones.")
def sampling(bench: Bench) -> Iterator[Comparison]:
    config = PRESETS["udacity"]
    task = Task(
        "sampling", "udacity", "inference", "sampling", problems.sampling(config, 2, _PIECE_LENGTH),
        _PIECE_LENGTH, "characters/s", {"forget_bias": config.model.forget_bias},
        Shape(1, 1, problems.vocabulary(config).size, config.model.hidden_size), tolerance=1e-9,
    )
    yield bench.compare(task, bench.only("torch"))


@_section("Rows of T/2 to T steps beside the same batch with all its steps. Rates count useful steps alone.")
def ragged(bench: Bench) -> Iterator[Comparison]:
    for kind in _KINDS:
        for name, shape in bench.shapes_or("medium").items():
            for case, lengths in ((f"{name} dense", False), (f"{name} ragged", True)):
                task = _layer_task("ragged", case, kind, shape, ragged=lengths)
                useful = task.problem["lengths"].sum() if lengths else shape.batch * shape.time_steps
                task = dataclasses.replace(task, amount=float(useful), unit="row steps/s")
                yield bench.compare(task, bench.only("torch", "onnxruntime"))


@_section("How the time falls with more threads: large batches, and one stream of 1,024 units.")
def threads(bench: Bench) -> Iterator[Comparison]:
    counts = sorted({1, *(2**power for power in range(1, 10) if 2**power < bench.cores), bench.cores})
    for kind, names in (("inference", ("medium", "large", "stream1024")), ("training", ("medium", "large"))):
        for name, shape in bench.shapes_or(*names).items():
            task = _layer_task("threads", name, kind, shape)
            for count in counts:
                yield bench.compare(task, bench.only("torch", "onnxruntime", "jax"), count)


@_section("What less than float32 gains, what float64 costs, and the error of each: of h, or of the kernel's gradient.")
def precision(bench: Bench) -> Iterator[Comparison]:
    shapes = bench.shapes_or(*_PRECISION_SHAPES)
    frozen = {"training": False, "weights": "float32"}
    for name, shape in shapes.items():
        task = dataclasses.replace(_layer_task("precision", name, "inference", shape), settings=frozen)
        yield bench.compare(_against_float64(task, "h"), _variants(bench, "onnxruntime", "openvino", "ncnn", "torch"))
    for name, shape in shapes.items():
        if shape.batch == shape.time_steps == 1:
            task = _step_task("precision", name, "stream", shape)
            variants = [variant for variant in _variants(bench, "onnxruntime") if "precision" not in variant.settings]
            yield bench.compare(_against_float64(task, "h"), variants)
    training = [variant for variant in _variants(bench, "torch") if not variant.label.endswith((" bf16", " int8"))]
    for name, shape in shapes.items():
        if bench.shapes or shape.batch > 1:
            task = _layer_task("precision", name, "training", shape)
            yield bench.compare(_against_float64(task, "d_kernel"), training)


@_section("By how much a process grows at most in its first training step, without what it is given and returns.")
def memory(bench: Bench) -> Iterator[Comparison]:
    for name, shape in bench.shapes_or("small", "medium", "large").items():
        task = _layer_task("memory", name, "training", shape)
        rows = shape.batch * shape.time_steps
        returned = 4 * (rows * (shape.input_size + shape.hidden_size) + shape.weights + 4 * shape.hidden_size)
        task = dataclasses.replace(task, amount=float(returned), unit="bytes returned")
        yield bench.crew.compare_memory(task, bench.only("torch"), problems.layer(SHAPES["tiny"]))


@_section("Time against batch, time steps and units, one of them at a time.")
def scaling(bench: Bench) -> Iterator[Comparison]:
    if bench.shapes:
        grid = {
            axis: [shape._replace(**{axis: factor * getattr(shape, axis)}) for factor in (1, 2)]
            for shape in bench.shapes.values()
            for axis in ("batch", "time_steps", "hidden_size")
        }
    else:
        base = Shape(32, 50, 256, 256)
        grid = {
            "batch": [base._replace(batch=2**power) for power in range(9)],
            "time_steps": [base._replace(time_steps=steps) for steps in (1, 5, 20, 50, 200, 500)],
            "hidden_size": [base._replace(input_size=size, hidden_size=size) for size in (16, 32, 64, 128, 256, 512)],
        }
    for kind in _KINDS:
        for axis, shapes in grid.items():
            for shape in shapes:
                task = _layer_task("scaling", f"{axis} {getattr(shape, axis)}", kind, shape)
                yield bench.compare(task, bench.only("torch"))


def _variants(bench: Bench, *libraries: str) -> list[Contender]:
    """The variants of lstmfast, and of those of these peers that were asked for."""
    contenders = {contender.label: contender for contender in bench.only(*libraries)}
    return [
        dataclasses.replace(contenders[label.split()[0]], label=label, settings=settings, tolerance=tolerance)
        for label, settings, tolerance in _VARIANTS
        if label.split()[0] in contenders
    ]


def _against_float64(task: Task, error_of: str) -> Task:
    return dataclasses.replace(task, reference="lstmfast float64", error_of=error_of)


def _step_task(section: str, case: str, kind: str, shape: Shape) -> Task:
    """One step of one stream; its worth is counted in bytes of float32 weights."""
    single = Shape(1, 1, shape.input_size, shape.hidden_size)
    return Task(section, case, kind, "step", problems.steps(single), 4 * single.weights / 1e9, "GB/s", shape=single)


def _layer_task(section: str, case: str, kind: str, shape: Shape, *, ragged: bool = False) -> Task:
    """One layer over whole sequences; its amount is counted in operations."""
    training = kind == "training"
    operations = shape.forward_flops * (3 if training else 1)
    return Task(
        section, case, kind, "sequence", problems.layer(shape, ragged=ragged), operations / 1e9, "GFLOP/s",
        {"training": training}, shape,
    )
