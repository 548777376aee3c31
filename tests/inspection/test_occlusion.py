"""Occlusion against a loop over patches, on the images that the model was really shown."""

import copy

import pytest
import torch
import transformers

from vitrail.inspection import occlusion
from vitrail.modeling import InputError, ViTForMaskedPatchPrediction, ViTModel


SHARES = (0.05, 0.25, 0.4, 0.5, 1.0)
HIDDEN = (1, 2, 2, 3, 6)  # of 6 patches


@pytest.fixture
def heatmap():
    return torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def shown():
    """A function from a model to the list of all the images, a tensor a call, that it is shown from then on."""

    def listen(model):
        calls = []
        model.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0].clone()))
        return calls

    return listen


def hide(image, patches):
    """The image of 3x2 patches of 8x8 pixels without those at some (row, column)."""
    image = image.clone()
    for row, column in patches:
        for y in range(8):
            for x in range(8):
                image[:, 8 * row + y, 8 * column + x] = 0
    return image


@pytest.mark.parametrize("target", [None, [4, 0]])
@torch.no_grad()
def test_every_model_is_asked_about_every_hidden_patch(build, pixels, heatmap, shown, case, target):
    model = build(case)
    exact = copy.deepcopy(model).double()
    predicted = model(pixels).logits.argmax(-1).tolist()
    calls = shown(model)
    out = occlusion(model, pixels, heatmap, target, SHARES, random_draws=2, batch_size=7)
    wanted = predicted if target is None else target
    assert out.target.tolist() == wanted
    assert max(len(images) for images in calls) == 7
    images = torch.cat(calls)
    assert torch.equal(images[:2], pixels)
    images = images[2:].view(2, len(SHARES), 3, 3, 24, 16)
    hidden = (images == 0).all(3).view(2, len(SHARES), 3, 3, 8, 2, 8).all(-1).all(-2)  # of patches
    assert out.hidden.dtype == torch.bool
    assert torch.equal(out.hidden, hidden[:, :, 0])
    assert torch.equal(out.hidden_at_random, hidden[:, :, 1])
    said = torch.cat((out.map[..., None], out.random), dim=2)
    for image in range(2):
        asked = torch.cat((pixels[image : image + 1], images[image].flatten(0, 1))).double()
        odds = exact(asked).logits.exp()
        expected = odds[:, wanted[image]] / odds.sum(1)
        answers = torch.cat((out.probability[image, None], said[image].flatten())).double()
        torch.testing.assert_close(answers, expected, atol=1e-6, rtol=1e-4)
        places = [(row, column) for row in range(3) for column in range(2)]
        ranked = sorted(places, key=lambda place: -heatmap[image][place].item())
        for share, count in enumerate(HIDDEN):
            assert torch.equal(images[image, share, 0], hide(pixels[image], ranked[:count]))
            for draw in range(3):
                gone = hidden[image, share, draw].nonzero().tolist()
                assert len(gone) == count
                assert torch.equal(images[image, share, draw], hide(pixels[image], gone))
    assert (hidden[:, 1:] >= hidden[:, :-1]).all()  # nested
    assert not torch.equal(hidden[:, :, 1], hidden[:, :, 2])
    assert not torch.equal(hidden[0, :, 1], hidden[1, :, 1])


def test_shapes_and_defaults(tiny_model, pixels, heatmap):
    out = occlusion(tiny_model, pixels, heatmap)
    assert out.target.dtype == torch.int64
    assert out.probability.shape == (2,)
    assert out.map.shape == (2, 3)
    assert out.random.shape == (2, 3, 5)
    assert out.hidden.flatten(2).sum(-1).tolist() == [[1, 2, 3]] * 2
    assert out.hidden_at_random.flatten(2).sum(-1).tolist() == [[1, 2, 3]] * 2


def test_several_labels_stand_each_for_itself(build, pixels, heatmap):
    model = build("plain", problem_type="multi_label_classification")
    out = occlusion(model, pixels, heatmap, target=2, shares=[0.5])
    torch.testing.assert_close(out.probability, model(pixels).logits[:, 2].sigmoid().detach())
    without = pixels.masked_fill(out.hidden[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], 0)
    torch.testing.assert_close(out.map[:, 0], model(without).logits[:, 2].sigmoid().detach())


def test_another_size_has_another_grid(build, shown):
    model = build("plain", interpolate_pos_encoding=True)
    pixels = torch.randn(1, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    heatmap = torch.zeros(1, 2, 5)
    heatmap[0, 1, 3] = 1
    calls = shown(model)
    out = occlusion(model, pixels, heatmap, shares=[0.1])
    assert out.hidden[0, 0].nonzero().tolist() == [[1, 3]]
    assert (calls[1][0] == 0).all(0).nonzero().tolist() == [[y, x] for y in range(8, 16) for x in range(24, 32)]


def test_patches_may_be_oblong(build, shown, pixels):
    model = build("plain", patch_size=(8, 4))
    heatmap = torch.zeros(2, 3, 4)
    heatmap[:, 1, 3] = 1
    calls = shown(model)
    occlusion(model, pixels, heatmap, shares=[0.1])
    assert (calls[1][0] == 0).all(0).nonzero().tolist() == [[y, x] for y in range(8, 16) for x in range(12, 16)]


@pytest.mark.parametrize("kind", ["map", "constant map", "random"])
def test_what_is_equal_is_hidden_at_random(tiny_model, kind):
    """Each patch in a third of the images, but for the one that the map is sure of; no image is like its neighbour."""
    images, maps = torch.zeros(600, 3, 24, 16), torch.full((600, 3, 2), 0.3)
    maps[:, 2, 0] += 0.0 if kind == "constant map" else 1.0
    out = occlusion(tiny_model, images, maps, shares=[1 / 3], random_draws=1, batch_size=600)
    hidden = out.hidden_at_random if kind == "random" else out.hidden
    expected = torch.full((3, 2), 1 / 3)
    if kind == "map":
        expected.fill_(1 / 5)[2, 0] = 1
    torch.testing.assert_close(hidden[:, 0].float().mean(0), expected, atol=0.08, rtol=0)
    assert not torch.equal(out.hidden, out.hidden_at_random)


def test_same_seed_same_patches_whatever_the_batch(tiny_model, pixels):
    heatmap = torch.zeros(2, 3, 2)
    first = occlusion(tiny_model, pixels, heatmap)
    for batch_size in (1, 5, 1000):
        again = occlusion(tiny_model, pixels, heatmap, batch_size=batch_size)
        for name in ("target", "probability", "map", "random", "hidden", "hidden_at_random"):
            torch.testing.assert_close(getattr(again, name), getattr(first, name))
    other = occlusion(tiny_model, pixels, heatmap, seed=1)
    assert not torch.equal(other.hidden, first.hidden)
    assert not torch.equal(other.hidden_at_random, first.hidden_at_random)
    alone = occlusion(tiny_model, pixels[:1], heatmap[:1])
    torch.testing.assert_close(alone.random, first.random[:1])
    assert torch.equal(alone.hidden, first.hidden[:1])


def test_a_compiled_model_is_asked_too(tiny_model, pixels, heatmap):
    compiled = torch.compile(tiny_model, backend="eager")
    expected = occlusion(tiny_model, pixels, heatmap, shares=[0.5], random_draws=1)
    out = occlusion(compiled, pixels, heatmap, shares=[0.5], random_draws=1)
    torch.testing.assert_close(out.map, expected.map)
    assert not out.map.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, "target is 5; the model's labels are 0 to 4"),
        ({"heatmap": torch.zeros(2, 2, 3)}, r"heatmap has shape \(2, 2, 3\); for these images it is \(2, 3, 2\)"),
        ({"heatmap": torch.zeros(1, 3, 2)}, r"heatmap has shape \(1, 3, 2\)"),
        ({"heatmap": torch.zeros(2, 1, 3, 2)}, r"heatmap has shape \(2, 1, 3, 2\)"),
        ({"heatmap": torch.full((2, 3, 2), torch.nan)}, "heatmap holds NaN or infinite values"),
        ({"pixel_values": torch.full((2, 3, 24, 16), torch.inf)}, "pixel_values hold NaN or infinite values"),
        ({"pixel_values": torch.zeros(3, 24, 16)}, r"pixel_values has shape \(3, 24, 16\); it must be"),
        ({"shares": (0.1, 0.0)}, r"shares is \(0.1, 0.0\); it must be numbers above 0 and at most 1"),
        ({"shares": (1.01,)}, r"shares is \(1.01,\)"),
        ({"shares": (float("nan"),)}, r"shares is \(nan,\)"),
        ({"shares": ()}, r"shares is \(\)"),
        ({"random_draws": 0}, "random_draws is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_used_is_said(tiny_model, pixels, heatmap, arguments, message):
    with pytest.raises(InputError, match=message):
        occlusion(tiny_model, **({"pixel_values": pixels, "heatmap": heatmap} | arguments))


def test_a_model_that_cannot_be_used_is_said(tiny_config, tiny_model, randomised, pixels, heatmap, tmp_path):
    for model_class in (ViTModel, ViTForMaskedPatchPrediction):
        with pytest.raises(InputError, match=f"{model_class.__name__} gives no logits of classes"):
            occlusion(randomised(model_class(tiny_config)), pixels, heatmap)
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"load it with vitrail\.modeling"):
        occlusion(transformers.ViTForImageClassification.from_pretrained(tmp_path), pixels, heatmap)
    with pytest.raises(InputError, match="training mode"):
        occlusion(tiny_model.train(), pixels, heatmap)
