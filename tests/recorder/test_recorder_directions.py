"""losses(over=) and param_hash(): over the parameters, exactly; and what cannot be had is withheld in one sentence."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainwatch.recorder.directions import OverParameters
from trainwatch.recorder.probes import param_hash

WEIGHTS = {"ce": 1.0, "reg": 0.3, "far": 2.0}


def model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def components(net, x):
    hidden = net[0](x)
    logits = net[2](net[1](hidden))
    return {
        "ce": nn.functional.cross_entropy(logits, torch.arange(len(x)) % 4),
        "reg": logits.square().mean(),
        "far": (hidden[:, 0] - 1).abs().mean(),  # depends on the first layer alone
    }


def brute_force(net, batches):
    """Norms and cosines of the gradients of the mean loss, one backward pass of a fresh graph for each component."""
    parameters, vectors = list(net.parameters()), {}
    for name, weight in WEIGHTS.items():
        loss = sum(weight * components(net, x)[name] for x in batches) / len(batches)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
        vectors[name] = torch.cat([gradient.flatten() for gradient in whole])
    norms = {name: float(vector.norm()) for name, vector in vectors.items()}
    row = {f"param_grad/{name}": norm for name, norm in norms.items()}
    row |= {f"param_share/{name}": norm / sum(norms.values()) for name, norm in norms.items()}
    pairs = [("ce", "reg"), ("ce", "far"), ("reg", "far")]
    return row | {f"param_cosine/{a}~{b}": float(vectors[a] @ vectors[b]) / (norms[a] * norms[b]) for a, b in pairs}


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_exactly_the_gradients_of_the_steps_loss(watch, steps, micro_batches):
    net = model(torch.float64)
    batches = [torch.randn(5, 6, dtype=torch.float64) for _ in range(micro_batches)]
    for x in batches:
        watch.losses(components(net, x), WEIGHTS, over=net.parameters()).backward()
    watch.step()
    for x in batches:
        watch.losses(components(net, x), WEIGHTS).backward()
    watch.step()
    watch.close()
    row, without = steps(watch.path)
    expected = brute_force(net, batches)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert not any(name.startswith("param_") for name in without)


def test_the_components_gradients_add_up_to_the_totals():
    net = model(torch.float64)
    parameters = list(net.parameters())
    terms = {name: WEIGHTS[name] * raw for name, raw in components(net, torch.randn(5, 6, dtype=torch.float64)).items()}
    over = OverParameters()
    over.add(terms, parameters, None, 1.0)
    summed = sum(over._vectors.values())
    sum(terms.values()).backward()
    total = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(summed, total, rtol=1e-12, atol=1e-14)


def test_the_loops_own_backward_is_bitwise_the_same(watch):
    x, plain, watched = torch.randn(5, 6), model(), model()
    parts = components(plain, x)
    (parts["ce"] + 0.3 * parts["reg"] + 2.0 * parts["far"]).backward()
    watch.losses(components(watched, x), WEIGHTS, over=watched.parameters()).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("where", ["at", "over"])
def test_hooks_are_for_the_loops_own_backward(watch, where):
    net, calls = model(), []
    x = torch.randn(5, 6)
    logits = net(x)
    (logits if where == "at" else net[0].weight).register_hook(lambda grad: calls.append(grad))
    asked = {"at": logits} if where == "at" else {"over": net.parameters()}
    watch.losses({"a": logits.square().mean(), "b": logits.mean()}, **asked).backward()
    assert len(calls) == 1


def test_a_scaler_keeps_small_gradients_alive(watch, steps):
    net = model(torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    watch.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), scaler)
    faint = 1e-7 * net(torch.ones(2, 6, dtype=torch.float16)).float().mean()
    watch.losses({"faint": faint}, over=net.parameters())
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    bias = torch.full((4,), 1e-7 / 4)
    assert row["param_grad/faint"] > float(bias.norm())


def test_what_depends_on_no_parameter_has_no_gradient_there(watch, steps):
    net = model()
    parts = components(net, torch.randn(5, 6)) | {"constant": torch.tensor(1.0), "host": 2.0}
    watch.losses(parts, over=net.parameters()).backward()
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert {name for name in row if name.startswith("param_grad/")} == {f"param_grad/{name}" for name in WEIGHTS}


@pytest.mark.parametrize("over", [[], "not tensors"])
def test_what_cannot_be_is_said_once_and_costs_nothing_else(watch, records, over):
    net = model()
    for _ in range(2):
        watch.losses(components(net, torch.randn(5, 6)), WEIGHTS, over=over).backward()
        watch.step()
    watch.close()
    rows = records(watch.path)
    assert sum(row["kind"] == "event" for row in rows) == 1
    assert all(math.isfinite(row["loss"]) for row in rows if row["kind"] == "step")


def test_a_gradient_that_is_not_finite_is_named(watch, steps):
    net = model()
    parts = components(net, torch.randn(5, 6))
    watch.losses(parts | {"far": parts["far"] * math.inf}, over=net.parameters())
    watch.step()
    watch.close()
    (row,) = steps(watch.path)
    assert {"param_grad/far", "param_share/far"} <= set(row["nonfinite"])
    assert row["param_grad/ce"] > 0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(0, 3), st.integers(0, 2**16))
def test_a_hash_sees_one_bit(dtype, which, seed):
    net, same = model(dtype, seed), model(dtype, seed)
    assert int(param_hash(net.parameters())) == int(param_hash(same.parameters()))
    with torch.no_grad():
        weight = list(same.parameters())[which].view(-1)
        weight[seed % weight.numel()] = torch.nextafter(weight[seed % weight.numel()], torch.tensor(9.0, dtype=dtype))
    changed = int(param_hash(same.parameters()))
    assert changed != int(param_hash(net.parameters()))
    assert 0 <= changed < 2**53


def test_a_hash_sees_which_weight_it_was():
    net, swapped = model(), model()
    with torch.no_grad():
        for first, second in ((0, 2), (2, 0)):
            swapped[second].bias[0], swapped[first].bias[0] = net[first].bias[0], net[second].bias[0]
    assert int(param_hash(net.parameters())) != int(param_hash(swapped.parameters()))


def test_the_hash_is_recorded_when_asked_for(watch, steps, records):
    watch.param_hash()
    net = model()
    watch.attach(net)
    watch.param_hash()
    watch.step()
    watch.step()
    watch.close()
    first, second = steps(watch.path)
    assert first["param_hash"] == int(param_hash(net.parameters()))
    assert isinstance(first["param_hash"], int)
    assert "param_hash" not in second
    assert sum("param_hash()" in row.get("message", "") for row in records(watch.path)) == 1
