"""The settings of a run: frozen dataclasses with documented fields, and conversion to and from JSON.

The command line's flags, defaults and help are generated from these fields, so that a setting is described once. Every
object is checked when created and never changed. Refuses to choose values for a text (see `presets`), arrays, files and
the terminal, and settings of one machine, such as threads and folders, on which a run's numbers do not depend.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lstmfast.cells import Cell
from lstmfast.optimizers import OPTIMIZERS, Optimizer, OptimizerName
from lstmfast.schedules import Constant, CosineWithWarmup, ExponentialDecay, LinearWithWarmup, Schedule

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """How the text is read, and which part is for validation."""

    vocabulary: Literal["characters", "udacity", "bytes", "words", "bpe"] = "characters"
    """Symbols to learn: the characters found in the text, the fixed 27 (space and a to z), all 256 bytes, or tokens
    learnt from the text: its most frequent words, or byte pairs, which can spell any text."""
    vocabulary_size: int = 10_000
    """words and bpe: tokens at most."""
    fold: bool = False
    """Reduce the text to the fixed 27: lower case, and every run of other characters becomes one space."""
    encoding: str = "utf-8"
    """Encoding of the text; CR and CR LF are read as line breaks, and a byte order mark is left out."""
    expected_bytes: int = 0
    """Size that the one file or download must have; 0: any."""
    valid_first: int = 0
    """Validate on this many first characters and train on the rest; 0: see valid-fraction."""
    valid_fraction: float = 0.05
    """Validate on this last fraction of the text and train on the rest; 0: no validation."""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.vocabulary == "bpe":
            _require(self, "vocabulary_size", self.vocabulary_size >= 256, "256 or more for bpe, which has every byte")
        _require(self, "vocabulary_size", self.vocabulary_size >= 2, "2 or more")
        _require(self, "expected_bytes", self.expected_bytes >= 0, "0 or more")
        _require(self, "valid_first", self.valid_first >= 0, "0 or more")
        _require(self, "valid_fraction", 0 <= self.valid_fraction < 1, "at least 0 and below 1")
        _require(self, "valid_fraction", not (self.valid_first and self.valid_fraction), "0 where valid_first is given")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model and its initial weights."""

    hidden_size: int = 384
    """Units of each layer."""
    num_layers: int = 1
    """Layers, one above the other."""
    embedding_size: int = 0
    """Length of a learned vector per symbol; 0: one-hot, that is, each symbol has its own row of the first kernel; with
    words and bpe, 0: as long as the outputs, and tied."""
    tied: bool = False
    """Share the vectors of the symbols between input and output; they must be as long as the outputs."""
    dropout: float = 0.0
    """Fraction of the values dropped in training, everywhere but on the way from step to step."""
    forget_bias: float = 0.0
    """Added to every forget gate; 1 lets cells remember at first, for texts whose symbols depend on distant ones."""
    projection_size: int = 0
    """Length of the outputs where a learned projection shortens them; 0: no projection."""
    peepholes: bool = False
    """Let the gates see the cell state."""
    cell_clip: float = 0.0
    """Bound of the cell state; 0: none."""
    coupled_gates: bool = False
    """Forget what is let in: forget gate = 1 - input gate."""
    recurrent_dropout: float = 0.0
    """Fraction dropped in training on the way from step to step."""
    recurrent_dropout_of: Literal["h", "g"] = "h"
    """What recurrent-dropout drops: h, the outputs of the step before, or g, what would be added to the cell state."""
    recurrent_dropout_per_step: bool = False
    """Let recurrent-dropout drop other values at every step, not the same ones from the first step to the last."""
    zoneout: tuple[float, ...] = ()
    """Fraction of h and c that keeps the values of the step before in training: one number for both, or H,C."""
    weight_dropout: float = 0.0
    """Fraction of the recurrent weights dropped in training."""
    layer_norm: bool = False
    """Normalise what enters the gates, and the cell state before it is shown."""
    layer_norm_of: Literal["products", "gates"] = "products"
    """What layer-norm normalises before the gates: each product, or each gate."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance that layer-norm divides by."""
    layer_norm_carry: bool = False
    """Carry the normalised cell state to the next step."""
    learn_initial_state: bool = False
    """Learn the state that a text begins with, which otherwise is zeros."""
    initializer: Literal["default", "one-hot", "truncated-normal"] = "one-hot"
    """First weights: uniform within 1/sqrt(rows); the same, but the rows of one-hot symbols within 1/3, because only
    one of them is used at a time; or normal with mean -0.1 and deviation 0.1 cut at two deviations."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of weights and states."""
    matmul_precision: Literal["highest", "high", "medium"] = "medium"
    """How exact matrix products are, where a machine gains from less: 1e-7, 4e-6 or 4e-3 of the result."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "hidden_size", self.hidden_size >= 1, "1 or more")
        _require(self, "num_layers", self.num_layers >= 1, "1 or more")
        _require(self, "embedding_size", self.embedding_size >= 0, "0 or more")
        _require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        _require(self, "projection_size", self.projection_size >= 0, "0 or more")
        _require(self, "cell_clip", self.cell_clip >= 0, "0 or more")
        for name in ("recurrent_dropout", "weight_dropout"):
            _require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _require(
            self, "zoneout", len(self.zoneout) <= 2 and all(0 <= rate < 1 for rate in self.zoneout),
            "one or two numbers, at least 0 and below 1",
        )
        _require(self, "layer_norm_epsilon", self.layer_norm_epsilon > 0, "above 0")
        _require(self, "layer_norm", not (self.layer_norm and self.coupled_gates), "false where gates are coupled")
        if self.tied and self.embedding_size not in (0, outputs := self.cell.output_size(self.hidden_size)):
            _require(self, "embedding_size", False, f"{outputs}, the length of the outputs, where tied")

    @property
    def cell(self) -> Cell:
        """The kind of cell."""
        return Cell(
            self.forget_bias, self.projection_size or None, self.peepholes, self.cell_clip or None, self.coupled_gates,
            self.recurrent_dropout, self.recurrent_dropout_of, self.recurrent_dropout_per_step,
            (self.zoneout[0], self.zoneout[-1]) if self.zoneout else None, self.weight_dropout,
            self.layer_norm_of if self.layer_norm else None, self.layer_norm_epsilon, self.layer_norm_carry,
            self.learn_initial_state,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become steps."""

    optimizer: OptimizerName = "adam"
    """The update rule."""
    learning_rate: float = 0.0104
    """Learning rate at its highest."""
    schedule: Literal["constant", "exponential", "cosine", "linear"] = "linear"
    """How the learning rate changes: never, times decay-rate every decay-steps, or on half a cosine or a line down to
    the last step."""
    warmup_steps: int = 200
    """cosine, linear: steps on the way up to the learning rate."""
    final_fraction: float = 0.0
    """cosine, linear: part of the learning rate that is left at the last step."""
    decay_rate: float = 0.1
    """exponential: factor every decay-steps."""
    decay_steps: int = 5000
    """exponential: steps per factor."""
    staircase: bool = False
    """exponential: change only every decay-steps, all at once."""
    clip_norm: float = 0.25
    """Longer gradients are shortened to this global norm; 0: never."""
    momentum: float = 0.9
    """momentum: part of the last step that is kept."""
    weight_decay: float = 0.0
    """adam: pull of the weights to zero, per step, as a fraction of the learning rate."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "learning_rate", self.learning_rate > 0, "above 0")
        _require(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        _require(self, "final_fraction", 0 <= self.final_fraction <= 1, "between 0 and 1")
        _require(self, "decay_rate", self.decay_rate > 0, "above 0")
        _require(self, "decay_steps", self.decay_steps >= 1, "1 or more")
        _require(self, "clip_norm", self.clip_norm >= 0, "0 or more")
        _require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        _require(self, "weight_decay", self.weight_decay >= 0, "0 or more")

    def make_optimizer(self) -> Optimizer:
        """The update rule, without slots yet; it takes the settings of the same names."""
        kind = OPTIMIZERS[self.optimizer]
        settings = {entry.name for entry in dataclasses.fields(kind) if entry.init} & vars(self).keys()
        return kind(**{name: getattr(self, name) for name in settings})

    def make_schedule(self, steps: int) -> Schedule:
        """The learning rate at each of `steps` steps; a warm-up that would not fit ends halfway."""
        warmup_steps = min(self.warmup_steps, steps // 2)
        if self.schedule == "cosine":
            return CosineWithWarmup(self.learning_rate, steps, warmup_steps, self.final_fraction)
        if self.schedule == "linear":
            return LinearWithWarmup(self.learning_rate, steps, warmup_steps, self.final_fraction)
        if self.schedule == "exponential":
            return ExponentialDecay(self.learning_rate, self.decay_rate, self.decay_steps, self.staircase)
        return Constant(self.learning_rate)


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch shape, and intervals of reports. "Every" counts steps from the first, number 0."""

    minutes: float = 2.0
    """Minutes of training, where steps is 0: the first seconds measure the speed, and steps follows from it."""
    steps: int = 0
    """Updates; 0: all that fit in minutes."""
    batch_size: int = 32
    """Number of text streams trained in parallel."""
    unroll: int = 64
    """Characters per place and step; the state is carried from step to step, the gradient is not."""
    accumulate: int = 1
    """Batches per step, one after another in the text, whose gradients are averaged."""
    shards: int = 0
    """Parts of the batch whose gradients are summed in a fixed order, a power of two; 0: one for each process. The
    numbers of a run depend on its shards and not on the processes that share them."""
    reset_rate: float = 0.02
    """Chance of each place to begin a step with a state of zeros, not the carried one. Without any, a model never
    learns how to begin a text, and from some openings it never recovers."""
    seed: int = 0
    """First weights, dropout and samples follow from it."""
    summary_every: int = 100
    """Steps from one line of metrics to the next; 0: only at the end."""
    validate_every: int = 2000
    """Steps from one validation to the next; 0: only at the end. A validation always writes a line of metrics."""
    sample_every: int = 1000
    """Steps from one set of samples to the next; 0: none."""
    sample_count: int = 1
    """Samples in a set."""
    sample_length: int = 300
    """Characters of each sample."""
    sample_temperature: float = 0.7
    """Below 1 samples keep to what is likely, at 0 they always take the likeliest character."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next; 0: only at the end."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("batch_size", "unroll", "accumulate", "sample_count", "sample_length"):
            _require(self, name, getattr(self, name) >= 1, "1 or more")
        _require(self, "minutes", self.minutes > 0, "above 0")
        _require(self, "shards", self.shards >= 0 and self.shards & (self.shards - 1) == 0, "0 or a power of two")
        if self.shards and self.batch_size % self.shards:
            raise ValueError(f"batch_size must be a multiple of the {self.shards} shards, got {self.batch_size}")
        for name in ("steps", "seed", "summary_every", "validate_every", "sample_every", "checkpoint_every"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        _require(self, "reset_rate", 0 <= self.reset_rate <= 1, "between 0 and 1")
        _require(self, "sample_temperature", self.sample_temperature >= 0, "0 or more")

    @property
    def characters_per_step(self) -> int:
        """Characters that one update learns from."""
        return self.batch_size * self.unroll * self.accumulate


@dataclass(frozen=True)
class Config:
    """Everything that determines the numbers of a run except the text."""

    preset: str = "stdlib"
    """Preset that supplies unspecified values."""
    text: tuple[str, ...] = ()
    """Files, zip archives, addresses; none: the source of Python's standard library."""
    data: DataConfig = field(default_factory=DataConfig)
    """See DataConfig."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """See ModelConfig."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """See OptimizerConfig."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """See TrainingConfig."""

    def to_json(self) -> str:
        """Indented JSON, one object per group, as `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The settings that `to_json` wrote. Raises ValueError naming the field that is missing, unknown or wrong."""
        values = json.loads(text)
        groups = {"data": DataConfig, "model": ModelConfig, "optimizer": OptimizerConfig, "training": TrainingConfig}
        _check_keys(cls, values)
        if not isinstance(values["text"], list):
            raise ValueError(f"text must be a list, got {values['text']!r}")
        made: dict[str, Any] = {name: _from_mapping(group, values[name]) for name, group in groups.items()}
        return cls(preset=values["preset"], text=tuple(values["text"]), **made)

    def __post_init__(self) -> None:
        _check_types(self)
        if self.model.tied and not self.embedding_size:
            raise ValueError(
                f"tied shares the vectors of an embedding, and one-hot {self.data.vocabulary} have none: "
                f"give embedding_size {self.model.cell.output_size(self.model.hidden_size)}"
            )

    @property
    def has_tokens(self) -> bool:
        """Whether a symbol is more than a character or a byte."""
        return self.data.vocabulary in ("words", "bpe")

    @property
    def embedding_size(self) -> int:
        """The length of a symbol's vector, 0 where symbols are one-hot. Tokens never are: a step would fill a gradient
        of vocabulary_size rows of the first kernel."""
        model = self.model
        return model.embedding_size or (model.cell.output_size(model.hidden_size) if self.has_tokens else 0)

    @property
    def tied(self) -> bool:
        """Whether input and output share the vectors: asked for, or left open for tokens."""
        return self.model.tied or (self.has_tokens and not self.model.embedding_size)


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configs differ: name without group -> (old value, new value)."""
    before, after = _flat(old), _flat(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def _flat(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        values |= {entry.name: value} if isinstance(value, (str, tuple)) else dataclasses.asdict(value)
    return values


def _require(config: object, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {getattr(config, name)!r}")


def _check_types(config: Any) -> None:
    """Raise ValueError unless each value has its field's type and floats are finite."""
    for name, wanted in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(wanted) is Literal:
            holds, words = value in get_args(wanted), f"one of {', '.join(get_args(wanted))}"
        elif wanted is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            holds, words = number and math.isfinite(value), "a finite number"
        elif wanted is int:
            holds, words = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        elif get_origin(wanted) is tuple:
            kind, items = (str, "text") if get_args(wanted)[0] is str else ((int, float), "numbers")
            holds = isinstance(value, tuple) and all(isinstance(item, kind) for item in value)
            words = f"a tuple of {items}"
        else:
            holds, words = isinstance(value, wanted), {bool: "true or false", str: "text"}.get(wanted, wanted.__name__)
        _require(config, name, holds, words)


# Settings missing from runs of earlier versions, which behaved as the defaults do.
_LATER = {
    "minutes", "vocabulary_size", "tied", "projection_size", "peepholes", "cell_clip", "coupled_gates", "accumulate",
    "shards", "recurrent_dropout", "recurrent_dropout_of", "recurrent_dropout_per_step", "zoneout", "weight_dropout",
    "layer_norm", "layer_norm_of", "layer_norm_epsilon", "layer_norm_carry", "learn_initial_state",
}


def _check_keys(group: type, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{group.__name__} must be a JSON object, got {values!r:.40}")
    names = {entry.name for entry in dataclasses.fields(group)}
    for name in sorted((names ^ values.keys()) - _LATER):
        raise ValueError(f"{name} is {'missing from' if name in names else 'not a setting of'} {group.__name__}")


def _from_mapping(group: type[T], values: Any) -> T:
    _check_keys(group, values)
    return group(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def stored_config(metadata: Mapping[str, Any], path: Path) -> Config:
    """The settings of the checkpoint at `path`, from its metadata. Raises ValueError naming the file."""
    try:
        return Config.from_json(json.dumps(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"checkpoint {path} holds no settings that can be used: {error}") from error
