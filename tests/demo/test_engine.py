"""What the views and endpoints are told, beside the same asked of `vitrail.inspection` directly."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.demo.engine import Engine, File
from vitrail.demo.explaining import DRAWS, SHARES, Occlusion, Question
from vitrail.demo.facts import giga_multiply_adds, variant_of
from vitrail.demo.latest import Latest
from vitrail.demo.truth import curves, hidden_pictures, sentence
from vitrail.inspection import attention_maps, attention_rollout, layer_attention, occlusion, relevance
from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel, read_image


@pytest.fixture(scope="module")
def backbone(make_model, tmp_path_factory):
    """A checkpoint without head."""
    return make_model(tmp_path_factory.mktemp("models") / "backbone", ViTModel)


@pytest.fixture(scope="module")
def several(make_model, tmp_path_factory):
    """A multi-label model."""
    folder = tmp_path_factory.mktemp("models") / "several"
    return make_model(folder, problem_type="multi_label_classification")


@pytest.fixture
def engine(animals, deeper, backbone, several):
    return Engine(list(map(str, (animals, deeper, backbone, several))), open_to_all=False)


@pytest.fixture
def file(photo):
    return File(photo, "photo.png")


def asked_directly(folder, photo, question, kind=ViTForImageClassification):
    """Logits and class, the map up to or of the first layer and the last, by the functions that make one map."""
    network = kind.from_pretrained(folder).eval()
    pixels = ViTImageProcessor.from_pretrained(folder)(read_image(photo), return_tensors="pt").pixel_values
    fusion, discard, patch = question.head_fusion, question.discard_ratio, question.patch
    if question.method == "rollout":
        first = attention_rollout(network, pixels, fusion, discard, end_layer=1, patch=patch)
        last = attention_rollout(network, pixels, fusion, discard, patch=patch)
        return last.logits, None, first.heatmap[0], last.heatmap[0]
    if question.method == "attention":
        of_heads = [layer_attention(network, pixels, layer, patch) for layer in (0, -1)]
        fused = [getattr(one.heatmap[0], {"mean": "mean", "max": "amax", "min": "amin"}[fusion])(0) for one in of_heads]
        return of_heads[0].logits, None, *fused
    method = "chefer" if question.method == "relevance" else question.method
    last = relevance(network, pixels, question.target, method)
    return last.logits, int(last.target[0]), None, last.heatmap[0] - last.heatmap[0].min()


@pytest.mark.parametrize("name", ["animals", "deeper"])
@pytest.mark.parametrize(
    "question",
    [
        Question(),
        Question(head_fusion="max", discard_ratio=0.5),
        Question(patch=(2, 1)),
        Question("attention", head_fusion="min"),
        Question("attention", patch=(0, 1)),
        Question("relevance"),
        Question("relevance", target=1),
        Question("gradient_rollout", target=3),
    ],
    ids=str,
)
def test_an_explanation_is_what_inspection_says(engine, request, name, photo, file, question):
    found = engine.explain(name, file, question)
    logits, target, first, last = asked_directly(request.getfixturevalue(name), photo, question)
    torch.testing.assert_close(torch.from_numpy(found.probabilities), logits.softmax(-1)[0])
    assert found.target == target
    assert len(found.maps) == (3 if name == "animals" else 5)
    torch.testing.assert_close(torch.from_numpy(found.maps[-1]), last)
    if first is not None:
        torch.testing.assert_close(torch.from_numpy(found.maps[0]), first)


def test_nothing_spoke_for_a_class_at_a_patch(engine, file):
    with pytest.raises(InputError, match="for a patch choose rollout or attention"):
        engine.explain("deeper", file, Question("relevance", patch=(0, 0)))


def test_heads(engine, deeper, photo, file):
    network = ViTForImageClassification.from_pretrained(deeper)
    pixels = ViTImageProcessor.from_pretrained(deeper)(read_image(photo), return_tensors="pt").pixel_values
    expected = attention_maps(network, pixels, 3)[0, 0, :, 0, 1:].unflatten(-1, (4, 4))
    torch.testing.assert_close(torch.from_numpy(engine.heads("deeper", file, 3)), expected)
    with pytest.raises(InputError, match="layer"):
        engine.heads("deeper", file, 5)


def test_a_checkpoint_without_head_shows_where_it_looks(engine, backbone, photo, file):
    found = engine.explain("backbone", file, Question())
    _, _, _, expected = asked_directly(backbone, photo, Question(), ViTModel)
    torch.testing.assert_close(torch.from_numpy(found.maps[-1]), expected)
    assert found.target is None
    assert not found.probabilities.size
    assert engine.model("backbone").labels == []
    for ask in (
        lambda: engine.explain("backbone", file, Question("relevance")),
        lambda: engine.occlude("backbone", file, Question()),
        lambda: engine.classify("backbone", file),
    ):
        with pytest.raises(InputError, match="backbone has no head"):
            ask()


def test_classes_that_do_not_exclude_one_another(engine, several, photo, file):
    logits, *_ = asked_directly(several, photo, Question())
    found = engine.explain("several", file, Question()).probabilities
    torch.testing.assert_close(torch.from_numpy(found), logits.sigmoid()[0])
    assert np.array_equal(engine.classify("several", file), found)


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_occlusion(engine, animals, photo, file, method):
    question = Question(method, target=1 if method == "relevance" else None)
    logits, target, _, heatmap = asked_directly(animals, photo, question)
    network = ViTForImageClassification.from_pretrained(animals)
    pixels = ViTImageProcessor.from_pretrained(animals)(read_image(photo), return_tensors="pt").pixel_values
    expected = occlusion(network, pixels, heatmap[None], target, SHARES, DRAWS)
    found = engine.occlude("animals", file, question)
    assert found.target == (int(logits.argmax()) if target is None else target)
    assert found.probability == pytest.approx(float(logits.softmax(-1)[0, found.target]))
    for ours, theirs in (
        (found.by_map, expected.map),
        (found.at_random, expected.random),
        (found.hidden, expected.hidden),
        (found.hidden_at_random, expected.hidden_at_random),
    ):
        torch.testing.assert_close(torch.from_numpy(ours), theirs[0])

    table = curves(found)
    assert table[table["patches hidden"] == "by the map"]["hidden"].tolist() == [0, 10, 25, 50]
    assert table[table["patches hidden"] == "by the map"]["probability"].tolist() == pytest.approx(
        [100 * found.probability, *(100 * found.by_map)]
    )
    random = table[table["patches hidden"] == "at random"]["probability"].tolist()
    assert random == pytest.approx([100 * found.probability, *(100 * found.at_random.mean(1))])

    pictures = hidden_pictures(found, engine.picture("animals", file))
    assert len(pictures) == 2 * len(SHARES)
    picture, caption = pictures[2]
    assert caption == f"by the map, 50%: {found.by_map[2]:.1%}"
    height, width = picture.height / 3, picture.width / 2
    for (row, column), hidden in np.ndenumerate(found.hidden[2]):
        centre = round((column + 0.5) * width), round((row + 0.5) * height)
        assert (picture.getpixel(centre) == (127, 127, 127)) == hidden


@pytest.mark.parametrize(
    ("by_map", "verdict"),
    [(0.15, "below every random draw"), (0.3, "within what chance does"), (0.5, "Chance does more")],
)
def test_what_is_said_of_occlusion(by_map, verdict):
    random = np.array([[0.9] * 5, [0.2, 0.3, 0.4, 0.5, 0.6], [0.1] * 5])
    hidden = np.zeros((3, 3, 2), bool)
    said = sentence(Occlusion(1, 0.875, np.array([0.9, by_map, 0.01]), random, hidden, hidden), "bee")
    assert said.startswith("**bee** has a probability of 87.5%. With 25% of the patches hidden it")
    assert f"**{by_map:.1%}** where the map chooses them, and 40.0% (20.0% to 60.0%) where chance does" in said
    assert verdict in said


@pytest.mark.parametrize(
    ("fit", "region"), [("squash", (0, 0, 1, 1)), ("crop", (0.25, 0, 0.75, 1)), ("pad", (0, -0.5, 1, 1.5))]
)
def test_the_region_of_a_picture(animals, tmp_path, fit, region):
    """A picture of 64x48 for a model of 16x24: all, its middle half, or with borders above and below."""
    folder = shutil.copytree(animals, tmp_path / fit)
    ViTImageProcessor(fit=fit, size={"height": 24, "width": 16}).save_pretrained(folder)
    Image.new("RGB", (64, 48), "olive").save(tmp_path / "wide.png")
    picture = Engine([str(folder)], False).picture(fit, File(tmp_path / "wide.png", "wide.png"))
    width, height = picture.shown.size
    assert width / height == pytest.approx(4 / 3)
    assert picture.region == pytest.approx([side * edge for side, edge in zip((width, height) * 2, region)])


@pytest.mark.parametrize(
    ("size", "shown"),
    [((8, 8), (448, 448)), ((3000, 30), (1024, 10)), ((600, 500), (600, 500)), ((300, 200), (900, 600))],
)
def test_pictures_are_shown_in_a_size_for_screens(engine, tmp_path, size, shown):
    Image.new("RGB", size, "olive").save(tmp_path / "image.png")
    picture = engine.picture("animals", File(tmp_path / "image.png", "image.png"))
    assert picture.shown.size == shown
    assert picture.region == pytest.approx((0, 0, *shown))


def test_a_changed_file_is_seen_anew(engine, tmp_path):
    file = File(tmp_path / "image.png", "image.png")
    answers = []
    for second, color in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), color).save(file.path)
        os.utime(file.path, (second, second))
        answers.append(engine.explain("animals", file, Question()))
        assert engine.explain("animals", file, Question()) is answers[-1]
        assert engine.picture("animals", file).shown.getpixel((0, 0)) == Image.open(file.path).getpixel((0, 0))
    assert not np.allclose(answers[0].probabilities, answers[1].probabilities)
    assert not np.allclose(engine.explain("animals", file, Question("relevance")).maps, answers[1].maps)


def test_a_memory_keeps_the_latest():
    made = []
    latest = Latest(2)
    for key in "abacab":
        assert latest.get(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b", "c", "b"]


def test_names(animals, make_model, tmp_path):
    same = make_model(tmp_path / "animals", seed=7)
    engine = Engine([str(animals), str(same), "alice/vit", f"{same}/"], open_to_all=False)
    assert engine.names == ["animals", "animals (2)", "alice/vit", "animals (3)"]
    assert engine.model("animals").source == str(animals)
    assert engine.model("animals (2)").source == str(same)
    assert engine.model("animals") is engine.model("animals")


@pytest.mark.parametrize("name", ["animals (2)", "", "alice/vit"])
def test_what_is_not_on_offer_is_refused(animals, deeper, name):
    name = name or str(deeper)
    closed, opened = (Engine([str(animals)], is_open) for is_open in (False, True))
    with pytest.raises(InputError, match="is not on offer here; choose one of animals"):
        closed.model(name)
    if name == str(deeper):
        assert len(opened.model(name).labels) == 12
    with pytest.raises(InputError, match="Choose a model first"):
        opened.model("")


def test_examples(animals, deeper):
    assert [path.name for path in Engine([str(animals)], False).examples()] == ["blue.png", "red.png"]
    photos = Engine([str(deeper)], False).examples()
    assert len(photos) == 4
    assert {path.suffix for path in photos} == {".jpg"}


def test_what_computes_may_run_elsewhere(animals, deeper, file):
    """`on_gpu` decorates all that computes, which takes and gives what another process can."""
    tasks = []

    def on_gpu(function):
        def elsewhere(*arguments):
            tasks.append(arguments[0])
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))

        return elsewhere

    engine, beside = Engine([str(animals)], False, on_gpu), Engine([str(animals)], False)
    for one in (engine, beside):
        one.heads("animals", file, 0), one.occlude("animals", file, Question())
    assert np.array_equal(engine.classify("animals", file), beside.classify("animals", file))
    ours, theirs = (one.explain("animals", file, Question("relevance", 2)) for one in (engine, beside))
    assert np.array_equal(ours.maps, theirs.maps)
    assert tasks == ["heads", "occlude", "classify", "explain"]


def test_broken_weights_are_one_sentence(animals, file, tmp_path):
    folder = shutil.copytree(animals, tmp_path / "broken")
    network = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        network.vit.layers[0].attention.q_proj.weight[0] = torch.nan
    network.save_pretrained(folder)
    with pytest.raises(InputError, match="the model's weights hold NaN, or overflow"):
        Engine([str(folder)], False).explain("broken", file, Question())


@pytest.mark.parametrize(
    ("config", "variant"),
    [
        (ViTConfig.from_variant("B/16"), "B/16"),
        (ViTConfig.from_variant("S/16", patch_size=14), "S/14"),
        (ViTConfig.from_variant("S/16", patch_size=(16, 8)), "S/16x8"),
        (ViTConfig.from_variant("R50+B/16"), "R50+B/16"),
        (ViTConfig.from_variant("L/16", hidden_size=1008), None),
    ],
)
def test_variants(config, variant):
    assert variant_of(config) == variant


def test_multiply_adds_are_those_that_are_published():
    assert giga_multiply_adds(ViTConfig.from_variant("B/16", num_labels=1000)) == pytest.approx(17.56, abs=0.01)


def test_facts(engine, animals):
    facts = engine.facts("animals")
    network = ViTForImageClassification.from_pretrained(animals)
    assert facts.table["Variant"] == "none of the paper's"
    assert facts.table["Parameters"] == f"{sum(p.numel() for p in network.parameters()) / 1e6:,.2f} million"
    assert facts.table["Image"] == "24x16 pixels, 3 channels"
    assert facts.table["Patches"] == "3x2 of 8x8 pixels"
    assert facts.table["Layers"] == "3, of width 32 and 4 heads"
    assert facts.table["Classes"] == "5: ant, bee, cat, dog, elk"
    assert facts.card == '# Animals\n\n `pipeline("image-classification", "animals")`'
    ((picture, caption),) = facts.card_pictures
    assert (picture.size, caption) == ((300, 200), "What they look like")
    assert len(facts.figures) + len(facts.remarks) == 3
    assert all(picture.width > 300 for picture, _ in facts.figures)
    assert engine.facts("animals") is facts


def test_facts_of_a_checkpoint_without_head_or_card(engine):
    facts = engine.facts("backbone")
    assert facts.table["Classes"] == "none; the checkpoint has no head"
    assert (facts.card, facts.card_pictures) == ("", [])
