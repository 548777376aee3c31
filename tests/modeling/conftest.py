"""One small model of every kind that differs in what it computes."""

import pytest


# Fields of `ViTConfig`. All read 24x16 pixels as 3x2 patches.
KINDS = {
    "plain": {},
    "hybrid": {"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1, "representation_size": 16},
    "distilled": {
        "use_distillation_token": True,
        "use_distillation_head": True,
        "num_register_tokens": 2,
        "use_layer_scale": True,
        "use_swiglu": True,
    },
    "mean": {"use_class_token": False, "pooling": "mean", "pool_before_norm": True},
    "attention": {"use_class_token": False, "pooling": "attention", "qkv_bias": False},
    "relative": {"position_embedding": "relative", "position_placement": "every_layer", "pooling": "mean"},
    "learned_2d": {"position_embedding": "learned_2d", "position_placement": "every_layer"},
    "sincos": {"position_embedding": "sincos_2d", "pooling": "token_and_mean"},
    "merging": {"merged_tokens_per_layer": 2, "position_placement": "every_layer", "pooling": "token_and_mean"},
}


@pytest.fixture(scope="session")
def kinds() -> tuple[str, ...]:
    return tuple(KINDS)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def machine(request, monkeypatch):
    """A processor on which MKL is fast, and one on which it is not."""
    from vitrail.modeling import dense

    if not dense.HAS_ONEDNN:
        pytest.skip("PyTorch has no oneDNN for AVX-512 here")
    monkeypatch.setattr(dense, "MKL_IS_SLOW", request.param)


@pytest.fixture(scope="session")
def make_model(randomised):
    """A function from a kind and fields to change in its config to a classifier with random weights."""
    from vitrail.modeling import ViTConfig, ViTForImageClassification

    def make(kind, **fields):
        common = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": (24, 16),
            "patch_size": 8,
            "num_labels": 5,
        }
        return randomised(ViTForImageClassification(ViTConfig(**(common | KINDS[kind] | fields))))

    return make


@pytest.fixture
def any_model(make_model, kind):
    """A classifier of each kind."""
    return make_model(kind)
