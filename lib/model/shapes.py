"""Architectures: the sizes of the recipes' base models, and models of those sizes without any data.

A plan needs shapes and no weights, so nothing is downloaded: the published configuration values stand in
pipeline/architectures.py. A model on torch's meta device has every parameter's shape and none of its numbers:
parameters are counted, not estimated.
"""

import copy
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lib.pipeline import architectures
from lib.pipeline.files import rooted


def config(base, twin=None):
    """The transformers config of model.base: a local folder's, the twin's, or the published one of its hub id.

    Raises ValueError with the nearest known name, and what to do, for a model that is none of these.
    """
    if twin is not None:
        from lib.model import families  # loads the model classes, which other bases do not need

        return families.config(twin)
    if (Path(rooted(base)) / "config.json").exists():
        return AutoConfig.from_pretrained(rooted(base), trust_remote_code=False)
    return AutoConfig.for_model(**architectures.published(base))


def model(config, dtype=torch.bfloat16, layers=None, **options):
    """A causal language model of that shape on the meta device. layers: so many of its layers, fewer or more."""
    config = copy.deepcopy(config)
    if layers is not None:
        setattr(config, "n_layer" if config.model_type == "gpt2" else "num_hidden_layers", layers)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[n % len(config.layer_types)] for n in range(layers)]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **options)


def matrices(model):
    """{name of the parameter: its module}, of what bitsandbytes stores in 4 bits: linear layers, but the head."""
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, kinds) and m is not head}


def parts(model):
    """{"embedding", "head", "matrices", "experts", "other": parameters} of a model; tied parameters once.

    head is 0 where it is tied to the embedding. matrices: weights of linear layers inside the decoder layers. experts:
    the stacked weights of a mixture. other: norms, biases, routers.
    """
    found = Counter(embedding=0, head=0, matrices=0, experts=0, other=0)
    linear = {id(module.weight) for module in matrices(model).values()}
    embedding, head = (get().weight for get in (model.get_input_embeddings, model.get_output_embeddings))
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            part = "embedding"
        elif parameter is head:
            part = "head"
        elif id(parameter) in linear:
            part = "matrices"
        else:
            part = "experts" if ".experts." in name and parameter.dim() == 3 else "other"
        found[part] += parameter.numel()
    return dict(found)


def experts(config):
    """Number of experts in a layer of a mixture; 0 for a dense model."""
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0


def active(config, parts):
    """Parameters that one token passes through: of a mixture's experts only those that its router picks."""
    looked_up = parts["embedding"] if parts["head"] else 0  # a tied embedding is the head's product as well
    return sum(parts.values()) - idle(config, parts["experts"]) - looked_up


def idle(config, parameters):
    """How many of so many parameters of experts, of the base or of an adapter, one token does not pass through."""
    number = experts(config) or 1
    return parameters * (number - (getattr(config, "num_experts_per_tok", None) or number)) // number


def adapted(model, lora):
    """The model with a LoRA adapter, still on the meta device. Adapter parameters are float32, as PEFT makes them."""
    return get_peft_model(model, LoraConfig(**lora))
