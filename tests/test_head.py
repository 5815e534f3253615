"""The vocabulary head on trained tokens only: the same loss, gradients and logs as on all of them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lib.evaluation import probability
from lib.model import head
from tests.tiny_qwen import byte_tokenizer, random_model, tiny_trainer

LABELS = torch.tensor([[-100, -100, 7, 8, -100], [-100, -100, -100, 9, 5]])


def test_columns_are_those_before_a_label():
    columns, following = head.kept(LABELS)
    assert columns.tolist() == [1, 2, 3]
    assert following.tolist() == [[7, 8, -100], [-100, 9, 5]]


def test_without_a_label_one_column_is_left():
    columns, following = head.kept(torch.full((2, 3), -100))
    assert (columns.tolist(), following.tolist()) == ([0], [[-100], [-100]])


@pytest.fixture
def batch():
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :5], labels[1, :3], labels[1, 8:] = -100, -100, -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_are_those_of_all_logits(tmp_path, batch, items):
    """Against the definition: the mean over labels, or their sum through a number of labels given."""
    trainer = tiny_trainer(tmp_path, [4, 6], lora={"r": 2}, kind=head.HeadTrainer, loss_type="nll")
    model = trainer.model.eval()
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    total = cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="sum")
    expected = total / (items or int((batch["labels"][:, 1:] != -100).sum()))
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    given = None if items is None else torch.tensor(items)
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True, num_items_in_batch=given)
    loss.backward()
    assert outputs.logits.shape[1] == len(head.kept(batch["labels"])[0]) < 8
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients and all(
        torch.allclose(p.grad, gradients[name], rtol=1e-4, atol=1e-7)
        for name, p in model.named_parameters()
        if p.grad is not None
    )


def test_a_training_logs_what_trl_logs_on_all_tokens(tmp_path):
    logs = {}
    for loss_type in ("nll", "chunked_nll"):
        trainer = tiny_trainer(tmp_path / loss_type, [3, 5, 7, 9] * 2, {"r": 2}, kind=head.HeadTrainer,
                               loss_type=loss_type)  # fmt: skip
        trainer.train()
        logs[loss_type] = [entry for entry in trainer.state.log_history if "loss" in entry]
    for ours, theirs in zip(logs["nll"], logs["chunked_nll"], strict=True):
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_held_out_losses_are_those_of_all_logits(batch):
    model = random_model(byte_tokenizer(), 1)
    rows = [(ids.tolist(), labels.tolist()) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    found = probability.perplexity(model, [*rows, (rows[0][0][:4], [-100, -100, -100, rows[0][0][3]])])
    with torch.inference_mode():
        sums = [
            cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(labels[1:]), reduction="sum").item()
            for ids, labels in [*rows, (rows[0][0][:4], [-100, -100, -100, rows[0][0][3]])]
        ]
    assert found["tokens"] == 10
    assert found["loss"] == pytest.approx(sum(sums) / 10, rel=1e-6)


def test_the_loss_of_liger_kernels_is_given_the_whole_batch(tmp_path, batch, monkeypatch):
    """It never writes logits out; its kernels need a GPU, so that only what it is given is seen here."""
    trainer, seen = tiny_trainer(tmp_path, [4, 6], lora={"r": 2}, kind=head.HeadTrainer, loss_type="nll"), []
    monkeypatch.setattr(head.SFTTrainer, "compute_loss", lambda self, model, inputs: seen.append(inputs.keys()))
    for trainer.args.use_liger_kernel in (False, True):
        trainer.compute_loss(trainer.model, dict(batch))
    assert seen[0] == {*batch, "logits_to_keep", "shift_labels"} and seen[1] == batch.keys()
