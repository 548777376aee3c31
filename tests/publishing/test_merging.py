"""The card on the Hub: ours is renewed, and nothing is lost that people wrote."""

import re

import pytest
import yaml

from vitrail.publishing import PublishingError
from vitrail.publishing.merging import merged_card, named_after


def card(accuracy, text="", **metadata):
    metadata = {"library_name": "transformers", "tags": ["vit"], "model-index": [{"accuracy": accuracy}]} | metadata
    return f"---\n{yaml.safe_dump(metadata)}---\n\n# tiny\n\nIt reaches {accuracy}.{text}\n"


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def shown(card):
    """What a reader of the page sees."""
    return re.sub(r"<!--.*?-->\n?", "", card.partition("\n---\n")[2]).strip()


FIRST = merged_card(card(0.8), None)


def test_a_first_card_reads_as_it_was_generated():
    assert metadata_of(FIRST) == metadata_of(card(0.8))
    assert shown(FIRST) == "# tiny\n\nIt reaches 0.8."


def test_the_same_model_leaves_the_card_alone():
    assert merged_card(card(0.8), FIRST) == FIRST


def test_text_around_the_generated_card_stays():
    before, after = FIRST.split("<!-- vitrail:begin")
    edited = f"{before}Do not use it in cars.\n\n<!-- vitrail:begin{after}\n## Thanks\n\nTo the ants.\n"
    merged = merged_card(card(0.9), edited)
    assert shown(merged) == "Do not use it in cars.\n\n# tiny\n\nIt reaches 0.9.\n\n## Thanks\n\nTo the ants."
    assert metadata_of(merged)["model-index"] == [{"accuracy": 0.9}]
    assert merged_card(card(0.8), edited) == edited


def test_text_within_the_generated_card_stays_while_the_model_does():
    edited = FIRST.replace("0.8.", "0.8, says Bob.")
    assert merged_card(card(0.8), edited) == edited
    licensed = merged_card(card(0.8, license="mit"), edited)
    assert metadata_of(licensed)["license"] == "mit"
    assert shown(licensed) == shown(edited)
    renewed = merged_card(card(0.9), edited)
    assert shown(renewed).startswith("# tiny\n\nIt reaches 0.9.")
    assert "<details>" in renewed
    assert "says Bob" in renewed
    again = merged_card(card(0.95), renewed)
    assert again.count("says Bob") == again.count("<details>") == 1
    assert "0.9." not in again


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("front", ["", "---\nlanguage: en  # of the labels\n---\n"])
def test_a_card_by_hand_keeps_its_text_and_gets_ours(front, newline):
    present = f"{front}# My model\n\nIt took a year.\n".replace("\n", newline)
    merged = merged_card(card(0.8), present)
    assert "# My model\n\nIt took a year.\n\n<!-- vitrail:begin" in merged
    assert metadata_of(merged)["tags"] == ["vit"]
    assert metadata_of(merged).get("language") == ("en" if front else None)
    assert merged_card(card(0.8), merged) == merged


def test_an_empty_card_is_filled():
    assert shown(merged_card(card(0.8), "---\nlicense: mit\n---\n")) == shown(FIRST)


def test_a_card_that_was_uploaded_as_it_is_is_taken_for_ours():
    merged = merged_card(card(0.9), merged_card(card(0.8), card(0.8) + "\nAnd I wrote this.\n"))
    assert shown(merged) == "# tiny\n\nIt reaches 0.9.\n\nAnd I wrote this."


def test_a_folder_that_was_downloaded_can_be_pushed():
    assert merged_card(FIRST, FIRST) == FIRST
    assert merged_card(FIRST, None) == FIRST
    assert shown(merged_card(FIRST, merged_card(card(0.9), None))) == shown(FIRST)


def test_metadata_is_replaced_where_it_is_ours():
    first = merged_card(card(0.8, base_model="google/vit", license="mit"), None)
    by_hand = first.replace("library_name: transformers", "language: en\nlibrary_name: transformers\nextra: [1]")
    by_hand = by_hand.replace("- vit\n", "- vit\n- ants\n")
    merged = metadata_of(merged_card(card(0.9, datasets="alice/ants"), by_hand))
    assert merged == {
        "language": "en",
        "extra": [1],
        "library_name": "transformers",
        "tags": ["vit", "ants"],
        "model-index": [{"accuracy": 0.9}],
        "datasets": "alice/ants",
    }


def test_metadata_by_hand_wins_unless_it_is_a_fact_of_the_model():
    present = "---\nlicense: mit\nlibrary_name: timm\nbase_model: google/vit\ntags: ants\n---\nMine.\n"
    merged = metadata_of(merged_card(card(0.8, license="apache-2.0", base_model="google/deit"), present))
    assert merged["license"] == "mit"
    assert merged["library_name"] == "transformers"
    assert merged["base_model"] == "google/deit"
    assert merged["tags"] == ["ants", "vit"]
    merged = metadata_of(merged_card(card(0.9, license="apache-2.0"), merged_card(card(0.8), present)))
    assert merged["license"] == "mit"


def test_comments_in_metadata_stay_where_nothing_changes_there():
    edited = FIRST.replace("library_name: transformers", "library_name: transformers  # of course")
    assert "# of course" in merged_card(card(0.8, text=" Again."), edited)


@pytest.mark.parametrize("front", ["a: [", "- a\n- b"])
def test_metadata_that_is_none_is_said(front):
    with pytest.raises(PublishingError, match=r"The README.md on the Hub begins with metadata that is not"):
        merged_card(card(0.8), f"---\n{front}\n---\nText.\n")


def test_snippets_load_from_the_hub(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    text = (
        'pipeline("image-classification", "{0}")\nload_dataset("other/tiny")\nvitrail train --model {0} --dataset {0}x'
    )
    expected = text.format("alice/vit").replace("alice/vitx", "{0}x")
    for location in ("runs/tiny", str(folder), "./runs/tiny"):
        assert named_after(text.format(location), folder, "alice/vit") == expected.format(location)
