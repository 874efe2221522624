"""Models made of layers. `CharLM` predicts the next token, `SequenceClassifier` a label.

All parameters of a model are in one contiguous buffer and all gradients in another, so that clipping, the optimizer and
a checkpoint each touch one array. Refuses to loop over data (see `trainer`) and to choose tokens (see `sampler`).
Arrays between the layers are kept from call to call; returned arrays are new, unless a docstring says otherwise.
Models can be copied and pickled, streams cannot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core, initializers, losses, reference
from lstmfast._checks import Array, State
from lstmfast._engine.buffers import OfParameters, ParameterBuffer, Scratch
from lstmfast._engine.cpu import CPU
from lstmfast.cells import RANDOM, Cell, check_features
from lstmfast.cuda._engine import CudaEngine, Mirror
from lstmfast.initializers import Initializer, Shape
from lstmfast.layers import LSTM, STREAM_FEATURES, Dropout, Embedding, Linear, TiedProjection, read_only

BatchLoss: TypeAlias = Callable[[Array, Any], tuple[float, Array]]
"""A batch loss: (logits [N, classes], labels as given) -> (loss, its derivative by the logits)."""

DEVICES = ("cpu", "cuda")


class _Layers(NamedTuple):
    """The layers that compute: the model's own, or twins of them on a device."""

    lstm: LSTM
    projection: Linear | TiedProjection
    embedding: Embedding | None


class _Model(OfParameters):
    """The base of both models: parameters in one buffer, an LSTM, and a linear projection of its outputs."""

    _scratch_names: ClassVar[tuple[str, ...]] = ("_engine", "_mirror", "_layers", "_dropouts", "_scratch")

    def __init__(
        self,
        before: dict[str, Shape],
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        cell: Cell,
        dtype: npt.DTypeLike,
        rng: np.random.Generator | None,
        initializer: Initializer | None,
        loss: BatchLoss | None,
        device: str,
        tied: bool = False,
    ) -> None:
        self.hidden_size = check.whole_number("hidden_size", hidden_size)
        self.num_layers = check.whole_number("num_layers", num_layers)
        self.dropout = check.fraction("dropout", dropout)
        self.dtype, self.device = check.float_dtype(dtype), device
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be callable, (logits, labels) -> (loss, d_logits), got {type(loss).__name__}")
        self._batch_loss = loss
        self._features = cell.output_size(self.hidden_size) * (2 if bidirectional else 1)
        self._output_size = output_size
        storage = ParameterBuffer.allocate(
            {
                **before,
                "lstm": LSTM.shapes(
                    input_size, self.hidden_size, num_layers=self.num_layers, bidirectional=bidirectional, cell=cell,
                ),
                "projection": (
                    TiedProjection.shapes(output_size) if tied else Linear.shapes(self._features, output_size)
                ),
            },
            self.dtype,
        )
        storage.fill(initializer or (_tied_default if tied else None), rng)
        self._bind(storage)
        self.lstm = LSTM(
            input_size, self.hidden_size, num_layers=self.num_layers, bidirectional=bidirectional,
            dropout=self.dropout, cell=cell, dtype=self.dtype, storage=storage.part("lstm."),
        )
        self.embedding: Embedding | None = None
        if "embedding" in before:
            table = storage.one("embedding", under="table")
            self.embedding = Embedding(*before["embedding"], dtype=self.dtype, storage=table)
        of_projection = storage.part("projection.")
        self.projection: Linear | TiedProjection
        if tied and self.embedding is not None:
            self.projection = TiedProjection(self.embedding, storage=of_projection)
        else:
            self.projection = Linear(self._features, output_size, dtype=self.dtype, storage=of_projection)
        self._begin()

    @property
    def cell(self) -> Cell:
        """The options of the cells of `lstm`."""
        return self.lstm.cell

    @property
    def forget_bias(self) -> float:
        """Added to the forget gate at run time."""
        return self.lstm.cell.forget_bias

    def _begin(self) -> None:
        """Choose the engine and the layers that compute: on the CPU the model's own, elsewhere twins of them."""
        self._engine, self._mirror = CPU, None
        self._layers = _Layers(self.lstm, self.projection, self.embedding)
        if self.device == "cuda":
            engine = CudaEngine.default()
            check_features(self.cell.features, engine.features, engine.place)
            self._engine, self._mirror = engine, Mirror(engine, self._storage)
            there = self._mirror.storage
            embedding = self.embedding and self.embedding._on(engine, there.one("embedding", under="table"))
            projection: Linear | TiedProjection
            if isinstance(self.projection, Linear):
                projection = self.projection._on(engine, there.part("projection."))
            else:
                assert embedding is not None
                projection = self.projection.on_twin(engine, there.part("projection."), embedding)
            self._layers = _Layers(self.lstm._on(engine, there.part("lstm.")), projection, embedding)
        self._dropouts = [Dropout(self.dropout, self.dtype, self._engine) for _ in range(2)]  # of x and of features
        self._scratch = Scratch(self.dtype, self._engine)

    def _project(self, features: Array, logits: Array) -> Array:
        """Fill logits [N, output_size] from features [N, hidden_size or twice that] and return them."""
        self._layers.projection.forward_into(logits, features)
        return logits

    def _project_backward(self, features: Array, d_logits: Array) -> Array:
        """Fill the projection's gradients; return the derivative by the features before dropout."""
        d_features = self._scratch("d_features", tuple(features.shape))
        self._layers.projection.backward_into(d_features, features, d_logits)
        self._dropouts[1].backward_into(d_features)
        return d_features

    def _mask_rng(self, rng: np.random.Generator | None) -> np.random.Generator | None:
        """Return the generator for masks, None if training draws none."""
        random = {"dropout": self.dropout} | {name: getattr(self.cell, name) for name in RANDOM}
        drawn = next((name for name, value in random.items() if value), None)
        if drawn is None:
            return None
        if rng is None:
            value = random[drawn]
            value = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"rng must be a numpy.random.Generator because {drawn} is {value}, got None")
        return check.generator("rng", rng)

    def _check_d_logits(self, d_logits: Any, logits: Array) -> Array:
        """Return the derivative from a user's loss, checked."""
        return check.array("d_logits", d_logits, logits.shape, "the shape of logits", dtype=self.dtype, like="logits")


def _tied_default(name: str, shape: Shape, rng: np.random.Generator) -> npt.NDArray[np.floating[Any]]:
    """`initializers.default`, and a table with the bound of the projection that it is too."""
    if name == "embedding":
        return np.ascontiguousarray(initializers.default(name, shape[::-1], rng).T)
    return initializers.default(name, shape, rng)


class CharLM(_Model):
    """A language model over tokens: embedding (if any), LSTM stack, projection to one logit for each token.

    Variables: "embedding" [V, E] with embedding_size E, otherwise tokens are one-hot and look up rows of the kernel;
    "lstm.layer0.kernel", "lstm.layer0.bias", ...; "projection.kernel" [H, V], "projection.bias" [V]. dropout applies to
    the non-recurrent connections (Zaremba, Sutskever & Vinyals 2014): after the embedding, between layers, and before
    the projection. initializer: (name, shape, rng) -> initial values, `initializers.default` if None.
    cell: the options of the LSTM's cells; None is the standard cell with this forget_bias. loss: your own loss,
    (logits [T*B, V], targets [T*B]) -> (loss, derivative by the logits); None is mean softmax cross entropy in nats.
    device: "cpu", or "cuda" to compute loss and gradients there; parameters, arguments and results are NumPy arrays
    on both, numbers agree to float32 rounding, and streams run on the CPU.
    tied: the projection's kernel is the embedding's table transposed, whose gradient is then the sum of both uses
    (Press & Wolf 2017; Inan, Khosravi & Socher 2017). There is no variable "projection.kernel", embedding_size must
    equal the length of the LSTM's outputs, and the default initial table is uniform within 1/sqrt(E).
    With many tokens the loss is computed for a few rows at a time, so that memory does not grow with T*B*V.
    States (h, c) are [num_layers, B, H] each (h [num_layers, B, projection_size] with a projection); None stands for
    zeros, or for the learnt initial states of such cells.
    Raises CudaUnavailableError with the reason if "cuda" is not available, ValueError for a cell it does not support
    and for sizes that cannot be tied.
    """

    tied = False  # of models pickled by earlier versions

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        embedding_size: int | None = None,
        dropout: float = 0.0,
        forget_bias: float = 1.0,
        cell: Cell | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        initializer: Initializer | None = None,
        loss: BatchLoss | None = None,
        device: str = "cpu",
        tied: bool = False,
    ) -> None:
        self.vocab_size = check.whole_number("vocab_size", vocab_size)
        self.embedding_size = None if embedding_size is None else check.whole_number("embedding_size", embedding_size)
        if device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
        if device == "cuda" and check.float_dtype(dtype) != np.float32:
            raise TypeError(f"dtype must be float32 on a CUDA device, got {np.dtype(dtype)}")
        width, cell = self.embedding_size, Cell.of(cell, forget_bias=forget_bias)
        self.tied = bool(tied)
        if self.tied:
            outputs = cell.output_size(check.whole_number("hidden_size", hidden_size))
            if width is None:
                raise ValueError(
                    f"tied shares the table of an embedding, and this model has none: give embedding_size {outputs}"
                )
            if width != outputs:
                raise ValueError(
                    f"tied needs embedding_size to be the length of the LSTM's outputs, {outputs} (hidden_size, or "
                    f"projection_size where there is a projection), got {width}"
                )
        super().__init__(
            {} if width is None else {"embedding": (self.vocab_size, width)},
            self.vocab_size if width is None else width, hidden_size, self.vocab_size,
            num_layers=num_layers, bidirectional=False, dropout=dropout, cell=cell,
            dtype=dtype, rng=rng, initializer=initializer, loss=loss, device=device, tied=self.tied,
        )

    def zero_state(self, batch_size: int) -> State:
        """Return (h, c) of zeros, each [num_layers, batch_size, hidden_size]."""
        return self.lstm.zero_state(batch_size)

    def initial_state(self, batch_size: int) -> State:
        """Return the (h, c) that a text begins with: learnt initial states, or zeros."""
        return self.lstm.initial_state(batch_size)

    def __call__(self, ids: npt.NDArray[Any], state: State | None = None) -> tuple[Array, State]:
        """Return the logits [T, B, V] of the token after each of ids [T, B], and the final state. No dropout."""
        ids = check.ids("ids", ids, self.vocab_size, ("time_steps", "batch"))
        _, features, state = self._run(ids, state)
        logits = self._project(features, self._engine.empty((ids.size, self.vocab_size), self.dtype))
        return self._engine.to_host(logits).reshape(*ids.shape, self.vocab_size), state

    def loss(
        self, inputs: npt.NDArray[Any], targets: npt.NDArray[Any], state: State | None = None
    ) -> tuple[float, State]:
        """Return the mean loss of targets [T, B] after inputs [T, B], in nats per token, and the final state.

        Raises ValueError naming the argument, also for an id outside of the vocabulary; TypeError for other dtypes.
        """
        inputs, targets = self._pair(inputs, targets)
        _, features, state = self._run(inputs, state)
        if self._projects_in_parts:
            targets = self._engine.to_engine(targets.reshape(-1))
            return self._layers.projection.cross_entropy(features, targets, None), state
        loss, _ = self._loss_and_d_logits(features, targets)
        return loss, state

    def loss_and_gradients(
        self,
        inputs: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        state: State | None = None,
        *,
        rng: np.random.Generator | None = None,
        resets: npt.ArrayLike | None = None,
    ) -> tuple[float, State]:
        """As `loss`, and overwrite `gradients` with those of the mean loss, with a given state as a constant.

        rng draws the masks of dropout and of the cells; required if there are any. resets [T, B]: where a text begins,
        as in `lstm`. Source: truncated backpropagation through time, Williams & Peng 1990.
        """
        inputs, targets = self._pair(inputs, targets)
        rng = self._mask_rng(rng)
        resets = check.resets(resets, inputs.shape, "(time_steps, batch)")
        ids, features, state = self._run(inputs, state, keep_for_backward=True, rng=rng, resets=resets)
        features = self._dropouts[1].forward_into(features, rng)
        if self._projects_in_parts:
            d_features = self._scratch("d_features", tuple(features.shape))
            targets = self._engine.to_engine(targets.reshape(-1))
            loss = self._layers.projection.cross_entropy(features, targets, d_features)
            self._dropouts[1].backward_into(d_features)
        else:
            loss, d_logits = self._loss_and_d_logits(features, targets)
            d_features = self._project_backward(features, d_logits)
        d_h = d_features.reshape(*inputs.shape, self._features)
        lstm, _, embedding = self._layers
        if embedding is None:
            lstm.backward_into(None, d_h)
        else:
            d_x = self._scratch("d_x", (*inputs.shape, embedding.embedding_size))
            lstm.backward_into(d_x, d_h)
            self._dropouts[0].backward_into(d_x)
            embedding.backward_into(d_x.reshape(-1, embedding.embedding_size), ids.reshape(-1), add=self.tied)
        if self._mirror is not None:
            self._mirror.fetch()
        return loss, state

    def inference(self, *, weights: str = "float32") -> FrozenCharLM:
        """Return a frozen copy of the model as it is now, for logits and losses on the CPU.

        weights: the format of the LSTM's weights, "float32", "bfloat16" or "int8". This and errors: `LSTM.inference`.
        """
        return FrozenCharLM(self, weights=weights)

    def stream(self, batch_size: int = 1, *, weights: str = "float32") -> CharStream:
        """Return a packed copy of the model, for one token at a time in `batch_size` parallel streams.

        weights: the format of the LSTM's weights, "float32", "bfloat16" or "int8", as in `LSTM.stream`.
        """
        return CharStream(self, batch_size, weights=weights)

    def _pair(self, inputs: Any, targets: Any) -> tuple[Array, Array]:
        inputs = check.ids("inputs", inputs, self.vocab_size, ("time_steps", "batch"))
        targets = check.ids("targets", targets, self.vocab_size, inputs.shape, "the shape of inputs")
        if inputs.size == 0:
            raise ValueError(f"inputs must hold at least one token, got shape {inputs.shape}")
        return inputs, targets

    def _run(
        self,
        ids: Array,
        state: State | None,
        keep_for_backward: bool = False,
        rng: np.random.Generator | None = None,
        resets: Array | None = None,
    ) -> tuple[Array, Array, State]:
        """Return the ids and the top layer's outputs [T*B, H], in scratch, on the engine; and the final state."""
        if self._layers.lstm.cell is not self.lstm.cell:  # `_layers` has twins of the layer before a change of its cell
            self._begin()
        engine, (lstm, _, embedding) = self._engine, self._layers
        h0, c0 = self.lstm.check_state("state", state, ids.shape[1])
        if self._mirror is not None:
            self._mirror.send(training=keep_for_backward)
        x = ids = engine.to_engine(ids)
        shape = tuple(ids.shape)
        if embedding is not None:
            x = self._scratch("x", (*shape, embedding.embedding_size))
            embedding.forward_into(x.reshape(-1, embedding.embedding_size), ids.reshape(-1))
            x = self._dropouts[0].forward_into(x, rng)
        h = self._scratch("h", (*shape, self._features))
        initial = None if h0 is None else engine.to_engine(h0), None if c0 is None else engine.to_engine(c0)
        h_n, c_n = lstm.forward_into(h, x, initial, resets=resets, keep_for_backward=keep_for_backward, rng=rng)
        return ids, h.reshape(-1, self._features), (engine.to_host(h_n), engine.to_host(c_n))

    @property
    def _projects_in_parts(self) -> bool:
        return self._batch_loss is None and self.vocab_size >= self._engine.projected_classes

    def _loss_and_d_logits(self, features: Array, targets: Array) -> tuple[float, Array]:
        """Return the mean loss and, in scratch, its derivative by the logits [T*B, V]."""
        engine = self._engine
        logits = self._project(features, self._scratch("logits", (targets.size, self.vocab_size)))
        targets = engine.to_engine(targets.reshape(-1))
        if self._batch_loss is None:
            return engine.cross_entropy(logits, targets), logits
        loss, d_logits = self._batch_loss(logits, targets)
        return float(loss), self._check_d_logits(d_logits, logits) if self._mirror is None else d_logits


class FrozenCharLM:
    """A copy of a model, made by `CharLM.inference`. Weights are packed once and never compared again.

    `weights`: the format of the LSTM's weights, "float32", "bfloat16" or "int8".
    """

    def __init__(self, model: CharLM, *, weights: str = "float32") -> None:
        self.weights = weights
        self._model = copy.deepcopy(model)
        self._model.device = "cpu"
        self._model.lstm._freeze(weights)
        self._model._begin()

    @property
    def parameters(self) -> dict[str, Array]:
        """The weights, read-only, by their names in the model; with "bfloat16", the LSTM's kernels are rounded."""
        return {name: read_only(values) for name, values in self._model.parameters.items()}

    def zero_state(self, batch_size: int) -> State:
        """As `CharLM.zero_state`."""
        return self._model.zero_state(batch_size)

    def initial_state(self, batch_size: int) -> State:
        """As `CharLM.initial_state`."""
        return self._model.initial_state(batch_size)

    def __call__(self, ids: npt.NDArray[Any], state: State | None = None) -> tuple[Array, State]:
        """Return logits and the final state, as `CharLM.__call__`."""
        return self._model(ids, state)

    def loss(
        self, inputs: npt.NDArray[Any], targets: npt.NDArray[Any], state: State | None = None
    ) -> tuple[float, State]:
        """Return the mean loss and the final state, as `CharLM.loss`."""
        return self._model.loss(inputs, targets, state)


class CharStream:
    """A copy of a `CharLM` that reads and writes one token at a time, with packed weights and the state inside.

    Later changes of the model do not affect it. An embedding is folded into the first kernel: a token is then one row
    of embedding @ input_kernel, which costs no more than one-hot. Those rows, and the projection, keep their dtype in
    every format of `weights`. For cells that `LSTM.stream` does not support, each step is a call of the layer, which is
    slower; weights must then be "float32".
    """

    def __init__(self, model: CharLM, batch_size: int = 1, *, weights: str = "float32") -> None:
        self.batch_size = check.whole_number("batch_size", batch_size)
        self.vocab_size, self.dtype = model.vocab_size, model.dtype
        weights = check.kept_weights(weights, model.dtype)
        self._stream: _core.Stream | _SteppedStream
        # The state comes from here, so learnt ones need nothing of the stream.
        unsupported = model.cell.features - STREAM_FEATURES - {"learn_initial_state"}
        if not unsupported:
            self._stream = _packed_stream(model, self.batch_size, weights)
        elif weights != "float32":
            raise ValueError(f"weights must be 'float32' for cells with {min(unsupported)}, got {weights!r}")
        else:
            self._stream = _SteppedStream(model, self.batch_size)
        self._kernel, self._bias = model.projection.kernel.copy(), model.projection.bias.copy()
        self._projection = _core.PackedLinear(self._kernel, self._bias)
        self._logits = np.empty((self.batch_size, self.vocab_size), self.dtype)
        self._state_shapes = model.lstm._state_shapes(self.batch_size)
        self._initial_state = model.initial_state(self.batch_size) if model.cell.learn_initial_state else None
        self.reset()

    def step(self, ids: npt.NDArray[Any]) -> Array:
        """Read ids [batch_size]; return the logits [batch_size, V] of the next ids, in the same array each time."""
        ids = check.ids("ids", ids, self.vocab_size, (self.batch_size,), "(batch_size,)")
        self._projection.apply(self._stream.step(ids), self._logits)
        return self._logits

    def reset(self) -> None:
        """Begin a new text: zero the state, or set it to the learnt initial one."""
        self._stream.reset()
        if self._initial_state is not None:
            self._stream.state = self._initial_state

    @property
    def state(self) -> State:
        """The state (h, c), each [num_layers, batch_size, hidden_size]; copied when read and when set."""
        return self._stream.state

    @state.setter
    def state(self, state: State) -> None:
        h, c = check.state("state", state, self._state_shapes, self.dtype, "this stream")
        if h is None or c is None:
            raise TypeError("state must be a pair of arrays (h, c), got None; reset() begins a new text")
        self._stream.state = h, c

    def generate(
        self,
        token: npt.NDArray[np.int32],
        uniforms: npt.NDArray[np.float64],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> npt.NDArray[np.int32]:
        """Draw N tokens in each stream and return them, int32 [N, batch_size].

        token [batch_size], int32: the last token of each stream, read first; overwritten by the last token drawn.
        uniforms [N, batch_size], float64 in [0, 1): one draw for each token. temperature divides the logits; 0 takes
        the most probable token. top_k keeps the k most probable (0: all), top_p the fewest that together reach this
        probability (1.0: all). Raises ValueError or TypeError naming the argument at fault.
        Source: for top_p Holtzman et al. 2020; `reference.next_token_distribution` is the same in NumPy.
        """
        checked = check.ids("token", token, self.vocab_size, (self.batch_size,), "(batch_size,)")
        if checked is not token or not token.flags.writeable:
            raise TypeError("token must be a writable contiguous int32 array, because the last token is written to it")
        shape = ("count", self.batch_size)
        uniforms = check.array("uniforms", uniforms, shape, dtype=check.FLOAT64, like="every draw")
        if uniforms.size and not (uniforms.min() >= 0.0 and uniforms.max() < 1.0):
            raise ValueError(f"uniforms must lie in [0, 1), got {uniforms.min():g} to {uniforms.max():g}")
        temperature = check.finite("temperature", temperature, 0.0)
        top_k = check.whole_number("top_k", top_k, 0)
        top_p = check.finite("top_p", top_p, 0.0)
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p:g}")
        out = np.empty(uniforms.shape, np.int32)
        if isinstance(self._stream, _core.Stream):
            uniforms = np.ascontiguousarray(uniforms)
            self._stream.generate(self._kernel, self._bias, token, uniforms, temperature, top_k, top_p, out)
            return out
        for drawn, uniform in zip(out, uniforms, strict=True):
            logits = self.step(token)
            p = reference.next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            token[...] = drawn[...] = reference.choose_token(p, uniform)
        return out


def _packed_stream(model: CharLM, batch_size: int, weights: str) -> _core.Stream:
    kernels = [cell.kernel for cell in model.lstm.cells]
    if model.embedding is not None:
        input_kernel, recurrent_kernel = np.split(kernels[0], [model.embedding.embedding_size])
        kernels[0] = np.vstack([model.embedding.table @ input_kernel, recurrent_kernel])
    return _core.Stream(
        kernels, [cell.bias for cell in model.lstm.cells],
        batch_size=batch_size, token_input=True, forget_bias=model.forget_bias, weights=weights,
    )


class _SteppedStream:
    """A stream for cells that `_core.Stream` does not support: a frozen stack, called for one step at a time."""

    def __init__(self, model: CharLM, batch_size: int) -> None:
        self._layer = model.lstm.inference()
        self._table = None if model.embedding is None else model.embedding.table.copy()
        self._batch_size = batch_size
        self.state: State = self._layer.zero_state(batch_size)

    def step(self, ids: Array) -> Array:
        """As `_core.Stream.step`."""
        h, self.state = self._layer(ids[None] if self._table is None else self._table[ids][None], self.state)
        return np.asarray(h[0])

    def reset(self) -> None:
        """Zero the state."""
        self.state = self._layer.zero_state(self._batch_size)


class SequenceClassifier(_Model):
    """Many to one: the final h of an LSTM stack, then a linear projection to one logit for each class.

    Variables as in `CharLM`; "projection.kernel" has 2*hidden_size rows if bidirectional: for the final h of the
    forward direction, then for that of the reverse one. dropout applies between layers and before the projection.
    cell: as in `CharLM`. loss: your own batch loss, (logits [B, num_classes], labels) -> (loss, derivative by the
    logits); None is mean softmax cross entropy in nats, with integer labels [B].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        forget_bias: float = 1.0,
        cell: Cell | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        initializer: Initializer | None = None,
        loss: BatchLoss | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.num_classes = check.whole_number("num_classes", num_classes)
        self.bidirectional = bool(bidirectional)
        super().__init__(
            {}, self.input_size, hidden_size, self.num_classes,
            num_layers=num_layers, bidirectional=self.bidirectional, dropout=dropout,
            cell=Cell.of(cell, forget_bias=forget_bias), dtype=dtype, rng=rng, initializer=initializer,
            loss=loss or losses.softmax_cross_entropy, device="cpu",
        )

    def __call__(self, x: npt.NDArray[Any], *, lengths: npt.ArrayLike | None = None) -> Array:
        """Return logits [B, num_classes] of x [T, B, input_size] or ids [T, B]; lengths [B] as in `lstm`."""
        features = self._run(x, lengths)
        return self._project(features, np.empty((len(features), self.num_classes), self.dtype))

    def loss(self, x: npt.NDArray[Any], labels: Any, *, lengths: npt.ArrayLike | None = None) -> float:
        """Return the loss of a batch. No dropout."""
        assert self._batch_loss is not None
        return float(self._batch_loss(self(x, lengths=lengths), labels)[0])

    def loss_and_gradients(
        self,
        x: npt.NDArray[Any],
        labels: Any,
        *,
        lengths: npt.ArrayLike | None = None,
        rng: np.random.Generator | None = None,
    ) -> float:
        """Return the loss of a batch and overwrite `gradients`.

        rng draws the masks of dropout and of the cells; required if there are any.
        Raises ValueError naming the argument at fault, including d_logits of your own loss; TypeError for dtypes.
        """
        rng = self._mask_rng(rng)
        features = self._dropouts[1].forward_into(self._run(x, lengths, keep_for_backward=True, rng=rng), rng)
        logits = self._project(features, np.empty((len(features), self.num_classes), self.dtype))
        assert self._batch_loss is not None
        loss, d_logits = self._batch_loss(logits, labels)
        d_features = self._project_backward(features, self._check_d_logits(d_logits, logits))
        d_h_n = np.zeros((len(self.lstm.cells), len(features), self.lstm.output_size), self.dtype)
        for direction, d_top in enumerate(np.split(d_features, self.lstm.num_directions, axis=1)):
            d_h_n[direction - self.lstm.num_directions] = d_top
        self.lstm.backward_into(None, None, d_h_n)
        return float(loss)

    def _run(
        self,
        x: Any,
        lengths: npt.ArrayLike | None,
        keep_for_backward: bool = False,
        rng: np.random.Generator | None = None,
    ) -> Array:
        """Return the final h of the top layer [B, num_directions*hidden_size]."""
        x = self.lstm.check_input(x)
        time_steps, batch = x.shape[:2]
        h_n, _ = self.lstm.forward_into(
            self._scratch("h", (time_steps, batch, self._features)), x, (None, None),
            lengths=check.lengths(lengths, time_steps, batch), keep_for_backward=keep_for_backward, rng=rng,
        )
        return np.concatenate(h_n[-self.lstm.num_directions :], axis=-1)
