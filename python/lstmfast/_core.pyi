"""Signatures of the C++ extension. Not API: use the public functions and classes of lstmfast.

Arrays of one call have one dtype, float32 or float64. Inputs may be strided in all axes but the last; outputs are
written in place; gradients are overwritten, not added to; None means absent. Every argument is checked: ValueError and
TypeError name it.
"""

from collections.abc import Sequence as _Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmfast.cells import Cell as _Cell

_Floats = NDArray[np.floating[Any]]
_Ids = NDArray[np.int32]
_Norms = tuple[_Floats, _Floats, _Floats]  # norm_gain [2, 4H] or [1, 4H], cell_gain [H], cell_shift [H]
_State = tuple[_Floats, _Floats]  # initial_h [P], initial_c [H]
_Noise = tuple[int, int, int]  # the seed, the number of layer and direction, the number of the first time step

__version__: str
testing: ModuleType

def built_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def unbuilt_isas() -> list[str]: ...
def current_isa() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def release_memory() -> None: ...
def build_info() -> dict[str, str]: ...
def probe_flops(dtype: str) -> float: ...
def probe_read_bandwidth(size_bytes: int) -> float: ...

def fingerprint(values: _Floats) -> tuple[int, int]: ...
def plan_of(
    time_steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    dtype: str,
    matmul_precision: str,
    is_plain: bool,
    is_projected: bool,
    token_input: bool,
    training: bool,
    weights: str,
) -> dict[str, Any]:
    """What a call of these sizes would do: isa; hoists_input: the input's product is computed before the steps.

    path: packed, unpacked, bf16x, int16, "int16 and bf16x" (backward) or int8; refusal: why float32 products are not
    replaced by less exact ones: dtype, cell, isa, size; "" if they are; dot_unit, bf16x_unit: what multiplies short
    integers and bfloat16, "" if the ISA has no instructions for it.
    bf16x_parts of a factor and bf16x_products of them, for values up to bf16x_largest; rows_unpacked, rows_unlooked:
    the most rows that read weights in place, for weights that serve one call and for others.
    """

def saved_size(
    updates: int, hidden_size: int, has_projection: bool, is_float64: bool, normalized_products: int = 0
) -> int:
    """normalized_products: rows of norm_gain, 0 without layer normalisation."""

class Sequence:
    """One direction of one LSTM layer; owns its workspace and reuses it. One call at a time.

    A copy or unpickled Sequence has the same cell, but has not run and holds no weights.
    """

    def __init__(self, reverse: bool, cell: _Cell) -> None: ...
    def load(
        self,
        kernel: _Floats | tuple[_Floats, _Floats],
        bias: _Floats | tuple[_Floats, _Floats] | None,
        peepholes: _Floats | None = None,
        projection: _Floats | None = None,
        frozen: bool = False,
        serves_one_call: bool = False,
        weights: str = "float32",
        norms: _Norms | None = None,
        initial: _State | None = None,
    ) -> None:
        """Set the weights of later calls: checked and held, not read. Releases the earlier ones.

        kernel [I + P, 4H], or transposed ([4H, I], [4H, P]), and then projection is [P, H]; two biases are added; None
        if only `restore` follows. Every forward checks whether its packed weights are current.
        frozen: the caller's promise that they do not change, so only the first forward compares.
        serves_one_call: no other call will use them; a forward that keeps nothing releases them.
        norms, initial: needed if the cell has layer normalisation or learns its initial state.
        """
    def forward(
        self,
        x: _Floats | _Ids,
        h: _Floats,
        h_n: _Floats,
        c_n: _Floats,
        h0: _Floats | None = None,
        c0: _Floats | None = None,
        lengths: NDArray[np.int64] | None = None,
        resets: NDArray[np.bool_] | None = None,
        cells: _Floats | None = None,
        gates: _Floats | None = None,
        keep_for_backward: _Floats | bool = False,
        matmul_precision: str = "highest",
        noise: _Noise | None = None,
    ) -> None:
        """noise: the source of the masks of a training call; None computes as in inference.

        keep_for_backward: True keeps the values for backward in this sequence; an array [saved_size] receives them
        instead, and any sequence with an equal cell and weights can `restore` it and run the backward pass.
        """
    def restore(
        self,
        x: _Floats,
        h: _Floats,
        saved: _Floats,
        h0: _Floats | None = None,
        c0: _Floats | None = None,
        lengths: NDArray[np.int64] | None = None,
        resets: NDArray[np.bool_] | None = None,
        matmul_precision: str = "highest",
        noise: _Noise | None = None,
    ) -> None:
        """Prepare `backward` as after the forward that had these arguments and filled `saved`. Computes nothing."""
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def used_bf16x_products(self) -> bool: ...
    def release(self) -> None:
        """Release all arrays: weights, and those that a backward pass would read."""
    def backward(
        self,
        d_h: _Floats | None = None,
        d_h_n: _Floats | None = None,
        d_c_n: _Floats | None = None,
        d_x: _Floats | None = None,
        d_kernel: _Floats | tuple[_Floats, _Floats] | None = None,
        d_bias: _Floats | None = None,
        d_h0: _Floats | None = None,
        d_c0: _Floats | None = None,
        d_peepholes: _Floats | None = None,
        d_projection: _Floats | None = None,
        d_norms: _Norms | None = None,
        d_initial: _State | None = None,
    ) -> None:
        """Each gradient has the shape of its argument; d_kernel is a pair of arrays if kernel was."""

class Stream:
    """A stack of layers advanced one step at a time: packed weights, state inside."""

    def __init__(
        self,
        kernels: _Sequence[_Floats],
        biases: _Sequence[_Floats],
        *,
        batch_size: int,
        token_input: bool,
        forget_bias: float,
        weights: str = "float32",
    ) -> None: ...
    def step(self, x: _Floats | _Ids) -> NDArray[Any]: ...
    def reset(self) -> None: ...
    @property
    def state(self) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @state.setter
    def state(self, arg1: tuple[_Floats, _Floats]) -> None: ...
    def generate(
        self,
        projection_kernel: _Floats,
        projection_bias: _Floats,
        token: _Ids,
        uniforms: NDArray[np.float64],
        temperature: float,
        top_k: int,
        top_p: float,
        out: _Ids,
    ) -> None: ...

def linear(x: _Floats, kernel: _Floats, bias: _Floats | None, out: _Floats) -> None: ...
def linear_backward(
    x: _Floats,
    kernel: _Floats,
    d_out: _Floats,
    d_x: _Floats | None = None,
    d_kernel: _Floats | None = None,
    d_bias: _Floats | None = None,
) -> None: ...

class PackedLinear:
    """`linear` with a copy of kernel and bias, packed once."""

    def __init__(self, kernel: _Floats, bias: _Floats) -> None: ...
    def apply(self, x: _Floats, out: _Floats) -> None: ...

def softmax_cross_entropy(
    logits: _Floats, targets: _Ids, losses: _Floats, d_logits: _Floats | None = None, scale: float = 1.0
) -> None: ...
def embedding_gather(table: _Floats, ids: _Ids, out: _Floats) -> None: ...
def embedding_scatter(d_out: _Floats, ids: _Ids, d_table: _Floats, add: bool = False) -> None: ...
def projected_cross_entropy(
    x: _Floats,
    kernel: _Floats,
    bias: _Floats,
    targets: _Ids,
    losses: _Floats,
    d_x: _Floats | None = None,
    d_kernel: _Floats | None = None,
    d_bias: _Floats | None = None,
    transposed: bool = False,
    scale: float = 1.0,
) -> None: ...
def global_norm(values: _Floats) -> float: ...
def optimizer_update(
    optimizer: str,
    parameters: _Floats,
    gradients: _Floats,
    slots: _Sequence[_Floats],
    constants: _Sequence[float],
    gradient_scale: float,
) -> None: ...
