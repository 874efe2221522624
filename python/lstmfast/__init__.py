"""lstmfast: the fastest LSTM for Python that does not need a framework.

NumPy arrays in, NumPy arrays out. Functions: `lstm_step`, `lstm`, `lstm_backward`. Layers: `LSTMCell`, `LSTM`,
`Embedding`, `Linear`. Models: `CharLM`, `SequenceClassifier`. `inspect` lists the variables of a layer, a model or a
weight file; `layouts` reads the files; `viz` draws gates, states and weights. Importing this loads only numpy and the
extension; the trainer, the data pipeline, the sampler and the command line are separate modules.
"""

from lstmfast import gates, initializers, layouts, losses, optimizers, reference, schedules, viz
from lstmfast._core import __version__
from lstmfast.cells import Cell
from lstmfast.functional import Gradients, Output, lstm, lstm_backward, lstm_step
from lstmfast.inspection import Inspection, inspect
from lstmfast.layers import LSTM, Embedding, Linear, LSTMCell, ParameterBuffer
from lstmfast.models import CharLM, CharStream, SequenceClassifier
from lstmfast.runtime import (
    available_isas,
    build_info,
    explain,
    get_matmul_precision,
    get_num_threads,
    release_memory,
    set_matmul_precision,
    set_num_threads,
)

__all__ = [
    "LSTM",
    "Cell",
    "CharLM",
    "CharStream",
    "Embedding",
    "Gradients",
    "Inspection",
    "LSTMCell",
    "Linear",
    "Output",
    "ParameterBuffer",
    "SequenceClassifier",
    "__version__",
    "available_isas",
    "build_info",
    "explain",
    "gates",
    "get_matmul_precision",
    "get_num_threads",
    "initializers",
    "inspect",
    "layouts",
    "losses",
    "lstm",
    "lstm_backward",
    "lstm_step",
    "optimizers",
    "reference",
    "release_memory",
    "schedules",
    "set_matmul_precision",
    "set_num_threads",
    "viz",
]
