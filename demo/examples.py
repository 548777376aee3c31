"""Images to begin with."""

from pathlib import Path


def example_files(model: str) -> list[Path]:
    """A model's own samples, `samples/*.png` in its folder, as `vitrail train` leaves them; or else photographs."""
    own = sorted(Path(model).glob("samples/*.png"))
    return own or sorted(Path(__file__).with_name("photos").glob("*.jpg"))
