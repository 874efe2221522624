"""LSTMs that torch.ao quantized dynamically: their weights are read as float32, and `convert` leaves them alone.

torch.ao also rounds inputs and states to 7 bits at run time, so outputs agree to that error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from support import tolerances

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
if not {"fbgemm", "x86", "qnnpack", "onednn"} & set(torch.backends.quantized.supported_engines):
    pytest.skip("this PyTorch has no engine for quantized modules", allow_module_level=True)

import lstmfast.torch  # noqa: E402  it imports torch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao says that it is deprecated

INPUT_SIZE, HIDDEN_SIZE = 24, 32


def quantized(module: Any, dtype: Any = torch.qint8) -> Any:
    """A module as quantize_dynamic makes it of a float one."""
    nn = torch.nn
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {nn.LSTM, nn.LSTMCell}, dtype=dtype)[0]


def lstm(**options: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.LSTM(INPUT_SIZE, HIDDEN_SIZE, **options)


def share(actual: Any, expected: Any) -> float:
    """The norm of the difference as a share of that of what is expected."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"batch_first": True}], ids=str)
def test_a_quantized_lstm_is_a_layer_within_the_error_of_8_bits(
    options: dict[str, Any], dtype: Any, rng: np.random.Generator
) -> None:
    module = quantized(lstm(**options), dtype)
    layer = lf.layouts.from_quantized(module).to_layer(batch_first="batch_first" in options)
    x = rng.standard_normal((8, 3, INPUT_SIZE), dtype=np.float32)
    bound = options.get("num_layers", 1) * tolerances.QUANTIZED_LAYER
    assert share(layer(x)[0], module(torch.from_numpy(x))[0].detach().numpy()) < bound


def test_a_quantized_cell_is_a_layer_within_the_error_of_8_bits(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    module = quantized(torch.nn.LSTMCell(INPUT_SIZE, HIDDEN_SIZE))
    x = rng.standard_normal((1, 3, INPUT_SIZE), dtype=np.float32)
    h = lf.layouts.from_quantized(module).to_layer()(x)[0]
    assert share(h[0], module(torch.from_numpy(x[0]))[0].detach().numpy()) < tolerances.QUANTIZED_LAYER


def test_weights_are_those_that_torch_dequantizes() -> None:
    module = quantized(lstm(num_layers=2, bidirectional=True))
    read = lf.layouts.to_arrays(lf.layouts.from_quantized(module), "pytorch")
    theirs = {name: tensor.dequantize().numpy() for name, tensor in module.get_weight().items()}
    theirs |= {name: tensor.detach().numpy() for name, tensor in module.get_bias().items()}
    assert read.keys() == theirs.keys()
    assert all(np.array_equal(read[name], values) for name, values in theirs.items())


def test_what_the_weights_leave_out_is_said() -> None:
    said = " ".join(lf.layouts.from_quantized(quantized(lstm(batch_first=True))).assumptions)
    assert "dequantized to float32" in said
    assert "batch_first=True" in said


OTHERS = {
    "a float LSTM": lstm,
    "a state_dict": lambda: lstm().state_dict(),
    "a packed state_dict": lambda: quantized(lstm()).state_dict(),
    "a quantized GRU": lambda: torch.ao.nn.quantized.dynamic.GRU(3, 4),
    "nothing": lambda: None,
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_objects_are_refused_with_what_to_pass(other: str) -> None:
    with pytest.raises(TypeError, match=r"module must be an LSTM or LSTMCell of torch\.ao.*from_arrays"):
        lf.layouts.from_quantized(OTHERS[other]())


def test_a_file_of_packed_weights_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(quantized(lstm()).state_dict(), tmp_path / "packed.pt")
    with pytest.raises(ValueError, match=r"packed.*layouts\.from_quantized"):
        lf.layouts.load(tmp_path / "packed.pt")


def test_a_file_of_quantized_tensors_is_read_as_float32(tmp_path: Path) -> None:
    module = quantized(lstm())
    torch.save({**module.get_weight(), **module.get_bias()}, tmp_path / "tensors.pt")
    read = lf.layouts.load(tmp_path / "tensors.pt")
    [[expected]] = lf.layouts.from_quantized(module).layers
    [[cell]] = read.layers
    assert np.array_equal(cell.kernel, expected.kernel)


def test_convert_leaves_a_quantized_lstm_as_it_is() -> None:
    model = torch.nn.Sequential(quantized(lstm()))
    before = dict(model[0].__dict__)
    assert lstmfast.torch.convert(model) == 0
    assert model[0].__dict__ == before


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.LSTMCell])
def test_explain_says_why_a_quantized_module_is_left_alone(kind: Any) -> None:
    said = lstmfast.torch.explain(quantized(kind(INPUT_SIZE, HIDDEN_SIZE)), torch.zeros(2, INPUT_SIZE))
    assert said.startswith("torch's own forward: this is torch.ao's quantized")
    assert "layouts.from_quantized" in said
