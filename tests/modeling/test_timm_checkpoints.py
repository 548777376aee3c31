"""timm's ViTs against timm itself: small ones with random weights for their numbers, all there are for their shapes."""

import json

import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import VisionTransformer

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTModel
from vitrail.modeling.timm_checkpoints import from_timm


SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 5}
FAMILIES = {
    "plain": ("vit_base_patch16_224", {}),
    "not square": ("vit_base_patch16_224", {"img_size": (32, 48), "patch_size": (8, 16)}),
    "one channel": ("vit_base_patch16_224", {"in_chans": 1}),
    "no qkv bias": ("vit_base_patch16_224_miil", {}),
    "distilled": ("deit_base_distilled_patch16_224", {}),
    "DeiT III": ("deit3_base_patch16_224", {}),
    "DINOv2": ("vit_base_patch14_dinov2", {}),
    "DINOv2 with SwiGLU": ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}),
    "DINOv2 with registers": ("vit_base_patch14_reg4_dinov2", {}),
    "mean, with registers": ("vit_base_patch16_reg4_gap_256", {}),
    "mean before norm, registers with positions": ("vit_so150m2_patch16_reg1_gap_256", {}),
    "mean after norm": ("vit_medium_patch16_gap_240", {}),
    "mean beside a class token": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "mean beside a class token, after norm": ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "attention pooling, tanh GELU": ("vit_base_patch32_siglip_256", {}),
    "attention pooling, registers": ("vit_so150m_patch16_reg4_map_256", {}),
    "no positions": ("vit_base_patch16_224", {"pos_embed": "none"}),
    "hybrid, root alone": ("vit_tiny_r_s16_p8_224", {"img_size": 64}),
    "hybrid, three stages": ("vit_base_r50_s16_224", {"img_size": 64}),
    "hybrid, four stages": ("vit_small_r26_s32_224", {"img_size": 64}),
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def saved(request, tmp_path):
    """timm's model with random weights, and the folder that timm saved it to."""
    architecture, arguments = request.param
    hybrid = "_r_" in architecture or "_r50_" in architecture or "_r26_" in architecture
    arguments = SMALL | {"img_size": 32} | ({} if hybrid else {"patch_size": 8}) | arguments
    model = timm.create_model(architecture, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.05 if "backbone" in name else 0.2, generator=generator)
    save_for_hf(model.eval(), tmp_path, safe_serialization=True, model_args=arguments)
    return model, tmp_path


def relative_error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def images(model, factor=1.0):
    channels, (height, width) = model.in_chans, model.patch_embed.img_size
    return torch.randn(
        2, channels, int(height * factor), int(width * factor), generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
def test_timm_computes_the_same(saved):
    model, folder = saved
    ours = ViTForImageClassification.from_pretrained(folder)
    pixels = images(model)
    assert relative_error(ours(pixels).logits, model(pixels)) < 1e-6
    tokens = ViTModel.from_pretrained(folder)(pixels).last_hidden_state
    assert relative_error(tokens, model.forward_features(pixels)) < 1e-6


@torch.no_grad()
def test_timm_resizes_position_embeddings_the_same(saved):
    model, folder = saved
    pixels = images(model, factor=2)
    larger = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=tuple(pixels.shape[2:])).eval()
    wanted = larger(pixels)
    asked = ViTForImageClassification.from_pretrained(folder)(pixels, interpolate_pos_encoding=True)
    assert relative_error(asked.logits, wanted) < 1e-6
    loaded = ViTForImageClassification.from_pretrained(folder, image_size=list(pixels.shape[2:]))
    assert relative_error(loaded(pixels).logits, wanted) < 1e-6


def features(model):
    """What timm's model is made of, in the terms of `ViTConfig`."""
    block = model.blocks[0]
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "SiLU": "gelu"}[type(block.mlp.act).__name__],
        "layer_norm_eps": block.norm1.eps,
        "image_size": list(model.patch_embed.img_size),
        "pooling": {"avg": "mean", "map": "attention"}.get(model.global_pool, "token"),
        "use_class_token": model.has_class_token,
        "num_register_tokens": model.num_reg_tokens,
        "pool_before_norm": not isinstance(model.fc_norm, torch.nn.Identity),
    }


@pytest.mark.parametrize("architecture", timm.list_models(["vit_*", "deit*", "test_vit*"]))
def test_every_architecture_of_timm_loads_or_is_refused(architecture):
    """Without weights: every tensor finds its place, and what cannot be seen from the shapes is right."""
    with torch.device("meta"):
        shallow = {} if architecture.endswith("sapiens2") else {"depth": 2}  # whose layers are of several kinds
        model = timm.create_model(architecture, **shallow)
    config = {"architecture": architecture, "pretrained_cfg": dict(model.pretrained_cfg)}
    tensors = dict(model.state_dict())
    try:
        fields, renamed = from_timm(config, tensors, source=architecture)
        with torch.device("meta"):
            expected = ViTForImageClassification(ViTConfig(**fields)).state_dict()
        if model.num_classes == 0:
            expected = {name: tensor for name, tensor in expected.items() if not name.startswith("classifier.")}
        fits = {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in expected.items()}
    except (InputError, StrictDataclassError):
        fits = False
    understood = type(model) in (VisionTransformer, timm.models.deit.VisionTransformerDistilled) and not any(
        part in architecture
        for part in (
            *("_clip_", "_xp_", "_rpn_", "18x2", "_radio_", "_mci_", "resnet", "intern300m", "dlittle", "dwee"),
            *("dpwee", "pwee", "test_vit3", "test_vit4"),
            *("patch14_siglip_384", "patch14_siglip_gap_384"),  # 14 does not divide 384; timm cuts the rest off
        )
    )
    assert fits == understood
    if understood:
        assert {name: fields[name] for name in features(model)} == features(model)


def test_label_names_and_old_flat_files(tmp_path):
    model = timm.create_model("vit_base_patch16_224", **SMALL, img_size=32, patch_size=8)
    save_for_hf(model, tmp_path, safe_serialization=True, model_args={"num_heads": 4})
    config = json.loads((tmp_path / "config.json").read_text())
    names = ["n01", "n02", "n03", "n04", "n05"]
    config |= {"label_names": names, "label_descriptions": {"n02": "goldfish"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ViTConfig.from_pretrained(tmp_path).labels == ["n01", "goldfish", "n03", "n04", "n05"]
    flat = config["pretrained_cfg"] | {"architecture": "vit_base_patch16_224", "num_classes": 5}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    old = ViTConfig.from_pretrained(tmp_path)
    assert (old.num_attention_heads, len(old.labels)) == (1, 5)  # 64 channels a head where nothing else is said


@torch.no_grad()
def test_what_transformers_timm_wrapper_saved_loads(tmp_path):
    model = timm.create_model("vit_base_patch16_224", **SMALL, img_size=32, patch_size=8)
    save_for_hf(model.eval(), tmp_path / "timm", safe_serialization=True)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    del config["model_args"]["num_classes"]  # which the wrapper would pass to timm twice
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    wrapped = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path / "timm", num_labels=5)
    wrapped.save_pretrained(tmp_path / "wrapped")
    ours = ViTForImageClassification.from_pretrained(tmp_path / "wrapped")
    assert relative_error(ours(images(model)).logits, wrapped.eval()(images(model)).logits) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet50"}, "timm's resnet50, which is none of the ViTs"),
        ({"architecture": "vit_base_patch16_rpn_224"}, "timm's vit_base_patch16_rpn_224, which is none of the ViTs"),
        ({"model_args": {"pool_include_prefix": True}}, "with pool_include_prefix, which vitrail does not know"),
        ({"model_args": {"act_layer": "mish", "num_heads": 4}}, "the activation 'mish'"),
        ({"model_args": {"global_pool": "avgmax"}}, "pools by 'avgmax'"),
        ({"model_args": {"global_pool": ""}}, "pools by ''"),
    ],
)
def test_what_vitrail_does_not_know_is_refused(tmp_path, change, message):
    model = timm.create_model("vit_base_patch16_224", **SMALL, img_size=32, patch_size=8)
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        ViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("vit_base_patch16_siglip_224", "normalises after attention pooling"),
        ("vit_base_patch16_clip_224", "normalises before its first layer, as CLIP's ViTs do"),
    ],
)
def test_norms_in_other_places_are_refused(tmp_path, architecture, message):
    arguments = SMALL | {"img_size": 32, "patch_size": 8} | ({"fc_norm": True} if "siglip" in architecture else {})
    save_for_hf(timm.create_model(architecture, **arguments), tmp_path, safe_serialization=True, model_args=arguments)
    with pytest.raises(InputError, match=message):
        ViTForImageClassification.from_pretrained(tmp_path)
