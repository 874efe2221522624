"""Names of TensorFlow 1 that are missing here, each with a sentence on what replaces it.

A module of this package calls `answer_in`; Python then looks up missing names here. Refuses to list all of TensorFlow:
unknown names get a general sentence on what the package covers.
"""

from __future__ import annotations

import sys
from typing import Any

_HERE = __name__.rpartition(".")[0]
_COVERS = f"{_HERE} has LSTM cells, functions that unroll and differentiate them, and variables in scopes"
_REST = "between them, use NumPy"

_SESSION = "there is no session and calls compute immediately: replace session.run by the call itself"
_FIRST_VALUES = "variables are initialized when they are created"
_ALL_VARIABLES = "trainable_variables() returns all variables"
_DERIVATIVES = "derivatives come from a GradientTape: tape.gradients(ys, xs, grad_ys)"
_PYTHON = "nothing is deferred, so use Python's own statements"
_LSTM_ALONE = "only LSTM cells are available"
_OPTIMIZERS = (
    "optimizers are lstmfast.optimizers.SGD, Momentum, RMSprop and Adam, schedules lstmfast.schedules, and checkpoints "
    "are read by lstmfast.layouts"
)
_LAYERS = "layers are lstmfast.LSTM, Linear and Embedding, with NumPy for the rest"
_CROSS_ENTROPY = "lstmfast.losses.softmax_cross_entropy returns the loss and its derivative by the logits"
_NO_TENSORFLOW = "this is not TensorFlow; use Python's own libraries for it"

_SENTENCES = {
    _SESSION: "Session InteractiveSession get_default_session ConfigProto GPUOptions RunOptions",
    "placeholders become arguments: give the array itself": "placeholder placeholder_with_default sparse_placeholder",
    _FIRST_VALUES: "global_variables_initializer local_variables_initializer variables_initializer "
    "initialize_all_variables initialize_local_variables initialize_variables tables_initializer "
    "report_uninitialized_variables is_variable_initialized",
    _ALL_VARIABLES: "global_variables local_variables model_variables all_variables moving_average_variables GraphKeys "
    "get_collection add_to_collection get_collection_ref",
    _DERIVATIVES: "gradients hessians stop_gradient custom_gradient RegisterGradient AggregationMethod",
    "clip_by_global_norm is here; of one array: numpy.clip, or g * min(1, c / norm)": "clip_by_value clip_by_norm "
    "clip_by_average_norm global_norm",
    _OPTIMIZERS: "train",
    "variable_scope names variables, and there are no operations to name": "name_scope op_scope variable_op_scope",
    _PYTHON: "while_loop cond case scan map_fn foldl foldr py_func control_dependencies group tuple no_op identity_n "
    "device colocate_with Print Assert TensorArray function contrib.autograph assign assign_add assign_sub",
    _LAYERS: "layers keras slim contrib.layers contrib.keras contrib.slim contrib.learn estimator",
    "read and batch with NumPy, or with lstmfast.data for text": "data FixedLengthRecordReader TextLineReader "
    "TFRecordReader WholeFileReader FIFOQueue RandomShuffleQueue decode_csv parse_example parse_single_example",
    _NO_TENSORFLOW: "app flags logging gfile summary test io image saved_model distribute metrics sets sparse strings "
    "lookup quantization graph_util python_io resource_loader sysconfig user_ops profiler contrib.training "
    "contrib.summary contrib.framework contrib.tensorboard __version__ VERSION",
    "this module is what tf.compat.v1 was: take names from it": "compat",
    "nothing is built before it is called": "enable_eager_execution disable_eager_execution executing_eagerly "
    "enable_v2_behavior disable_v2_behavior enable_resource_variables Operation Tensor import_graph_def "
    "get_default_graph_def finalize",
    "initializers are at the top, such as zeros_initializer()": "initializers keras.initializers",
    "types are NumPy's, and cells take float32 and float64": "float16 bfloat16 half double int8 int16 int32 int64 "
    "uint8 uint16 uint32 uint64 bool string complex64 complex128 qint8 DType as_dtype",
    "random numbers come from a numpy.random.Generator": "random_normal random_uniform truncated_normal random_shuffle "
    "multinomial random random_crop random_gamma random_poisson",
    "the loss and its derivative are your own NumPy, or lstmfast.losses": "losses contrib.losses nn.l2_loss",
    _CROSS_ENTROPY: "nn.sparse_softmax_cross_entropy_with_logits nn.softmax_cross_entropy_with_logits "
    "nn.softmax_cross_entropy_with_logits_v2 contrib.seq2seq.sequence_loss nn.sampled_softmax_loss nn.nce_loss",
    "write table[ids], or use lstmfast.Embedding, which has a derivative": "nn.embedding_lookup "
    "nn.embedding_lookup_sparse",
    "DropoutWrapper drops between cells; elsewhere multiply by a mask of your own": "nn.dropout",
    _LSTM_ALONE: "nn.rnn_cell.BasicRNNCell nn.rnn_cell.GRUCell contrib.rnn.BasicRNNCell contrib.rnn.GRUCell "
    "contrib.rnn.GRUBlockCell contrib.rnn.GRUBlockCellV2 contrib.rnn.NASCell contrib.rnn.UGRNNCell "
    "contrib.rnn.IntersectionRNNCell contrib.rnn.GridLSTMCell contrib.rnn.ConvLSTMCell contrib.rnn.PhasedLSTMCell "
    "contrib.rnn.TimeFreqLSTMCell contrib.rnn.SRUCell contrib.rnn.IndRNNCell contrib.rnn.IndyLSTMCell "
    "contrib.rnn.LayerNormBasicLSTMCell contrib.rnn.LayerNormLSTMCell contrib.rnn.GLSTMCell BasicRNNCell GRUCell",
    "LSTMCell has its equations": "contrib.rnn.LSTMBlockCell contrib.rnn.LSTMBlockFusedCell",
    "a stack is a MultiRNNCell here, or lstmfast.LSTM": "contrib.cudnn_rnn",
    "lstmfast.LSTM has coupled_gates": "contrib.rnn.CoupledInputForgetGateLSTMCell",
    "add the input to the output in NumPy": "nn.rnn_cell.ResidualWrapper contrib.rnn.ResidualWrapper "
    "contrib.rnn.HighwayWrapper",
    "look ids up before the cell: table[ids]": "contrib.rnn.EmbeddingWrapper",
    "multiply the outputs in NumPy": "contrib.rnn.OutputProjectionWrapper contrib.rnn.InputProjectionWrapper",
    "everything runs on the CPU": "nn.rnn_cell.DeviceWrapper contrib.rnn.DeviceWrapper",
    "call bidirectional_dynamic_rnn once for each layer": "contrib.rnn.stack_bidirectional_dynamic_rnn "
    "contrib.rnn.stack_bidirectional_rnn",
    "call the cell step by step: output, state = cell(x, state)": "nn.raw_rnn nn.static_state_saving_rnn "
    "contrib.seq2seq contrib.legacy_seq2seq contrib.rnn.AttentionCellWrapper nn.seq2seq",
    _REST: "contrib.crf nn.ctc_loss nn.ctc_greedy_decoder nn.ctc_beam_search_decoder",
}

_SAME_NAME = (
    "abs add arccos argmax argmin argsort broadcast_to ceil cos cosh cumsum cumprod diag divide einsum equal exp "
    "expand_dims expm1 eye fill floor greater greater_equal less less_equal linspace log log1p logical_and logical_not "
    "logical_or logical_xor matmul maximum meshgrid minimum multiply not_equal ones ones_like outer pad repeat reshape "
    "round sign sin sinh sort split sqrt square squeeze stack subtract tan tanh tensordot tile trace transpose unique "
    "where zeros zeros_like"
)
_OPERATIONS = {name: f"numpy.{name}" for name in _SAME_NAME.split()}
_OPERATIONS |= {
    "batch_matmul": "numpy.matmul", "boolean_mask": "array[mask]", "cast": "array.astype",
    "concat": "numpy.concatenate", "constant": "numpy.array", "convert_to_tensor": "numpy.asarray",
    "count_nonzero": "numpy.count_nonzero", "div": "numpy.divide", "gather": "array[indices]",
    "gather_nd": "array[tuple of indices]", "identity": "the array", "is_finite": "numpy.isfinite",
    "is_nan": "numpy.isnan", "mul": "numpy.multiply", "neg": "numpy.negative", "negative": "numpy.negative",
    "norm": "numpy.linalg.norm", "one_hot": "numpy.eye(depth)[ids]", "pack": "numpy.stack", "pow": "numpy.power",
    "range": "numpy.arange", "rank": "array.ndim", "reciprocal": "1 / array", "reduce_all": "numpy.all",
    "reduce_any": "numpy.any", "reduce_logsumexp": "numpy.logaddexp.reduce", "reduce_max": "numpy.max",
    "reduce_mean": "numpy.mean", "reduce_min": "numpy.min", "reduce_prod": "numpy.prod", "reduce_sum": "numpy.sum",
    "reverse": "numpy.flip", "rsqrt": "1 / numpy.sqrt", "shape": "array.shape", "sigmoid": "1 / (1 + numpy.exp(-x))",
    "size": "array.size", "slice": "array[...]", "strided_slice": "array[...]", "sub": "numpy.subtract",
    "to_float": "array.astype", "to_int32": "array.astype", "to_int64": "array.astype", "truediv": "numpy.divide",
    "unpack": "list(array)", "unstack": "list(array)", "sequence_mask": "numpy.arange(maxlen) < lengths[:, None]",
    "linalg": "numpy.linalg", "math": "numpy",
    "nn.softmax": "numpy.exp(x - x.max(-1, keepdims=True)), divided by its sum", "nn.relu": "numpy.maximum(x, 0)",
    "nn.sigmoid": "1 / (1 + numpy.exp(-x))", "nn.tanh": "numpy.tanh", "nn.bias_add": "x + bias",
    "nn.xw_plus_b": "x @ w + b", "nn.top_k": "numpy.argsort", "nn.moments": "numpy.mean and numpy.var",
    "nn.l2_normalize": "x / numpy.linalg.norm(x)", "nn.in_top_k": "numpy.argsort",
}

_WHY = {name: f"{_REST}: {operation}" for name, operation in _OPERATIONS.items()}
_WHY |= {name: sentence for sentence, names in _SENTENCES.items() for name in names.split()}


def answer_in(module: str, prefix: str) -> None:
    """Make a module answer for its missing names. prefix: its TensorFlow name after `tf.`, "" for `tf` itself.

    Set here and not in the module, because type checkers would conclude that every name exists.
    """

    def missing(name: str) -> Any:
        path = f"{prefix}.{name}" if prefix else name
        if name.startswith("_") and path not in _WHY:  # looked up by Python and its tools
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        known = name in sys.modules[_HERE].__all__
        why = f"it is tf.{name}" if known else _WHY.get(path) or _WHY.get(name) or _REST
        raise AttributeError(f"{_COVERS}, but no tf.{path}: {why} (docs/tf1.md)")

    vars(sys.modules[module])["__getattr__"] = missing
