"""What a file or another program says, made fit for a message of one line."""


def one_line(error: Exception) -> str:
    """What `error` has to say, without its line breaks, its control characters and its long tail."""
    text = " ".join(str(error).split())[:300]
    return "".join(character if character.isprintable() else "?" for character in text)


def shown(name: str) -> str:
    """A name out of a file."""
    short = name if len(name) <= 80 else f"{name[:77]}..."
    return short if short.isprintable() else repr(short)
