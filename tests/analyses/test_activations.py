"""The strongest activations of each map against a naive search, and the rules for equal ones."""

import pytest
import torch
from torch import nn

from zfkernels import Deconvnet, ZFNet, top_activations
from zfkernels.analyses import activations
from zfkernels.analyses.activations import TopActivations, merge


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(5, 4, 2), nn.ReLU())


def images(count, seed=1):
    return torch.randn(count, 3, 23, 31, generator=torch.Generator().manual_seed(seed))


def naive(maps, k):
    """[channel][rank] -> (value, image, row, column), by sorting every image's first largest place."""
    count, channels, height, width = maps.shape
    ranks = []
    for channel in range(channels):
        found = []
        for image in range(count):
            best = (-float("inf"), 0, 0)
            for row in range(height):
                for column in range(width):
                    value = maps[image, channel, row, column].item()
                    if value > best[0]:
                        best = (value, row, column)
            found.append((best[0], image, best[1], best[2]))
        ranks.append(sorted(found, key=lambda f: (-f[0], f[1]))[:k])
    return ranks


def as_ranks(top):
    return [
        [
            (top.values[c, r].item(), top.images[c, r].item(), *top.positions[c, r].tolist())
            for r in range(top.values.shape[1])
        ]
        for c in range(top.values.shape[0])
    ]


@pytest.mark.parametrize("layer", ["0", "2", "3"])
@pytest.mark.parametrize("batch", [1, 4, 13])
def test_equals_a_naive_search_whatever_the_batches(layer, batch):
    model, x = net(), images(13)
    top = top_activations(model, x.split(batch), layer, k=4)
    assert as_ranks(top) == naive(Deconvnet(model).activations(x, layer), 4)
    assert top.values.shape == top.images.shape == top.positions.shape[:2]


def test_of_equal_activations_the_first_image_and_the_first_place_win():
    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return torch.relu(self.conv(x))

    x = torch.zeros(6, 1, 3, 4)
    x[1, 0, 2, 1] = x[1, 0, 1, 3] = x[1, 0, 2, 3] = 5.0
    x[4, 0, 0, 2] = x[3, 0, 2, 0] = 5.0
    x[5, 0, 1, 1] = 7.0
    for batch in (1, 2, 5, 6):
        top = top_activations(Identity(), x.split(batch), "conv", k=5)
        assert top.values.tolist() == [[7, 5, 5, 5, 0]]
        assert top.images.tolist() == [[5, 1, 3, 4, 0]]
        assert top.positions.tolist() == [[[1, 1], [1, 3], [2, 0], [0, 2], [0, 0]]]


def test_an_image_enters_once_though_it_holds_the_strongest_places():
    model, x = net(), images(3)
    x[1] *= 100
    top = top_activations(model, [x], "0", k=3)
    assert [sorted(row) for row in top.images.tolist()] == [[0, 1, 2]] * 5
    assert top.images[:, 0].tolist() == [1] * 5


def test_fewer_images_than_k_all_rank():
    top = top_activations(net(), [images(2), images(0), images(1, seed=2)], "3", k=9)
    assert top.values.shape == (4, 3)
    assert top.positions.shape == (4, 3, 2)
    assert set(top.images.flatten().tolist()) == {0, 1, 2}


def test_takes_a_data_loader_with_labels_and_a_deconvnet():
    model, x = net(), images(7)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(7)), batch_size=3)
    plain = top_activations(model, [x], "3", k=2)
    for found in (top_activations(model, loader, "3", k=2), top_activations(Deconvnet(model), iter(loader), "3", k=2)):
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_results_feed_a_projection():
    torch.manual_seed(0)
    model = ZFNet(5, image_size=48, channels=(8, 8, 8, 8, 8), fc=(16, 16), weight_std=None, without=("pool5",)).eval()
    x = torch.randn(6, 3, 48, 48)
    top = top_activations(model, x.split(4), "conv4", k=3)
    found = Deconvnet(model).project(x[top.images[2]], "conv4", 2, top.positions[2])
    assert torch.allclose(found.values, top.values[2], rtol=1e-5)
    assert torch.equal(found.positions, top.positions[2])


def test_features_of_a_vector_layer_rank_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 19 * 27, 3))
    x = images(8)
    top = top_activations(model, x.split(3), "3", k=8)
    values, order = model(x).detach().T.sort(dim=1, descending=True)
    assert torch.allclose(top.values, values, rtol=1e-4, atol=1e-5)
    assert torch.equal(top.images, order)
    assert not top.positions.any()


def test_hundreds_of_equal_activations_rank_in_the_loaders_order():
    x = images(1).expand(300, -1, -1, -1).contiguous()
    top = top_activations(net(), x.split(150), "2", k=5)
    assert top.images.tolist() == [[0, 1, 2, 3, 4]] * 5


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"k": True}, TypeError, "k must be an int"),
        ({"layer": "conv9"}, ValueError, "layer must be one of 0, 2, 3, got 'conv9'"),
        ({"loader": []}, ValueError, "loader must give at least one image"),
        ({"loader": [images(0)]}, ValueError, "loader must give at least one image"),
        ({"loader": [{"images": 1}]}, TypeError, "loader must give tensors or tuples that begin with one, got dict"),
        ({"loader": [()]}, TypeError, "loader must give tensors"),
        (
            {"loader": images(2)},
            TypeError,
            r"loader must give batches of images, got a tensor of shape .*\[images\]",
        ),
        ({"loader": torch.tensor(0)}, TypeError, "loader must give batches of images, got a tensor"),
        ({"loader": [torch.tensor(0.0)]}, ValueError, "loader must .* in batch 0 images must have 4 dimensions"),
        ({"loader": [images(1), images(1)[0]]}, ValueError, "loader must .* in batch 1 images must have 4 dimensions"),
        ({"loader": [images(1).int()]}, TypeError, "loader must .* in batch 0 images must have dtype float32"),
        ({"numbered": torch.tensor([0, 1])}, TypeError, "numbered must be True or False, got tensor"),
        ({"loader": [images(2)[:, :2]]}, ValueError, "images"),
    ],
)
def test_wrong_calls_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        top_activations(**{"model": net(), "loader": [images(2)], "layer": "0"} | change)


def part(maps):
    none = torch.zeros(maps, 1, 2, dtype=torch.int64)
    return TopActivations(torch.ones(maps, 1), none[..., 0], none)


@pytest.mark.parametrize(
    ("parts", "k", "error", "words"),
    [
        ([], 2, ValueError, "parts must be one or more, for one layer's maps"),
        (None, 2, TypeError, "parts must be a list of TopActivations, got NoneType"),
        (["0"], 2, TypeError, "parts must be a list of TopActivations, got str"),
        (part(4), 2, TypeError, "parts must be a list of TopActivations, got Tensor"),
        ([part(4), part(6)], 2, ValueError, r"parts must be one or more, for one layer's maps, got maps \[4, 6\]"),
        ([part(4)], 0, ValueError, "k must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_merged_is_named(parts, k, error, words):
    with pytest.raises(error, match=words):
        merge(parts, k)


# Several layers, numbered parts, states


def numbers_of(x, order, batch):
    return [(x[part], part) for part in order.split(batch)]


@pytest.mark.parametrize("batch", [1, 5])
def test_numbered_images_rank_alike_in_any_order_and_in_any_parts(batch):
    x = images(12)
    x[7] = x[2]  # ties between images
    x[9] = x[2]
    whole = top_activations(net(), [x], ["0", "3"], k=4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(batch))
    shuffled = top_activations(net(), numbers_of(x, order, batch), ["0", "3"], k=4, numbered=True)
    parts = [top_activations(net(), numbers_of(x, p, batch), "3", k=4, numbered=True) for p in order.split([2, 3, 7])]
    for found in (shuffled["3"], merge(parts, 4), merge([parts[2], merge(parts[:2], 4)], 4)):
        assert all(torch.equal(a, b) for a, b in zip(found, whole["3"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(shuffled["0"], whole["0"], strict=True))
    assert as_ranks(whole["0"]) == naive(Deconvnet(net()).activations(x, "0"), 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_maps_strongest_place_is_the_first_however_it_lies_in_memory(dtype):
    maps = torch.randint(-3, 4, (3, 20, 5, 7), generator=torch.Generator().manual_seed(4)).to(dtype)
    maps[1, 3], maps[2, 4] = 0, -torch.inf
    for broken in (False, True):
        if broken:
            maps[0, 2, 1, 1:3] = torch.nan
        expected = maps.flatten(2).max(2)
        for lying in (maps, maps.contiguous(memory_format=torch.channels_last), maps.transpose(2, 3).contiguous().mT):
            values, places = activations._strongest(lying)
            assert torch.equal(values.nan_to_num(9), expected.values.nan_to_num(9))
            assert torch.equal(places, expected.indices)


def test_images_one_by_one_rank_as_all_at_once():
    """Also where values are equal, where one is NaN, and where an image comes again."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(0, 12, (40, 60), generator=generator).float()
    values[3, 20], values[5] = torch.nan, 0
    numbers = torch.randperm(60, generator=generator)
    order = torch.cat([numbers, numbers[7:9]])
    parts = [TopActivations(values[:, [i]], torch.full((40, 1), i), torch.full((40, 1, 2), i)) for i in order.tolist()]
    found = merge(parts[:1], 5)
    for part in parts[1:]:
        before = [of.clone() for of in found]
        after = merge([found, part], 5)
        assert all(torch.equal(of.nan_to_num(9e9), old.nan_to_num(9e9)) for of, old in zip(found, before, strict=True))
        found = after
    expected = [sorted(range(60), key=lambda i: (-row[i].nan_to_num(9e9), i))[:5] for row in values]
    assert found.images.tolist() == expected
    assert torch.equal(found.positions[..., 0], found.images)
    assert torch.equal(found.values.nan_to_num(9e9), values.gather(1, found.images).nan_to_num(9e9))


def test_a_number_met_twice_counts_once():
    x = images(5)
    twice = torch.tensor([0, 1, 2, 3, 4, 1, 0])
    found = top_activations(net(), numbers_of(x, twice, 3), "2", k=9, numbered=True)
    assert all(torch.equal(a, b) for a, b in zip(found, top_activations(net(), [x], "2", k=9), strict=True))


class Stops(Exception):
    pass


def test_a_search_that_stopped_continues_without_looking_again(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "SAVE_EVERY", 2)
    x, file = images(10), tmp_path / "state.pt"

    def broken():
        yield from x.split(2)[:3]
        raise Stops

    with pytest.raises(Stops):
        top_activations(net(), broken(), ["0", "3"], k=3, state=file)
    poisoned = [torch.full_like(x[:2], float("nan"))] * 2 + list(x.split(2)[2:])
    found = top_activations(net(), poisoned, ["0", "3"], k=3, state=file)
    again = top_activations(net(), poisoned, ["0", "3"], k=3, state=file)
    whole = top_activations(net(), [x], ["0", "3"], k=3)
    for name in ("0", "3"):
        assert all(torch.equal(a, b) for a, b in zip(found[name], whole[name], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(again[name], whole[name], strict=True))
    with pytest.raises(ValueError, match="another search, with other k: 3, not 4"):
        top_activations(net(), poisoned, ["0", "3"], k=4, state=file)
    other = net()
    other[0].weight.data += 1
    with pytest.raises(ValueError, match="with other weights"):
        top_activations(other, poisoned, ["0", "3"], k=3, state=file)
    file.write_bytes(b"")
    torch.save([1], file)
    with pytest.raises(ValueError, match="is no state of top_activations"):
        top_activations(net(), poisoned, "0", k=3, state=file)


@pytest.mark.parametrize(
    "change",
    [
        {"best": {}},
        {"best": 5},
        {"best": {"0": 1}},
        {"best": {"0": (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, 2))}},
        {"best": {"0": (torch.zeros(2, 3), torch.zeros(2, 2).long(), torch.zeros(2, 3, 2).long())}},
        {"best": {"0": (torch.zeros(2, 3), torch.zeros(2, 3).long(), torch.zeros(2, 3).long())}},
        {"best": {"0": (torch.zeros(2), torch.zeros(2).long(), torch.zeros(2, 2).long())}},
        {"batches": -1},
        {"images": "5"},
    ],
)
def test_a_search_whose_numbers_do_not_fit_is_not_continued(tmp_path, change):
    x, file = images(4), tmp_path / "state.pt"
    top_activations(net(), [x], ["0"], k=3, state=file)
    torch.save(torch.load(file) | change, file)
    with pytest.raises(ValueError, match=rf"state {file} is damaged .*; delete it to search anew"):
        top_activations(net(), [x, x], ["0"], k=3, state=file)


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="must end each batch with 2 int64 numbers, got NoneType"):
        top_activations(net(), [images(2)], "0", numbered=True)
    with pytest.raises(ValueError, match=r"2 int64 numbers, got torch.int64 \(3,\)"):
        top_activations(net(), [(images(2), torch.arange(3))], "0", numbered=True)
