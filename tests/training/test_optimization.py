"""Parameter groups, layer-wise learning rates, and Muon against torch's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTForMaskedPatchPrediction
from vitrail.training.arguments import parse_arguments
from vitrail.training.optimization import Muon, orthogonalized, parameter_groups
from vitrail.training.trainer import ViTTrainer


SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}
SHAPE |= {"image_size": 32, "patch_size": 8}
MODELS = {
    "plain": (ViTForImageClassification, {}),
    "everything": (
        ViTForImageClassification,
        {"use_distillation_token": True, "num_register_tokens": 2, "use_layer_scale": True, "pooling": "attention"},
    ),
    "2-D": (ViTForImageClassification, {"position_embedding": "learned_2d", "position_placement": "every_layer"}),
    "relative": (ViTForImageClassification, {"position_embedding": "relative", "use_swiglu": True}),
    "hybrid": (ViTForImageClassification, {"resnet_depths": [1], "resnet_width": 32, "patch_size": 1}),
    "hidden layer": (ViTForImageClassification, {"representation_size": 16}),
    "masked-patch": (ViTForMaskedPatchPrediction, {}),
}


def model_of(name):
    kind, fields = MODELS[name]
    return kind(ViTConfig(**(SHAPE | fields)))


def settings(model, **kwargs):
    """By name, the rate and decay of every trainable parameter, each of which is in one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.1, **kwargs)
    found = [(names[parameter], group) for group in groups for parameter in group["params"]]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for name, _ in found) == sorted(trainable)
    return dict(found), groups


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_learns_slower_than_the_next_and_only_weights_decay(name):
    found, groups = settings(model_of(name), layer_lr_decay=0.5)
    assert groups[0]["lr"] == 1.0
    for parameter, group in found.items():
        if ".layers." in parameter:
            depth = 1 + int(parameter.split(".layers.")[1].split(".")[0])
        else:
            depth = 0 if ".embeddings." in parameter or parameter == "mask_token" else 4
        assert group["lr"] == 0.5 ** (4 - depth), parameter
        kept = ("bias", "norm", "token", "positions", "embeddings", "lambda1", "latent", ".root.norm", "norm3")
        last_two = ".".join(parameter.split(".")[-2:])
        assert (group["weight_decay"] == 0.1) == (
            not any(part in last_two for part in kept) or last_two.endswith(("projection.weight", "conv.weight"))
        ), parameter


# peft 0.21 asks transformers for what 5.23 calls by another name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_and_what_peft_trains_beside_them_are_in_their_layers():
    adapted = get_peft_model(
        model_of("plain"), LoraConfig(target_modules=["q_proj", "fc1"], modules_to_save=["classifier"], r=2)
    )
    found, _ = settings(adapted, layer_lr_decay=0.5, muon_learning_rate=8.0)
    rates = {name.removeprefix("base_model.model."): group["lr"] for name, group in found.items()}
    assert len(rates) == 3 * 2 * 2 + 2
    assert rates["vit.layers.0.attention.q_proj.lora_A.default.weight"] == 8 * 0.5**3
    assert rates["vit.layers.2.mlp.fc1.lora_B.default.weight"] == 8 * 0.5
    assert rates["classifier.modules_to_save.default.weight"] == 1.0


def test_frozen_parameters_are_in_no_group_and_muon_takes_the_layers_matrices():
    model = model_of("everything")
    model.vit.embeddings.requires_grad_(False)
    found, _ = settings(model, muon_learning_rate=2.0)
    for name, group in found.items():
        assert group["muon"] == (".layers." in name and dict(model.named_parameters())[name].ndim == 2)
        assert group["lr"] == (2.0 if group["muon"] else 1.0)


def steps(model, optimizer, count, seed=0):
    """Trains on random batches, the rate halved after every step as by any scheduler."""
    generator = torch.Generator().manual_seed(seed)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(count):
        pixels = torch.randn(4, 3, 32, 32, generator=generator)
        model(pixels, labels=torch.randint(5, (4,), generator=generator)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


@pytest.mark.parametrize("fused", [False, True])
def test_muon_is_torchs_muon_beside_adamw(fused, randomised):
    ours, theirs = randomised(model_of("everything")), randomised(model_of("everything"))
    optimizer = Muon(parameter_groups(ours, 1e-2, 0.1, 0.7, 2e-2), torch.optim.AdamW, fused=fused)
    steps(ours, optimizer, 3)
    groups = parameter_groups(theirs, 1e-2, 0.1, 0.7, 2e-2)
    muon = torch.optim.Muon([group for group in groups if group["muon"]])
    adamw = torch.optim.AdamW([group for group in groups if not group["muon"]], fused=fused)
    generator = torch.Generator().manual_seed(0)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (muon, adamw)]
    for _ in range(3):
        pixels = torch.randn(4, 3, 32, 32, generator=generator)
        theirs(pixels, labels=torch.randint(5, (4,), generator=generator)).loss.backward()
        for each in (muon, adamw, *schedulers):
            each.step()
        theirs.zero_grad()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters()):
        # Whether matrices are multiplied one by one or stacked can cost a bit of bfloat16, but not on every machine.
        tolerance = 1e-3 if ".layers." in name and one.ndim == 2 else 1e-6
        assert torch.allclose(one, other, rtol=0, atol=tolerance), name


def test_orthogonalized_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices).float())
    assert ((values > 0.6) & (values < 1.3)).all()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(
            orthogonalized(matrices).float().flatten(1), (left @ right).flatten(1)
        ).min()
        > 0.95
    )


def test_muons_state_makes_the_journey_bit_for_bit(tmp_path, randomised):
    through = randomised(model_of("plain"))
    optimizer = Muon(parameter_groups(through, 1e-2, 0.1, 1.0, 2e-2), torch.optim.AdamW)
    steps(through, optimizer, 2)
    resumed = copy.deepcopy(through)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = Muon(parameter_groups(resumed, 5.0, 0.5, 1.0, 5.0), torch.optim.AdamW)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for model, each in ((through, optimizer), (resumed, again)):
        steps(model, each, 2, seed=1)
    assert all(torch.equal(*pair) for pair in zip(through.parameters(), resumed.parameters()))


def optimizer_of(model, *flags):
    argv = ["--dataset", "x", "--weight_decay", "0.1", "--layer_lr_decay", "0.5", *flags]
    arguments = parse_arguments(argv)[2]
    kind, kwargs = ViTTrainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind(**kwargs)


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [
        (["--optim", "sgd", "--optim_args", "momentum=0.9"], "SGD", {"momentum": 0.9}),
        (["--optim", "adafactor"], "Adafactor", {"relative_step": False}),
        (["--optim", "adamw_torch", "--adam_beta2", "0.95"], "AdamW", {"betas": (0.9, 0.95)}),
        (["--muon_learning_rate", "0.02", "--optim", "sgd", "--optim_args", "momentum=0.8"], "Muon", {"momentum": 0.8}),
    ],
)
def test_transformers_choice_of_optimiser_is_kept(flags, kind, expected, randomised):
    model = randomised(model_of("plain"))
    optimizer = optimizer_of(model, *flags)
    assert type(optimizer).__name__ == kind
    assert expected.items() <= optimizer.param_groups[0].items()
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    assert min(group["lr"] for group in optimizer.param_groups) == 1e-4 * 0.5**4
    before = copy.deepcopy(model)
    steps(model, optimizer, 1)
    for name in ("vit.layers.0.mlp.fc1.weight", "vit.embeddings.cls_token", "classifier.bias"):
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))


def test_an_optimiser_that_groups_parameters_itself_is_named(monkeypatch):
    monkeypatch.setattr(
        "transformers.Trainer.get_optimizer_cls_and_kwargs", lambda args, model: (torch.optim.SGD, {"params": []})
    )
    with pytest.raises(InputError, match="--optim sgd groups the parameters itself; leave out --layer_lr_decay"):
        optimizer_of(model_of("plain"), "--optim", "sgd")
