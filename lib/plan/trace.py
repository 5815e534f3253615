"""How much memory a training step needs beside the weights: counted on the step itself, run without data.

The real model class, the real PEFT layers and TRL's real loss run on fake tensors, which have shapes, dtypes and
storages but no bytes, while a dispatch mode adds up the storages that are alive. Every decoder layer adds the same
amount, so the step is run with two and with three layers and continued in a straight line to all of them.
"""

import contextlib
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface

from lib.model import shapes

BLOCK = 512  # bytes; the CUDA allocator rounds every tensor up to it
CHUNK = 256  # tokens whose logits TRL's chunked loss has in memory at once
FUSED = "counted_fused"  # name in transformers' registry of the stand-in for kernels that need no mask


class Living(TorchDispatchMode):
    """Adds up the storages that exist: `now` and `peak`, in bytes, of tensors made or returned while it is active."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, out)
        return out

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._seen[storage] = size
            weakref.finalize(storage, self._free, size)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _free(self, size):
        self.now -= size


class _Attention(torch.autograd.Function):
    """What a fused kernel (flash, memory-efficient) allocates and keeps: inputs, output, one float32 a row and head.

    Its backward sums the queries' gradient in float32, and key and value gradients for every query head.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, bias, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, *_ = ctx.saved_tensors
        summed = torch.empty_like(query, dtype=torch.float32)  # noqa: F841
        per_head = [torch.empty_like(query) for _ in range(2)] if key.shape[1] != query.shape[1] else []  # noqa: F841
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _sdpa(query, key, value, attn_mask=None, **_):
    """Stand-in for scaled_dot_product_attention; a boolean mask becomes numbers in the queries' dtype, as on a GPU."""
    return _Attention.apply(query, key, value, None if attn_mask is None else attn_mask.to(query.dtype))


def _flash(module, query, key, value, attention_mask, **_):
    return _Attention.apply(query, key, value, None).transpose(1, 2).contiguous(), None


AttentionInterface.register(FUSED, _flash)


def on_fake(model):
    """Give a model of the meta device fake CPU tensors; call it inside a FakeTensorMode."""
    model.to_empty(device="cpu")
    (model.get_base_model() if hasattr(model, "get_base_model") else model).tie_weights()
    return model


@contextlib.contextmanager
def fake(config, layers, dtype, lora, attention, checkpointing=False):
    """A model of `layers` layers with its adapter, on fake CPU tensors, and autocast as the trainer sets it up.

    Yields the PEFT model (or, without lora, the plain one). attention: as transformers names it.
    """
    known = {"eager": "eager", "sdpa": "sdpa"}.get(attention, FUSED)
    model = shapes.model(config, dtype, layers, attn_implementation=known)
    if lora:
        model = shapes.adapted(model, lora)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()
    real, autocast = F.scaled_dot_product_attention, contextlib.nullcontext()
    if dtype != torch.float32:
        autocast = torch.autocast("cpu", dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        on_fake(model)
        F.scaled_dot_product_attention = _sdpa
        try:
            with autocast:
                yield model
        finally:
            F.scaled_dot_product_attention = real


def chunk_loss(hidden, weight, labels):
    """(loss, correct tokens, entropy), summed over some tokens, as TRL's chunked_nll computes and logs them.

    hidden: (tokens, width). weight: (vocabulary, width), of the head. labels: (tokens,), -100 where there is no loss.
    """
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    log_p, counted = F.log_softmax(logits, dim=-1), labels != -100
    loss = F.nll_loss(log_p, labels, ignore_index=-100, reduction="sum")
    correct = ((logits.argmax(dim=-1) == labels) & counted).sum().float()
    return loss, correct, (-(log_p.exp() * log_p).sum(dim=-1) * counted).sum()


def losses(model, inputs, kind):
    """The training loss of a step on fake tensors. kind: chunked_nll or nll (TRL's), or distill (lib.qat.distill's)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = inner.base_model(**inputs, use_cache=False).last_hidden_state
    labels = torch.zeros(hidden.shape[0] * (hidden.shape[1] - 1), dtype=torch.long)
    head = inner.get_output_embeddings()
    if kind == "chunked_nll":
        rows = hidden[..., :-1, :].reshape(-1, hidden.shape[-1])
        rows = rows[torch.zeros(len(rows), dtype=torch.long)]
        chunks = [slice(start, start + CHUNK) for start in (0, CHUNK)]  # more chunks need no more memory
        return sum(
            torch.utils.checkpoint.checkpoint(chunk_loss, rows[chunk], head.weight, labels[chunk], use_reentrant=False)[
                0
            ]
            for chunk in chunks
        )
    logits = head(hidden)
    if kind == "nll":
        shown = logits.float()  # what accelerate hands out of a mixed-precision forward pass
        upcast = logits.float()[:, :-1].reshape(len(labels), -1)
        return F.cross_entropy(upcast, labels) + 0 * shown.detach()[0, 0, 0]
    teacher = torch.empty_like(logits)
    kept = torch.zeros(len(labels), dtype=torch.long)
    ours, theirs = (t[:, :-1].reshape(len(labels), -1)[kept].float().log_softmax(-1) for t in (logits.float(), teacher))
    return F.kl_div(ours, theirs, log_target=True, reduction="sum")


def inputs(rows, length, attention, packed):
    """What the collator hands over: rows x length tokens, in one single row where documents are packed.

    Attention that is not flash gets a mask of all pairs of tokens: there it is what keeps packed documents, or padding,
    apart.
    """
    shape = (1, rows * length) if packed else (rows, length)
    found = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    found["position_ids"] = torch.zeros(shape, dtype=torch.long)
    if attention in ("eager", "sdpa"):
        found["attention_mask"] = torch.ones(shape[0], 1, shape[1], shape[1], dtype=torch.bool)
    return found


def step(model, batch, kind, backward=True):
    """Peak bytes of one step above what the parameters and their gradients hold.

    Gradients of an earlier micro-batch are there already, as they are with gradient accumulation.
    """
    for p in model.parameters():
        if p.requires_grad and backward:
            p.grad = torch.empty_like(p)
    living = Living()
    for tensor in (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)):
        living.add(tensor)
    before = living.peak = living.now
    with living, torch.set_grad_enabled(backward):
        loss = losses(model, batch, kind)
        if backward:
            loss.backward()
    return living.peak - before


def peak(config, dtype, lora, attention, *, rows, length, packed, kind, checkpointing, backward=True):
    """Peak bytes above weights and gradients at the full depth of config, from two and three layers."""
    found = []
    for layers in (2, 3):
        with fake(config, layers, dtype, lora, attention, checkpointing) as model:
            found.append(step(model, inputs(rows, length, attention, packed), kind, backward))
    return found[1] + (config.num_hidden_layers - 3) * max(0, found[1] - found[0])
