"""`Engine`: the operations that layers and models use. `cpu` and `cuda` each implement it.

An engine has its own arrays, which slice, reshape and multiply like NumPy's, and writes results into given arrays.
Refuses to know layers: it computes one direction of one layer, and the products and look-ups before and after it.
"""

from __future__ import annotations

from typing import Any, Protocol

from lstmfast._checks import Array
from lstmfast.cells import Cell
from lstmfast.initializers import Shape


class LayerRun(Protocol):
    """One direction of one layer: its workspace and last call. `_core.Sequence` documents the arguments."""

    def load(
        self,
        kernel: Array,
        bias: Array,
        peepholes: Array | None = None,
        projection: Array | None = None,
        frozen: bool = False,
        *,
        weights: str = "float32",
        norms: tuple[Array, Array, Array] | None = None,
        initial: tuple[Array, Array] | None = None,
    ) -> None:
        """Set the weights of later calls."""

    def forward(
        self,
        x: Array,
        h: Array,
        h_n: Array,
        c_n: Array,
        h0: Array | None = None,
        c0: Array | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        cells: Array | None = None,
        gates: Array | None = None,
        keep_for_backward: bool = False,
        matmul_precision: str = "highest",
        noise: tuple[int, int, int] | None = None,
    ) -> None:
        """Fill h, h_n and c_n."""

    def backward(
        self,
        d_h: Array | None = None,
        d_h_n: Array | None = None,
        d_c_n: Array | None = None,
        d_x: Array | None = None,
        d_kernel: Array | None = None,
        d_bias: Array | None = None,
        d_h0: Array | None = None,
        d_c0: Array | None = None,
        d_peepholes: Array | None = None,
        d_projection: Array | None = None,
        d_norms: tuple[Array, Array, Array] | None = None,
        d_initial: tuple[Array, Array] | None = None,
    ) -> None:
        """Fill d_x and the gradients after it, if given."""


class Engine(Protocol):
    """Operations on arrays of one device. Arguments named `out`, and the derivatives of inputs, are filled."""

    place: str
    """The device of the arrays, for errors: "on a CUDA device"."""
    features: frozenset[str]
    """Features of a cell that it supports: see `cells.check_features`."""
    projected_classes: float
    """From this many classes on, `projected_cross_entropy` needs less memory than an array of all logits."""

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """A new array."""

    def to_engine(self, values: Array) -> Array:
        """Copy a host array to the device; on the CPU the same array."""

    def to_host(self, values: Array) -> Array:
        """Copy an array to NumPy; on the CPU the same array."""

    def sequence(self, reverse: bool, cell: Cell) -> LayerRun:
        """One direction of a layer with this cell."""

    def linear(self, x: Array, kernel: Array, bias: Array, out: Array) -> None:
        """out [N, O] = x [N, I] @ kernel + bias."""

    def linear_backward(
        self, x: Array, kernel: Array, d_out: Array, d_x: Array, d_kernel: Array, d_bias: Array
    ) -> None:
        """The derivatives of `linear`."""

    def gather(self, table: Array, ids: Array, out: Array) -> None:
        """out [N, E] = rows of table at ids [N]."""

    def scatter(self, d_out: Array, ids: Array, d_table: Array, add: bool = False) -> None:
        """The derivative of `gather`: rows of the same id are added up, and with `add` to what d_table holds."""

    def multiply(self, x: Array, mask: Array, out: Array) -> None:
        """out = x * mask."""

    def cross_entropy(self, logits: Array, targets: Array) -> float:
        """Mean of -log softmax(logits)[target] of logits [N, V] and targets [N]; logits become its derivative."""

    def projected_cross_entropy(
        self,
        x: Array,
        kernel: Array,
        bias: Array,
        targets: Array,
        derivatives: tuple[Array, Array, Array] | None,
        *,
        transposed: bool,
    ) -> float:
        """`cross_entropy` of `linear`, and the derivatives by x, kernel and bias, without an array of all logits.

        With `transposed` the kernel and its derivative are [V, I], as the table of an embedding.
        """
