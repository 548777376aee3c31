"""How a model gets to the Hub: what of its folder goes there, that it works there, and what others wrote there."""

from vitrail.publishing.errors import PublishingError
from vitrail.publishing.publication import Publication, Published
from vitrail.publishing.space_publication import SpacePublication


__all__ = ["Publication", "Published", "PublishingError", "SpacePublication"]
