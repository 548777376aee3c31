"""Models of every kind that a map can be about."""

import pytest
import torch


# Fields of `ViTConfig` beside those of `tiny_config`, and what the head reads of n patches and those before them.
CASES = {
    "plain": ({}, lambda n: [1] + n * [0]),
    "registers": ({"num_register_tokens": 3}, lambda n: [1, 0, 0, 0] + n * [0]),
    "distilled": (
        {"use_distillation_token": True, "use_distillation_head": True, "num_register_tokens": 1},
        lambda n: [1 / 2, 1 / 2, 0] + n * [0],
    ),
    "distilled, one head": ({"use_distillation_token": True}, lambda n: [1, 0] + n * [0]),
    "mean": ({"pooling": "mean"}, lambda n: [0] + n * [1 / n]),
    "mean, only patches": (
        {"pooling": "mean", "use_class_token": False, "pool_before_norm": True},
        lambda n: n * [1 / n],
    ),
    "mean, registers first": (
        {"pooling": "mean", "use_class_token": False, "num_register_tokens": 2},
        lambda n: [0, 0] + n * [1 / n],
    ),
    "token and mean": ({"pooling": "token_and_mean"}, lambda n: [1 / 2] + n * [1 / (2 * n)]),
    "attention": ({"pooling": "attention", "num_register_tokens": 1}, None),
    "attention, only patches": ({"pooling": "attention", "use_class_token": False}, None),
    "relative": (
        {"position_embedding": "relative", "position_placement": "every_layer"},
        lambda n: [1] + n * [0],
    ),
    "learned_2d": (
        {"position_embedding": "learned_2d", "position_placement": "every_layer"},
        lambda n: [1] + n * [0],
    ),
    "hybrid": ({"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1}, lambda n: [1] + n * [0]),
}


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def reads():
    """A function from a case to what its head reads: the tokens' weights, from the number of patches, or None."""
    return lambda case: CASES[case][1]


@pytest.fixture
def build(tiny_config, randomised):
    """A function from a case to a classifier, or another model, with random weights."""
    from vitrail.modeling import ViTConfig, ViTForImageClassification

    def build(case, model_class=ViTForImageClassification, **fields):
        fields = {"num_prefix_positions": None} | CASES[case][0] | fields
        return randomised(model_class(ViTConfig.from_dict(tiny_config.to_dict(), **fields)))

    return build


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(2))
