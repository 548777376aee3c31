"""The model card: true, and valid YAML and Markdown whatever names are in it."""

import ast
import copy
import json
from itertools import pairwise

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from transformers import TrainerState

from vitrail.modeling import InputError
from vitrail.training import train
from vitrail.training.arguments import parse_arguments
from vitrail.training.card import model_card
from vitrail.training.evaluation import evaluate
from vitrail.training.metrics import Judgements, class_results
from vitrail.training.provenance import Provenance, provenance_of


ODD = [
    "a|b",
    "$x^2$",
    "<b>bold",
    "`code`",
    "---",
    "# no heading",
    "a: 'b' \"c\"",
    "two\nlines",
    "__init__",
    "🐱\u200d👤",
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return parse_arguments(["--dataset", "digits", "--output_dir", str(tmp_path_factory.mktemp("card"))])


def card_of(model, arguments, folder="run", hub_model_id=None, metrics=None, **kwargs):
    arguments = copy.copy(arguments[2])
    arguments.output_dir, arguments.hub_model_id = f"/somewhere/{folder}", hub_model_id
    state = TrainerState(global_step=120, max_steps=300, epoch=4.0, num_train_epochs=10, best_global_step=90)
    figures = {"eval_accuracy": 0.5, "eval_f1_macro": 0.4, "eval_calibration_error": 0.123456, "eval_loss": 1.0}
    figures |= {"train_runtime": 3723.4} | (metrics or {})
    story = {"method": {}, "remark": "", "pictures": ["confusion_matrix.png"], "remote_code": False} | kwargs
    provenance = {"dataset": "data", "dataset_id": None, "base_model": None, "base_model_id": None, "images": {}}
    provenance = Provenance(**provenance | story.pop("provenance", {}))
    return model_card(model, arguments, provenance, state, figures, **story)


def shown(text):
    """What a page shows of inline Markdown."""
    (token,) = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "inline"]
    assert {child.type for child in token.children} == {"text"} or not token.children
    return "".join(child.content for child in token.children)


def structure(card):
    """Headings, HTML, table rows as lists of cells, and blocks of code of a card's text, as a page would show them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    headings, rows, html = [], [], []
    for token, inner in pairwise(tokens):
        if token.type == "heading_open":
            headings.append(inner.content)
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append(inner.content)
    for token in tokens:
        html += [token.content.strip()] if token.type == "html_block" else []
        html += [child.content for child in token.children or [] if child.type == "html_inline"]
    return headings, rows, html, [token.content for token in tokens if token.type == "fence"]


names = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=[]), max_size=150))
folders = st.text(st.characters(exclude_characters="/\0", exclude_categories=[]), min_size=1, max_size=80)


@settings(
    max_examples=50,
    phases=[Phase.explicit, Phase.generate],  # to shrink a failure takes longer than all tests together
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(folder=folders, dataset=names, base=names, licence=names, labels=st.lists(names, min_size=5, max_size=5))
@example(folder="```\n---\n", dataset="---\nlicense: mit", base="</summary>", licence="\n---\n", labels=ODD[:5])
@example(folder="a 'b' \"c\" `d` ##", dataset="x" * 5000, base="\udcff", licence="[x](y)", labels=ODD[5:])
def test_whatever_names_are_in_it_it_is_valid(tiny_model, arguments, folder, dataset, base, licence, labels):
    judgements = Judgements(*(np.array([0, 1, 2, 3, 4, 4]) for _ in range(4)), np.array([0, 1, 2, 3, 4, 0]))
    classes = {f"eval_{name}": figures for name, figures in class_results(judgements, labels).items()}
    stated = {"license": "other", "license_name": licence}
    provenance = {"dataset": dataset, "base_model": base, "license": stated, "settings": {"config_overrides": dataset}}
    card = card_of(tiny_model, arguments, folder, metrics=classes, provenance=provenance)

    again = ModelCard(card.content.encode(errors="strict").decode())  # as it is written to a file, and read
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.license_name == licence
    figures = {(result.dataset_split, result.metric_type): result.metric_value for result in again.data.eval_results}
    expected = {"accuracy": 0.5, "f1": 0.4, "expected-calibration-error": 0.1235, "loss": 1.0}
    assert figures == {("validation", name): value for name, value in expected.items()}

    headings, rows, html, code = structure(again)
    assert headings[1:] == ["Results", "Use", "Limits", "Model", "Training", "Licence"]
    assert html == ["<details>\n<summary>Settings</summary>", "</details>"]
    assert ast.literal_eval(code[0].split("\n")[3].removeprefix("model = ")) == f"/somewhere/{folder}"
    table = rows[[row[0] for row in rows].index("class") :][1:6]
    assert [len(row) for row in table] == [5] * 5
    for row, label in zip(table, classes["eval_per_class"]):
        legible = " ".join("".join(c for c in label if c.isprintable() or c.isspace() or c in "\u200c\u200d").split())
        assert shown(f"x{row[0]}x") == f"x{legible if len(legible) <= 100 else legible[:99] + '…'}x"


def test_it_says_how_the_weights_came_about(tiny_model, arguments):
    settings = {"mixup": 0.2, "config_overrides": '{"a": "b|c"}'}
    images = {"train": 1000, "validation": 100}
    provenance = {"images": images, "settings": settings, "base_model": "a/b", "base_model_id": "a/b"}
    extra = {"test_loss": 1.0, "test_accuracy": 0.25, "test_f1_macro": 0.2, "test_calibration_error": 0.1}
    extra |= {"skipped_images_train": 3}
    card = card_of(tiny_model, arguments, metrics=extra, provenance=provenance, remark="A remark.", remote_code=True)
    assert "It was fine-tuned from [a/b](https://huggingface.co/a/b) on data with Vitrail." in card.text
    rows = dict(row for row in structure(card)[1] if len(row) == 2)
    assert rows["images"] == "1,000 train, 100 validation"
    assert rows["unreadable, left out"] == "3 train"
    assert rows["epochs"] == "4, stopped early of 60 (120 steps)"
    assert rows["schedule"] == "cosine, warm-up 5% of the steps"
    assert rows["time"].startswith("1 h 2 min on ")
    assert rows["`--mixup`"] == "0.2"
    assert rows["`--config_overrides`"] == r'{"a": "b|c"}'
    assert "These figures belong to the weights in this folder. A remark." in card.text  # the last: digits take no best
    assert 'pipeline("image-classification", model, trust_remote_code=True)' in card.text
    assert "![Confusion matrix of the test split" in card.text
    results = card.data.eval_results
    assert [result.metric_value for result in results if result.metric_type == "accuracy"] == [0.5, 0.25]
    assert "the card of the model it was fine-tuned from names none" in card.text


def test_best_weights_are_called_so(tiny_model, arguments):
    model, data, training = arguments
    best = copy.copy(training)
    best.load_best_model_at_end, best.metric_for_best_model = True, "accuracy"
    card = card_of(tiny_model, (model, data, best))
    chosen = "the best of training by `accuracy` on the validation split (step 90 of 120)"
    assert f"These figures belong to the weights in this folder, {chosen}. Having been chosen there" in card.text


def test_many_classes_are_folded_and_the_hardest_shown(tiny_model, arguments):
    figures = {"precision": 0.5, "recall": None, "support": 1}
    classes = {f"class {index}": {**figures, "f1": index / 500} for index in reversed(range(500))}
    card = card_of(tiny_model, arguments, metrics={"eval_per_class": classes})
    _, rows, html, _ = structure(card)
    table = rows[[row[0] for row in rows].index("class") + 1 :][:200]
    assert [row[0] for row in table] == [f"class {index}" for index in range(200)]
    assert table[1] == ["class 1", "0.5000", "-", "0.0020", "1"]
    assert any("The 200 classes of lowest F1" in each for each in html)


@pytest.mark.parametrize(
    ("front_matter", "inherited"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: other\nlicense_name: mine", {"license": "other", "license_name": "mine"}),
        ("license: [mit, apache-2.0]", {}),
        ("license: {", {}),
        ("- a list", {}),
        ("tags: []", {}),
    ],
)
def test_a_licence_is_inherited_unless_another_is_stated(arguments, tmp_path, front_matter, inherited):
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    model, data, training = map(copy.copy, arguments)
    model.model = str(tmp_path)
    found = provenance_of(model, data, training, {})
    assert (found.license, found.license_inherited) == (inherited, bool(inherited))
    training.license = "apache-2.0"
    found = provenance_of(model, data, training, {})
    assert (found.license, found.license_inherited) == ({"license": "apache-2.0"}, False)
    (tmp_path / "README.md").unlink()
    training.license = None
    assert provenance_of(model, data, training, {}).license == {}


def test_a_licence_the_hub_cannot_have_is_named():
    with pytest.raises(InputError, match=r"license must be a name of the Hub's like apache-2\.0"):
        parse_arguments(["--dataset", "digits", "--license", "My own!"])


def test_settings_are_those_that_were_chosen(arguments):
    settings = provenance_of(*arguments, {}).settings
    recipe = {"crop_scale": 1.0, "flip": 0.0, "rotation": 10, "num_train_epochs": 60, "learning_rate": 2e-3}
    assert recipe.items() <= settings.items()
    assert not settings.keys() & {"dataset", "output_dir", "hub_token", "eval_strategy", "recipe", "model", "seed"}
    assert provenance_of(*parse_arguments(["--dataset", "digits", "--seed", "7"]), {}).settings["seed"] == 7


@pytest.fixture(scope="module")
def odd_run(tiny_flags, tmp_path_factory):
    """A short training on gray images of two oddly named classes, which nobody can tell apart, with a test split."""
    folder = tmp_path_factory.mktemp("odd")
    generator = np.random.default_rng(0)
    for split, number in (("train", 12), ("validation", 6), ("test", 10)):
        for name in ("a|b $x^2$", "<b>`c` 猫"):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 255, (20, 30, 3))
                Image.fromarray(np.uint8(pixels)).save(folder / split / name / f"{index}.png")
    flags = [*tiny_flags, "--dataset", str(folder), "--output_dir", str(tmp_path_factory.mktemp("run") / "odd 'run'")]
    return train([*flags, "--num_train_epochs", "2", "--license", "mit"]), folder


def test_evaluate_gives_what_training_reported(odd_run, tmp_path):
    result, folder = odd_run
    metrics = evaluate(str(result.output_dir), str(folder), output=tmp_path / "evaluation")
    whole = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert whole["eval_split"] == "test"
    for name in ("accuracy", "f1_macro", "calibration_error", "per_class", "confusion_matrix"):
        assert whole[f"eval_{name}"] == result.metrics[f"test_{name}"]
    assert metrics["eval_loss"] == pytest.approx(result.metrics["test_loss"], rel=1e-6)
    assert metrics.items() <= whole.items()
    for picture in ("confusion_matrix.png", "worst_mistakes.png"):
        assert (tmp_path / "evaluation" / picture).read_bytes() == (result.output_dir / picture).read_bytes()


def test_a_real_card_is_of_both_splits(odd_run):
    result, _ = odd_run
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.license == "mit"
    for split, prefix in (("validation", "eval"), ("test", "test")):
        figures = {
            each.metric_type: each.metric_value for each in card.data.eval_results if each.dataset_split == split
        }
        assert figures["accuracy"] == round(result.metrics[f"{prefix}_accuracy"], 4)
        assert figures["expected-calibration-error"] == round(result.metrics[f"{prefix}_calibration_error"], 4)
    assert "](worst_mistakes.png)" in card.text
    assert r"| \<b\>\`c\` 猫 |" in card.text
