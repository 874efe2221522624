"""Calls of LSTM and LSTMCell with arguments that do not fit, or just fit: both must raise, or both must not.

Tables of named arguments, for the input, the states as a whole and each of the two states. torch itself dies of some: a
state with fewer layers than it reads, or with a dimension that its cell adds once more. There ours must raise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstmfast.torch as lt
from support.fuzz_parts import BY_CLASS, DTYPES, Options, World, state_shapes
from support.fuzz_trace import Difference, Trace, compare

Shape = tuple[int, ...]
Make = Callable[[World, Shape], Any]


def _tensor(world: World, shape: Shape, dtype: torch.dtype | None = None) -> Tensor:
    return world.randn(*shape, dtype=dtype or DTYPES[world.options.dtype])


def _of(dtype: torch.dtype) -> Make:
    return lambda world, shape: _tensor(world, shape, torch.float64).to(dtype)


def _is_alike(h: Any, c: Any) -> bool:
    if not isinstance(h, Tensor) or not isinstance(c, Tensor) or h.layout is not c.layout or h.is_sparse:
        return False
    return (h.shape, h.dtype, h.device) == (c.shape, c.dtype, c.device)


# What may stand where a tensor of a shape is wanted; the first is that tensor.
TENSORS: dict[str, Make] = {
    "right": _tensor,
    "with gradient": lambda w, s: _tensor(w, s).requires_grad_(),
    "one dimension more, in front": lambda w, s: _tensor(w, (1, *s)),
    "a batch of three": lambda w, s: _tensor(w, (3, *s)),
    "one dimension more, behind": lambda w, s: _tensor(w, (*s, 1)),
    "two dimensions more": lambda w, s: _tensor(w, (1, 1, *s)),
    "one dimension less": lambda w, s: _tensor(w, s[1:]),
    "two dimensions less": lambda w, s: _tensor(w, s[2:]),
    "no dimension": lambda w, s: _tensor(w, ()),
    "one number": lambda w, s: _tensor(w, (1,)),
    "last size + 1": lambda w, s: _tensor(w, (*s[:-1], s[-1] + 1)),
    "last size - 1": lambda w, s: _tensor(w, (*s[:-1], s[-1] - 1)),
    "last size 1": lambda w, s: _tensor(w, (*s[:-1], 1)),
    "first size + 1": lambda w, s: _tensor(w, (s[0] + 1, *s[1:])),
    "first size 1": lambda w, s: _tensor(w, (1, *s[1:])),
    "first size 0": lambda w, s: _tensor(w, (0, *s[1:])),
    "size before the last + 1": lambda w, s: _tensor(w, (*s[:-2], s[-2] + 1, s[-1]) if len(s) > 1 else (s[0] + 1,)),
    "size before the last 1": lambda w, s: _tensor(w, (*s[:-2], 1, s[-1]) if len(s) > 1 else s),
    "last size 0": lambda w, s: _tensor(w, (*s[:-1], 0)),
    "reversed": lambda w, s: _tensor(w, s[::-1]),
    "float32": _of(torch.float32),
    "float64": _of(torch.float64),
    "float16": _of(torch.float16),
    "bfloat16": _of(torch.bfloat16),
    "int64": _of(torch.int64),
    "uint8": _of(torch.uint8),
    "bool": _of(torch.bool),
    "complex64": _of(torch.complex64),
    "on meta": lambda w, s: _tensor(w, s).to("meta"),
    "sparse": lambda w, s: _tensor(w, s).to_sparse(),
    "None": lambda w, s: None,
    "a string": lambda w, s: "state",
    "a number": lambda w, s: 1.0,
    "nested lists": lambda w, s: _tensor(w, s).tolist(),
    "an array": lambda w, s: _tensor(w, s, torch.float32).numpy(),
    "a tuple": lambda w, s: (_tensor(w, s),),
    "strided": lambda w, s: _tensor(w, (*s, 2))[..., 0],
}

# What may stand where (h0, c0) is wanted; the first two fit.
STATES: dict[str, Callable[[Any, Any], Any]] = {
    "None": lambda h, c: None,
    "a tuple": lambda h, c: (h, c),
    "a list": lambda h, c: [h, c],
    "swapped": lambda h, c: (c, h),
    "h0 alone": lambda h, c: h,
    "one in a tuple": lambda h, c: (h,),
    "none in a tuple": lambda h, c: (),
    "three": lambda h, c: (h, c, c),
    "four": lambda h, c: (h, c, h, c),
    "twice as deep": lambda h, c: ((h, c), (h, c)),
    "pair in a tuple": lambda h, c: ((h, c),),
    "stacked": lambda h, c: torch.stack([h, c]) if _is_alike(h, c) else (h, c),
    "a dict": lambda h, c: {"h": h, "c": c},
    "a string": lambda h, c: "hx",
    "two letters": lambda h, c: "hc",
    "a number": lambda h, c: 0,
    "False": lambda h, c: False,
    "a generator": lambda h, c: (part for part in (h, c)),
    "an empty list": lambda h, c: [],
}
SHAPES = ("a batch", "unbatched", "batch 1", "packed")


@dataclass(frozen=True)
class Call:
    """A call of a module made with these options. The names are those of the tables."""

    seed: int
    options: Options
    by_class: bool
    shape: str
    input: str
    states: str
    h0: str
    c0: str
    has_gradients: bool

    def signature(self) -> str:
        """The same for calls that differ in sizes only."""
        kind = "LSTMCell" if self.options.cell else "LSTM"
        return f"{kind}, {self.shape}; input {self.input}; states {self.states}, h0 {self.h0}, c0 {self.c0}"

    def describe(self) -> str:
        """For people."""
        made = BY_CLASS if self.by_class else "convert"
        return f"{made}, {self.options}\n{self.signature()}; gradients: {self.has_gradients}"


def draw(seed: int) -> Call:
    """The call of a seed: mostly one or two things are wrong with it."""
    rng = random.Random(seed)
    hidden_size = rng.randint(1, 5)
    options = Options(
        cell=rng.random() < 0.5,
        input_size=rng.randint(1, 5),
        hidden_size=hidden_size,
        num_layers=rng.randint(1, 2),
        bias=rng.random() < 0.7,
        batch_first=rng.random() < 0.3,
        bidirectional=rng.random() < 0.2,
        proj_size=rng.randint(1, hidden_size - 1) if hidden_size > 1 and rng.random() < 0.2 else 0,
        dtype=rng.choice(list(DTYPES)),
    )

    def mostly(first: str, others: Any, share: float) -> str:
        return first if rng.random() < share else rng.choice(list(others))

    h0 = mostly("right", TENSORS, 0.5)
    return Call(
        seed,
        options,
        by_class=rng.random() < 0.5,
        shape=rng.choice(SHAPES[:3] if options.cell else SHAPES),
        input=mostly("right", TENSORS, 0.6),
        states=rng.choice(["None", "a tuple", "a tuple"]) if rng.random() < 0.75 else rng.choice(list(STATES)),
        h0=h0,
        c0=h0 if rng.random() < 0.4 else mostly("right", TENSORS, 0.5),  # wrong in the same way is what checks miss
        has_gradients=rng.random() < 0.5,
    )


def check(call: Call, at: Callable[[str], None], *, torch_dies: bool = False) -> list[Difference]:
    """How ours differs from torch's. at: is told which side is about to run. torch_dies: do not run that side."""
    at("torch")
    torchs = Trace() if torch_dies else _run(call, "torch")
    if torch_dies:
        torchs.fail(RuntimeError("torch's own dies of this"))
    at("ours")
    ours = _run(call, "ours")
    unit = torch.finfo(DTYPES[call.options.dtype]).eps
    return compare(torchs, ours, lambda: torchs, unit=unit, terms=32)


def _run(call: Call, side: str) -> Trace:
    world = World(side, call.options, BY_CLASS if call.by_class else "convert", call.seed)
    module: Any = world.base()(**call.options.arguments())
    if side == "ours":
        lt.convert(module)
    try:
        x, hx = _arguments(world, call)
        if side == "torch" and _kills_torch(call.options, x, hx):
            raise RuntimeError("torch may die of this")
        with torch.set_grad_enabled(call.has_gradients):
            first, second = module(x, hx)
        outputs = [first if isinstance(first, Tensor) else first.data]
        outputs += [second] if isinstance(second, Tensor) else second
        for k, output in enumerate(outputs):
            world.record(f"output {k}", output)
        if all(output.requires_grad for output in outputs) and not outputs[0].is_meta:
            torch.autograd.backward([output.double().sum() for output in outputs])
            world.record("gradient of x", getattr(x, "grad", None))
            world.record_all("gradient", {name: p.grad for name, p in module.named_parameters()})
    except Exception as error:
        world.trace.fail(error)
    return world.trace


def _arguments(world: World, call: Call) -> tuple[Any, Any]:
    options, batch = world.options, {"unbatched": None, "batch 1": 1}.get(call.shape, 3)
    rows = () if batch is None else (batch,)
    shape: Shape = (*rows, options.input_size)
    if not options.cell:
        shape = (*rows, 2, options.input_size) if options.batch_first else (2, *rows, options.input_size)
    x = TENSORS[call.input](world, shape)
    h_shape, c_shape = state_shapes(options, batch)
    hx = STATES[call.states](TENSORS[call.h0](world, h_shape), TENSORS[call.c0](world, c_shape))
    if call.shape == "packed" and isinstance(x, Tensor) and x.dim() >= 2 and x.layout is torch.strided:
        rows_of_x = x.shape[0 if options.batch_first else 1]
        steps = x.shape[1 if options.batch_first else 0]
        if rows_of_x and steps and not x.is_meta:
            x = pack_padded_sequence(x, torch.tensor([steps] * rows_of_x), options.batch_first)
    return x, hx


def _kills_torch(options: Options, x: Any, hx: Any) -> bool:
    """Whether torch reads or writes past the end of something, so that its process may die, then or later.

    Its cell adds a dimension to both states where the input lacks that of the batch, and not where they do. Its LSTM
    looks at no size of a PackedSequence, and does not compare states with it.
    """
    states = [part for part in hx if isinstance(part, Tensor)] if isinstance(hx, (tuple, list)) else []
    if options.cell:
        return isinstance(x, Tensor) and x.dim() == 1 and any(part.dim() != 1 for part in states)
    if not isinstance(x, PackedSequence):
        return False
    wanted = state_shapes(options, int(x.batch_sizes[0]))
    return x.data.shape[1:] != (options.input_size,) or any(
        part.shape != shape for part, shape in zip(states, wanted, strict=False)
    )
