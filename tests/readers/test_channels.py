"""Names that people give to their losses, rates, norms and counters, and what they are taken for."""
# ruff: noqa: E501

import pytest

from trainwatch.cli import main
from trainwatch.foreign.channels import Naming, recognise

ROLES = {
    "step": "step global_step train/step iteration iters num_updates trainer/global_step time/total_timesteps _step",
    "epoch": "epoch Epoch train/epoch Test_Epoch",
    "batch": "batch Batch n_batch micro_step val_step",
    "planned": "total_steps max_steps",
    "rate": "lr learning_rate train/lr lr-AdamW/pg1 lr/pg0 optim0_lr0 train/learning_rate",
    "norm": "grad_norm total_grad_norm optim/total_grad_norm gnorm gradient_norm train/grad_norm global_grad_norm",
    "scale": "loss_scale amp/scale grad_scale",
    "loss": "loss total_loss train_loss val_loss loss_cls lm_loss Loss/G/loss CrossEntropyLoss SmoothL1 kl xent l_pix l_g_gan nll_loss BoxScaleLoss weight_loss kl_weighted",
    "measure": "accuracy ppl lm_loss_PPL mAP batch_size loss_weight loss_fn dynamic_loss_scale_from elapsed throughput kl_weight objective/kl_coef beta_kl lambda_kl lambda_mu_L1 focal_weight step_avg l_arm finetune_epoch",
    "ignored": "best_val_loss lm_loss__MIN best_acc val_acc_improved_from",
}


@pytest.mark.parametrize(("role", "names"), ROLES.items())
def test_roles_by_name(role, names):
    """One name by itself."""
    assert {name: recognise(name).role for name in names.split()} == dict.fromkeys(names.split(), role)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("loss", ""),
        ("train/loss", ""),
        ("val_loss", "validation"),
        ("dev avg loss", "validation"),
        ("eval/loss", "validation"),
        ("test/success_rate", "test"),
        ("valid ppl", "validation"),
        ("Metrics/fid", "validation"),
        ("train_loss_epoch", "train"),
        ("evaluation_time", "validation"),
        ("latest_loss", ""),
        ("invalid_tokens", ""),
    ],
)
def test_splits_by_name(name, split):
    """Whole words only: `latest` holds no test."""
    assert recognise(name).split == split


COMPANIES = {
    "a single loss is the total": (["lm loss", "lr"], {"lm loss": "loss", "lr": "lr/main"}),
    "a total and its parts": (
        ["loss_cls", "total_loss", "loss_box_reg"],
        {"total_loss": "loss", "loss_cls": "loss/cls", "loss_box_reg": "loss/box_reg"},
    ),
    "parts without a total": (["ObjLoss", "ClassLoss"], {"ObjLoss": "loss/Obj", "ClassLoss": "loss/Class"}),
    "an evaluation is named after its training": (
        ["lm loss", "moe loss", "val lm loss"],
        {"lm loss": "loss/lm", "moe loss": "loss/moe", "val lm loss": "validation:loss/lm"},
    ),
    "a second total is the mean of an epoch": (
        ["loss", "train avg loss"],
        {"loss": "loss", "train avg loss": "train:loss"},
    ),
    "the rest is kept as it was logged": (
        ["loss", "GPU Mem (MB)"],
        {"loss": "loss", "GPU Mem (MB)": "logged/GPU_Mem_MB"},
    ),
    "two names for one part": (
        ["a/kl", "b/kl", "a_kl"],
        {"a/kl": "loss/a_kl", "b/kl": "loss/b_kl", "a_kl": "loss/a_kl"},
    ),
}


@pytest.mark.parametrize("company", COMPANIES)
def test_names_in_company(company):
    """What a name is depends on the others; no two of them share a channel by accident."""
    names, expected = COMPANIES[company]
    naming = Naming()
    naming.learn((name, "") for name in names)
    found = naming.explained()
    if company.startswith("two names"):
        assert len(set(found.values())) == 3
    else:
        assert found == expected


def test_the_guess_is_shown(tmp_path, capsys):
    """`check --explain-channels` says what each name was taken for, and leaves standard output to the report."""
    path = tmp_path / "train.log"
    lines = "step 1 loss 2.5 dev_loss 2.75 speed 3\nstep 2 loss 2.25 dev_loss 2.5 speed 3\n"
    path.write_text("action_l2: 0.5\n" + lines)
    main(["check", str(path), "--explain-channels", "--format", "json"])
    said = capsys.readouterr()
    assert "read as console output" in said.err
    assert "dev_loss -> validation:loss" in said.err
    assert "speed -> logged/speed" in said.err
    assert "action_l2 -> none" in said.err  # a setting: no row came of it
    assert said.out.startswith("{")


def test_an_error_rate_is_no_loss():
    """Whatever part of the model it is of; DARTS calls its loss an objective."""
    assert recognise("cer_ctc").role == "measure"
    assert recognise("acc_focal").role == "measure"
    assert recognise("loss_ctc").role == "loss"
    assert recognise("train_obj").role == "loss"
    assert recognise("obj").role == "measure"
