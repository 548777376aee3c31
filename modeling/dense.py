"""Dense layers by the fastest of PyTorch's exact kernels for the device, precision and shape at hand.

On a CPU, `nn.Linear` writes bias, product and what is computed of it one after the other, and gives float32 to MKL,
which on processors of others than Intel leaves half of their width unused. oneDNN does it in one pass over memory, on
all of them. What comes out is what the plain layers give, to rounding. Everything that is not a plain layer (an
adapter's, a quantised one, one with hooks), and everything that is not run but recorded, is called as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation, GELUTanh
from transformers.utils import output_capturing


_CPU = torch.cpu.get_capabilities()
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and _CPU.get("avx512_f", False)
_MKL_IS_SLOW = "Intel" not in _CPU.get("cpu_name", "")
# oneDNN's names for the ways to compute a GELU.
_GELUS = {GELUActivation: "none", GELUTanh: "tanh"}


def dense(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """layer(inputs), (..., D_in) -> (..., D_out)."""
    if _is_onednns(inputs) and _are_plain(inputs, layer):
        return _product(inputs, layer.weight, layer.bias)
    return layer(inputs)


def dense_and_gelu(layer: nn.Linear, activation: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """activation(layer(inputs)), (..., D_in) -> (..., D_out); for predictions in one pass, if that is a GELU."""
    algorithm = _GELUS.get(type(activation))
    if algorithm and not torch.is_grad_enabled() and _is_onednns(inputs) and _are_plain(inputs, layer, activation):
        return _pointwise(inputs, layer.weight, layer.bias, "gelu", algorithm)
    return activation(dense(layer, inputs))


def dense_together(layers: Sequence[nn.Linear], inputs: torch.Tensor) -> Sequence[torch.Tensor]:
    """[layer(inputs) for layer in layers], by one product of matrices where that gains more than joining them costs.

    In bfloat16 it gains by its size, in training by giving the gradient of `inputs` at once.
    """
    if not (_is_onednns(inputs) and _are_plain(inputs, *layers)):
        return [layer(inputs) for layer in layers]
    some_have_biases = len({layer.bias is None for layer in layers}) > 1
    if some_have_biases or (not torch.is_grad_enabled() and _precision(inputs) == torch.float32):
        return [_product(inputs, layer.weight, layer.bias) for layer in layers]
    weights = tuple(layer.weight for layer in layers)
    biases = tuple(layer.bias for layer in layers if layer.bias is not None)
    outputs = _product(inputs, torch.cat(weights), torch.cat(biases) if biases else None)
    return outputs.split([len(weight) for weight in weights], dim=-1)


def _product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """inputs @ weight.T + bias, on a CPU for which there is oneDNN."""
    precision = _precision(inputs)
    if precision == torch.float32 and not _MKL_IS_SLOW:
        return F.linear(inputs, weight, bias)
    if not torch.is_grad_enabled():
        return _pointwise(inputs, weight, bias)
    if precision == torch.float32 and not _CPU["amx_tile"]:
        return cast("torch.Tensor", _OneDNNProduct.apply(inputs, weight, bias))
    return F.linear(inputs, weight, bias)


def _pointwise(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str = "none", algorithm: str = ""
) -> torch.Tensor:
    """oneDNN's product and what follows it, which has no gradient and takes no notice of autocast."""
    precision = _precision(inputs)
    return torch.ops.mkldnn._linear_pointwise(
        inputs.to(precision), weight.to(precision), None if bias is None else bias.to(precision), then, [], algorithm
    )


class _OneDNNProduct(torch.autograd.Function):
    """A product in float32 whose gradients are oneDNN's products, too."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return _pointwise(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        gradient, rows = gradient.flatten(0, -2), inputs.flatten(0, -2)
        wanted = ctx.needs_input_grad
        with _float32_by_onednn():
            of_inputs = (gradient @ weight).view(inputs.shape) if wanted[0] else None
            of_weight = gradient.T @ rows if wanted[1] else None
        return of_inputs, of_weight, gradient.sum(0) if wanted[2] else None


_SWITCHED = threading.Lock()
_switches = 0
_before = ""


@contextmanager
def _float32_by_onednn() -> Iterator[None]:
    """PyTorch gives products in float32 to oneDNN instead of MKL; as it was, once the last thread is done.

    The switch reads "bf16", which oneDNN takes as a permission. It makes use of it with AMX alone: without, the result
    is that of float32, also in threads that meanwhile compute something else.
    """
    global _switches, _before
    precision = cast("Any", torch.backends.mkldnn).matmul
    with _SWITCHED:
        if not _switches:
            _before, precision.fp32_precision = precision.fp32_precision, "bf16"
        _switches += 1
    try:
        yield
    finally:
        with _SWITCHED:
            _switches -= 1
            if not _switches:
                precision.fp32_precision = _before


def is_watched(module: nn.Module) -> bool:
    """Whether a hook sees what goes in and comes out, other than those by which transformers collects outputs."""
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks or _has_any_global_hook():
        return True
    return any(hook.__module__ != output_capturing.__name__ for hook in module._forward_hooks.values())


def _precision(inputs: torch.Tensor) -> torch.dtype:
    """In which a dense layer computes on a CPU: autocast's or the inputs' own."""
    casts = torch.is_autocast_enabled("cpu") and inputs.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype("cpu") if casts else inputs.dtype


def _is_onednns(inputs: torch.Tensor) -> bool:
    """Whether oneDNN has these products, and calling it directly is noticed by nobody."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    known = inputs.device.type == "cpu" and _precision(inputs) in (torch.float32, torch.bfloat16)
    return _HAS_ONEDNN and known and not (recorded or transformed)


def _are_plain(inputs: torch.Tensor, *modules: nn.Module) -> bool:
    """Whether modules are what they were built as: dense layers and activations that nothing replaced or watches.

    Parameters of another precision than the inputs are an error of the layer's to tell, unless autocast casts both.
    """
    casts = torch.is_autocast_enabled("cpu")
    return all(
        type(module) in (nn.Linear, *_GELUS)
        and "forward" not in module.__dict__  # where accelerate's offloading stands
        and not is_watched(module)
        and all(
            type(parameter) is nn.Parameter and (casts or parameter.dtype == inputs.dtype)
            for parameter in module._parameters.values()
            if parameter is not None
        )
        for module in modules
    )
