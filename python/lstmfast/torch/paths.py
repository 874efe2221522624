"""Which implementation serves a call, and why.

    kernels     CPU tensors of float32 and float64, and lower precisions through float32
    cuda        CUDA tensors of float32 and bfloat16, if lstmfast has kernels for them; LSTM only
    operators   either of them under torch.compile, torch.export of lstmfast's own modules, or torch.func
    composite   torch operations, for forward-mode derivatives or gradients of cell states
    torch       torch's own forward: everything else
Looks at tensors and at the modes and transforms around the call; refuses to interpret arguments (see `arguments`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from lstmfast.torch import arguments, on_cuda

_forward_ad = torch.autograd.forward_ad
_functorch = torch._C._functorch
is_wrapped = _functorch.is_functorch_wrapped_tensor  # by a torch.func transform, which is per thread
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # new in torch 2.7


class Path(NamedTuple):
    """One of "kernels", "cuda", "operators", "composite", "torch", and the reason in a few words."""

    name: str
    why: str
    is_watched: bool = False  # by a mode that expects torch's operations


def choose(module: nn.Module, tensors: tuple[Tensor | None, ...], *, is_ours: bool, wants_cells: bool) -> Path:
    """The path of a call with these tensors, the input first. is_ours: the module was made by lstmfast.torch."""
    present = [t for t in tensors if t is not None]
    if not is_ours and (is_exporting() or torch.onnx.is_in_onnx_export()):
        return Path("torch", "what is exported holds torch's own operations, as before the conversion")
    name, why = "kernels", "CPU tensors of a dtype that the kernels have"
    if any(on_cuda.lies_on_device(t) for t in present):
        if not isinstance(module, nn.LSTM):
            return Path("torch", "single steps on CUDA are left to torch's fused cell")
        refusal = on_cuda.refusal(
            present, module.hidden_size, module.proj_size, arguments.result_dtypes(module, present[0], None, None)[0]
        )
        if refusal is not None:
            return Path("torch", refusal)
        name, why = "cuda", "CUDA tensors of a dtype that the kernels have"
    elif torch.compiler.is_compiling() and any(t.dtype not in arguments.COMPUTED for t in present):
        return Path("torch", "dtypes other than float32 and float64 are not traced")
    if torch.compiler.is_compiling():
        return Path("operators", "torch.compile or torch.export traces it")
    if torch.jit.is_tracing():
        return Path("torch", "torch.jit traces torch's own operations")
    if watcher := _watcher():
        return Path("torch", f"{watcher} sees every operation of torch", is_watched=True)
    for tensor in present if name == "kernels" else ():
        if tensor.device.type != "cpu":
            return Path("torch", f"there is a tensor on {tensor.device}, and there are no kernels for that device")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return Path("torch", "there is a tensor that is sparse or quantized")
        if tensor.dtype not in arguments.COMPUTED and tensor.dtype not in arguments.ROUNDED:
            return Path("torch", f"there is a tensor of {tensor.dtype}")
    transforms = _functorch.get_interpreter_stack()
    if _forward_ad._current_level >= 0 or (
        transforms and any(t.key() == _functorch.TransformType.Jvp for t in transforms)
    ):
        return Path("composite", "forward-mode derivatives are taken")
    if wants_cells and may_have_gradients(tensors):
        return Path("composite", "gradients may come back through the cell states")
    if transforms:
        return Path("operators", "torch.func transforms it")
    if any(map(is_wrapped, present)):
        return Path("torch", "a tensor of a torch.func transform in another thread is involved")
    for tensor in present:
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return Path("torch", f"a tensor subclass ({type(tensor).__name__}) is involved")
    return Path(name, why)


def may_have_gradients(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd records a call with these tensors."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_transformed() -> bool:
    """Whether a mode or transform around the call changes or observes torch's operations."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or _forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or arguments.autocasts()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def is_under_func() -> bool:
    """Whether torch.func transforms the call outside torch.compile."""
    return not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None


def _watcher() -> str | None:
    """A mode that expects to see torch's operations: FakeTensorMode, a counter, make_fx; not a default device."""
    if torch._C._len_torch_dispatch_stack() > 0:
        top = torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)
        return type(top).__name__
    for k in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(k)
        if not isinstance(mode, DeviceContext):
            return type(mode).__name__
    return None
