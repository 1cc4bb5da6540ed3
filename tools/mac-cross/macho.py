#!/usr/bin/env python3
"""macho.py PROGRAM [LIBRARY…] [--macos 14.0] [--not-within FOLDER]…: checks Mac programs without a Mac.

What can be known from the files alone: that each is for arm64 and for that version of macOS, finds its libraries from where
it lies, takes nothing else but the system's, and no name that the library beside it lacks; that no path of the machine
that built it is in it; and that its signature is right, page by page: Apple silicon runs nothing else.
"""
import argparse, hashlib, struct, sys
from pathlib import Path

MAGIC, ARM64, PROGRAM, LIBRARY = 0xFEEDFACF, 0x0100000C, 2, 6
TWO_LEVEL, POSITION_INDEPENDENT = 0x80, 0x200000
SYMTAB, LOAD, ID, WEAK, REEXPORT, RPATH = 0x2, 0xC, 0xD, 0x80000018, 0x8000001F, 0x8000001C
SIGNATURE, BUILD_VERSION, ENVIRONMENT, SEGMENT, LAZY, UPWARD = 0x1D, 0x32, 0x27, 0x19, 0x20, 0x80000023
SUPERBLOB, DIRECTORY = 0xFADE0CC0, 0xFADE0C02
ADHOC = 0x2
HASHES = {1: "sha1", 2: "sha256"}
SYSTEM = ("/usr/lib/", "/System/Library/Frameworks/")
# Nothing of ours has more.
COMMANDS_MAX = 1000


class Damaged(Exception):
    """The file isn't what its header says."""


def unpack(form, data, at):
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Damaged(f"it ends before offset {at}")
    return struct.unpack_from(form, data, at)


def text(data, start, end):
    """The text that begins at `start` and ends with a zero before `end`."""
    zero = data.find(b"\0", start, min(end, len(data)))
    if start < 0 or zero < 0:
        raise Damaged(f"a text at offset {start} has no end")
    return data[start:zero].decode("utf-8", "replace")


class Binary:
    """What the load commands of one file say."""

    def __init__(self, data):
        self.data, self.libraries, self.rpaths, self.others = data, [], [], []
        self.id = self.version = self.signature = self.symtab = self.linkedit = None
        magic, cpu, _, self.kind, count, size, self.flags, _ = unpack("<8I", data, 0)
        if magic != MAGIC or cpu != ARM64:
            raise Damaged("it isn't a program for arm64 Macs")
        if count > COMMANDS_MAX:
            raise Damaged(f"it has {count} load commands")
        at, end = 32, 32 + size
        for _ in range(count):
            command, length = unpack("<II", data, at)
            if length < 8 or length % 8 or at + length > end:
                raise Damaged(f"the load command at offset {at} has {length} bytes")
            self.take(command, at, length)
            at += length
        if at != end:
            raise Damaged("its load commands end elsewhere than its header says")

    def take(self, command, at, length):
        def name():
            return text(self.data, at + unpack("<I", self.data, at + 8)[0], at + length)

        if command in (LOAD, WEAK, REEXPORT, LAZY, UPWARD):
            self.libraries.append(name())
        elif command == ID:
            self.id = name()
        elif command == RPATH:
            self.rpaths.append(name())
        elif command == BUILD_VERSION:
            self.version = unpack("<II", self.data, at + 8)
        elif command == SIGNATURE:
            self.signature = unpack("<II", self.data, at + 8)
        elif command == SYMTAB:
            self.symtab = unpack("<4I", self.data, at + 8)
        elif command == ENVIRONMENT:
            self.others.append("it sets variables of the loader")
        elif command == SEGMENT and self.data[at + 8:at + 24].rstrip(b"\0") == b"__LINKEDIT":
            self.linkedit = unpack("<QQQQ", self.data, at + 24)[2:]

    def symbols(self):
        """Each name with whether it is defined here, and else the number of the library that has it."""
        if self.symtab is None:
            return
        table, count, strings, size = self.symtab
        for i in range(count):
            index, kind, _, described, _ = unpack("<IBBHQ", self.data, table + 16 * i)
            # Debugging entries and local names tell nothing; both have no bit 1.
            if kind & 0xE0 or not kind & 1:
                continue
            is_undefined = kind & 0xE == 0
            yield text(self.data, strings + index, strings + size), not is_undefined, described >> 8


def signature_faults(binary):
    if binary.signature is None:
        return ["it isn't signed"]
    data, (start, size) = binary.data, binary.signature
    found = []
    if start + size != len(data):
        found.append("its signature isn't at its end")
    magic, _, count = unpack(">III", data, start)
    if magic != SUPERBLOB:
        return [*found, "its signature has no beginning"]
    directories = 0
    for i in range(min(count, 16)):
        _, offset = unpack(">II", data, start + 12 + 8 * i)
        at = start + offset
        if unpack(">I", data, at)[0] == DIRECTORY:
            directories += 1
            found += directory_faults(data, at, start)
    return found if directories else [*found, "its signature has no list of pages"]


def directory_faults(data, at, limit):
    """What is wrong with the list of pages at `at`; everything before `limit` must be covered."""
    _, flags, hashes, _, _, pages, covered = unpack(">7I", data, at + 8)
    size, kind, _, shift = unpack("4B", data, at + 36)
    found = [] if flags & ADHOC else ["its signature isn't ad hoc, and nobody's"]
    if kind not in HASHES or hashlib.new(HASHES.get(kind, "md5")).digest_size < size or not 12 <= shift <= 16:
        return [*found, "its pages are listed in an unknown way"]
    page = 1 << shift
    if covered != limit or pages != -(-limit // page):
        return [*found, f"its signature covers {covered} bytes in {pages} pages, and {limit} come before it"]
    wrong = 0
    for i in range(pages):
        digest = hashlib.new(HASHES[kind], data[i * page:min((i + 1) * page, limit)]).digest()[:size]
        wrong += digest != data[at + hashes + i * size:at + hashes + (i + 1) * size]
    return [*found, f"{wrong} of its {pages} pages aren't as they were signed"] if wrong else found


def faults(data, macos="14.0", not_within=(), beside=None):
    """Everything that is wrong with the program or library `data`, which has the libraries `beside` (name to data) with it."""
    beside = beside or {}
    try:
        binary = Binary(data)
        libraries = {name: {symbol for symbol, is_here, _ in Binary(other).symbols() if is_here}
                     for name, other in beside.items()}
        return [*placement_faults(binary, macos, not_within, libraries), *name_faults(binary, libraries),
                *signature_faults(binary)]
    except Damaged as damage:
        return [str(damage)]


def placement_faults(binary, macos, not_within, libraries):
    found = list(binary.others)
    if binary.kind not in (PROGRAM, LIBRARY):
        found.append(f"it is neither a program nor a library, but of kind {binary.kind}")
    if binary.kind == PROGRAM and not binary.flags & POSITION_INDEPENDENT:
        found.append("it can't be loaded at every address")
    if binary.version is None:
        found.append("it doesn't say for which macOS it is")
    else:
        platform, number = binary.version
        version = f"{number >> 16}.{number >> 8 & 0xFF}"
        if platform != 1 or version != macos:
            found.append(f"it is for platform {platform}, version {version}, instead of macOS {macos}")
    if binary.kind == LIBRARY and not (binary.id or "").startswith("@rpath/"):
        found.append(f"its own name `{binary.id}` isn't below @rpath")
    for name in binary.libraries:
        near = name.removeprefix("@rpath/")
        if name.startswith("@rpath/") and near in libraries:
            if not any(rpath in ("@executable_path", "@executable_path/") for rpath in binary.rpaths):
                found.append(f"it looks for `{name}` elsewhere than in its own folder")
        elif not name.startswith(SYSTEM) or ".." in name:
            found.append(f"it needs `{name}`, which is neither the system's nor beside it")
    for rpath in binary.rpaths:
        if rpath.split("/")[0] not in ("@executable_path", "@loader_path") or ".." in rpath:
            found.append(f"it looks for libraries in `{rpath}`")
    for folder in not_within:
        at = binary.data.find(str(folder).encode())
        if at >= 0:
            quoted = binary.data[at:at + 80].split(b"\0")[0].decode("utf-8", "replace")
            found.append(f"a path of the machine that built it is in it: `{quoted}`")
    return found


def name_faults(binary, libraries):
    found = []
    if not binary.flags & TWO_LEVEL:
        found.append("it doesn't say which library has which name")
    for symbol, is_here, ordinal in binary.symbols():
        if is_here:
            continue
        if not 0 < ordinal <= len(binary.libraries):
            # 0 is the file itself: a library's own weak names.
            if ordinal or binary.kind == PROGRAM:
                found.append(f"`{symbol}` is in no library that it names")
            continue
        near = binary.libraries[ordinal - 1].removeprefix("@rpath/")
        if near in libraries and symbol not in libraries[near]:
            found.append(f"`{symbol}` isn't in {near}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a program, and the libraries beside it")
    parser.add_argument("--macos", default="14.0", metavar="VERSION")
    parser.add_argument("--not-within", action="append", default=[], metavar="FOLDER")
    given = parser.parse_args()
    contents = {path.name: path.read_bytes() for path in given.files}
    wrong = False
    for path in given.files:
        data = contents[path.name]
        found = faults(data, given.macos, given.not_within, {n: d for n, d in contents.items() if n != path.name and n.endswith(".dylib")})
        for fault in found:
            print(f"error: {path}: {fault}", file=sys.stderr)
        wrong |= bool(found)
        if not found:
            binary = Binary(data)
            print(f"{path.name}: {len(data)} bytes, arm64, macOS {given.macos} or later, signature right; needs {', '.join(n.rsplit('/', 1)[-1] for n in binary.libraries)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
