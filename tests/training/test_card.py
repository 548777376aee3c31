"""The model card: true, and valid YAML and Markdown whatever names are in it."""

import ast
import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from huggingface_hub import ModelCard
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


ODD = ["a|b", "$x^2$", "<b>bold", "`code`", "---", "# no heading", "a: 'b' \"c\"", "two\nlines", "__init__", "🐱\u200d👤"]


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
    for token, inner in zip(tokens, tokens[1:]):
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


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
