"""Predictions on bare tensors against the layers themselves, and when only the layers will do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.profiler import ProfilerActivity, profile

from vitrail.modeling import attention_products, modeling_vit


OPEN = ("plain", "hybrid", "mean", "attention", "sincos")  # other kinds' layers do more than the fast path


@pytest.fixture
def runs(monkeypatch):
    """One entry a run of the fast path."""
    runs = []
    run = modeling_vit.run_fast_path
    monkeypatch.setattr(modeling_vit, "run_fast_path", lambda *arguments: runs.append(1) or run(*arguments))
    return runs


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(0))


def by_layers(monkeypatch, call):
    """What a call gives with the fast path closed."""
    with monkeypatch.context() as patch:
        patch.setattr(modeling_vit, "fast_path_is_open", lambda *_: False)
        return call()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the largest."""
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16", "float64"])
@pytest.mark.usefixtures("machine")
@torch.no_grad()
def test_predictions_are_those_of_the_layers(any_model, kind, pixels, precision, runs, monkeypatch):
    if precision in ("bfloat16", "float64"):
        any_model.to(getattr(torch, precision))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = by_layers(monkeypatch, lambda: any_model(pixels).logits)
        assert not runs
        logits = any_model(pixels).logits
    assert runs == [1] * (kind in OPEN)
    assert logits.dtype == expected.dtype
    assert apart(logits, expected) < (2e-2 if precision in ("autocast", "bfloat16") else 1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_layer_scale": True},
        {"merged_tokens_per_layer": 2},
        {"merged_tokens_per_layer": 2, "num_register_tokens": 2},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_python"},
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("machine")
@torch.inference_mode()
def test_what_else_it_computes(make_model, pixels, fields, autocast, runs, monkeypatch):
    model = make_model("plain", num_hidden_layers=3, **fields)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = by_layers(monkeypatch, lambda: model(pixels).logits)
        assert apart(model(pixels).logits, expected) < (2e-2 if autocast else 1e-6)
    assert runs == [1]


@pytest.mark.parametrize("fields", [{}, {"merged_tokens_per_layer": 2}])
@torch.no_grad()
def test_observers_see_the_same(make_model, pixels, fields, runs, monkeypatch):
    model = make_model("plain", num_hidden_layers=3, **fields)

    def observed():
        seen = []
        model(pixels, attention_observer=seen.append)
        return seen

    expected, seen = by_layers(monkeypatch, observed), observed()
    assert runs == [1]
    for own, layers in zip(seen, expected, strict=True):
        for name in ("query", "key", "bias", "value", "output"):
            one, other = getattr(own, name), getattr(layers, name)
            assert one is other is None or apart(one, other) < 1e-6
        assert (own.merged is None) == (layers.merged is None)
        if own.merged is not None:
            assert torch.equal(own.merged.place, layers.merged.place)


@torch.no_grad()
def test_what_others_hold_stays_as_it_is(make_model, pixels, runs):
    """The embeddings' output, and the tokens that an earlier call gave."""
    model = make_model("plain")
    held = []
    model.vit.embeddings.register_forward_hook(lambda *call: held.append((call[2][0], call[2][0].clone())))
    first = model.vit(pixels).last_hidden_state
    held.append((first, first.clone()))
    model.vit(pixels)
    assert runs == [1, 1]
    assert all(torch.equal(now, before) for now, before in held)


def hooked(name):
    return lambda model: model.get_submodule(name).register_forward_hook(lambda module, args, output: None)


def replaced(name, module):
    return lambda model: model.set_submodule(name, module)


def trains(name):
    return lambda model: model.get_submodule(name).train()


class OtherLayer(modeling_vit.ViTLayer):
    pass


def other_layer(model):
    model.vit.layers[1].__class__ = OtherLayer


def other_forward(model):
    attention = model.vit.layers[1].attention
    attention.forward = attention.forward


def sparse(model):
    layer = model.vit.layers[0].mlp.fc1
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())


def own_config(model):
    model.vit.layers[1].attention.config = copy.deepcopy(model.config)


def causal(model):
    model.vit.layers[0].attention.is_causal = True


def function(model):
    del model.vit.layers[1].drop_path
    model.vit.layers[1].drop_path = lambda tokens: tokens


LAYER = "vit.layers.1"
READ = ["", ".attention", ".mlp", ".mlp.dropout", ".dropout", ".drop_path", ".layernorm_before", ".layernorm_after"]
READ += [f".attention.{name}_proj" for name in "qkvo"] + [".mlp.fc1", ".mlp.fc2"]
CHANGES = {
    **{f"hook on {name}": hooked(f"{LAYER}{name}") for name in READ},
    "another norm": replaced(f"{LAYER}.layernorm_before", nn.Identity()),
    "no drop path": replaced(f"{LAYER}.drop_path", nn.Identity()),
    "another layer": other_layer,
    "another forward": other_forward,
    "dropout at work": trains(f"{LAYER}.dropout"),
    "dropout in attention": trains(f"{LAYER}.attention"),
    "drop path at work": trains(f"{LAYER}.drop_path"),
    "pruned": lambda model: prune.random_unstructured(model.vit.layers[0].mlp.fc1, "weight", 0.5),
    "parametrised": lambda model: parametrizations.weight_norm(model.vit.layers[0].mlp.fc1),
    "sparse": sparse,
    "eager": lambda model: model.set_attn_implementation("eager"),
    "a config of its own": own_config,
    "causal": causal,
    "compiled": lambda model: model.vit.layers[1].compile(backend="eager"),
    "a function in a module's place": function,
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_is_not_as_built_is_called(make_model, pixels, change, runs):
    model = make_model("plain")
    CHANGES[change](model)
    model(pixels)
    assert not runs


@pytest.mark.parametrize("asked", [{"output_hidden_states": True}, {"is_causal": True}])
@torch.no_grad()
def test_what_is_asked_for_in_a_call(make_model, pixels, asked, runs):
    model = make_model("plain")
    model(pixels, **asked)
    assert not runs
    model(pixels)  # transformers leaves hooks of its own
    assert runs == [1]


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in torch's decompositions
def test_gradients_transforms_and_hooks_on_everything(make_model, pixels, runs):
    model = make_model("plain")
    model(pixels)
    with torch.no_grad():
        torch.func.functional_call(model, {k: v.clone() for k, v in model.state_dict().items()}, (pixels,))
        torch.func.vmap(lambda one: model(one[None]).logits)(pixels)
        with pytest.raises(NotImplementedError, match="forward AD"):  # of PyTorch's attention, instead of no derivative
            torch.func.jvp(lambda inputs: model(inputs).logits, (pixels,), (pixels,))
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        model(pixels)
        handle.remove()
        with pytest.raises(RuntimeError, match="0 elements"):  # of PyTorch's attention, too
            model(pixels[:0])
        assert not runs
        model(pixels)
        assert runs == [1]


@pytest.mark.usefixtures("machine")
@torch.no_grad()
def test_weights_of_another_precision_or_elsewhere_are_errors(make_model, pixels):
    """Those of a model that is not all loaded; oneDNN would compute with whatever lies at address 0."""
    model = make_model("plain")
    for change in ({"dtype": torch.bfloat16}, {"device": "meta"}):
        other = copy.deepcopy(model)
        other.vit.layers[1].mlp.fc1.to(**change)
        with pytest.raises(RuntimeError):
            other(pixels)


class Raised(nn.Module):
    def forward(self, inputs):
        return nn.functional.gelu(inputs.float())


def hooked_activation(model):
    model.vit.layers[0].mlp.activation_fn.register_forward_hook(lambda module, args, output: 2 * output)


def fewer_heads(model):
    """Of all three, as pruning leaves them; what the layer says of its width is stale."""
    attention = model.vit.layers[0].attention
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        layer.weight, layer.bias = (nn.Parameter(x.detach()[:16]) for x in (layer.weight, layer.bias))
    attention.o_proj.weight = nn.Parameter(attention.o_proj.weight.detach()[:, :16].contiguous())


def no_key_bias(model):
    model.vit.layers[0].attention.k_proj.bias = None


def strided_bias(model):
    layer = model.vit.layers[0].mlp.fc1
    layer.bias = nn.Parameter(torch.randn(2 * len(layer.bias))[::2])


@pytest.mark.parametrize(
    "change",
    [
        hooked_activation,
        fewer_heads,
        no_key_bias,
        strided_bias,
        replaced("vit.layers.0.mlp.activation_fn", Raised()),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("machine")
@torch.no_grad()
def test_what_the_layers_would_heed(make_model, pixels, change, autocast, runs, monkeypatch):
    model = make_model("plain")
    change(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = by_layers(monkeypatch, lambda: model(pixels).logits)
        assert apart(model(pixels).logits, expected) < (2e-2 if autocast else 1e-6)
    assert runs == [1]


@pytest.mark.usefixtures("machine")
@torch.inference_mode()
def test_in_place(make_model, pixels):
    """What the fast path exists for: after the first sum, the residual stream is never made anew."""
    model = make_model("plain", num_hidden_layers=3)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        model(pixels)
    names = [call.name for call in calls.events() if call.cpu_parent is None]  # a dense layer may add its bias in place
    assert names.count("aten::gelu_") == 3
    assert "aten::gelu" not in names
    assert names.count("aten::add_") == 2 * 3 - 1


@pytest.mark.parametrize("has_amx", [False, True])
@torch.inference_mode()
def test_attention_by_products_where_it_is_faster(make_model, pixels, has_amx, monkeypatch):
    monkeypatch.setattr(attention_products, "_HAS_AMX", has_amx)
    model = make_model("plain", num_hidden_layers=3)
    with torch.autocast("cpu", torch.bfloat16), profile(activities=[ProfilerActivity.CPU]) as calls:
        model(pixels)
    assert [call.name for call in calls.events()].count("aten::baddbmm") == (0 if has_amx else 3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@torch.no_grad()
def test_traced(make_model, pixels, runs):
    model = make_model("plain").requires_grad_(False)  # weights become constants
    traced = torch.jit.trace(lambda images: model(images).logits, pixels, check_trace=False)
    assert not runs
    assert apart(traced(pixels[:2]), model(pixels[:2]).logits) < 1e-6


@torch.no_grad()
def test_outputs_that_the_config_asks_for(make_model, pixels, runs):
    model = make_model("plain")
    model.config.output_hidden_states = True
    assert len(model(pixels).hidden_states) == 3
    assert not runs


@pytest.mark.usefixtures("machine")
@torch.no_grad()
def test_compiled_in_one_graph(make_model, pixels):
    """On processors of others than Intel, too."""
    model = make_model("plain")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert apart(compiled(pixels).logits, model(pixels).logits) < 1e-6
    with torch.enable_grad():
        assert apart(compiled(pixels).logits, model(pixels).logits) < 1e-6


@torch.no_grad()
def test_branches_of_a_higher_precision_are_not_rounded(make_model, pixels, runs, monkeypatch):
    model = make_model("plain", use_layer_scale=True).bfloat16()
    model.vit.layers[-1].layer_scale2.float()
    model.vit.layernorm.float()
    expected = by_layers(monkeypatch, lambda: model.vit(pixels).last_hidden_state)
    assert expected.dtype == torch.float32
    assert apart(model.vit(pixels).last_hidden_state, expected) < 1e-6
    assert runs == [1]
