"""The fast kernels against the plain layers, and when they must not be used."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, attention_products
from vitrail.modeling import dense as kernels
from vitrail.modeling.attention_products import attention_by_products, products_are_faster
from vitrail.modeling.dense import dense, dense_together
from vitrail.modeling.modeling_vit import ViTMLP


SHAPES = [(1, 1, 8), (3, 7, 32), (2, 197, 384)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.fixture
def never(monkeypatch):
    """oneDNN is not to be asked for."""

    def called(*_):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(kernels, "_convolution", called)
    monkeypatch.setattr(kernels, "onednn_product", called)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(0))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the largest."""
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("machine")
def test_kernels_compute_what_the_layers_compute(shape, bias, dtype):
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=dtype)
    layers = [nn.Linear(shape[-1], width, bias, dtype=dtype) for width in (8, 24, 8)]
    with torch.no_grad():
        expected = [layer.double()(inputs.double()) for layer in layers]
        for layer in layers:
            layer.to(dtype)
        ways = [[dense(layer, inputs) for layer in layers], dense_together(layers, inputs)]
        for outputs in ways:
            for output, truth in zip(outputs, expected, strict=True):
                assert output.dtype == dtype
                assert apart(output, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("learned", ["all", "layers", "inputs"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("machine")
def test_gradients_are_those_of_the_layers(autocast, bias, learned):
    torch.manual_seed(0)
    inputs = torch.randn(3, 7, 32, requires_grad=learned != "layers")
    layers = nn.ModuleList([nn.Linear(32, width, bias) for width in (8, 24)]).requires_grad_(learned != "inputs")
    leaves = [leaf for leaf in (inputs, *layers.parameters()) if leaf.requires_grad]
    weights = [torch.randn(3, 7, 8), torch.randn(3, 7, 24)]

    def gradients(outputs):
        return torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), leaves)

    expected = gradients([layer(inputs) for layer in layers])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ways = [dense_together(layers, inputs), [dense(layer, inputs) for layer in layers]]
    for outputs in ways:
        for gradient, truth in zip(gradients(outputs), expected, strict=True):
            assert apart(gradient, truth) < (3e-2 if autocast else 1e-6)


@pytest.mark.usefixtures("machine")
def test_together_the_input_has_one_product_for_its_gradient():
    layers, inputs = [nn.Linear(8, width) for width in (8, 16, 24)], torch.randn(2, 5, 8, requires_grad=True)
    outputs = dense_together(layers, inputs)
    assert {output.grad_fn.name() for output in outputs} == {"SplitWithSizesBackward0"}
    assert len({output.grad_fn.next_functions for output in outputs}) == 1


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


@pytest.mark.usefixtures("machine", "never")
def test_what_is_no_plain_layer_is_called():
    """Subclasses, hooks, offloading and quantised weights all act in a call alone."""
    inputs = torch.randn(2, 5, 8)
    hooked, hooked_before, replaced, watched = (nn.Linear(8, 8) for _ in range(4))
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    hooked_before.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    replaced.forward = lambda inputs: 2 * inputs
    passed = []
    watched.register_full_backward_pre_hook(lambda module, gradients: passed.append("into it"))
    watched.register_full_backward_hook(lambda module, gradients, _: passed.append("out of it"))
    dense(watched, inputs.requires_grad_()).sum().backward()
    assert passed == ["into it", "out of it"]
    for layer in (Doubled(8, 8), hooked, hooked_before, replaced):
        assert torch.equal(dense_together([layer, layer], inputs)[1], layer(inputs))
    with torch.no_grad():
        for layer in (Doubled(8, 8), hooked, hooked_before, replaced):
            assert torch.equal(dense(layer, inputs), layer(inputs))
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
        layer = nn.Linear(8, 8)
        dense(layer, inputs)
        handle.remove()
        assert seen == [layer]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in torch's decompositions
@pytest.mark.usefixtures("machine")
def test_forward_mode_derivatives():
    """They are taken without gradients, and must not meet a kernel that has no derivative and says nothing."""
    layer, inputs, direction = nn.Linear(8, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for learns in (True, False):
        with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16):
            _, change = torch.func.jvp(lambda inputs: dense(layer, inputs), (inputs,), (direction,))
            _, expected = torch.func.jvp(layer, (inputs,), (direction,))
        assert torch.equal(change, expected)


def test_watched_layers_are_those_of_every_token(pixels):
    model = ViTForImageClassification(
        ViTConfig.from_variant("Ti/16", image_size=(24, 16), patch_size=8, num_labels=3)
    ).eval()
    seen = []
    handle = model.vit.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(pixels)
    handle.remove()
    assert seen[0].shape[1] == model.config.sequence_length
    replaced = model.vit.layers[-1].attention
    replaced.forward = replaced.forward
    assert model._num_tokens_read({}) is None
    del replaced.forward
    assert model._num_tokens_read({}) == 1
    model(pixels, output_hidden_states=True)  # transformers leaves hooks of its own
    assert model._num_tokens_read({}) == 1


@pytest.mark.parametrize("tokens", [5, 197])
def test_attention_by_products_is_attention(tokens):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, tokens, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 3, tokens, tokens, requires_grad=True)
    weights = torch.randn(2, tokens, 3, 16)

    def gradients(output):
        return torch.autograd.grad((output * weights).sum(), (query, key, value, bias))

    truth = nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double(), bias.double())
    output, _ = attention_by_products(nn.Module(), query, key, value, None, 0.25, position_bias=bias.bfloat16())
    assert apart(output, truth.transpose(1, 2)) < 2e-2
    for gradient, expected in zip(gradients(output), gradients(truth.transpose(1, 2)), strict=True):
        assert apart(gradient, expected) < 3e-2
    assert products_are_faster(query)
    assert not products_are_faster(query.float())


def test_attention_by_products_drops_weights():
    values = torch.ones(1, 1, 64, 4, dtype=torch.bfloat16)
    training = nn.Module()
    output, _ = attention_by_products(training, values, values, values, None, 1.0, dropout=0.5)
    assert output.float().std() > 0
    output, _ = attention_by_products(training.eval(), values, values, values, None, 1.0, dropout=0.5)
    assert apart(output, torch.ones_like(output)) < 1e-2


@pytest.mark.parametrize("asked", [{}, {"is_causal": None}])
@pytest.mark.parametrize("learns", [True, False])
def test_causal_attention_in_bfloat16(pixels, learns, asked, monkeypatch):
    """A class token that may see nothing but itself; the products know no such thing."""
    monkeypatch.setattr(attention_products, "_HAS_AMX", False)
    config = ViTConfig.from_variant("Ti/16", image_size=(24, 16), patch_size=8, num_labels=3)
    model = ViTForImageClassification(config).eval()
    for layer in model.vit.layers:
        layer.attention.is_causal = True
    with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16):
        tokens = [model.vit(images, **asked).last_hidden_state[0, 0] for images in (pixels[:1], pixels[1:2])]
    assert torch.equal(*tokens)


def test_shapes_are_computed_without_memory():
    """On the meta device, for which PyTorch has no autocast."""
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig.from_variant("Ti/16", num_labels=3))
        assert model(torch.empty(2, 3, 224, 224)).logits.shape == (2, 3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("machine")
def test_second_derivatives(autocast):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 8), torch.randn(2, 5, 8, requires_grad=True)

    def penalty(call):
        (gradient,) = torch.autograd.grad(call(inputs).float().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [inputs, *layer.parameters()])

    expected = penalty(layer)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = penalty(lambda inputs: dense(layer, inputs))
    for own, truth in zip(found, expected, strict=True):
        assert apart(own, truth) < (5e-2 if autocast else 1e-6)


@pytest.mark.usefixtures("machine")
def test_training_in_bfloat16_goes_straight_to_onednn():
    layer, inputs = nn.Linear(8, 8), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16), profile(activities=[ProfilerActivity.CPU]) as calls:
        output = dense(layer, checkpoint(dense, layer, inputs, use_reentrant=False))
        output.sum().backward()
    names = [call.name for call in calls.events()]
    assert names.count("mkldnn::_linear_pointwise") == 3  # one of them is the checkpoint's, again
    assert layer.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(output, layer(layer(inputs))) < 2e-2
        again = dense(layer, inputs.requires_grad_())
    with torch.autocast("cpu", torch.float16):
        again.sum().backward()


@pytest.mark.parametrize(("frozen", "inputs_learn"), [(True, True), (False, False)])
@pytest.mark.usefixtures("machine")
def test_only_what_a_gradient_needs_is_kept(frozen, inputs_learn):
    """The input for that of the weight, the weight for that of the input."""
    layer, inputs = nn.Linear(8, 24).requires_grad_(not frozen), torch.randn(2, 5, 8, requires_grad=inputs_learn)
    kept = []
    noted = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)), lambda _: _)
    with noted, torch.autocast("cpu", torch.bfloat16):
        dense(layer, inputs)
    assert kept == [(24, 8) if frozen else (10, 8)]


@pytest.mark.usefixtures("machine")
def test_precisions_are_those_of_the_layers():
    layer, inputs = nn.Linear(8, 8), torch.randn(2, 5, 8)
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        dense(layer.bfloat16(), inputs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert dense(layer.double(), inputs.double()).dtype == torch.float64


@pytest.mark.usefixtures("machine")
def test_layers_of_which_some_have_biases():
    layers, inputs = [nn.Linear(8, 8), nn.Linear(8, 8, bias=False)], torch.randn(2, 5, 8)
    for own, layer in zip(dense_together(layers, inputs), layers, strict=True):
        assert apart(own, layer(inputs)) < 1e-6


def test_more_tokens_can_be_asked_for_but_none_left_out_that_is_read(any_model, pixels):
    if any_model.config.pooling == "token":
        assert any_model(pixels, num_tokens=5, output_hidden_states=True).logits.shape == any_model(pixels).logits.shape
        with pytest.raises(InputError, match="num_tokens is 0"):
            any_model(pixels, num_tokens=0)
    else:
        with pytest.raises(InputError, match="num_tokens"):
            any_model(pixels, num_tokens=3)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (8,)])
@pytest.mark.usefixtures("machine")
def test_no_rows_and_no_batch(shape):
    layer, inputs = nn.Linear(8, 8), torch.randn(shape)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.allclose(dense(layer, inputs), layer(inputs), atol=1e-6)
    assert dense_together([layer, layer], inputs)[1].shape == shape


@pytest.mark.usefixtures("machine")
def test_weights_elsewhere_are_an_error():
    """Those of a model that is not all loaded; a kernel would compute with whatever lies at address 0."""
    with torch.no_grad(), pytest.raises(RuntimeError):
        dense(nn.Linear(8, 8, device="meta"), torch.randn(2, 8))


def test_convolutions_are_used_only_where_they_are_as_precise(monkeypatch):
    monkeypatch.setattr(kernels, "HAS_ONEDNN", True)
    monkeypatch.setattr(kernels, "MKL_IS_SLOW", True)
    taken = []
    convolution = kernels._convolution
    monkeypatch.setattr(kernels, "_convolution", lambda *tensors: taken.append(1) or convolution(*tensors))
    layer, inputs = nn.Linear(8, 8), torch.randn(2, 8)
    dense(layer, inputs)
    assert len(taken) == 1
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        dense(layer, inputs)
        assert len(taken) == 1
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"


@pytest.mark.usefixtures("machine", "never")
def test_what_is_recorded_or_forbidden_is_called(monkeypatch):
    """By FX and dispatch modes, with oneDNN switched off, and of weights that are not dense."""
    layer, inputs = nn.Linear(8, 8), torch.randn(2, 5, 8)
    sparse = nn.Linear(8, 8)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    with torch.no_grad():
        assert "fc1" in str(torch.fx.symbolic_trace(ViTMLP(ViTConfig())).graph)
        for learns in (True, False):
            modes = FlopCounterMode(display=False), torch.set_grad_enabled(learns)
            with modes[0] as counter, modes[1], torch.autocast("cpu", torch.bfloat16):
                dense(layer, inputs)
            assert counter.get_total_flops() == 2 * 10 * 8 * 8
        dense(sparse, inputs)
        monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)  # as `torch.backends.mkldnn.flags` sets it
        dense(layer, inputs)
