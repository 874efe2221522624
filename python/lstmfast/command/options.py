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

# Docstrings are not asked for these: Python may run without any (-OO). The list of commands has the first sentences.
ABOUT = {
    "train": "Learn a text, character by character, and leave a run folder. Without a text: the source of Python's own "
    "standard library.",
    "sample": "Write text as a trained model would. It alone goes to standard output.",
    "eval": "Say how well a trained model predicts a text.",
    "inspect": "List the variables of a model or a file of weights, their gates, and why these shapes.",
    "bench": "Measure lstmfast beside what one would use instead.",
    "info": "Say what this installation is and what it uses of this machine.",
}


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    traceback: FlagCreatePairsOff[bool] = False
    """Show where an error comes from."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions(CommonOptions):
    threads: int = 0
    """Threads to use; 0: as many as there are cores. The results are the same bits for any number."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MachineOptions):
    """Options of `train`."""

    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """Files, zip archives, http(s) addresses, or - for standard input; joined in this order."""
    preset: str = "stdlib"
    """Where the defaults below come from: stdlib, or udacity (the classic 6_lstm notebook)."""
    out: str = ""
    """Run folder; by default the first of runs/PRESET-1, runs/PRESET-2, ... that is not there yet."""
    resume: str = ""
    """Go on with the run in this folder: its text, its settings, its last checkpoint. --steps may be raised; a cosine
    then ends at the new last step."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run that is in the run folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where loss and gradients are made; cuda needs a build with CUDA, a GPU, and torch or cupy. As with threads, a run
    can go on on another device, but not with the same bits."""
    data: OmitArgPrefixes[DataConfig]
    """What the text is read as, and which part of it validates."""
    model: OmitArgPrefixes[ModelConfig]
    """The shape of the model and its first weights."""
    optimizer: OmitArgPrefixes[OptimizerConfig]
    """How gradients become steps."""
    training: OmitArgPrefixes[TrainingConfig]
    """How long, in what portions, and what is reported on the way. "Every" counts steps from the first, number 0."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(MachineOptions):
    """Options of `sample`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    length: int = 500
    """Characters to write after the prime."""
    prime: str = ""
    """Text that the model goes on from."""
    temperature: float = 0.7
    """Below 1 the text keeps to what is likely; 0 always takes the likeliest character."""
    top_k: int = 0
    """Choose among this many likeliest characters; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest characters that together reach this probability; 1: all."""
    streams: int = 1
    """Texts to write, an empty line between them."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Keep the weights as they are, in half or in a quarter of the bytes: faster where the model is large."""
    seed: int = 0
    """Another number gives another text."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MachineOptions):
    """Options of `eval`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")]
    """Files, zip archives, http(s) addresses, or - for standard input; joined in this order."""
    fold: FlagCreatePairsOff[bool] = False
    """Reduce the text to the fixed 27 symbols, also where the run did not."""
    encoding: str = ""
    """Encoding of the text; by default that of the run."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """Options of `inspect`."""

    path: Annotated[Positional[str], tyro.conf.arg(metavar="PATH")]
    """Run folder or checkpoint, or a file of PyTorch, safetensors, NumPy, Keras, TensorFlow (or its folder) or ONNX."""
    layout: str = ""
    """Which library's names these are, where they do not tell: one of lstmfast.layouts.LAYOUTS."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(CommonOptions):
    """Options of `info`."""

    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


def parse(kind: type[T], command: str, argv: Sequence[str], default: T | Any = tyro.MISSING_NONPROP) -> T:
    """Options from arguments. tyro reports what it cannot parse in a box; here its sentence becomes a ValueError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=f"lstmfast {command}", description=ABOUT[command], args=list(argv), default=default
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ValueError(_sentence_in_box(said.getvalue())) from None


def _sentence_in_box(box: str) -> str:
    """What stands in a box of tyro's before its first rule, on one line."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((number for number, line in enumerate(lines) if not line.strip("─╰╯ ")), len(lines))
    sentence = " ".join(line for line in lines[:rule] if line)
    return re.sub(r"^Error parsing (?:\w+: )?", "", sentence)


def set_up(options: MachineOptions, config: Config) -> None:
    """Have the extension work as this command was asked to and as the run's settings say."""
    if options.threads < 0:
        raise ValueError(f"threads must be 0 or more, got {options.threads}")
    if options.threads:
        runtime.set_num_threads(options.threads)
    runtime.set_matmul_precision(config.model.matmul_precision)
