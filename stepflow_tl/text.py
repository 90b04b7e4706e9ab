"""Untrusted text, such as model output, made harmless for terminals and messages."""


def escaped(text: str, *, keep: str = "") -> str:
    """The text with characters that do not print as escapes, but for those to keep."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """The text on one line, control characters as blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
