"""The usual quantization-aware training, to measure ours against: torchao's int4 grid on W alone, fq(W) x + BA x.

Its grid (16 even steps from the group's smallest to its largest weight, with a float minimum) is not a GGUF file's, and
a merge moves W + BA off it. Nothing here is exported as trained; chapter 4 shows it on its own grid as well.
"""

import torch
from torchao.quantization import Int4WeightOnlyConfig, quantize_
from torchao.quantization.qat import QATConfig

GROUP = 32  # weights that share a scale, the finest that torchao's int4 offers and the block of q4_0


def prepare(model):
    """Fake-quantize every nn.Linear but the adapters' A and B; returns the number of weights covered.

    model: a LoRA model or a plain one. Linears whose rows do not divide by GROUP are left alone.
    """
    covered = [m.weight.numel() for name, m in model.named_modules() if _takes(m, name)]
    quantize_(model, QATConfig(Int4WeightOnlyConfig(group_size=GROUP), step="prepare"), filter_fn=_takes)
    return sum(covered)


def strip(model):
    """Undo `prepare`. merge_and_unload alone would leave the fake quantization inside the merged model."""
    quantize_(model, QATConfig(step="convert"))


def fake_quantize(weight):
    """What `prepare` computes with instead of a weight (rows, cols): float32 values of torchao's int4 grid."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.detach().float()
    layer = torch.nn.Sequential(layer)
    prepare(layer)
    with torch.no_grad():
        return layer[0].weight_fake_quantizer(layer[0].weight).float()


@torch.no_grad()
def quantize_model(model):
    """Round a plain model's linear layers to torchao's int4 grid, in place: what this training is meant for."""
    for name, module in model.named_modules():
        if _takes(module, name):
            module.weight.copy_(fake_quantize(module.weight))
    return model


def _takes(module, name):
    return isinstance(module, torch.nn.Linear) and ".lora_" not in name and module.in_features % GROUP == 0
