"""The card on the Hub: what was generated, within what people wrote around it.

Between two comments, which readers of the page do not see, stands the generated card; the first one names the metadata
that came with it, and the text's digest, which shows later whether somebody has changed it.
"""

import hashlib
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

from vitrail.publishing.errors import PublishingError


_BLOCK = re.compile(
    r"<!-- vitrail:begin (?P<digest>[0-9a-f]{16}) owns(?P<keys>[^>]*) -->\n(?P<text>.*?)\n<!-- vitrail:end -->", re.S
)
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(?:\n|\Z)", re.S | re.M)

# What a new model makes untrue of an old one, whoever wrote it.
_FACTS = {"base_model", "datasets", "library_name", "model-index", "pipeline_tag"}

# What stays when it is no more generated; all but the facts also when it is generated anew.
_ANYBODYS = {"colorFrom", "colorTo", "emoji", "suggested_hardware", "tags", "title"}


def merged_card(generated: str, present: str | None, facts: Set[str] = _FACTS) -> str:
    """The card that goes to the Hub: ours, and all that people wrote into the one that is there.

    Args:
        generated: the README.md beside the model.
        present: the README.md on the Hub, if there is one.
        facts: the metadata that is replaced whoever wrote it; by default that of a model.

    Returns:
        `present` with its generated block and metadata replaced. A card without such a block keeps its text, and gets
        the block at its end. A block into which somebody wrote stays as it is while the model does; otherwise it is
        kept, folded, behind the new one. Metadata of the generated card replaces what earlier ones brought, and the
        facts; tags are united; everything else is kept.

    Raises:
        PublishingError: the metadata of either card is not valid YAML.
    """
    metadata, text = _parts(generated, "The README.md of the model")
    ours = _BLOCK.search(text)  # the folder was downloaded from a repository to which it had been published
    if present is None:
        return generated if ours else new_card(metadata, _block(text.strip("\n"), metadata))
    text = ours["text"] if ours else text.strip("\n")
    normal = present.removeprefix("\ufeff").replace("\r\n", "\n")
    old_metadata, old_text = _parts(normal, "The README.md on the Hub")
    old = _BLOCK.search(old_text)
    merged, owned = _merged_metadata(metadata, old_metadata, set(old["keys"].split()) if old else set(), facts)
    if old:
        body = old_text[: old.start()] + _renewed(old, text, owned) + old_text[old.end() :]
    elif text and text in old_text:
        body = old_text.replace(text, _block(text, owned), 1)
    else:
        body = f"{old_text.rstrip()}\n\n{_block(text, owned)}\n"
    if merged == old_metadata:  # whose YAML may have comments
        return present if body == old_text else normal.removesuffix(old_text) + body
    return new_card(merged, body)


def read_card(card: Path) -> str:
    """The text of a card.

    Raises:
        PublishingError: it is not UTF-8.
    """
    try:
        return card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PublishingError(f"{card} is not text in UTF-8; correct it first.") from error


def card_metadata(card: str) -> dict[str, Any]:
    """The metadata at the beginning of a model's card.

    Raises:
        PublishingError: it is not valid YAML.
    """
    return _parts(card, "The README.md of the model")[0]


def new_card(metadata: dict[str, Any], text: str) -> str:
    """A card of metadata and text."""
    front = f"---\n{yaml_dump(metadata, sort_keys=False)}---\n" if metadata else ""
    return f"{front}\n{text.strip(chr(10))}\n"


def named_after(card: str, folder: Path, repository: str) -> str:
    """A card whose snippets load the model from the Hub: in quotes and after --model, `folder` becomes `repository`.

    A card names its folder as the training did, by an absolute path or the end of one.
    """
    parts = folder.resolve().parts

    def rename(match: re.Match) -> str:
        named = Path(match[0]).parts
        return repository if named and named == parts[-len(named) :] else match[0]

    return re.sub(r'(?<=")[^"\n]+(?=")|(?<=--model )\S+', rename, card)


def _parts(card: str, name: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text."""
    if (match := _FRONT_MATTER.match(card)) is None:
        return {}, card
    try:
        metadata = yaml.safe_load(match["yaml"]) or {}
    except yaml.YAMLError as error:
        raise PublishingError(f"{name} begins with metadata that is not valid YAML; correct it first.") from error
    if not isinstance(metadata, dict):
        raise PublishingError(f"{name} begins with metadata that is not a YAML mapping; correct it first.")
    return metadata, card[match.end() :]


def _block(text: str, keys: Iterable[str], *, generated: str | None = None) -> str:
    """Text between the two comments, with the digest of what was generated where people have changed that since."""
    owned = "".join(f" {key}" for key in sorted(map(str, keys)) if key not in _ANYBODYS)
    return f"<!-- vitrail:begin {_digest(generated or text)} owns{owned} -->\n{text}\n<!-- vitrail:end -->"


def _renewed(old: re.Match, text: str, keys: Iterable[str]) -> str:
    """What takes the place of an earlier block."""
    if _digest(old["text"]) == old["digest"]:
        return _block(text, keys)
    if _digest(text) == old["digest"]:
        return _block(old["text"], keys, generated=text)
    summary = "<summary>The card of an earlier model, changed by hand</summary>"
    return f"{_block(text, keys)}\n\n<details>\n{summary}\n\n{old['text']}\n\n</details>"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _merged_metadata(
    new: dict[str, Any], old: dict[str, Any], owned: set[str], facts: Set[str]
) -> tuple[dict[str, Any], set[str]]:
    """The metadata, and which of it is ours."""
    merged = {key: value for key, value in old.items() if key in new or key not in owned}
    ours = {key for key in new if key in facts or key in owned or key not in old}
    merged |= {key: new[key] for key in ours}
    tags = [old.get("tags") or [], new.get("tags") or []]
    united = dict.fromkeys(tag for some in tags for tag in ([some] if isinstance(some, str) else some))
    return merged | ({"tags": list(united)} if united else {}), ours
