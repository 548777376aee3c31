"""Relevance against autograd through eager attention, all matrices in float64."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from vitrail.inspection import relevance, relevance_by_depth
from vitrail.modeling import InputError, ViTForMaskedPatchPrediction


METHODS = ["chefer", "gradient_rollout"]


def attend_openly(seen):
    """`F.scaled_dot_product_attention`, spelled out, that shows its weights."""

    def attend(query, key, value):
        seen.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1))
        return seen[-1] @ value

    return attend


def by_autograd(model, pixels, read, target, method, monkeypatch):
    """Chefer et al.'s Eq. 5 and 6, or rollout of weighted attention, as written, after every layer: (B, L, ...)."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    of_pooling = []
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend_openly(of_pooling))
        outputs = model(pixels.double(), output_attentions=True)
    target = outputs.logits.argmax(-1) if target is None else torch.tensor(target).expand(len(pixels))
    attentions = (*outputs.attentions, *of_pooling)
    score = sum(logits[index] for logits, index in zip(outputs.logits, target))
    gradients = torch.autograd.grad(score, attentions)
    fused = []
    for attention, gradient in zip(attentions, gradients):
        weighted = attention * gradient
        fused.append(weighted.clamp(min=0).mean(1) if method == "chefer" else weighted.mean(1).clamp(min=0))
    tokens = attentions[0].shape[-1]
    identity = torch.eye(tokens, dtype=torch.float64)
    total = identity.expand(len(pixels), -1, -1)
    totals = []
    for matrix in fused[: model.config.num_hidden_layers]:
        if method == "chefer":
            total = total + matrix @ total
        else:
            matrix = matrix + identity
            total = matrix / matrix.sum(-1, keepdim=True) @ total
        totals.append(total)
    rows, columns = (side // patch for side, patch in zip(pixels.shape[2:], model.config.patch_shape))
    before = tokens - rows * columns
    if read is None:
        own = fused[-1] if method == "chefer" else (fused[-1] / fused[-1].sum(-1, keepdim=True)).nan_to_num()
        row = F.pad(own, (before, 0))
    else:
        row = torch.tensor(read(rows * columns), dtype=torch.float64)[None, None]
    depths = torch.stack([(row @ total)[:, 0, before:] for total in totals], dim=1)
    return depths.unflatten(2, (rows, columns)).detach()


@pytest.mark.parametrize("target", [None, 3, [4, 0]])
@pytest.mark.parametrize("method", METHODS)
def test_every_model_equals_autograd(build, reads, pixels, monkeypatch, case, method, target):
    model = build(case)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
        plain = model(pixels).logits
    out = relevance(model, pixels, target, method)
    expected = by_autograd(model, pixels, reads(case), target, method, monkeypatch)[:, -1]
    assert expected.max() > 1e-3
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-5 * expected.max().item(), rtol=1e-4)
    torch.testing.assert_close(out.logits, plain)  # with gradients some kernels are others
    assert not out.logits.requires_grad
    wanted = plain.argmax(-1) if target is None else torch.tensor(target).expand(2)
    assert torch.equal(out.target, wanted)


@pytest.mark.parametrize(("method", "target"), [("chefer", None), ("gradient_rollout", [4, 0])])
def test_every_depth_equals_autograd(build, reads, pixels, monkeypatch, case, method, target):
    model = build(case)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    out = relevance_by_depth(model, pixels, target, method)
    expected = by_autograd(model, pixels, reads(case), target, method, monkeypatch)
    assert out.heatmap.shape == (2, 3, 3, 2)
    for layer in range(3):  # what is small at first would pass beside what is large at last
        wanted = expected[:, layer]
        torch.testing.assert_close(
            out.heatmap[:, layer].double(), wanted, atol=1e-5 * wanted.max().item() + 1e-12, rtol=1e-4
        )
    assert (expected.diff(dim=1).abs().amax((0, 2, 3)) > 1e-4 * expected.max()).all()
    last = relevance(model, pixels, target, method)
    torch.testing.assert_close(out.heatmap[:, -1], last.heatmap)
    assert torch.equal(out.logits, last.logits)
    assert torch.equal(out.target, last.target)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["plain", "mean", "attention"])
def test_small_blocks_do_not_show_at_any_depth(build, pixels, monkeypatch, case, method):
    model = build(case)
    expected = relevance_by_depth(model, pixels, 1, method).heatmap
    monkeypatch.setattr("vitrail.inspection.observation._BLOCK_ELEMENTS_CPU", 60)
    torch.testing.assert_close(relevance_by_depth(model, pixels, 1, method).heatmap, expected)


def test_all_depths_come_from_one_pass(tiny_model, pixels):
    """A layer runs forward and, recomputed, for the backward pass, whose gradient it then gets."""
    calls = []
    for name in ("q_proj", "k_proj"):
        projection = tiny_model.vit.layers[1].attention.get_submodule(name)
        projection.register_forward_hook(lambda *_: calls.append("forward"))
        projection.register_full_backward_hook(lambda *_: calls.append("backward"))
    relevance_by_depth(tiny_model, pixels)
    assert sorted(calls) == 2 * ["backward"] + 4 * ["forward"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_backend_does_not_matter(build, pixels, backend, method):
    model = build("plain")
    expected = relevance(model, pixels, method=method).heatmap
    model.set_attn_implementation(backend)
    torch.testing.assert_close(relevance(model, pixels, method=method).heatmap, expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_layer_and_small_blocks(build, reads, pixels, monkeypatch, method):
    model = build("plain", num_hidden_layers=1)
    monkeypatch.setattr("vitrail.inspection.observation._BLOCK_ELEMENTS_CPU", 60)
    expected = by_autograd(model, pixels, reads("plain"), None, method, monkeypatch)[:, -1]
    torch.testing.assert_close(relevance(model, pixels, method=method).heatmap.double(), expected, atol=1e-7, rtol=1e-4)


def test_nothing_of_the_model_or_of_the_callers_mode_changes(tiny_model, pixels):
    expected = relevance(tiny_model, pixels).heatmap
    for parameter in tiny_model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(relevance(tiny_model, pixels).heatmap, expected)
    with torch.no_grad():
        assert torch.equal(relevance(tiny_model, pixels).heatmap, expected)
    with torch.inference_mode():
        assert torch.equal(relevance(tiny_model, pixels.clone()).heatmap, expected)
    assert not pixels.requires_grad
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_a_compiled_model_is_explained(tiny_model, pixels):
    compiled = torch.compile(tiny_model, backend="aot_eager")
    torch.testing.assert_close(relevance(compiled, pixels).heatmap, relevance(tiny_model, pixels).heatmap)


def test_threads_leave_compilation_as_it_was(tiny_model, pixels):
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: relevance(tiny_model, pixels).heatmap, range(16)))
    assert all(torch.equal(heatmap, maps[0]) for heatmap in maps)
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch.compile(torch.nn.Linear(2, 2), backend=backend)(torch.zeros(1, 2))
    assert compilations


def test_weights_without_gradients_are_named(build, pixels):
    with torch.inference_mode():
        model = build("plain")
    with pytest.raises(InputError, match=r"made under torch.inference_mode\(\) and have no gradients"):
        relevance(model, pixels)


def test_images_do_not_mix(tiny_model, pixels):
    together = relevance(tiny_model, pixels, [1, 2]).heatmap
    alone = torch.cat([relevance(tiny_model, pixels[i : i + 1], i + 1).heatmap for i in range(2)])
    torch.testing.assert_close(together, alone)


def test_layers_are_recomputed_one_by_one(tiny_model, pixels):
    """Between the passes a layer keeps its input alone."""
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    tokens = 2 * 7 * 32
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tiny_model(pixels.clone().requires_grad_(), recompute=True)
        recomputed = sum(size for size in saved if size >= tokens)
        saved.clear()
        tiny_model(pixels.clone().requires_grad_())
    assert recomputed < sum(size for size in saved if size >= tokens) / 4


@pytest.mark.parametrize("function", [relevance, relevance_by_depth])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, "target is 5; the model's labels are 0 to 4"),
        ({"target": -1}, "target is -1; the model's labels are 0 to 4"),
        ({"target": [0, 1, 2]}, r"target has the shape \(3,\); it must be one class, or 2"),
        ({"target": 1.0}, "target is 1.0; it must be the whole number of a class"),
        ({"target": "cat"}, "target is 'cat'; it must be the whole number of a class"),
        ({"method": "lrp"}, "method is 'lrp'; it must be 'chefer' or 'gradient_rollout'"),
    ],
)
def test_bad_arguments_are_named(tiny_model, pixels, function, arguments, message):
    with pytest.raises(InputError, match=message):
        function(tiny_model, pixels, **arguments)


def test_models_without_classes_are_refused(build, tiny_model, pixels):
    with pytest.raises(InputError, match="ViTModel has no class logits"):
        relevance(tiny_model.vit, pixels)
    with pytest.raises(InputError, match="ViTForMaskedPatchPrediction has no class logits"):
        relevance(build("plain", ViTForMaskedPatchPrediction), pixels)


def test_nan_is_traced(tiny_model, pixels):
    with pytest.raises(InputError, match="pixel_values hold NaN"):
        relevance(tiny_model, pixels * torch.nan)
