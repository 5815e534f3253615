"""What the trainer minimizes: the file's loss, or the distance of the file from a teacher."""

import json
from types import SimpleNamespace

import families
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_qwen import cpu_trainer, tiny_config
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from lib.model.head import HeadTrainer
from lib.pipeline.files import ROOT
from lib.qat import int4, rounding
from lib.qat.distill import DistillTrainer

SHAPE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 32}
ROWS = [{"input_ids": list(range(5, 37)), "labels": [-100] * 8 + list(range(13, 37))} for _ in range(4)]


def model(seed=0):
    torch.manual_seed(seed)
    plain = Qwen3ForCausalLM(tiny_config(vocab_size=512, initializer_range=0.1, **SHAPE))
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(plain, adapter)


def types_of(trained):
    kinds = {name: "q4_0" if p.ndim == 2 else "f32" for name, p in rounding.base_parameters(trained).items()}
    return kinds | {"model.embed_tokens.weight": "q2_k"}  # a coarse head: one that is missed shows


def trainer(trained, folder, kind=HeadTrainer, **more):
    fields = {"loss_type": "nll", "max_steps": 2, "gradient_checkpointing": False, **more}
    return cpu_trainer(trained, families.qwen3(), Dataset.from_list(ROWS), folder, kind, **fields)


def batch_of(made):
    return dict(next(iter(made.get_train_dataloader())))


def loss_of_the_file(trained, batch):
    """Cross-entropy of the merged weights on the grid."""
    types = types_of(trained)
    rounding.prepare(trained, types)
    merged = Qwen3ForCausalLM(trained.config)
    merged.load_state_dict({site.name: site.saved().float() for site in rounding.sites(trained)}, strict=False)
    with torch.no_grad():
        logits = rounding.quantize_model(merged.eval(), types)(batch["input_ids"]).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:]).item()


def test_the_loss_of_training_is_that_of_the_file_and_not_with_trls_default(tmp_path):
    found = {}
    for kind in ("nll", "chunked_nll"):
        trained = model()
        made = trainer(trained, tmp_path, loss_type=kind)
        rounding.prepare(trained, types_of(trained))
        batch = batch_of(made)
        found[kind] = made.compute_loss(trained, dict(batch)).item()
        rounding.strip(trained)
    expected = loss_of_the_file(model(), batch)
    assert found["nll"] == pytest.approx(expected, rel=1e-5)
    assert abs(found["chunked_nll"] - expected) > 1e-3, "TRL reads the head's weight past the rounded one: see 04_qat"


def test_a_model_learns_nothing_from_itself_and_its_rounding_from_what_it_was(tmp_path):
    trained, teacher = model(), model()
    made = trainer(trained, tmp_path, DistillTrainer, teacher=teacher)
    loss = made.compute_loss(trained, batch_of(made))
    loss.backward()
    noise = max(p.grad.abs().max().item() for p in trained.parameters() if p.grad is not None)
    assert loss.item() == 0 and noise < 1e-6
    rounding.prepare(trained, types_of(trained))
    loss = made.compute_loss(trained, batch_of(made))
    loss.backward()
    assert loss.item() > 0
    assert all(p.grad.abs().max() > 100 * noise for n, p in trained.named_parameters() if "lora_" in n)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_distance_is_the_divergence_over_the_labelled_tokens(tmp_path):
    trained, teacher = model().eval(), model(1)
    made = trainer(trained, tmp_path, DistillTrainer, teacher=teacher)
    batch = batch_of(made)
    ours, theirs = (m(batch["input_ids"]).logits[:, 7:-1].log_softmax(-1) for m in (trained, teacher))
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    assert made.compute_loss(trained, dict(batch)).item() == pytest.approx(expected, rel=1e-5)
    halves = made.compute_loss(trained, dict(batch), num_items_in_batch=torch.tensor(2 * 2 * 24)).item()
    assert halves == pytest.approx(expected / 2, rel=1e-5)
    made.train()  # accumulates, clips and steps as SFTTrainer does


def test_the_usual_way_rounds_w_alone_and_leaves_no_trace():
    trained = model().eval()
    plain = trained(torch.arange(9)[None]).logits
    layer = trained.base_model.model.model.layers[0].mlp.up_proj
    covered = int4.prepare(trained)
    linear = sum(m.weight.numel() for n, m in trained.named_modules() if n.endswith("base_layer")) + 512 * 256
    assert covered == linear  # no A, no B
    x = torch.randn(3, 256)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    weight = layer.base_layer.weight
    expected = x.to(torch.bfloat16).float() @ int4.fake_quantize(weight).T + b(a(x)) * layer.scaling["default"]
    torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)
    assert (
        0.005
        < float((int4.fake_quantize(weight) - weight).square().mean().sqrt() / weight.square().mean().sqrt())
        < 0.2
    )
    int4.strip(trained)
    assert torch.equal(trained(torch.arange(9)[None]).logits, plain)
    assert int4.prepare(torch.nn.Sequential(torch.nn.Linear(40, 8))) == 0  # rows that do not divide are left alone


def test_chapter_4_computes_the_divergence_by_hand_also_where_a_softmax_is_zero(capsys):
    cells = json.loads((ROOT / "notebooks" / "04_qat.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "distill.divergence(" in "".join(cell["source"])]
    torch.manual_seed(0)
    exact = 60 * torch.randn(7, 500)  # of a large vocabulary some are never likely
    assert (exact.softmax(-1) == 0).any()
    given = {"probability": SimpleNamespace(next_token_logits=lambda *rows: exact + torch.randn(7, 500)),
             "machine": SimpleNamespace(release=lambda: None)}  # fmt: skip
    exec(source, given | {"torch": torch, "exact": exact, "plain": None, "told": None, "encoded": [None]})
    assert "nan" not in capsys.readouterr().out
