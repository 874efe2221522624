"""torch.nn.LSTM and torch.nn.LSTMCell computed by lstmfast, as classes to import in place of torch's.

Constructors, parameters and state_dict are torch's own; `serving` has the calls.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstmfast.torch import serving


class LSTM(nn.LSTM):
    """torch.nn.LSTM, computed by lstmfast: same constructor, parameters, state_dict, results and errors.

    Calls take four arguments more. lengths [batch], each from 0 to time_steps and in any order: rows end there, outputs
    past it are zero and final states are those of each row's own last step. resets [time_steps, batch], bool (with
    batch_first [batch, time_steps]): the state is zeroed before that step. return_cells: the result is (output,
    (h_n, c_n), cells) with the top layer's c at every step. matmul_precision: "highest", "high" or "medium"; None is
    what torch.get_float32_matmul_precision() says.
    strict: attribute; True makes calls that torch's own forward would have to serve an error.
    """

    strict = False
    _lstmfast = True  # serving.MARK

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
        matmul_precision: str | None = None,
    ) -> Any:
        """Run the stack; see torch.nn.LSTM and the class."""
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
