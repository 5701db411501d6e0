"""Backends whose operations can be done in several ways."""

from minidl.errors import ConfigError

DIRECT, WINOGRAD = "direct", "winograd"  # of the CPU's convolutions


class Techniques:
    """A backend that can be told by which technique to do an operation.

    Attributes:
        asked_for: The technique that `use` was told to take, by operation.
    """

    asked_for: dict[str, str]

    def techniques(self, operation: str) -> tuple[str, ...]:
        """The techniques that an operation has; none where there is no choice."""
        raise NotImplementedError

    def use(self, operation: str, technique: str | None) -> None:
        """Take that technique from now on; None lets the operation choose by its arrays. Raises ConfigError."""
        if technique is None:
            self.asked_for.pop(operation, None)
            return
        known = self.techniques(operation)
        if technique not in known:
            has = f"its techniques are {', '.join(known)}" if known else "it has no techniques to choose from"
            raise ConfigError(f"{operation} has no technique '{technique}'; {has}")
        self.asked_for[operation] = technique
