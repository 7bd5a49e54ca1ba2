"""Fuzzes the reader with generated pickles, each in its own process with limits of memory and time.

    python tests/support/fuzz_reader.py SEED COUNT

Prints a line for each pickle that gave anything but a tree or a ValueError. The pickles consist of instructions with
valid arguments and pieces of real files, in any order. They store, recall, share and nest values.
"""

import os
import random
import resource
import struct
import sys
import tempfile
from itertools import chain
from pathlib import Path

from nfnet_timm.formats.haiku_reader import read_tree

MEMORY, SECONDS = 160 << 20, 10  # a valid reader needs less for a megabyte of instructions
MOST = 1 << 20  # largest pickle, in bytes


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


NAMES = [
    named("numpy", "ndarray"),
    named("numpy", "dtype"),
    named("numpy.core.multiarray", "_reconstruct"),
    named("numpy.core.multiarray", "scalar"),
    named("numpy._core.numeric", "_frombuffer"),
    named("dill._dill", "_get_attr"),
    named("dill._dill", "_import_module"),
    named("dill._dill", "_create_array"),
    named("jax._src.array", "_reconstruct_array"),
    named("haiku._src.data_structures", "FlatMapping"),
    named("builtins", "dict"),
    named("os", "system"),
]
WORDS = ["w", "f4", "<", ">", "C", "F", "_reconstruct", "numpy.core.multiarray", "os", "x" * 300, "\n", "\ud7ff"]
DTYPE = named("numpy", "dtype") + word("f4") + b"K\x00K\x01\x87R"
DTYPE += b"(K\x03" + word("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"


def doubled(times: int) -> bytes:
    """Return instructions for a tuple that contains another tuple twice, and so on: 2 ** times values in few bytes."""
    return b")" + b"q\x00h\x00\x86" * times


def nested(times: int) -> bytes:
    return b")" + b"\x85" * times


def repeated(times: int) -> bytes:
    """Return instructions that call dict(mapping) ``times`` times with the same mapping of a hundred items."""
    mapping = b"}(" + b"".join(word(f"k{i}") + b"N" for i in range(100)) + b"uq\x00"
    copies = b"".join(word(f"m{i}") + named("builtins", "dict") + b"h\x00\x85R" for i in range(times))
    return mapping + b"}(" + copies + b"u"


# Small files that once blocked the reader, crashed it, or took hundreds of megabytes.
BOMBS = {
    "shape": b"\x80\x04" + EMPTY + b"(K\x01" + doubled(30) + DTYPE + b"\x89C\x08" + bytes(8) + b"tb.",
    "name": b"\x80\x04" + nested(200_000) + nested(200_000) + b"\x93.",
    "module": b"\x80\x04" + named("dill._dill", "_import_module") + nested(200_000) + b"\x85R.",
    "dicts": b"\x80\x04" + repeated(100_000) + b".",
    "marks": b"\x80\x04" + b"(" * (1 << 20) + b".",
    "memo": b"\x80\x04N" + b"\x94" * (1 << 20) + b".",
    "dicts in dicts": b"\x80\x04" + (b"}" + word("k")) * 100_000 + b"N" + b"s" * 100_000 + b".",
    "a dict in itself": b"\x80\x04}q\x00" + word("k") + b"h\x00s.",
}


class Maker:
    """Generates one pickle. ``kept`` counts the values in its memo."""

    def __init__(self, seed: int):
        self.r = random.Random(seed)
        self.kept = 0

    def make(self) -> bytes:
        body = b"".join(self.piece(0) for _ in range(self.r.randint(1, 30)))
        if self.r.random() < 0.3:  # repeat a piece; pickles have no loops
            repeated_piece = self.piece(1)
            body += repeated_piece * min(self.r.choice([10, 1000, 20_000]), MOST // len(repeated_piece) + 1)
        return b"\x80" + self.r.choice([b"\x03", b"\x04", b"\x05"]) + body + b"."

    def piece(self, depth: int) -> bytes:
        r = self.r
        if depth > 4:
            return r.choice([b"N", b")", b"}", b"K\x07", word(r.choice(WORDS))])
        match r.randrange(15):
            case 0:
                return r.choice(NAMES)
            case 1:
                return word(r.choice(WORDS))
            case 2:
                return r.choice([b"K", b"J\xff\xff\xff", b"M\x01"]) + bytes([r.randrange(256)])
            case 3:
                return r.choice([b"N", b"\x88", b"\x89", b")", b"}", b"("])
            case 4:
                content = r.randbytes(r.choice([0, 4, 8, 300]))
                return b"B" + struct.pack("<I", len(content)) + content
            case 5:
                self.kept += 1
                return self.piece(depth + 1) + b"r" + struct.pack("<I", self.kept - 1)
            case 6:
                return b"j" + struct.pack("<I", r.randrange(self.kept + 1))
            case 7:
                count = r.randint(1, 3)
                return b"".join(self.piece(depth + 1) for _ in range(count)) + bytes([0x84 + count])
            case 8:  # nested tuples, each of which contains the same tuple twice
                return b")" + (b"r\0\0\0\0" + b"j\0\0\0\0" * 2 + b"\x87") * r.choice([3, 30, 3000])
            case 9:
                return b"(" + b"".join(self.piece(depth + 1) for _ in range(r.randrange(12))) + b"t"
            case 10:
                return r.choice(NAMES) + self.piece(depth + 1) + b"\x85R"
            case 11:  # repeated dict(mapping) of the same mapping
                return b"}" + (b"r\0\0\0\0" + named("builtins", "dict") + b"j\0\0\0\0\x85R") * r.choice([3, 300])
            case 12:
                pairs = b"".join(word(f"k{i}") + self.piece(depth + 1) for i in range(r.choice([0, 1, 20])))
                return b"}(" + pairs + r.choice([b"u", b"s", b"u" * 2])
            case 13:
                shape = b"".join(b"J" + struct.pack("<i", r.choice([0, 1, 2, -1, 1 << 30])) for _ in range(2))
                return EMPTY + b"(K\x01" + shape + b"\x86" + DTYPE + b"\x89C\x08" + bytes(8) + b"tb"
            case _:
                return r.choice([b"R", b"b", b"s", b"u", b"t", b"\x93", b"\x94", b"\x81", b"0", b"2", b"e", b"c\n\n"])


def outcome(content: bytes, path: Path) -> str:
    """Return how reading ends: "" for a tree or a ValueError of one short line."""
    path.write_bytes(content)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY + address_space(), -1))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # a busy machine does not count
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status = 0
        try:
            read_tree(path)
        except ValueError as error:
            status = 0 if len(str(error)) < 800 and str(error).isprintable() else 3
        except BaseException:
            status = 4
        if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 > MEMORY:
            status = 5
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    endings = {0: "", 3: "a message that is not one short line", 4: "another exception", 5: "too much memory"}
    return endings.get(status, f"ended by {-status}")


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    seed, count = map(int, sys.argv[1:])
    pickles = chain(BOMBS.items(), ((f"seed {i}", Maker(i).make()) for i in range(seed, seed + count)))
    with tempfile.TemporaryDirectory() as folder:
        found = [(label, outcome(content, Path(folder) / "F0_haiku.npz")) for label, content in pickles]
    bad = [f"{label}: {ending}" for label, ending in found if ending]
    print("\n".join(bad), end="")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
