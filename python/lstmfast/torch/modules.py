"""torch.nn.LSTM and torch.nn.LSTMCell computed by lstmfast, as classes to import in place of torch's.

Constructors, parameters and state_dict are torch's own; `serving` has the calls.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstmfast.cells import Cell
from lstmfast.torch import paths, regularised, serving
from lstmfast.torch.memory import PLAIN


class LSTM(nn.LSTM):
    """torch.nn.LSTM, computed by lstmfast: same constructor, parameters, state_dict, results and errors.

    Calls take four arguments more. lengths [batch], each from 0 to time_steps and in any order: rows end there, outputs
    past it are zero and final states are those of each row's own last step. resets [time_steps, batch], bool (with
    batch_first [batch, time_steps]): the state is zeroed before that step. return_cells: the result is (output,
    (h_n, c_n), cells) with the top layer's c at every step. matmul_precision: "highest", "high" or "medium"; None is
    what torch.get_float32_matmul_precision() says.
    strict: attribute; True makes calls that torch's own forward would have to serve an error.

    Keyword arguments of the constructor besides torch's, whose `dropout` between layers keeps its meaning:
    recurrent_dropout: of h before the recurrent product ("h") or of the candidate ("g", recurrent_dropout_of), with one
    mask per row and call, or one every step (recurrent_dropout_per_step). zoneout: the rate at which h and c keep their
    earlier values, or a pair of rates. weight_dropout: of weight_hh, with one mask per call. layer_norm: "products"
    (or True), of the products of x and of h, or "gates", of each gate's sum; parameters norm_gain_l0, cell_gain_l0,
    cell_shift_l0. learn_initial_state: initial_h_l0 and initial_c_l0 stand where no hx is given, and after resets.
    See `lstmfast.Cell`. In training, masks depend on a seed drawn from torch's generator, on the layer, the row and
    the time step. seed, first_step: arguments of the call that say another seed, and the time step of the first of x,
    to keep the masks over the parts of a longer sequence. The rows of a PackedSequence count from its longest.
    """

    strict = False
    _lstmfast = True  # serving.MARK
    _cell: Cell | None = None  # if it is not torch's; a class attribute for modules pickled before there was one

    def __init__(
        self,
        *args: Any,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_of: str = "h",
        recurrent_dropout_per_step: bool = False,
        zoneout: float | tuple[float, float] | None = None,
        weight_dropout: float = 0.0,
        layer_norm: str | bool | None = None,
        layer_norm_epsilon: float = 1e-5,
        layer_norm_carry: bool = False,
        learn_initial_state: bool = False,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {
            "recurrent_dropout": recurrent_dropout, "recurrent_dropout_of": recurrent_dropout_of,
            "recurrent_dropout_per_step": recurrent_dropout_per_step, "zoneout": zoneout,
            "weight_dropout": weight_dropout, "layer_norm": layer_norm, "layer_norm_epsilon": layer_norm_epsilon,
            "layer_norm_carry": layer_norm_carry, "learn_initial_state": learn_initial_state,
        }
        cell = Cell(forget_bias=0.0, **options)  # checks them, before there is a module
        super().__init__(*args, **kwargs)
        if cell.features:
            regularised.register(self, cell)

    def reset_parameters(self) -> None:
        """Draw the weights as torch does; gains become 1, shifts and initial states 0."""
        super().reset_parameters()
        if self._cell is not None:
            regularised.reset_parameters(self)

    def extra_repr(self) -> str:
        """The arguments that are not the default."""
        words = [super().extra_repr()]
        if self._cell is not None:
            words += [
                f"{field.name}={value!r}" for field in fields(Cell)
                if (value := getattr(self._cell, field.name)) != getattr(PLAIN, field.name)
            ]
        return ", ".join(words)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
        matmul_precision: str | None = None,
        seed: int | None = None,
        first_step: int = 0,
    ) -> Any:
        """Run the stack; see torch.nn.LSTM and the class."""
        if self._cell is not None:
            serve = regularised.lstm
            if torch.compiler.is_compiling() and not paths.is_exporting():
                serve = regularised.uncompiled()
            return serve(
                self, input, hx,
                lengths=lengths, resets=resets, return_cells=return_cells, matmul_precision=matmul_precision,
                seed=seed, first_step=first_step,
            )
        return serving.lstm(
            self, input, hx,
            lengths=lengths, resets=resets, return_cells=return_cells, matmul_precision=matmul_precision,
        )


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell, computed by lstmfast: same constructor, parameters, state_dict, results and errors.

    strict: attribute; True makes calls that torch's own forward would have to serve an error.
    """

    strict = False
    _lstmfast = True  # serving.MARK

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one step; see torch.nn.LSTMCell."""
        return serving.cell(self, input, hx)
