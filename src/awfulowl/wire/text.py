"""Text of a peer made fit to be shown: short, and without characters that act on a terminal."""


def plain(text: str, max_chars: int) -> str:
    """Return at most `max_chars` characters of `text`, with `?` for every one that cannot be printed.

    `str.isprintable` is false for control, format (so also for those that turn the direction of writing),
    surrogate and unassigned characters.
    """
    return "".join(char if char.isprintable() else "?" for char in text[:max_chars])
