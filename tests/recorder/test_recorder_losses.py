"""losses(): the sum is the loop's own, and what is recorded of the components is what explicit arithmetic gives."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import trainwatch
from trainwatch.recorder.losses import Losses, total, weighted

WEIGHTS = {"ce": 1.0, "reg": 0.3, "far": 2.0}


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def components(logits, target):
    return {
        "ce": nn.functional.cross_entropy(logits, target),
        "reg": logits.square().mean(),
        "far": (logits[:, 0] - 2 * logits[:, 1] - 1).abs().mean(),
    }


def batch(size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator)


def expected(logits, target, weights):
    """Norms, shares and cosines by explicit gradients."""
    parts = components(logits, target)
    grads = {
        c: torch.autograd.grad(w * parts[c], logits, retain_graph=True)[0].flatten().double()
        for c, w in weights.items()
    }
    norms = {c: float(g.norm()) for c, g in grads.items()}
    row = {f"component_grad/{c}": n for c, n in norms.items()}
    row |= {f"grad_share/{c}": n / sum(norms.values()) for c, n in norms.items()}
    pairs = itertools.combinations(grads, 2)
    return row | {f"grad_cosine/{a}~{b}": float(grads[a] @ grads[b]) / (norms[a] * norms[b]) for a, b in pairs}


def test_the_sum_and_its_gradients_are_bitwise_the_plain_ones(watch):
    x, target = batch()
    plain, watched = model(), model()
    logits = plain(x)
    parts = components(logits, target)
    reference = parts["ce"] + 0.3 * parts["reg"] + 2.0 * parts["far"]
    reference.backward()
    logits = watched(x)
    summed = watch.losses(components(logits, target), WEIGHTS, at=logits)
    summed.backward()
    assert torch.equal(summed, reference)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_norms_shares_and_cosines(watch, steps):
    x, target = batch()
    logits = model()(x)
    parts = components(logits, target)
    watch.losses(parts, WEIGHTS, at=logits)
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    for name, value in expected(logits, target, WEIGHTS).items():
        assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert row["loss/reg"] == pytest.approx(parts["reg"].item())
    assert row["weight/reg"] == 0.3


def test_micro_batches_are_the_batch_laid_end_to_end(watch, steps):
    x, target = batch(32)
    net = model()
    for part in range(4):
        logits = net(x[part::4])
        watch.losses(components(logits, target[part::4]), WEIGHTS, at=logits)
    watch.step()
    logits = net(x)
    whole = watch.losses(components(logits, target), WEIGHTS, at=logits)
    watch.step()
    watch.close()
    many, one = steps(watch.path)
    assert many["loss"] == pytest.approx(whole.item(), rel=1e-5)
    names = [name for name in one if name.startswith(("loss", "component_grad", "grad_"))]
    assert len(names) == 4 + 3 + 3 + 3
    for name in names:
        assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7), name


def test_micro_batches_that_differ_in_size_have_their_shares(watch, steps):
    x, target = batch(5)
    net = model()
    for rows in (slice(0, 4), slice(4, 5), slice(0, 0)):
        logits = net(x[rows] if rows.stop else x[:1])  # the last is of a rank that has no sample left
        share = (rows.stop - rows.start) / 5
        parts = components(logits, target[rows] if rows.stop else target[:1])
        watch.losses(parts, WEIGHTS, at=logits, over=net.parameters(), share=share)
    watch.step()
    logits = net(x)
    watch.losses(components(logits, target), WEIGHTS, at=logits, over=net.parameters())
    watch.step()
    watch.close()
    many, one = steps(watch.path)
    names = [name for name in one if name.startswith(("loss", "component_grad", "grad_", "param_"))]
    assert len(names) == 4 + 3 * 6
    for name in names:
        assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_what_does_not_depend_on_at_is_said_once(watch, records):
    x, target = batch()
    net = model()
    for _ in range(2):
        logits = net(x)
        parts = components(logits, target) | {"decay": sum(p.square().sum() for p in net.parameters()), "host": 0.5}
        watch.losses(parts, at=logits).backward()
        watch.step()
    watch.close()
    rows = records(watch.path)
    assert [row["outside_at"] for row in rows if "outside_at" in row] == [["decay", "host"]]
    step = rows[-2]
    assert "grad_share/ce" in step
    assert "grad_share/decay" not in step
    assert step["loss/host"] == 0.5


def test_what_was_detached_has_no_gradient_anywhere(watch, steps):
    x, target = batch()
    logits = model()(x)
    parts = components(logits, target)
    watch.losses(parts | {"far": parts["far"].detach()}, at=logits).backward()
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert (row["component_grad/far"], row["grad_share/far"]) == (0.0, 0.0)
    assert row["grad_share/ce"] > 0
    assert "outside_at" not in row


def test_weight_zero_keeps_a_nan_out_and_shows_it(watch, steps):
    x, target = batch()
    logits = model()(x)
    parts = components(logits, target)
    parts["far"] = parts["far"] * math.nan
    summed = watch.losses(parts, {"ce": 1.0, "reg": 0.0, "far": 0}, at=logits)
    assert torch.equal(summed, parts["ce"])
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert row["nonfinite"] == {"loss/far": "nan"}
    assert (row["weight/far"], row["grad_share/ce"]) == (0, 1.0)
    assert "component_grad/reg" not in row


def test_a_nan_gradient_blames_its_own_component_only(watch, steps):
    x, target = batch()
    logits = model()(x)
    parts = components(logits, target)
    parts["far"] = (logits * math.nan).mean()
    watch.losses(parts, at=logits)
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert row["nonfinite"] == dict.fromkeys(("loss/far", "loss", "component_grad/far", "grad_share/far"), "nan")
    assert "grad_share/ce" not in row
    assert row["component_grad/ce"] > 0
    assert "grad_cosine/ce~reg" in row


def test_a_component_without_gradient_has_share_zero_and_no_cosine(watch, steps):
    x, target = batch()
    logits = model()(x)
    parts = components(logits, target)
    watch.losses({"ce": parts["ce"], "clamped": (logits * 1e6).square().mean().clamp(max=1.0)}, at=logits)
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert (row["grad_share/clamped"], row["grad_share/ce"]) == (0, 1)
    assert "grad_cosine/ce~clamped" not in row


@pytest.mark.parametrize("how", ["detached", "no tensor"])
def test_shares_are_withheld_with_one_sentence(watch, records, how):
    x, target = batch()
    for _ in range(2):
        logits = model()(x)
        at = {"detached": logits.detach(), "no tensor": 3}[how]
        watch.losses(components(logits, target), WEIGHTS, at=at)
        watch.step()
    watch.close()
    rows = records(watch.path)
    assert sum("withheld" in row.get("message", "") for row in rows) == 1
    assert not any(name.startswith("grad_share") for row in rows for name in row)
    assert rows[-2]["loss/ce"] > 0


def test_the_loops_own_mistakes_surface(watch):
    with pytest.raises(RuntimeError, match="must match the size"):
        watch.losses({"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(3)})


def test_a_broken_probe_leaves_the_sum_right(watch, records, monkeypatch):
    from trainwatch.recorder import directions

    calls = []
    monkeypatch.setattr(directions, "gram", lambda *_: calls.append(1) or 1 / 0)
    x, target = batch()
    for _ in range(3):
        logits = model()(x)
        parts = components(logits, target)
        assert torch.equal(watch.losses(parts, at=logits), parts["ce"] + parts["reg"] + parts["far"])
        watch.step()
    watch.close()
    assert len(calls) == 1
    assert [row["type"] for row in records(watch.path) if row["kind"] == "event"] == ["ZeroDivisionError"]


def test_in_place_changes_after_the_call_do_not_matter(watch, steps):
    value, loss = torch.tensor(1.0), torch.tensor(2.0)
    watch.log({"schedule/x": value})
    watch.losses({"a": loss})
    value.fill_(9.0)
    loss.fill_(9.0)
    watch.step()
    value.fill_(7.0)
    watch.close()
    (row,) = steps(watch.path)
    assert (row["schedule/x"], row["loss/a"]) == (1.0, 2.0)


def test_tensors_of_every_kind(watch, steps, records):
    big = 2**53 - 1
    watch.log(
        {
            "param_hash": torch.tensor(big),
            "a": torch.tensor([0.5], dtype=torch.bfloat16),
            "b": torch.tensor(0.1, dtype=torch.float64),
            "c": torch.tensor(True),
            "d": torch.zeros(3),
            "e": nn.Parameter(torch.tensor(4.0)),
            "f": torch.tensor(1j),
        }
    )
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert (row["param_hash"], row["a"], row["b"], row["c"], row["e"]) == (big, 0.5, 0.1, 1, 4.0)
    assert "d" not in row
    assert "f" not in row
    assert sum("no number" in row.get("message", "") for row in records(watch.path)) == 2


def test_an_evaluation_does_not_feed_the_training_row(watch, steps):
    watch.losses({"a": torch.tensor(1.0)})
    with watch.phase("eval"):
        assert watch.losses({"a": torch.tensor(5.0)}) == 5.0
    watch.step()
    watch.evaluate(1, "val", {"loss": torch.tensor(5.0)})
    watch.close()
    assert steps(watch.path)[0]["loss/a"] == 1.0


def test_all_weights_zero_can_still_be_differentiated():
    components = {"a": torch.tensor(math.nan, requires_grad=True)}
    zero = total(weighted(components, {"a": 0}), components)
    zero.backward()
    assert zero == 0
    assert components["a"].grad is None


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(-10, 10, width=32), min_size=1), min_size=1, max_size=5)
)
def test_means_over_micro_batches(micro_batches):
    """Whatever components each micro-batch has, host or device, the row has each one's mean."""
    from trainwatch.recorder.rows import unload
    from trainwatch.recorder.transfer import Ring

    for convert in (float, torch.tensor):
        taken, fields, parts = Losses(), {}, []
        for values in micro_batches:
            taken.add({name: convert(value) for name, value in values.items()}, convert(1.0), 1.0)
        taken.collect(fields, parts)
        for cargo in Ring().ship(parts):
            unload(cargo, fields)
        for name in {name for values in micro_batches for name in values}:
            values = [values[name] for values in micro_batches if name in values]
            assert fields[f"loss/{name}"] == pytest.approx(sum(values) / len(values), rel=1e-5, abs=1e-5)


def test_disabled_still_sums(tmp_path):
    watch = trainwatch.Recorder(tmp_path / "run.jsonl", enabled=False)
    logits = model()(batch()[0])
    parts = components(logits, batch()[1])
    assert torch.equal(watch.losses(parts, at=logits), parts["ce"] + parts["reg"] + parts["far"])
