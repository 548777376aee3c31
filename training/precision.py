"""Which arithmetic a training uses, and why: the fastest that the machine has and that costs no accuracy."""

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available


# Above so many tokens the attention matrices that are kept for the backward pass cost more memory than they save time.
_MOST_SPELLED_OUT_TOKENS = 600


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the hardware that will train multiplies matrices in bfloat16, instead of emulating it.

    On a CPU that is AVX512-BF16 or AMX (x86), or BF16 of Armv8.6 and later.
    """
    if torch.accelerator.is_available() and not use_cpu:
        return is_torch_bf16_gpu_available()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_attention(model: PreTrainedModel, arguments: TrainingArguments, tokens: int) -> str:
    """Sets the implementation of attention that trains fastest, and says in words what is used and why.

    PyTorch's fused attention on CPUs is slower in bfloat16 than attention spelled out: training steps took 1.8 times as
    long at 50 tokens, 1.15 times at 197 and 1.1 times at 577 (AMD Zen 5). In float32 it is faster.

    Args:
        model: the one that will be trained.
        arguments: decide on device and precision.
        tokens: how many an image has.
    """
    on_cpu = arguments.device.type == "cpu"
    spelled_out = on_cpu and arguments.bf16 and tokens <= _MOST_SPELLED_OUT_TOKENS
    model.set_attn_implementation("eager" if spelled_out else "sdpa")
    hardware = "this CPU" if on_cpu else "this device"
    if arguments.bf16:
        said = f"bfloat16 autocast over float32 weights, which {hardware} multiplies fast"
    elif arguments.fp16:
        said = "float16 autocast over float32 weights, as asked for"
    else:
        said = "float32, " + ("as asked for" if has_fast_bf16(on_cpu) else f"as {hardware} has no fast bfloat16")
    attention = "attention spelled out, which is faster in it here" if spelled_out else "fused attention"
    return f"Training in {said}; {attention}{'; compiled' if arguments.torch_compile else ''}."
