"""The model against stock transformers' ViT, against itself on other backends, and as the paper describes it."""

import math

import pytest
import torch
import transformers
from torch.nn import functional as F

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTModel


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def stock(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    return transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()


def test_stock_transformers_computes_the_same(tiny_model, stock, pixels):
    ours = tiny_model(pixels, output_hidden_states=True)
    theirs = stock(pixels, output_hidden_states=True)
    assert torch.equal(ours.logits, theirs.logits)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(mine, other)


def test_eager_returns_attention_whose_rows_sum_to_one(tiny_model, pixels):
    tiny_model.set_attn_implementation("eager")
    attentions = tiny_model(pixels, output_attentions=True).attentions
    assert len(attentions) == 3
    for attention in attentions:
        assert attention.shape == (3, 4, 7, 7)
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4, 7))


def test_loss_is_cross_entropy_for_classes_and_for_probabilities(tiny_model, pixels):
    labels = torch.tensor([4, 0, 2])
    soft = F.one_hot(labels, 5).float()
    by_class, by_probability = tiny_model(pixels, labels=labels), tiny_model(pixels, labels=soft)
    expected = -by_class.logits.log_softmax(-1)[range(3), labels].mean()
    torch.testing.assert_close(by_class.loss, expected)
    torch.testing.assert_close(by_probability.loss, expected)
    # Stock transformers would remember from a first float label to use another loss for ever.
    torch.testing.assert_close(tiny_model(pixels, labels=labels).loss, expected)


def test_a_new_model_starts_undecided(tiny_config, pixels):
    model = ViTForImageClassification(tiny_config).eval()
    assert not model(pixels).logits.any()
    loss = model(pixels, labels=torch.tensor([0, 1, 2])).loss
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))


def test_initial_weights_have_the_spread_of_the_papers_code():
    model = ViTModel(ViTConfig.from_variant("S/16", num_hidden_layers=1))
    layer = model.layers[0]
    assert layer.mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / (384 + 1536)), rel=0.02)
    assert layer.attention.q_proj.weight.std().item() == pytest.approx(math.sqrt(2 / (384 + 384)), rel=0.02)
    patches = model.embeddings.patch_embeddings.projection.weight
    assert patches.std().item() == pytest.approx(math.sqrt(1 / (3 * 16 * 16)), rel=0.02)
    assert model.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.embeddings.cls_token.any()


def test_dropout_stands_where_the_paper_has_it(tiny_config, randomised, pixels):
    """After the position embeddings, after attention's output and after both dense layers of the MLP."""
    tiny_config.hidden_dropout_prob = 0.5
    model = randomised(ViTForImageClassification(tiny_config)).train()
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(pixels)
    layer = ["vit.layers.{}.dropout", "vit.layers.{}.mlp.dropout", "vit.layers.{}.mlp.dropout"]
    assert seen == ["vit.embeddings.dropout", *(name.format(i) for i in range(3) for name in layer)]


def test_wrong_image_size_is_one_sentence(tiny_model):
    with pytest.raises(InputError, match="24x24 pixels, but the model reads 24x16"):
        tiny_model(torch.zeros(1, 3, 24, 24))
