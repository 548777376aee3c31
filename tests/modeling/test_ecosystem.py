"""What people do with a model of transformers, done with every kind of ViT: adapt, compile, export, place, embed."""

import onnxruntime
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch.export import Dim
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitMatteConfig,
    VitMatteForImageMatting,
)

from vitrail.modeling import InputError, ViTBackbone, ViTConfig, ViTForImageClassification, ViTModel


LABELS = torch.tensor([0, 1, 2])


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(1))


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 24, 16, generator=torch.Generator().manual_seed(count))


# Auto classes


def test_auto_classes_find_ours_and_never_run_the_sources_beside_it(any_model, kind, pixels, tmp_path):
    any_model.save_pretrained(tmp_path)
    trust = {"trust_remote_code": True}
    classes = {
        AutoConfig: ViTConfig,
        AutoModel: ViTModel,
        AutoModelForImageClassification: ViTForImageClassification,
    }
    for auto, ours in classes.items():
        expected = getattr(transformers, ours.__name__) if kind == "plain" else ours
        assert type(auto.from_pretrained(tmp_path)) is expected
        assert type(auto.from_pretrained(tmp_path, **trust)) is expected
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(classifier(pixels).logits, any_model(pixels).logits, rtol=0, atol=1e-6)


def test_auto_classes_build_from_a_config(any_model):
    assert type(AutoModel.from_config(any_model.config)) is ViTModel
    assert type(AutoBackbone.from_config(any_model.config)) is ViTBackbone
    model = AutoModelForImageClassification.from_config(any_model.config)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in any_model.state_dict().items()
    }


def test_auto_classes_take_another_size_and_other_labels(any_model, kind, tmp_path):
    any_model.save_pretrained(tmp_path)
    # Auto classes load a plain model as stock transformers'
    load = (ViTForImageClassification if kind == "plain" else AutoModelForImageClassification).from_pretrained
    if kind == "relative":
        with pytest.raises(InputError, match="mean nothing on another grid: keep image_size="):
            load(tmp_path, image_size=(48, 16))
        return
    large = torch.randn(2, 3, 48, 16)
    model = load(tmp_path, image_size=(48, 16), num_labels=2)
    assert model(large).logits.shape == (2, 2)
    tokens = any_model.vit(large, interpolate_pos_encoding=True).last_hidden_state
    assert torch.equal(model.vit(large).last_hidden_state, tokens)


# Adapters

# peft reads a property that transformers has renamed
reads_old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@reads_old_name
def test_lora_trains_itself_and_the_head_alone(any_model, pixels, tmp_path):
    exact = any_model(pixels).logits
    adapters = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], r=4, lora_alpha=64)
    model = get_peft_model(any_model, adapters)
    torch.testing.assert_close(model(pixels).logits, exact)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the first step has no gradient for A: B starts at zero
        optimizer.zero_grad()
        model(pixels, labels=LABELS).loss.backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    trainable = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert changed == trainable
    assert len(trainable) >= 2 * 2 * 2 + 2

    model.eval()
    adapted = model(pixels).logits
    assert (adapted - exact).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(model.merge_and_unload()(pixels).logits, adapted, atol=1e-4, rtol=1e-4)


@reads_old_name
@torch.no_grad()
def test_adapters_load_onto_the_model_they_were_trained_on(make_model, pixels, tmp_path):
    adapters = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(make_model("relative"), adapters).eval()
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_model("relative"), tmp_path).eval()
    assert torch.equal(again(pixels).logits, adapted(pixels).logits)


# Compilers and exporters


def test_compiled_without_a_break_and_once_for_all_batch_sizes(any_model):
    compiled_graphs = []

    def backend(graph, example_inputs):
        compiled_graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(any_model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for count in (2, 3, 5, 8):
            ours = any_model(images(count)).logits  # by other kernels, on some processors
            torch.testing.assert_close(compiled(images(count)).logits, ours, rtol=0, atol=1e-6)
    assert len(compiled_graphs) == 1


@pytest.mark.parametrize("kind", ["attention", "relative"])
def test_compiled_training_has_the_same_gradients(make_model, kind, pixels):
    model = make_model(kind)

    def gradients(compiled):
        model.zero_grad()
        compiled(pixels, labels=LABELS).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    torch.compiler.reset()
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler warns of its own code
@torch.no_grad()
def test_inductor_computes_the_same(make_model):
    model = make_model("relative", use_swiglu=True)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for count in (2, 5):
        torch.testing.assert_close(compiled(images(count)).logits, model(images(count)).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_exported_program_and_onnx_take_any_batch_size(any_model, tmp_path):
    batch = {"pixel_values": {0: Dim.DYNAMIC}}
    program = torch.export.export(any_model, (), {"pixel_values": images(3)}, dynamic_shapes=batch)
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        exact = any_model(images(count)).logits
        torch.testing.assert_close(program.module()(pixel_values=images(count)).logits, exact, atol=1e-5, rtol=1e-5)
        (logits,) = session.run(None, {"pixel_values": images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), exact, atol=1e-4, rtol=1e-4)


# Training


def test_every_parameter_gets_a_gradient(any_model, pixels):
    any_model(pixels, labels=LABELS).loss.backward()
    dead = {name for name, parameter in any_model.named_parameters() if not parameter.grad.any()}
    # The same constant added to every key changes no softmax.
    assert all(name.endswith("k_proj.bias") for name in dead), dead
    for name, table in any_model.vit.embeddings.named_parameters(recurse=False):
        assert table.grad.any(dim=-1).all(), name  # each layer's and each place's


def test_activation_checkpointing_changes_no_gradient(make_model, kind, pixels):
    """Neither where dropout and drop path draw again: the random state is put back."""
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.5}
    model = make_model(kind, **rates).train()

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model(pixels, labels=LABELS).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    kept = gradients()
    runs = []
    model.vit.layers[0].layernorm_before.register_forward_hook(lambda *_: runs.append(1))
    model.activation_checkpointing_enable()
    recomputed = gradients()
    assert len(runs) == 2
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


# Precision, placement and backends


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_near(any_model, pixels, dtype, tolerance):
    """Within so much of the largest logit; pixels may come in float32."""
    exact = any_model(pixels).logits
    rough = any_model.to(dtype)(pixels).logits
    assert rough.dtype == dtype
    assert (rough.float() - exact).abs().max() < tolerance * exact.abs().max()


def test_weights_may_lie_on_disk(any_model, pixels, tmp_path):
    any_model.save_pretrained(tmp_path)
    load = ViTForImageClassification.from_pretrained
    placed = load(tmp_path, device_map="auto")
    assert torch.equal(placed(pixels).logits, any_model(pixels).logits)
    memory = {"cpu": any_model.get_memory_footprint() // 2}
    offloaded = load(tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "offloaded")
    assert "disk" in offloaded.hf_device_map.values()
    # What is offloaded has a forward that sees all tokens, so that the last layer is computed of all of them.
    torch.testing.assert_close(offloaded(pixels).logits, any_model(pixels).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("default")  # flex_attention compiles itself, and the compiler warns of its own code
@pytest.mark.parametrize("kind", ["plain", "distilled", "relative"])
@torch.no_grad()  # which has no backward pass on a CPU
def test_attention_backends_agree(make_model, kind, pixels):
    model = make_model(kind)
    logits = {}
    for backend in ("eager", "flex_attention", "sdpa"):
        model.set_attn_implementation(backend)
        logits[backend] = model(pixels).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits["flex_attention"], logits["sdpa"], atol=1e-5, rtol=1e-5)


def test_flash_attention_and_relative_positions_are_one_sentence(make_model, pixels):
    model = make_model("relative")
    model.config._attn_implementation_internal = "flash_attention_2"  # which cannot be set where it is not installed
    with pytest.raises(InputError, match=r"cannot add relative position embeddings .* use attn_implementation='sdpa'"):
        model(pixels)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(any_model, pixels):
    alone = torch.cat([any_model(image[None]).logits for image in pixels])
    torch.testing.assert_close(any_model(pixels).logits, alone, atol=1e-5, rtol=1e-5)


# Outputs, and other models around this one


@torch.no_grad()
def test_hidden_states_and_attentions(any_model, pixels):
    tokens = any_model.config.num_prefix_tokens + 6
    left = tokens - any_model.config.merged_tokens_per_layer  # after the first of two layers
    exact = any_model(pixels).logits
    any_model.set_attn_implementation("eager")
    out = any_model(pixels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(out.logits, exact, atol=1e-5, rtol=1e-5)
    assert [state.shape[:2] for state in out.hidden_states] == [(3, tokens), (3, left), (3, left)]
    assert [attention.shape for attention in out.attentions] == [(3, 4, tokens, tokens), (3, 4, left, left)]
    for attention in out.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))
    base = any_model.vit(pixels, output_hidden_states=True, output_attentions=True)
    for own, others in ((base.hidden_states, out.hidden_states), (base.attentions, out.attentions)):
        assert all(torch.equal(one, other) for one, other in zip(own, others, strict=True))
    last = base.hidden_states[-1]  # before the final LayerNorm
    if not any_model.config.pool_before_norm:
        last = any_model.vit.layernorm(last)
    assert base.last_hidden_state.shape == (3, tokens, 32)
    if left == tokens:
        assert torch.equal(base.last_hidden_state, last)
    as_tuple = any_model(pixels, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.logits, rtol=0, atol=1e-6)


def test_backbone_of_a_dense_predictor(any_model, kind, randomised, pixels, tmp_path):
    """Stages by name, images of another size, and a round trip as a part of another model."""
    any_model.config.merged_tokens_per_layer = 0
    any_model.config.out_features = ["stem", "stage1", "stage2"]
    config = UperNetConfig(
        backbone_config=any_model.config,
        hidden_size=16,
        pool_scales=[1, 2],
        num_labels=4,
        auxiliary_channels=8,
        auxiliary_in_channels=32,
    )
    model = randomised(UperNetForSemanticSegmentation(config))
    assert type(model.backbone) is ViTBackbone
    out = model(pixels, labels=torch.zeros(3, 24, 16, dtype=torch.long))
    assert out.logits.shape == (3, 4, 24, 16)
    out.loss.backward()
    assert model.backbone.vit.layers[1].mlp.fc2.weight.grad.any()
    if kind != "relative":
        assert model(torch.randn(1, 3, 40, 48)).logits.shape == (1, 4, 40, 48)
    model.save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(again(pixels).logits, out.logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_backbone_of_a_dense_prediction_transformer(make_model, randomised):
    """DPT takes tokens and makes maps of them itself; depth by DINOv2 is the best known of its kind."""
    stages = {"out_indices": [1, 2], "reshape_hidden_states": False, "image_size": 32, "patch_size": 8}
    backbone = make_model("plain", **stages).config
    config = DPTConfig(
        backbone_config=backbone,
        hidden_size=32,
        neck_hidden_sizes=[8, 8],
        reassemble_factors=[1, 0.5],
        fusion_hidden_size=8,
        is_hybrid=False,
        use_batch_norm_in_fusion_residual=False,
    )
    model = randomised(DPTForDepthEstimation(config))
    assert type(model.backbone) is ViTBackbone
    assert model(torch.randn(2, 3, 32, 32)).predicted_depth.shape[0] == 2


@pytest.mark.parametrize("predictor", ["matting", "detection"])
@torch.no_grad()
def test_backbone_of_other_predictors(make_model, predictor, tmp_path):
    if predictor == "matting":  # of images with a trimap as their fourth channel
        config = VitMatteConfig(
            backbone_config=make_model("learned_2d", num_channels=4, image_size=32, patch_size=16).config,
            hidden_size=32,
            convstream_hidden_sizes=[8, 8, 8],
            fusion_hidden_sizes=[32, 16, 8, 4],
        )
        model, pixels, shape = VitMatteForImageMatting(config).eval(), torch.randn(2, 4, 32, 48), (2, 1, 32, 48)
    else:
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        config = DetrConfig(backbone_config=make_model("mean").config, d_model=32, num_queries=4, **layers)
        model, pixels, shape = DetrForObjectDetection(config).eval(), torch.randn(2, 3, 32, 48), (2, 4, 3)
    assert model(pixels)[0].shape == shape
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(pixels)[0], model(pixels)[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_backbone_maps_are_the_models_tokens(any_model, pixels, tmp_path):
    any_model.config.merged_tokens_per_layer = 0
    any_model.save_pretrained(tmp_path)
    backbone = ViTBackbone.from_pretrained(tmp_path, out_indices=[0, 2])
    assert backbone.channels == [32, 32]
    stem, last = backbone(pixels).feature_maps
    states = any_model(pixels, output_hidden_states=True).hidden_states
    for feature_map, state in ((stem, states[0]), (last, states[2])):
        patches = any_model.vit.layernorm(state)[:, any_model.config.num_prefix_tokens :]
        for row in range(3):
            for column in range(2):
                assert torch.equal(feature_map[:, :, row, column], patches[:, 2 * row + column])
