"""Weights that change under a compiled model are seen at its next call, by whatever way they change."""

import threading

import numpy as np
import pytest
import torch
from compiled import check, compiled, images, made, residual
from torch import nn

from zfkernels.ops.sources import Sources
from zfkernels.testing.weights import randomised


def layer(model):
    return model[1].conv2


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def load(model):
    model.load_state_dict(made("residual").state_dict() | {"1.conv2.weight": torch.randn(16, 16, 3, 3) / 10})


def load_assigned(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["1.conv2.weight"] *= 2
    model.load_state_dict(state, assign=True)


def swap_data(model):
    layer(model).weight.data = torch.randn(16, 16, 3, 3)


def swap_data_again_and_again(model):
    for _ in range(20):  # memory that was given back is taken anew
        layer(model).weight.data = torch.randn(16, 16, 3, 3)


def new_parameter(model):
    layer(model).weight = nn.Parameter(torch.randn(16, 16, 3, 3), requires_grad=False)


def in_place(model):
    with torch.no_grad():
        layer(model).weight[3, 2, 1, 1] += 5


def view(model):
    layer(model).weight.detach()[3].add_(1)


def statistics(model):
    model[1].bn1.running_mean += 1


def statistics_by_training(model):
    model.train()
    with torch.no_grad():
        model(images())
    model.eval()


def batch_norms_bias(model):
    with torch.no_grad():
        model[0][1].bias.add_(1)


def scaled_through_data(model):
    layer(model).weight.data.mul_(1.5)


def stepped_through_data(model):
    layer(model).weight.data.add_(torch.randn(16, 16, 3, 3) / 10)


def a_filter_through_data(model):
    layer(model).weight.data[5] += 1


def variance_through_data(model):
    model[2].bn2.running_var.data.mul_(1.01)


def by_numpy(model):
    layer(model).weight.detach().numpy()[...] *= -1


def bias_by_numpy(model):
    model[2].down[0].bias.detach().numpy()[...] += np.float32(0.5)


def other_dtype_and_back(model):
    model.double()
    model.float()
    layer(model).weight.data.mul_(2)


def channels_last(model):
    model.to(memory_format=torch.channels_last)


def head(model):
    model[3][2].weight.data.neg_()


CHANGES = (step, load, load_assigned, swap_data, swap_data_again_and_again, new_parameter, in_place, view, statistics)
CHANGES += (statistics_by_training, batch_norms_bias, scaled_through_data, stepped_through_data, variance_through_data)
CHANGES += (a_filter_through_data,)
CHANGES += (by_numpy, bias_by_numpy, other_dtype_and_back, channels_last, head)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_seen_at_the_next_call(change):
    model, x = made("residual"), images()
    call, watched = compiled(model)
    (before,) = check(model, call, x)
    for _ in range(2):
        change(model)
        (after,) = check(model, call, x)
        assert change is channels_last or not torch.allclose(before, after, rtol=1e-4)
        before = after
    assert len(watched.programs) == watched.graphs


def test_every_shape_that_was_met_sees_it():
    model = made("residual")
    call, _ = compiled(model)
    for _ in range(2):
        for n in (1, 2, 4):
            check(model, call, images(n))
        in_place(model)


def test_what_is_not_seen_and_how_it_is_told():
    """A single value, written through `.data`: no version, no address, and not among the words that are compared."""
    model, x = made("residual"), images()
    call, _ = compiled(model)
    (before,) = check(model, call, x)
    layer(model).weight.data.view(-1)[100] += 9
    with torch.no_grad():
        assert torch.equal(call(x), before)
    layer(model).weight[0, 0, 0, 0] *= 1  # any counted write tells
    check(model, call, x)


def test_without_looking_at_values():
    model, x = made("residual"), images()
    call, _ = compiled(model, options={"watch_values": False})
    (before,) = check(model, call, x)
    scaled_through_data(model)
    with torch.no_grad():
        assert torch.equal(call(x), before)
    in_place(model)
    check(model, call, x)


def test_a_copy_and_the_original():
    import copy

    model = made("residual")
    call, _ = compiled(model)
    check(model, call, images())
    other = copy.deepcopy(model)
    in_place(other)
    other_call = torch.compile(other, backend="eager")
    check(other, other_call, images())
    check(model, call, images())


def test_two_models_of_one_class():
    one, two = made("residual"), randomised(residual(), images(), seed=5)
    for model in (one, two, one):
        call, _ = compiled(model)
        check(model, call, images())


def test_one_that_changes_in_the_middle_of_a_call(monkeypatch):
    """As another thread may change it: no error, and the next call sees it."""
    model = made("residual")
    call, _ = compiled(model, dynamic=True)
    check(model, call, images(2))
    same = Sources.same
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(Sources, "same", lambda self, tensors: (same(self, tensors), in_place(model))[0])
        call(images(3))
    check(model, call, images(3))


def test_several_threads():
    model, x = made("residual"), images()
    call, _ = compiled(model)
    (expected,) = check(model, call, x)
    wrong = []

    def work():
        with torch.no_grad():
            wrong.extend(i for i in range(20) if not torch.equal(call(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert not wrong
