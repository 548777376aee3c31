"""A JPEG whose lower rows are not decoded.

Most of the time that a reduced JPEG takes goes into its Huffman code, which can only be read from the top, but need not
be read to the end. libjpeg stops after the rows that the file's header declares, so that of a file of which only the
upper part is wanted, the header is made to declare fewer.
"""

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # headers that say how many rows there are, of files with one scan after the other
_SCAN = 0xDA
_ALIGNMENT = 16  # rows, so that a half, a quarter and an eighth of them are whole numbers
_BELOW = 2  # rows on which the colours of those above depend


def without_rows_below(content: bytes, bottom: int) -> bytes:
    """A JPEG of which at least the first `bottom` rows are the same, and the others may be missing.

    It is the same file if that spares nothing; if it does not end as a complete one does, for then the whole must be
    decoded to find out whether it can be; or if it is progressive, whose missing scans libjpeg guesses from rows below.
    """
    height = -(-(bottom + _BELOW) // _ALIGNMENT) * _ALIGNMENT
    place = _place_of_height(content)
    if place is None or height >= int.from_bytes(content[place : place + 2], "big") or not content.endswith(_END):
        return content
    return content[:place] + height.to_bytes(2, "big") + content[place + 2 :]


def _place_of_height(content: bytes) -> int | None:
    """Where the number of rows stands, two bytes; None in a progressive file, and where the header is wrong."""
    place = len(_START)
    while content.startswith(_START) and content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _SEQUENTIAL_FRAMES:
            return place + 5
        if marker == _SCAN or length < 2:
            return None
        place += 2 + length
    return None
