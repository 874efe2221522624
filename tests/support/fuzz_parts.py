"""What the fuzzer's programs are made of: tables of named parts, each a small function. A new situation is one entry.

Every part runs on three sides: "torch" (torch.nn's modules), "ours" (lstmfast.torch's) and "right" (`plain_lstm`). It
draws numbers from its `World` only, so all sides see the same ones, and it must not draw within functions that
checkpoints run again. What it records is compared. Knows nothing of comparing, nor which parts come together.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lstmfast.torch as lt
from support.fuzz_trace import Trace, Undecided
from support.plain_lstm import PlainLSTM, PlainLSTMCell

Function = Callable[..., Any]
BY_CLASS = "lstmfast.torch's class"  # how ours is made
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Of the modules. The defaults are what a failing program is shrunk to."""

    cell: bool = False
    input_size: int = 3
    hidden_size: int = 4
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    dtype: str = "float32"
    time_steps: int = 3  # of most calls
    batch: int = 2  # of most calls

    def arguments(self) -> dict[str, Any]:
        """For the constructor."""
        names = (
            ("bias",) if self.cell else ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
        )
        every = {"input_size": self.input_size, "hidden_size": self.hidden_size, "dtype": DTYPES[self.dtype]}
        return every | {name: getattr(self, name) for name in names}


def _any(options: Options) -> bool:
    return True


def _layers(options: Options) -> bool:
    return not options.cell


@dataclass(frozen=True)
class Part:
    """An entry of a table. often: beside the others. fits: which options it is for. lowest: precision it rounds to.

    gradless: it makes no gradients, or is for those who make none. is_transform: torch.func wraps the input.
    is_packed: its input goes through a PackedSequence. is_ours: it has an argument that torch's modules lack, which get
    something else instead. sees_arguments: it sees the difference. is_concurrent: several threads run it. is_uncounted:
    it writes without torch's knowledge.
    """

    build: Callable[..., Any]
    often: float = 1
    fits: Callable[[Options], bool] = _any
    lowest: torch.dtype | None = None
    gradless: bool = False
    is_transform: bool = False
    is_packed: bool = False
    is_ours: bool = False
    sees_arguments: bool = False
    is_concurrent: bool = False
    is_uncounted: bool = False


class Table(dict[str, Part]):
    """Parts by name; the first is the plain one, to which failing programs are shrunk."""

    def part(self, name: str, **about: Any) -> Callable[[Function], Function]:
        """Enter the decorated function."""

        def enter(build: Function) -> Function:
            self[name] = Part(build, **about)
            return build

        return enter

    @property
    def plain(self) -> str:
        """The name of the first."""
        return next(iter(self))

    def draw(self, rng: random.Random, options: Options, *, gradless: bool = False) -> str:
        """A name among those that fit."""
        names = [n for n, p in self.items() if p.fits(options) and (p.gradless or not gradless)]
        return rng.choices(names, [self[n].often for n in names])[0]


# --- the modules of a program -----------------------------------------------------------------------------------------


class Parent(nn.Module):
    """A module with an LSTM in it."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the LSTM's."""
        return self.lstm(*args, **kwargs)


class Holder:
    """A module tree that holds one LSTM or LSTMCell."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root

    @property
    def lstm(self) -> Any:
        """The LSTM or LSTMCell."""
        return next(m for m in self.root.modules() if isinstance(m, (nn.LSTM, nn.LSTMCell)))

    @property
    def dtype(self) -> torch.dtype:
        """In which inputs are wanted."""
        return next(p.dtype for p in self.root.parameters())

    def call(self, x: Any, *hx: Any, **kwargs: Any) -> Any:
        """Call the whole tree, or the LSTM where the tree takes but an input."""
        return (self.root if not hx and not kwargs else self.takes_all)(x, *hx, **kwargs)

    @property
    def takes_all(self) -> Any:
        """What can be called with all that an LSTM takes."""
        return self.lstm if isinstance(self.root, nn.Sequential) else self.root

    def some_parameters(self, rng: random.Random) -> list[nn.Parameter]:
        """One or more."""
        every = list(self.root.parameters())
        return rng.sample(every, rng.randint(1, len(every)))


class World:
    """One run of a program on one side."""

    def __init__(self, side: str, options: Options, made: str, seed: int) -> None:
        self.side, self.options, self.made, self.trace = side, options, made, Trace()
        self.rng, self.generator = random.Random(), torch.Generator()
        self.holders: list[Holder] = []
        self.ours_by_class = made == BY_CLASS  # else converted
        self.state: tuple[Tensor, ...] | None = None  # that the last call returned
        self.allows_subclasses = True  # of Tensor; not with arguments that torch's modules lack
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """From here on, all random numbers follow from this seed."""
        self.rng.seed(seed)
        self.generator.manual_seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond, for other devices

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Normal numbers that do not touch torch's own generator."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def base(self) -> type[nn.Module]:
        """The class that a module of this side is made by."""
        plain, own, theirs = (
            (PlainLSTMCell, lt.LSTMCell, nn.LSTMCell) if self.options.cell else (PlainLSTM, lt.LSTM, nn.LSTM)
        )
        if self.side == "right":
            return plain
        return own if self.side == "ours" and self.ours_by_class else theirs

    def record(self, label: str, value: Any) -> None:
        """Record for the comparison."""
        self.trace.record(label, value)

    def record_all(self, label: str, tensors: dict[str, Tensor | None]) -> None:
        """Record tensors, None among them, and which share memory."""
        for name, tensor in tensors.items():
            self.record(f"{label} of {name}", tensor)
        self.trace.shared(label, tensors)


# --- options ----------------------------------------------------------------------------------------------------------


def draw_options(rng: random.Random) -> Options:
    """Mostly small odd sizes, where kernels have their edges; some that fill vectors."""

    def size() -> int:
        return rng.randint(1, 9) if rng.random() < 0.85 else rng.randint(16, 40)

    hidden_size = size()
    common: dict[str, Any] = {
        "input_size": size(),
        "bias": rng.random() < 0.8,
        "dtype": rng.choices(list(DTYPES), [5, 3, 1])[0],
        "time_steps": rng.randint(1, 5),
        "batch": rng.randint(1, 4),
    }
    if rng.random() < 0.2:
        return Options(cell=True, hidden_size=hidden_size, **common)
    return Options(
        hidden_size=hidden_size,
        num_layers=rng.choices([1, 2, 3], [6, 3, 1])[0],
        batch_first=rng.random() < 0.3,
        dropout=0.5 if rng.random() < 0.2 else 0.0,
        bidirectional=rng.random() < 0.3,
        proj_size=rng.randint(1, hidden_size - 1) if hidden_size > 1 and rng.random() < 0.2 else 0,
        **common,
    )


# --- how ours is made: (before the treatments, after them) ------------------------------------------------------------

MADE = Table()


def _convert(world: World, holder: Holder) -> None:
    lt.convert(holder.root)


def _nothing(world: World, holder: Holder) -> None:
    pass


def _convert_twice(world: World, holder: Holder) -> None:
    lt.convert(holder.root)
    lt.revert(holder.root)
    lt.convert(holder.root)
    lt.convert(holder.root)


def _freeze(world: World, holder: Holder) -> None:
    lt.convert(holder.root)
    # Weights that torch cannot compute either, once it is called: orthogonal ones in bfloat16, pruned ones set anew.
    with contextlib.suppress(NotImplementedError, TypeError):
        lt.freeze(holder.root)


MADE["convert"] = Part((_convert, _nothing), often=4)
MADE[BY_CLASS] = Part((_nothing, _nothing), often=3)
MADE["convert after the treatments"] = Part((_nothing, _convert), often=2)
MADE["convert, revert, convert"] = Part((_convert, _convert_twice), often=0.5)
if hasattr(lt, "freeze"):
    MADE["convert and freeze"] = Part((_nothing, _freeze), often=1)


@contextlib.contextmanager
def thawed(world: World) -> Iterator[None]:
    """Where weights may be written: frozen modules are unfrozen, as their users have to."""
    frozen = world.side == "ours" and world.made == "convert and freeze"
    for holder in world.holders if frozen else ():
        lt.unfreeze(holder.root)
    try:
        yield
    finally:
        for holder in world.holders if frozen else ():
            _freeze(world, holder)


# --- where the module stands ------------------------------------------------------------------------------------------

PLACES = Table()


@functools.cache
def _subclass(base: type[nn.Module], has_forward: bool) -> type[nn.Module]:
    """A user's subclass, under a name by which pickle finds it."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(cls, self).forward(*args, **kwargs)

    unique = f"Own{'Forward' if has_forward else ''}{base.__name__}_{base.__module__.replace('.', '_')}"
    about: dict[str, Any] = {"__module__": __name__, "__qualname__": unique}
    cls = type(f"Own{base.__name__}", (base,), about | ({"forward": forward} if has_forward else {}))
    globals()[unique] = cls
    return cls


@PLACES.part("alone", often=5)
def _alone(world: World) -> nn.Module:
    return world.base()(**world.options.arguments())


@PLACES.part("in a Sequential")
def _sequential(world: World) -> nn.Module:
    return nn.Sequential(_alone(world))


@PLACES.part("in a parent module")
def _parent(world: World) -> nn.Module:
    return Parent(_alone(world))


@PLACES.part("a subclass without forward")
def _own(world: World) -> nn.Module:
    return _subclass(world.base(), False)(**world.options.arguments())


@PLACES.part("a subclass whose forward calls super().forward")
def _own_forward(world: World) -> nn.Module:
    return _subclass(world.base(), True)(**world.options.arguments())


# --- what is done to the module before the first call -----------------------------------------------------------------

TREATMENTS = Table()
TREATMENTS["none"] = Part(_nothing, often=15)


def _hidden_weight(holder: Holder) -> str:
    return "weight_hh" if isinstance(holder.lstm, nn.LSTMCell) else "weight_hh_l0"


@TREATMENTS.part("orthogonal parametrization")
def _orthogonal(world: World, holder: Holder) -> None:
    parametrizations.orthogonal(holder.lstm, _hidden_weight(holder))


@TREATMENTS.part("weight_norm parametrization")
def _weight_norm(world: World, holder: Holder) -> None:
    parametrizations.weight_norm(holder.lstm, _hidden_weight(holder))


@TREATMENTS.part("old weight_norm")
def _old_weight_norm(world: World, holder: Holder) -> None:
    nn.utils.weight_norm(holder.lstm, _hidden_weight(holder))


@TREATMENTS.part("pruned")
def _pruned(world: World, holder: Holder) -> None:
    prune.l1_unstructured(holder.lstm, _hidden_weight(holder), 0.3)


@TREATMENTS.part("_flat_weights set", fits=_layers)
def _flat_weights_set(world: World, holder: Holder) -> None:
    holder.lstm._flat_weights = [w.detach() * 0.5 for w in holder.lstm._flat_weights]


@TREATMENTS.part("one of _flat_weights set", fits=_layers)
def _flat_weight_set(world: World, holder: Holder) -> None:
    holder.lstm._flat_weights[1] = nn.Parameter(holder.lstm._flat_weights[1].detach() * 0.5)


@TREATMENTS.part("_flat_weights tied", fits=lambda o: o.bidirectional)
def _flat_weights_tied(world: World, holder: Holder) -> None:
    flat = holder.lstm._flat_weights
    half = len(flat) // (2 * world.options.num_layers)
    flat[half : 2 * half] = flat[:half]


@TREATMENTS.part("directions tied", fits=lambda o: o.bidirectional)
def _directions_tied(world: World, holder: Holder) -> None:
    holder.lstm.weight_hh_l0_reverse = holder.lstm.weight_hh_l0


@TREATMENTS.part("biases tied", fits=lambda o: o.bias)
def _biases_tied(world: World, holder: Holder) -> None:
    suffix = "" if world.options.cell else "_l0"
    setattr(holder.lstm, f"bias_hh{suffix}", getattr(holder.lstm, f"bias_ih{suffix}"))


@TREATMENTS.part("modules tied")
def _modules_tied(world: World, holder: Holder) -> None:
    name = _hidden_weight(holder)
    setattr(world.holders[0].lstm, name, getattr(world.holders[-1].lstm, name))


@TREATMENTS.part("some parameters without gradients")
def _no_grad_parameters(world: World, holder: Holder) -> None:
    for parameter in holder.some_parameters(world.rng):
        parameter.requires_grad_(False)


@TREATMENTS.part("no parameters with gradients")
def _frozen(world: World, holder: Holder) -> None:
    holder.root.requires_grad_(False)


@TREATMENTS.part("eval")
def _eval(world: World, holder: Holder) -> None:
    holder.root.eval()


@TREATMENTS.part("deepcopy")
def _deepcopy(world: World, holder: Holder) -> None:
    holder.root = copy.deepcopy(holder.root)


@TREATMENTS.part("pickle")
def _pickle(world: World, holder: Holder) -> None:
    holder.root = pickle.loads(pickle.dumps(holder.root))


@TREATMENTS.part("torch.save and load")
def _save(world: World, holder: Holder) -> None:
    file = io.BytesIO()
    torch.save(holder.root, file)
    file.seek(0)
    holder.root = torch.load(file, weights_only=False)


@TREATMENTS.part("state_dict through a file")
def _state_dict(world: World, holder: Holder) -> None:
    file = io.BytesIO()
    torch.save(holder.root.state_dict(), file)
    file.seek(0)
    holder.root.load_state_dict({name: value * 0.5 for name, value in torch.load(file).items()})


@TREATMENTS.part("load_state_dict(assign=True)")
def _assigned(world: World, holder: Holder) -> None:
    state = {name: value.clone() for name, value in holder.root.state_dict().items()}
    holder.root.load_state_dict(state, assign=True)


@TREATMENTS.part("double()")
def _double(world: World, holder: Holder) -> None:
    holder.root.double()


@TREATMENTS.part("half()", often=0.3, lowest=torch.float16)
def _half(world: World, holder: Holder) -> None:
    holder.root.half()


@TREATMENTS.part("to(bfloat16)", often=0.3, lowest=torch.bfloat16)
def _bfloat16(world: World, holder: Holder) -> None:
    holder.root.to(torch.bfloat16)


@TREATMENTS.part("bfloat16 and back", often=0.3)
def _there_and_back(world: World, holder: Holder) -> None:
    dtype = holder.dtype
    holder.root.to(torch.bfloat16).to(dtype)


@TREATMENTS.part("share_memory", often=0.5)
def _share_memory(world: World, holder: Holder) -> None:
    holder.root.share_memory()


@TREATMENTS.part("parameter that is not contiguous")
def _transposed_parameter(world: World, holder: Holder) -> None:
    name = _hidden_weight(holder)
    weight = getattr(holder.lstm, name).detach()
    setattr(holder.lstm, name, nn.Parameter(weight.t().contiguous().t()))


@TREATMENTS.part("parameter with zero strides", fits=lambda o: o.bias)
def _expanded_parameter(world: World, holder: Holder) -> None:
    suffix = "" if world.options.cell else "_l0"
    bias = world.randn(1, dtype=holder.dtype).expand(4 * world.options.hidden_size)
    setattr(holder.lstm, f"bias_ih{suffix}", nn.Parameter(bias))


@TREATMENTS.part("forward wrapped on the instance", sees_arguments=True)
def _wrapped(world: World, holder: Holder) -> None:
    old = holder.lstm.forward
    holder.lstm.forward = functools.partial(lambda *args, **kwargs: old(*args, **kwargs))


@TREATMENTS.part("forward replaced on the instance", sees_arguments=True)
def _replaced(world: World, holder: Holder) -> None:
    old = holder.lstm.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        first, second = old(*args, **kwargs)
        return _scaled(first, 2), second

    holder.lstm.forward = doubled


def _scaled(value: Any, factor: float) -> Any:
    """A tensor or PackedSequence, multiplied."""
    return value._replace(data=value.data * factor) if isinstance(value, PackedSequence) else value * factor


@TREATMENTS.part("forward pre hook that changes the input", sees_arguments=True)
def _pre_hook(world: World, holder: Holder) -> None:
    holder.lstm.register_forward_pre_hook(lambda module, args: (_scaled(args[0], 0.5), *args[1:]))


@TREATMENTS.part("forward hook that changes the output", sees_arguments=True)
def _hook(world: World, holder: Holder) -> None:
    holder.lstm.register_forward_hook(lambda module, args, result: (_scaled(result[0], 2), result[1]))


@TREATMENTS.part("full backward hook", sees_arguments=True)
def _backward_hook(world: World, holder: Holder) -> None:
    holder.lstm.register_full_backward_hook(
        lambda module, d_input, d_output: tuple(None if g is None else g * 0.5 for g in d_input)
    )


@TREATMENTS.part("full backward pre hook", sees_arguments=True)
def _backward_pre_hook(world: World, holder: Holder) -> None:
    holder.lstm.register_full_backward_pre_hook(
        lambda module, d_output: tuple(None if g is None else g * 0.5 for g in d_output)
    )


def _triple(parameter: Any) -> None:
    parameter.grad.mul_(3)


@TREATMENTS.part("hooks on parameters")
def _parameter_hooks(world: World, holder: Holder) -> None:
    for parameter in holder.some_parameters(world.rng):
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient.mul_(0.5) if world.options.bias else gradient * 0.5)
            parameter.register_post_accumulate_grad_hook(_triple)


@TREATMENTS.part("flatten_parameters", often=0.3, fits=_layers)
def _flatten(world: World, holder: Holder) -> None:
    holder.lstm.flatten_parameters()


@TREATMENTS.part("torch.fx", often=0.5)
def _fx(world: World, holder: Holder) -> None:
    if world.ours_by_class or world.side == "right":
        return  # a class of another name is looked into

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = holder.lstm

        def forward(self, x: Any) -> Any:
            return self.lstm(x)

    graph = torch.fx.symbolic_trace(Outer()).graph
    world.record("torch.fx nodes", [node.op for node in graph.nodes])


@TREATMENTS.part("quantize_dynamic", often=0.2, fits=lambda o: o.dtype == "float32" and not o.proj_size)
def _quantize(world: World, holder: Holder) -> None:
    if world.ours_by_class:
        return  # a class of another name is left alone

    root = nn.Sequential(copy.deepcopy(holder.lstm))
    quantized = torch.ao.quantization.quantize_dynamic(root, {nn.LSTM, nn.LSTMCell}, dtype=torch.qint8)
    world.record("quantized class", type(quantized[0]).__module__)


# --- how weights are written between calls ----------------------------------------------------------------------------

WRITES = Table()
WRITES["nothing"] = Part(_nothing, often=8)


def _like(world: World, tensor: Tensor) -> Tensor:
    return world.randn(*tensor.shape, dtype=tensor.dtype) * 0.5


def _each(write: Callable[[World, Tensor], Any]) -> Function:
    """Write some parameters, each by itself."""

    def write_some(world: World, holder: Holder) -> None:
        for parameter in holder.some_parameters(world.rng):
            write(world, parameter)

    return write_some


def _set(tensor: Tensor, value: Any) -> None:
    tensor[...] = value


_EACH_WRITES: dict[str, Callable[[World, Any], Any]] = {
    "p.data.copy_": lambda w, p: p.data.copy_(_like(w, p)),
    "p.data.mul_": lambda w, p: p.data.mul_(0.5),
    "p.data.lerp_": lambda w, p: p.data.lerp_(_like(w, p), 0.3),
    "p.data[...] =": lambda w, p: _set(p.data, 0.25),
    "p.data[0] =": lambda w, p: _set(p.data[0], 0.25),
    "p.data = new tensor": lambda w, p: setattr(p, "data", _like(w, p)),
    "p.detach().copy_": lambda w, p: p.detach().copy_(_like(w, p)),
    "nn.init on p.data": lambda w, p: nn.init.normal_(p.data, generator=w.generator),
    "nn.init on p": lambda w, p: nn.init.constant_(p, 0.2),
    "set_": lambda w, p: torch.no_grad()(p.set_)(_like(w, p)),
    "p.data.set_": lambda w, p: p.data.set_(_like(w, p)),
    "in place under no_grad": lambda w, p: torch.no_grad()(p.mul_)(0.5),
    "a view of p.data": lambda w, p: p.data.flatten()[:1].fill_(0.7) if p.is_contiguous() else None,
    "p.untyped_storage().copy_": lambda w, p: (
        p.untyped_storage().copy_(_like(w, p).untyped_storage())
        if p.untyped_storage().nbytes() == p.numel() * p.element_size()
        else None
    ),
    "DLPack": lambda w, p: torch.from_dlpack(p.detach()).mul_(0.5),
    "inference_mode, in place": lambda w, p: torch.inference_mode()(p.mul_)(0.5),
}
for _name, _write in _EACH_WRITES.items():
    WRITES[_name] = Part(_each(_write))


def _not_bfloat16(options: Options) -> bool:
    return options.dtype != "bfloat16"


@WRITES.part("swap_tensors", fits=lambda o: o.cell)  # torch's LSTM holds weak references, of which torch refuses it
def _swap(world: World, holder: Holder) -> None:
    for parameter in holder.some_parameters(world.rng):
        torch.utils.swap_tensors(parameter, nn.Parameter(_like(world, parameter), parameter.requires_grad))


@WRITES.part("NumPy array of p.detach()", fits=_not_bfloat16)
def _numpy(world: World, holder: Holder) -> None:
    for parameter in holder.some_parameters(world.rng):
        array = parameter.detach().numpy()
        array[...] = array * 0.5


@WRITES.part("NumPy array, kept from the first write", fits=_not_bfloat16)
def _numpy_kept(world: World, holder: Holder) -> None:
    kept = holder.__dict__.setdefault("kept", [p.detach().numpy() for p in holder.root.parameters()])
    for array in kept:
        array[...] = array * 0.5


@WRITES.part("share_memory_, another view")
def _shared(world: World, holder: Holder) -> None:
    holder.__dict__.pop("kept", None)  # share_memory_ frees what NumPy arrays point to
    for parameter in holder.some_parameters(world.rng):
        parameter.share_memory_().data.view_as(parameter).mul_(0.5)


@WRITES.part("torch._foreach_mul_ on p.data")
def _foreach(world: World, holder: Holder) -> None:
    torch._foreach_mul_([p.data for p in holder.some_parameters(world.rng)], 0.5)


@WRITES.part("optimizer step", often=2)
def _optimizer(world: World, holder: Holder) -> None:
    parameters = holder.some_parameters(world.rng)
    kind = world.rng.choice([torch.optim.SGD, torch.optim.AdamW])
    optimizer = kind(parameters, 0.1, foreach=world.rng.random() < 0.5)
    for parameter in parameters:
        parameter.grad = _like(world, parameter)
    optimizer.step()
    optimizer.zero_grad()


@WRITES.part("load_state_dict")
def _load(world: World, holder: Holder) -> None:
    state = holder.root.state_dict()
    values = {name: _like(world, value) if value.is_floating_point() else value for name, value in state.items()}
    holder.root.load_state_dict(values, assign=world.rng.random() < 0.3)


@WRITES.part("state_dict()[...].mul_")
def _state_dict_written(world: World, holder: Holder) -> None:
    for value in holder.root.state_dict().values():
        value.mul_(0.5)


@WRITES.part("another nn.Parameter")
def _another(world: World, holder: Holder) -> None:
    name = _hidden_weight(holder)
    setattr(holder.lstm, name, nn.Parameter(_like(world, getattr(holder.lstm, name))))


@WRITES.part("vector_to_parameters")
def _vector(world: World, holder: Holder) -> None:
    parameters = list(holder.root.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters).detach() * 0.5, parameters)


@WRITES.part("_apply")
def _apply(world: World, holder: Holder) -> None:
    holder.root._apply(lambda t: t * 0.5)


@WRITES.part("an initializer that compares types")
def _apply_initializer(world: World, holder: Holder) -> None:
    made_by_own_class = world.ours_by_class or world.side == "right"
    classes = (world.base(),) if made_by_own_class else (nn.LSTM, nn.LSTMCell)

    def initialize(module: nn.Module) -> None:
        if type(module) in classes:
            for parameter in module.parameters():
                nn.init.normal_(parameter.data, 0, 0.3, generator=world.generator)

    holder.root.apply(initialize)


@WRITES.part("reset_parameters")
def _reset(world: World, holder: Holder) -> None:
    holder.lstm.reset_parameters()


@WRITES.part("deepcopy", often=0.5)
def _copied(world: World, holder: Holder) -> None:
    holder.root = copy.deepcopy(holder.root)


@WRITES.part("eval or train", often=0.5)
def _toggled(world: World, holder: Holder) -> None:
    holder.root.train(not holder.root.training)


@WRITES.part("requires_grad_ toggled", often=0.5)
def _toggled_gradients(world: World, holder: Holder) -> None:
    for parameter in holder.some_parameters(world.rng):
        parameter.requires_grad_(not parameter.requires_grad)


@WRITES.part("weight entry of _flat_weights replaced", often=0.5, fits=_layers)
def _flat_weight_replaced(world: World, holder: Holder) -> None:
    holder.lstm._update_flat_weights()  # a functional_call that failed may have left its own there
    flat = holder.lstm._flat_weights
    k = world.rng.randrange(len(flat))
    flat[k] = flat[k].detach() * 0.5


# --- how tensors lie in memory ----------------------------------------------------------------------------------------

LAYOUTS = Table()


@LAYOUTS.part("contiguous", often=5)
def _contiguous(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(*shape, dtype=dtype)


@LAYOUTS.part("transposed")
def _transposed(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(*shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])


@LAYOUTS.part("every second number")
def _sliced(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


@LAYOUTS.part("part of longer rows")
def _offset(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(*shape[:-1], shape[-1] + 3, dtype=dtype)[..., 2:-1]


@LAYOUTS.part("expanded")
def _expanded(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(1, *shape[1:], dtype=dtype).expand(shape)


@LAYOUTS.part("one number expanded")
def _zero_stride(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(1, dtype=dtype).expand(shape)


@LAYOUTS.part("a subclass of Tensor", often=0.2)
def _tagged(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return world.randn(*shape, dtype=dtype).as_subclass(Tagged)


@LAYOUTS.part("an nn.Parameter", often=0.3)
def _as_parameter(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return nn.Parameter(world.randn(*shape, dtype=dtype))


class Tagged(Tensor):
    """Of a user."""


def draw_layout(world: World) -> str:
    """The name of a layout."""
    layout = LAYOUTS.draw(world.rng, world.options)
    return layout if world.allows_subclasses or layout != "a subclass of Tensor" else LAYOUTS.plain


def draw_tensor(world: World, layout: str, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> Tensor:
    """A leaf that lies so."""
    tensor: Tensor = LAYOUTS[layout].build(world, shape, dtype)
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().requires_grad_(requires_grad)


# --- shapes of the input ----------------------------------------------------------------------------------------------

SHAPES = Table()


class Shape(NamedTuple):
    """x: the shape of the input; batch: the rows of states, None for none; run: calls a module with x and states."""

    x: tuple[int, ...]
    batch: int | None
    run: Callable[..., Any] = lambda call, x, *hx: call(x, *hx)


def _shape(world: World, steps: int, batch: int) -> Shape:
    size = world.options.input_size
    if world.options.cell:
        return Shape((batch, size), batch)
    return Shape((batch, steps, size) if world.options.batch_first else (steps, batch, size), batch)


@SHAPES.part("as before", often=6)
def _batch(world: World) -> Shape:
    return _shape(world, world.options.time_steps, world.options.batch)


@SHAPES.part("another batch", often=2)
def _other_batch(world: World) -> Shape:
    return _shape(world, world.rng.choice([2, 5]), world.rng.choice([1, 2, 4]))


@SHAPES.part("one step")
def _one_step(world: World) -> Shape:
    return _shape(world, 1, world.rng.choice([1, 2, 9]))


@SHAPES.part("batch 0", often=0.5)
def _no_batch(world: World) -> Shape:
    return _shape(world, 3, 0)


@SHAPES.part("no steps", often=0.1, fits=_layers)
def _no_steps(world: World) -> Shape:
    return _shape(world, 0, 2)


@SHAPES.part("long", often=0.5)
def _long(world: World) -> Shape:
    return _shape(world, 17, world.rng.choice([1, 6, 19]))


@SHAPES.part("unbatched")
def _unbatched(world: World) -> Shape:
    size = world.options.input_size
    return Shape((size,) if world.options.cell else (world.options.time_steps, size), None)


def _packed(world: World, *, is_sorted: bool, enforce_sorted: bool, padded: bool = False) -> Shape:
    batch_first, batch, steps = world.options.batch_first, world.options.batch, world.options.time_steps
    lengths = [steps, *(world.rng.randint(1, steps) for _ in range(batch - 1))]
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths[::-1]

    def run(call: Function, x: Tensor, *hx: Any) -> Any:
        if padded and world.side == "ours":
            output, state = call(x, *hx, lengths=torch.tensor(lengths))
            return output.contiguous(), state
        output, state = call(pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted), *hx)
        return (pad_packed_sequence(output, batch_first)[0].contiguous() if padded else output), state

    return Shape(_shape(world, steps, batch).x, batch, run)


@SHAPES.part("packed, sorted", fits=_layers, is_packed=True)
def _packed_sorted(world: World) -> Shape:
    return _packed(world, is_sorted=True, enforce_sorted=True)


@SHAPES.part("packed, unsorted", fits=_layers, is_packed=True)
def _packed_unsorted(world: World) -> Shape:
    return _packed(world, is_sorted=False, enforce_sorted=False)


@SHAPES.part("packed, sorted, not enforced", often=0.5, fits=_layers, is_packed=True)
def _packed_unenforced(world: World) -> Shape:
    return _packed(world, is_sorted=True, enforce_sorted=False)


@SHAPES.part(
    "lengths=, beside packed", often=0.7, fits=lambda o: not o.cell and not o.dropout, is_packed=True, is_ours=True
)
def _lengths(world: World) -> Shape:
    return _packed(world, is_sorted=False, enforce_sorted=False, padded=world.ours_by_class)


@SHAPES.part(
    "resets=, beside single steps",
    often=0.7,
    fits=lambda o: not o.cell and not o.dropout and not o.bidirectional,
    is_ours=True,
)
def _resets(world: World) -> Shape:
    options, axis = world.options, 1 if world.options.batch_first else 0
    shape = _shape(world, options.time_steps, options.batch)
    flags = torch.tensor([[world.rng.random() < 0.3 for _ in range(shape.x[1])] for _ in range(shape.x[0])])

    def run(call: Function, x: Tensor, *hx: Any) -> Any:
        if not world.ours_by_class:
            return call(x, *hx)
        if world.side == "ours":
            output, state = call(x, *hx, resets=flags)
            return output.contiguous(), state
        outputs, state = [], hx[0] if hx else tuple(x.new_zeros(s) for s in state_shapes(options, options.batch))
        for x_t, resets in zip(x.split(1, axis), flags.unbind(axis), strict=True):
            state = tuple(part.masked_fill(resets[:, None], 0) for part in state)
            output, state = call(x_t, state)
            outputs.append(output)
        return torch.cat(outputs, axis), state

    return Shape(shape.x, options.batch, run)


# --- states -----------------------------------------------------------------------------------------------------------

STATES = Table()


def state_shapes(options: Options, batch: int | None) -> list[tuple[int, ...]]:
    """Of h0 and c0."""
    rows = () if batch is None else (batch,)
    cells = () if options.cell else (options.num_layers * (2 if options.bidirectional else 1),)
    return [(*cells, *rows, options.proj_size or options.hidden_size), (*cells, *rows, options.hidden_size)]


def _random_states(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    wants = [world.rng.random() < 0.5 for _ in range(2)]
    layouts = [draw_layout(world) for _ in range(2)]
    shapes = state_shapes(world.options, batch)
    return [draw_tensor(world, *given) for given in zip(layouts, shapes, (dtype, dtype), wants, strict=True)]


@STATES.part("none", often=3)
def _no_states(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    return []


@STATES.part("given", often=3)
def _states(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    return _random_states(world, batch, dtype)


@STATES.part("one tensor for both", fits=lambda o: not o.proj_size)
def _one_state(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    return [_random_states(world, batch, dtype)[0]] * 2


def _last_states(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    fresh, last = _random_states(world, batch, dtype), world.state
    if last is None or any(a.shape != b.shape for a, b in zip(fresh, last, strict=True)):
        return fresh
    return [a.to(b.dtype) for a, b in zip(last, fresh, strict=True)]


@STATES.part("of the last call")
def _carried(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    return [state.detach() for state in _last_states(world, batch, dtype)]


@STATES.part("of the last call, with its graph", often=0.5)
def _carried_with_graph(world: World, batch: int | None, dtype: torch.dtype) -> list[Tensor]:
    return _last_states(world, batch, dtype)


# --- what surrounds a call: takes a function of tensors, gives another ------------------------------------------------

CONTEXTS = Table()


@CONTEXTS.part("nothing", often=6)
def _plain(world: World, function: Function) -> Function:
    return function


class PassingDispatch(TorchDispatchMode):
    """Looks on at every operation."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operation(*args, **(kwargs or {}))


class PassingFunction(torch.overrides.TorchFunctionMode):
    """Looks on at every function."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def _saved_on_cpu() -> Any:
    return torch.autograd.graph.save_on_cpu()


def _hooked(pack: Function, unpack: Function) -> Function:
    return lambda: torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _autocast(dtype: torch.dtype) -> Function:
    return lambda: torch.autocast("cpu", dtype=dtype)


def _within(context: Function) -> Function:
    """A context manager around the call alone."""

    def surround(world: World, function: Function) -> Function:
        def call(*tensors: Tensor) -> Any:
            with context():
                return function(*tensors)

        return call

    return surround


_CONTEXTS: dict[str, tuple[Function, dict[str, Any]]] = {
    "no_grad": (torch.no_grad, {"gradless": True, "often": 3}),
    "inference_mode": (torch.inference_mode, {"gradless": True, "often": 2}),
    "enable_grad": (torch.enable_grad, {"often": 0.3}),
    "autocast to bfloat16": (_autocast(torch.bfloat16), {"lowest": torch.bfloat16}),
    "autocast to float16": (_autocast(torch.float16), {"lowest": torch.bfloat16, "often": 0.5}),
    "autocast, disabled": (lambda: torch.autocast("cpu", enabled=False), {"often": 0.3}),
    "saved tensors copied": (_hooked(Tensor.clone, lambda t: t), {}),
    "saved tensors unchanged": (_hooked(lambda t: t, lambda t: t), {"often": 0.5}),
    "saved tensors through NumPy": (
        _hooked(lambda t: t.detach().numpy().copy(), torch.from_numpy),
        {"fits": lambda o: o.dtype != "bfloat16"},
    ),
    "save_on_cpu": (_saved_on_cpu, {}),
    "a dispatch mode": (PassingDispatch, {"often": 0.5}),
    "a function mode": (PassingFunction, {"often": 0.5}),
    "detect_anomaly": (lambda: torch.autograd.detect_anomaly(check_nan=False), {"often": 0.3}),
    "deterministic algorithms": (lambda: _deterministic(), {"often": 0.3}),
    "oneDNN off": (lambda: torch.backends.mkldnn.flags(enabled=False), {"often": 0.3}),
}
for _name, (_context, _about) in _CONTEXTS.items():
    CONTEXTS[_name] = Part(_within(_context), **_about)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@CONTEXTS.part("checkpoint")
def _checkpoint(world: World, function: Function) -> Function:
    return lambda *tensors: checkpoint(function, *tensors, use_reentrant=False)


@CONTEXTS.part("checkpoint, early stop off", often=0.5)
def _checkpoint_whole(world: World, function: Function) -> Function:
    def call(*tensors: Tensor) -> Any:
        with torch.utils.checkpoint.set_checkpoint_early_stop(False):
            return checkpoint(function, *tensors, use_reentrant=False)

    return call


@CONTEXTS.part("checkpoint, reentrant")
def _checkpoint_reentrant(world: World, function: Function) -> Function:
    return lambda *tensors: checkpoint(function, *tensors, use_reentrant=True)


@CONTEXTS.part("explained before", often=0.3)
def _explained(world: World, function: Function) -> Function:
    def call(*tensors: Tensor) -> Any:
        if world.side == "ours":
            x, *states = tensors
            assert isinstance(lt.explain(world.holders[0].lstm, x, tuple(states) or None), str)
        return function(*tensors)

    return call


@CONTEXTS.part("another thread", often=0.3)
def _thread(world: World, function: Function) -> Function:
    def call(*tensors: Tensor) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *tensors).result()

    return call


@CONTEXTS.part(
    "three threads at once, no_grad", often=0.3, gradless=True, is_concurrent=True, fits=lambda o: not o.dropout
)
def _threads(world: World, function: Function) -> Function:
    together = threading.Barrier(3)

    def in_thread(*tensors: Tensor) -> Any:
        together.wait()
        with torch.no_grad():
            return function(*tensors)

    def call(*tensors: Tensor) -> Any:
        with ThreadPoolExecutor(3) as pool:
            results = [pool.submit(in_thread, *tensors) for _ in range(3)]
            first, *others = [result.result() for result in results]
        world.record("threads agree", all(torch.equal(a, b) for o in others for a, b in zip(first, o, strict=True)))
        return first

    return call


# --- what is written after the call, before its gradients -------------------------------------------------------------

CHANGES = Table()


@CHANGES.part("nothing", often=8)
def _unchanged(tensors: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
    pass


def _ramp(tensor: Tensor) -> Tensor:
    return torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)


_OUTPUT_CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda t: t.mul_(0.5),
    "add_": lambda t: t.add_(1),
    "relu_": torch.relu_,
    "add_ a residual": lambda t: t.add_(_ramp(t)),
    "zero_ of a part": lambda t: t[:1].zero_(),
    "detach().mul_": lambda t: t.detach().mul_(0.5),
    "data.mul_": lambda t: t.data.mul_(0.5),
}


def _change_output(which: tuple[int, ...], write: Callable[[Tensor], Any]) -> Function:
    def change(tensors: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
        for k in which:
            write(outputs[k % len(outputs)])

    return change


for _name, _change in _OUTPUT_CHANGES.items():
    for _which, _ends in {"output": (0,), "h_n": (-2,), "c_n": (-1,), "all three": (0, -2, -1)}.items():
        _part = Part(_change_output(_ends, _change), often=0.25, is_uncounted=_name.startswith("data"))
        CHANGES[f"{_which}: {_name}"] = _part


# Not input.data.mul_: torch's own gradients are right after it only where it happened to copy the input.
@CHANGES.part("input: mul_")
def _input_changed(tensors: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
    tensors[0].detach().mul_(0.5)


@CHANGES.part("last state or input: mul_")
def _state_changed(tensors: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
    tensors[-1].detach().mul_(0.5)


# --- what is asked of a call ------------------------------------------------------------------------------------------

DERIVATIVES = Table()


@dataclass
class Task:
    """A call that is set up. compose: makes the whole function out of what calls the module."""

    world: World
    holder: Holder
    compose: Callable[[Function], Function]
    tensors: list[Tensor]

    @property
    def function(self) -> Function:
        """Of the tensors; gives the list of output, h_n, c_n, or of h, c."""
        return self.compose(self.holder.call)

    def call(self) -> list[Tensor]:
        """Call it, record what it gives and keep the state."""
        outputs: list[Tensor] = self.function(*self.tensors)
        self.world.record_all("output", dict(zip(self.names(outputs), outputs, strict=True)))
        self.world.state = tuple(outputs[-2:])
        return outputs

    @staticmethod
    def names(outputs: Any) -> list[str]:
        """Of outputs."""
        return ["output", "h_n", "c_n"][-len(outputs) :]

    def leaves(self) -> dict[str, Tensor]:
        """All that gradients are wanted of."""
        every = dict(zip(["x", "h0", "c0"], self.tensors, strict=False)) | dict(self.holder.root.named_parameters())
        return {name: tensor for name, tensor in every.items() if tensor.requires_grad}

    def upstream(self, outputs: list[Tensor]) -> list[Tensor]:
        """Gradients that come back, lying in any way."""
        every = []
        for output in outputs:
            layout = draw_layout(self.world)
            every.append(draw_tensor(self.world, layout, tuple(output.shape), output.dtype, False).detach())
        return every

    def loss(self, outputs: Any) -> Tensor:
        """One number that depends on all of them."""
        total: Any = 0
        for k, output in enumerate(outputs):
            total = total + (output * _ramp(output.detach()).add(0.3 * k)).sum()
        return total

    def backward(self, outputs: list[Tensor], **how: Any) -> None:
        """backward() with random gradients, of which all are recorded."""
        torch.autograd.backward(outputs, self.upstream(outputs), **how)
        self.record_grads()

    def record_grads(self) -> None:
        """Record `.grad` of all leaves."""
        self.world.record_all("gradient", {name: tensor.grad for name, tensor in self.leaves().items()})

    def gradients(self, outputs: list[Tensor], **how: Any) -> dict[str, Tensor | None]:
        """By torch.autograd.grad, recorded too."""
        leaves = self.leaves()
        found = torch.autograd.grad(
            outputs, list(leaves.values()), self.upstream(outputs), allow_unused=True, **how
        )
        named = dict(zip(leaves, found, strict=True))
        self.world.record_all("gradient", named)
        return named

    def narrow(self, scale: Tensor) -> Tensor:
        """Some numbers of the last output as a function of factors [input_size], for jacobians that stay small."""
        last: Tensor = self.function(self.tensors[0].detach() * scale, *self.tensors[1:])[-1]
        return last.flatten()[:5]

    def ones(self) -> Tensor:
        """Factors for `narrow`."""
        x = self.tensors[0]
        return torch.ones(x.shape[-1], dtype=x.dtype)

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the parameters, for functional_call."""
        return {name: p.detach().clone().requires_grad_() for name, p in self.holder.root.named_parameters()}

    def with_parameters(self, parameters: dict[str, Tensor]) -> Function:
        """The function with these in place of the module's."""
        root = self.holder.takes_all
        named = parameters
        if root is not self.holder.root:
            named = {name.removeprefix("0."): parameter for name, parameter in parameters.items()}
        return self.compose(lambda *args, **kwargs: torch.func.functional_call(root, named, args, kwargs))


@DERIVATIVES.part("backward", often=6)
def _backward(task: Task) -> None:
    task.backward(task.call())


@DERIVATIVES.part("none", often=3, gradless=True)
def _none(task: Task) -> None:
    task.call()


@DERIVATIVES.part("autograd.grad", often=2)
def _grad(task: Task) -> None:
    task.gradients(task.call())


@DERIVATIVES.part("autograd.grad, then gradients clipped")
def _clipped(task: Task) -> None:
    named = task.gradients(task.call())
    for leaf, gradient in zip(task.leaves().values(), named.values(), strict=True):
        leaf.grad = gradient
    parameters = list(task.holder.root.parameters())
    task.world.record("norm", nn.utils.clip_grad_norm_(parameters, 0.1, foreach=False))
    task.record_grads()


@DERIVATIVES.part("backward from some outputs")
def _some(task: Task) -> None:
    outputs = task.call()
    task.backward(task.world.rng.sample(outputs, task.world.rng.randint(1, len(outputs) - 1)))


@DERIVATIVES.part("sum().backward()")
def _summed(task: Task) -> None:
    task.call()[0].sum().backward()
    task.record_grads()


@DERIVATIVES.part("backward twice, retained")
def _retained(task: Task) -> None:
    outputs = task.call()
    task.backward(outputs, retain_graph=True)
    task.backward(outputs)


@DERIVATIVES.part("backward twice, not retained", often=0.5)
def _twice(task: Task) -> None:
    outputs = task.call()
    task.backward(outputs)
    task.backward(outputs)


@DERIVATIVES.part("two calls, then their backwards")
def _two_calls(task: Task) -> None:
    first = task.call()
    second = task.call()
    for outputs in (first, second) if task.world.rng.random() < 0.5 else (second, first):
        task.backward(outputs)


@DERIVATIVES.part("two calls, one loss")
def _one_loss(task: Task) -> None:
    (task.loss(task.call()) + 2 * task.loss(task.call())).backward()
    task.record_grads()


@DERIVATIVES.part("weights written before backward")
def _late_write(task: Task) -> None:
    write = task.world.rng.choice(["p.data.mul_", "in place under no_grad", "p.data = new tensor", "optimizer step"])
    try:
        outputs = task.call()
    except Exception as error:
        if write == "p.data.mul_":  # which nobody counts: gradients are right by chance where the call works
            raise Undecided(str(error)) from error
        raise
    finally:  # where the call raises too: on the other sides it may not, and later calls need the same weights
        with thawed(task.world):
            WRITES[write].build(task.world, task.holder)
    task.backward(outputs)


@DERIVATIVES.part("gradients of gradients")
def _second_order(task: Task) -> None:
    first = task.gradients(task.call(), create_graph=True)
    squares: Any = sum(g.square().sum() for g in first.values() if g is not None)
    squares.backward()
    task.record_grads()


@DERIVATIVES.part("create_graph, then backward", often=0.5)
def _create_graph(task: Task) -> None:
    outputs = task.call()
    task.gradients(outputs, create_graph=True)
    task.backward(outputs)


@DERIVATIVES.part("gradients, batched", often=0.7)
def _batched(task: Task) -> None:
    outputs, leaves = task.call(), task.leaves()
    upstream = [task.world.randn(3, *o.shape, dtype=o.dtype) for o in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), upstream, is_grads_batched=True, allow_unused=True)
    task.world.record_all("batched gradient", dict(zip(leaves, found, strict=True)))


@DERIVATIVES.part("functional.jacobian", often=0.5)
def _jacobian(task: Task) -> None:
    vectorize = task.world.rng.random() < 0.7
    found = torch.autograd.functional.jacobian(task.narrow, task.ones(), vectorize=vectorize)
    task.world.record("jacobian", found)


@DERIVATIVES.part("functional.hvp", often=0.3)
def _hvp(task: Task) -> None:
    x = task.tensors[0].detach()
    found = torch.autograd.functional.hvp(
        lambda x: task.loss(task.function(x, *task.tensors[1:])), x, task.world.randn(*x.shape, dtype=x.dtype)
    )
    task.world.record("product with the Hessian", found[1])


@DERIVATIVES.part("forward mode, dual numbers", often=0.5, is_transform=True)
def _dual(task: Task) -> None:
    x = task.tensors[0].detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, task.world.randn(*x.shape, dtype=x.dtype))
        for name, output in zip("ohc", task.function(dual, *task.tensors[1:]), strict=False):
            task.world.record(f"tangent of {name}", torch.autograd.forward_ad.unpack_dual(output).tangent)


@DERIVATIVES.part("func.jvp", often=0.5, gradless=True, is_transform=True)
def _jvp(task: Task) -> None:
    x = task.tensors[0].detach()
    tangent = task.world.randn(*x.shape, dtype=x.dtype)
    outputs, tangents = torch.func.jvp(lambda x: tuple(task.function(x, *task.tensors[1:])), (x,), (tangent,))
    task.world.record_all("output", dict(zip(task.names(outputs), outputs, strict=True)))
    task.world.record_all("tangent", dict(zip(task.names(outputs), tangents, strict=True)))


@DERIVATIVES.part("func.grad", often=0.5, is_transform=True)
def _func_grad(task: Task) -> None:
    found = torch.func.grad(lambda x: task.loss(task.function(x, *task.tensors[1:])))(task.tensors[0].detach())
    task.world.record("gradient of x", found)


@DERIVATIVES.part("func.vjp", often=0.5, is_transform=True)
def _func_vjp(task: Task) -> None:
    outputs, back = torch.func.vjp(lambda x: task.function(x, *task.tensors[1:])[0], task.tensors[0].detach())
    task.world.record("output", outputs)
    task.world.record("gradient of x", back(task.world.randn(*outputs.shape, dtype=outputs.dtype))[0])


@DERIVATIVES.part("func.grad of parameters")
def _func_grad_parameters(task: Task) -> None:
    found = torch.func.grad(lambda p: task.loss(task.with_parameters(p)(*task.tensors)))(task.parameters())
    task.world.record_all("gradient", found)


@DERIVATIVES.part("functional_call")
def _functional_call(task: Task) -> None:
    parameters = task.parameters()
    outputs = task.with_parameters(parameters)(*task.tensors)
    task.world.record_all("output", dict(zip(task.names(outputs), outputs, strict=True)))
    task.loss(outputs).backward()
    task.world.record_all("gradient", {name: p.grad for name, p in parameters.items()})


@DERIVATIVES.part("vmap over inputs", often=0.7, gradless=True, is_transform=True)
def _vmap(task: Task) -> None:
    several = task.world.randn(3, *task.tensors[0].shape, dtype=task.tensors[0].dtype)
    outputs = torch.vmap(lambda x: tuple(task.function(x, *task.tensors[1:])))(several)
    task.world.record_all("output", dict(zip(task.names(outputs), outputs, strict=True)))


@DERIVATIVES.part("gradients of every sample", often=0.5, is_transform=True)
def _per_sample(task: Task) -> None:
    several = task.world.randn(2, *task.tensors[0].shape, dtype=task.tensors[0].dtype)
    one = torch.func.grad(lambda p, x: task.loss(task.with_parameters(p)(x, *task.tensors[1:])))
    task.world.record_all("gradient", torch.vmap(one, (None, 0))(task.parameters(), several))


@DERIVATIVES.part("vmap over weights", often=0.5, gradless=True, is_transform=True)
def _ensemble(task: Task) -> None:
    stacked = {name: torch.stack([p, p * 0.5]).detach() for name, p in task.parameters().items()}
    outputs = torch.vmap(lambda p: tuple(task.with_parameters(p)(*task.tensors)))(stacked)
    task.world.record_all("output", dict(zip(task.names(outputs), outputs, strict=True)))


@DERIVATIVES.part("func.jacrev or jacfwd", often=0.4, is_transform=True)
def _func_jacobian(task: Task) -> None:
    transform = task.world.rng.choice([torch.func.jacrev, torch.func.jacfwd])
    task.world.record("jacobian", transform(task.narrow)(task.ones()))


# --- a call, put together ---------------------------------------------------------------------------------------------


def function_of(
    world: World, shape: Shape, holder: Holder, change: str, context: str
) -> Callable[[Function], Function]:
    """What makes the whole function, of x and the states, out of a call of the module."""

    def compose(call: Function) -> Function:
        def function(*tensors: Tensor) -> list[Tensor]:
            x, *states = tensors
            first, second = shape.run(call, x, *((tuple(states),) if states else ()))
            outputs = [first, second] if isinstance(second, Tensor) else [first, *second]
            if isinstance(first, PackedSequence):
                outputs[0] = first.data
            CHANGES[change].build(tensors, outputs)
            return outputs

        surrounded: Function = CONTEXTS[context].build(world, function)
        return surrounded

    return compose


def random_state() -> int:
    """A number that is the same where torch's generator has the same state."""
    return zlib.crc32(torch.get_rng_state().numpy().tobytes())
