"""Which arithmetic a training uses, and why: the fastest that the machine has and that costs no accuracy."""

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the hardware that will train multiplies matrices in bfloat16, instead of emulating it.

    On a CPU that is AVX512-BF16 or AMX (x86), or BF16 of Armv8.6 and later.
    """
    if torch.accelerator.is_available() and not use_cpu:
        return is_torch_bf16_gpu_available()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def describe_precision(arguments: TrainingArguments) -> str:
    """Says in words in what a training computes, and why."""
    on_cpu = arguments.device.type == "cpu"
    hardware = "this CPU" if on_cpu else "this device"
    if arguments.bf16:
        said = f"bfloat16 autocast over float32 weights, which {hardware} multiplies fast"
    elif arguments.fp16:
        said = "float16 autocast over float32 weights, as asked for"
    else:
        said = "float32, " + ("as asked for" if has_fast_bf16(on_cpu) else f"as {hardware} has no fast bfloat16")
    return f"Training in {said}{'; compiled' if arguments.torch_compile else ''}."
