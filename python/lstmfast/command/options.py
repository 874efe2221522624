"""The options of the commands: flags, defaults and help, generated from the dataclasses of `config` and those below.

Refuses to run a command (see `main` and `train`).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from lstmfast import runtime
from lstmfast.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig

T = TypeVar("T")

# Not taken from docstrings: Python may run without any (-OO). The list of commands shows the first sentences.
ABOUT = {
    "train": "Train on a text, character by character or by --vocabulary, and write a run folder. Without a text: on "
    "the source of Python's own standard library.",
    "sample": "Generate text with a trained model. Only the text goes to standard output.",
    "eval": "Measure how well a trained model predicts a text.",
    "report": "Write a page about a trained model: type and watch its cells, see which ones count lines or hold "
    "quotes. One HTML file that needs no network.",
    "inspect": "List the variables of a model or weight file, their gates, and the reasons for their shapes.",
    "bench": "Compare the speed of lstmfast with that of its alternatives.",
    "info": "Describe this installation and the hardware it uses.",
}


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    traceback: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions(CommonOptions):
    threads: int = 0
    """Threads to use; 0: one per core. Results are bit-identical for any number."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MachineOptions):
    """Options of `train`."""

    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """Files, folders (all text files in them), zip archives, http(s) addresses, or - for standard input; joined in this
    order."""
    preset: str = "stdlib"
    """Preset of the defaults below: stdlib, or udacity (the classic 6_lstm notebook)."""
    out: str = ""
    """Run folder; by default the first of runs/PRESET-1, runs/PRESET-2, ... that does not exist yet."""
    resume: str = ""
    """Resume the run in this folder, with its text, its settings and its last checkpoint. --steps may be raised; a
    cosine schedule then ends at the new last step."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run in the run folder."""
    tensorboard: FlagCreatePairsOff[bool] = False
    """Also write RUN/tensorboard, for `tensorboard --logdir RUN`; needs the extra lstmfast[tensorboard]."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where loss and gradients are computed; cuda needs a build with CUDA, a GPU, and torch or cupy. A run can be
    resumed on another device, but unlike with threads its results are then not bit-identical."""
    data: OmitArgPrefixes[DataConfig]
    """How the text is read, and which part of it is used for validation."""
    model: OmitArgPrefixes[ModelConfig]
    """The shape of the model and its initial weights."""
    optimizer: OmitArgPrefixes[OptimizerConfig]
    """How gradients become updates."""
    training: OmitArgPrefixes[TrainingConfig]
    """Number of steps, batch shape, and reports. "Every" counts steps from the first, number 0."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(MachineOptions):
    """Options of `sample`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    length: int = 500
    """Characters to generate after the prime; tokens, if the run has a vocabulary of words or bpe."""
    prime: str = ""
    """Text that the model continues."""
    # Of temperatures 0.4 to 1 with top_p 1, 0.95 and 0.9: 9 of 10 words are words of the text, and it does not go in
    # circles. docs/sampling.md has the numbers.
    temperature: float = 0.7
    """Below 1 likely characters are preferred; 0 always takes the likeliest one."""
    top_k: int = 0
    """Choose among this many of the likeliest characters; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest characters that together reach this probability; 1: all."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this text; may be given several times. In bash, $'\\n' is a line break."""
    best_of: int = 1
    """Draw this many texts and write the one whose characters have the highest mean log-probability under the model (at
    temperature 1, with all characters to choose from). Not written while it is drawn."""
    streams: int = 1
    """Number of texts, separated by an empty line; a single one is written while it is drawn."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type in which weights are kept; the narrow ones take 1/2 or 1/4 of the bytes, faster for large models."""
    seed: int = 0
    """Seed of the random generator."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MachineOptions):
    """Options of `eval`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")]
    """Files, folders, zip archives, http(s) addresses, or - for standard input; joined in this order."""
    fold: FlagCreatePairsOff[bool] = False
    """Reduce the text to the fixed 27 symbols, even if the run did not."""
    encoding: str = ""
    """Encoding of the text; by default that of the run."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type in which the LSTM's weights are kept; the narrow ones are less exact, and faster where the CPU has them."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(MachineOptions):
    """Options of `report`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file, of characters or bytes."""
    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """Text to show: files, folders, zip archives, http(s) addresses, or - for standard input; by default the run's own
    validation text."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "report.html"
    """The page to write."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the page if it exists."""
    length: int = 2000
    """Characters of the text to show, from its beginning; bytes, if the run's symbols are bytes."""
    fold: FlagCreatePairsOff[bool] = False
    """Reduce the text to the fixed 27 symbols, even if the run did not."""
    encoding: str = ""
    """Encoding of the text; by default that of the run."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """Options of `inspect`."""

    path: Annotated[Positional[str], tyro.conf.arg(metavar="PATH")]
    """Run folder or checkpoint, or a file of PyTorch, safetensors, NumPy, Keras, TensorFlow (or its folder) or ONNX."""
    layout: str = ""
    """Library whose names these are, if they do not show it: one of lstmfast.layouts.LAYOUTS."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(CommonOptions):
    """Options of `info`."""

    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _numbers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Numbers as one argument, separated by commas."""
    if info.type != tuple[float, ...]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT[,FLOAT]",
        instance_from_str=lambda arguments: tuple(map(float, arguments[0].split(","))),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "none"],
    )


def parse(kind: type[T], command: str, argv: Sequence[str], default: T | Any = tyro.MISSING_NONPROP) -> T:
    """Options from arguments. tyro reports errors in a box; here its sentence becomes a ValueError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=f"lstmfast {command}", description=ABOUT[command], args=list(argv), default=default,
                registry=_registry,
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ValueError(_sentence_in_box(said.getvalue())) from None


# What tyro passes on from Python's int() and float(), and what a user of flags wants to read.
_NOT_A_NUMBER = {
    ": invalid literal for int() with base 10: ": " must be a whole number, got ",
    ": could not convert string to float: ": " must be a number, got ",
}


def _sentence_in_box(box: str) -> str:
    """The text of tyro's box up to its first rule, on one line."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((number for number, line in enumerate(lines) if not line.strip("─╰╯ ")), len(lines))
    sentence = " ".join(line for line in lines[:rule] if line)
    sentence = re.sub(r"^Error parsing (?:\w+: )?", "", sentence)
    for said, wanted in _NOT_A_NUMBER.items():
        sentence = sentence.replace(said, wanted)
    return sentence


def set_up(options: MachineOptions, config: Config) -> None:
    """Set threads from the command's options and precision from the run's settings."""
    if options.threads < 0:
        raise ValueError(f"threads must be 0 or more, got {options.threads}")
    if options.threads:
        runtime.set_num_threads(options.threads)
    runtime.set_matmul_precision(config.model.matmul_precision)
