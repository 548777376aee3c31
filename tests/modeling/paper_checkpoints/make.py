"""Golden files for loading the paper's Flax checkpoints: small weights, and what the paper's own code makes of them.

Writes `<name>.npz` (weights) and `<name>.expected.npz` beside this file, for

    token            class token, pre-linen names (those of the published checkpoints)
    token_linen      class token, the names today's Flax gives
    representation   class token, pre-logits layer of 12 units with tanh, pre-linen names
    gap              mean of the patch tokens instead of a class token, today's names
    hybrid_r         ResNet root only, patches of 2x2 features, GroupNorm parameters of shape (C,), pre-linen names
    hybrid_blocks    ResNet root, stages of 1 and 2 units, GroupNorm parameters of shape (1, 1, 1, C), pre-linen names
    prefixed         the arrays of `token`, every name prefixed by "opt/target/" as in raw AugReg training checkpoints

Each `expected` file holds, in float32:

    pixels          (2, S, S, 3)  NHWC, in [-1, 1]
    hidden          (2, T, 16)    the encoder's output after encoder_norm, all tokens (the class token, if any, first)
    logits          (2, 5)
    pixels_resized  (2, R, R, 3)  R > S; these two are in all files but token_linen and prefixed
    logits_resized  (2, 5)        after checkpoint.load_pretrained at R, with the head of the file instead of a new one

Run, in an environment with Flax and a checkout of https://github.com/google-research/vision_transformer installed
(`pip install <checkout>`, or its folder on PYTHONPATH):

    python make.py

Made with vit_jax as of 2024 (models_vit.py at 143bd26, checkpoint.py and models_resnet.py at 2ecbc73), jax 0.10.2,
flax 0.12.8, numpy 2.4.6, scipy 1.17.1, ml_collections 1.1.0, Python 3.11, on CPU. It prints how far float32 is from
float64. The weights are drawn by numpy and do not depend on jax.

Scales are chosen so that slips show in the logits: tokens enter the first LayerNorm with a variance near 1e-3 (its
epsilon is 1e-6), half the filters of the standardized convolutions have a deviation near 1e-4 (1e-5 is added to it),
what gn2 hands to conv3 is small enough for the epsilon of gn3 (1e-6) to count, and attention is far from uniform. Two
things cannot show: a bias on the keys, which shifts all scores of a query alike, and, before a GroupNorm with one
channel per group (gn_root, gn1 and gn2 of the first stage), the size of a filter.
"""

import functools
import re
from pathlib import Path
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from vit_jax import checkpoint, models_vit


FOLDER = Path(__file__).parent
CLASSES = 5
HIDDEN = 16

# What each pre-linen module name became: Flax once numbered submodules in order, whatever their class.
PRE_LINEN = {
    "LayerNorm_1": "LayerNorm_2",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "MlpBlock_0": "MlpBlock_3",
}


def configure(patch: int = 4, stages: tuple[int, ...] | None = None, **changes) -> ml_collections.ConfigDict:
    """A model configuration in the form of vit_jax/configs/models.py; `stages` is None without a ResNet."""
    config = ml_collections.ConfigDict()
    config.patches = {"size": (patch, patch)}
    config.hidden_size = HIDDEN
    config.transformer = {"mlp_dim": 32, "num_heads": 2, "num_layers": 2}
    config.classifier = "token"
    config.representation_size = None
    if stages is not None:
        config.resnet = {"num_layers": stages, "width_factor": 0.5}
    config.update(changes)
    return config


def initial(config: ml_collections.ConfigDict, size: int) -> dict:
    """The parameters the paper's code itself makes for images of `size` pixels."""
    model = models_vit.VisionTransformer(num_classes=CLASSES, **config)
    return model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)["params"]


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random parameter without zeros, scaled by its role."""
    *_, module, leaf = ("", *name.split("/"))
    if leaf in ("cls", "pos_embedding"):
        return rng.normal(0, 0.03, shape)
    size = {"embedding": 0.1, "gn2": 2.0**-8}.get(module, 1.0)
    if leaf == "scale":
        return size * rng.uniform(0.7, 1.3, shape)
    if leaf == "bias":
        return size * rng.normal(0, 0.3, shape)
    if module.startswith("conv"):
        # Few distinct values, so that the file compresses; not centred and of two sizes, so that standardizing matters.
        return rng.choice([-1.0, 1.5], shape) * rng.choice([2.0**-14, 2.0**-6], shape[-1])
    fan_in = shape[0] if module in ("query", "key", "value") else np.prod(shape[:-1])
    gain = {"embedding": 0.03, "query": 1.5, "key": 1.5, "head": 3.0}.get(module, 1.0)
    return rng.normal(0, gain / np.sqrt(fan_in), shape)


def pixels(size: int, rng: np.random.Generator) -> np.ndarray:
    """Two images (2, size, size, 3) in [-1, 1]: random waves, in steps of 1/16 so that they compress."""
    grid = np.linspace(0, 1, size)
    waves = np.zeros((2, size, size, 3))
    for _ in range(6):
        ky, kx, phase, height = rng.normal(0, [[6], [6], [3], [0.3]], (4, 6)).reshape(4, 2, 1, 1, 3)
        waves += height * np.sin(ky * grid[:, None, None] + kx * grid[None, :, None] + phase)
    return (np.clip(waves, -1, 1) * 16).round().astype(np.float32) / 16


def run(config: ml_collections.ConfigDict, params: dict, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits, encoder output) of the paper's model in float32; prints the distance from float64."""

    def forward(dtype):
        # The blocks compute in their own dtype, float32 by default, whatever they are fed.
        blocks = functools.partial(models_vit.Encoder1DBlock, dtype=dtype)
        with mock.patch.object(models_vit, "Encoder1DBlock", blocks):
            logits, state = models_vit.VisionTransformer(num_classes=CLASSES, **config).apply(
                {"params": jax.tree.map(lambda x: jnp.asarray(x, dtype), params)},
                jnp.asarray(images, dtype),
                train=False,
                capture_intermediates=lambda module, _: module.name == "Transformer",
                mutable=["intermediates"],
            )
        hidden = state["intermediates"]["Transformer"]["__call__"][0]
        assert logits.dtype == hidden.dtype == dtype
        return np.asarray(logits), np.asarray(hidden)

    logits, hidden = forward(jnp.float32)
    with jax.enable_x64(True):
        exact_logits, exact_hidden = forward(jnp.float64)
    print(
        f"  {images.shape[1]:2d} px: logits {logits.shape} std {logits.std():.2f} max {np.abs(logits).max():.2f},"
        f" float64 - float32: {np.abs(exact_logits - logits).max():.1e}; hidden {hidden.shape},"
        f" float64 - float32: {np.abs(exact_hidden - hidden).max():.1e}"
    )
    return logits, hidden


def make(
    name: str,
    config: ml_collections.ConfigDict,
    size: int,
    *,
    seed: int,
    resized: int | None = None,
    linen: bool = False,
    groupnorm_4d: bool = False,
    prefix: str = "",
) -> None:
    """Draw one model, write it, read it back with the paper's code and write what that computes."""
    rng = np.random.default_rng(seed)
    shapes = {k: v.shape for k, v in flax.traverse_util.flatten_dict(initial(config, size), sep="/").items()}
    drawn = {k: draw(k, shapes[k], rng).astype(np.float32) for k in sorted(shapes)}
    assert all(np.all(v != 0) for v in drawn.values())

    stored = {}
    for key, value in drawn.items():
        if not linen:
            key = "/".join(PRE_LINEN.get(part, part) for part in key.split("/"))
        if groupnorm_4d and re.search(r"/?gn[^/]*/(scale|bias)$", key):
            value = value.reshape(1, 1, 1, -1)
        stored[prefix + key] = value
    path = FOLDER / f"{name}.npz"
    # The published files are not compressed; numpy reads both alike, so one such file is enough.
    (np.savez if name == "token" else np.savez_compressed)(path, **dict(sorted(stored.items())))

    print(f"{name}: {len(stored)} arrays, {sum(v.size for v in stored.values())} parameters")
    params = checkpoint.load(path)
    for part in filter(None, prefix.split("/")):
        params = params[part]
    if prefix:  # the paper's code renames from the root down: it reads names under a prefix as well
        assert sorted(flax.traverse_util.flatten_dict(params, sep="/")) == sorted(drawn)
    for key, value in flax.traverse_util.flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(value, drawn[key])

    images = pixels(size, rng)
    logits, hidden = run(config, params, images)
    expected = {"pixels": images, "hidden": hidden, "logits": logits}
    if resized:
        head = params["head"]
        params = checkpoint.load_pretrained(
            pretrained_path=path, init_params=initial(config, resized), model_config=config
        )
        expected["pixels_resized"] = pixels(resized, rng)
        expected["logits_resized"], _ = run(config, {**params, "head": head}, expected["pixels_resized"])
    np.savez_compressed(FOLDER / f"{name}.expected.npz", **expected)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    make("token", configure(), 12, seed=1, resized=20)
    make("token_linen", configure(), 12, seed=2, linen=True)
    make("representation", configure(representation_size=12), 12, seed=3, resized=20)
    make("gap", configure(classifier="gap"), 12, seed=4, resized=20, linen=True)
    make("hybrid_r", configure(patch=2, stages=()), 32, seed=5, resized=40)
    make("hybrid_blocks", configure(patch=1, stages=(1, 2)), 32, seed=6, resized=40, groupnorm_4d=True)
    make("prefixed", configure(), 12, seed=1, prefix="opt/target/")
