"""Weights that lie elsewhere, or otherwise, than a model's parameters say.

Of a model larger than the GPU, accelerate keeps some weights in main memory, and their parameters have no numbers.
Such a parameter is on torch's meta device between two forward passes. Whoever reads or rounds weights needs the tensor
that waits in main memory; what is written into it is what the next forward pass computes with.
"""

from accelerate.utils import has_offloaded_params


def in_parts(model):
    """Whether some of a model's weights wait in main memory for their turn on the GPU."""
    return any(parameter.is_meta for parameter in model.parameters())


def laid_out_once(model):
    """The model, whose 4-bit weights stay as they are laid out.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 lays them out anew in the first evaluation, for good, and computes with
    a kernel without gradients: what is trained afterwards before such a layer learns nothing, and nobody is told.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def parameters(model):
    """{name: tensor that holds the numbers of this parameter}, tied parameters once, as model.named_parameters()."""
    found, seen = {}, set()
    for place, module in model.named_modules():
        waiting = module._hf_hook.weights_map if has_offloaded_params(module) else {}
        for own, parameter in module.named_parameters(recurse=False):
            tensor = waiting[own] if parameter.is_meta and waiting else parameter
            if (key := tensor.data_ptr() if tensor.numel() and not tensor.is_meta else id(tensor)) not in seen:
                seen.add(key)
                found[f"{place}.{own}" if place else own] = tensor
    return found
