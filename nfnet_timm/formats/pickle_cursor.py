"""Reads bytes, numbers and strings of limited length from a pickle."""

__all__ = ["Cursor", "Damaged", "Refused"]

_LONGEST_STRING = 1_000  # bytes


class Refused(ValueError):
    """The file contains an instruction that a tree of arrays does not need."""


class Damaged(ValueError):
    """The file is not a valid sequence of instructions."""


class Cursor:
    """A position in the file, and methods that read from there."""

    def __init__(self, data: memoryview):
        self.data = data
        self.at = 0

    def take(self, count: int) -> memoryview:
        """Return the next bytes, as a view."""
        if count > len(self.data) - self.at:
            raise Damaged(
                f"it ends after byte {self.at}: expected {count} more bytes, found {len(self.data) - self.at}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        """Return the next bytes as a whole number."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, count: int) -> str:
        """Return the next bytes as a string."""
        content = self.take(count)
        if count > _LONGEST_STRING:
            raise Refused(f"it has a string of {count} bytes, expected at most {_LONGEST_STRING}")
        try:
            return bytes(content).decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"a string at byte {self.at - count} is not UTF-8: {error.reason}") from None

    def line(self) -> str:
        """Return the string up to the end of the line."""
        count = bytes(self.data[self.at : self.at + _LONGEST_STRING]).find(b"\n")
        if count < 0:
            raise Damaged(f"a name at byte {self.at} does not end")
        return self.text(count + 1)[:-1]
