"""macho_test.py: the checker of Mac programs finds what is planted. Needs Python alone: the programs are made here."""
import hashlib, struct, sys, unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/mac-cross"))
import macho  # noqa: E402

PAGE = 4096


def command(number, body):
    body += b"\0" * (-len(body) % 8)
    return struct.pack("<II", number, 8 + len(body)) + body


def named(number, name):
    """A command whose text comes after `24` bytes, as a library's name does."""
    return command(number, struct.pack("<IIII", 24, 0, 0, 0) + name.encode() + b"\0")


def rpath(name):
    return command(macho.RPATH, struct.pack("<I", 12) + name.encode() + b"\0")


def build(kind=macho.PROGRAM, flags=macho.TWO_LEVEL | macho.POSITION_INDEPENDENT, version=(14, 0), platform=1, own=None,
          libraries=("/usr/lib/libSystem.B.dylib", "@rpath/libx.dylib"), rpaths=("@executable_path",),
          symbols=(("_exit", 1), ("_x_run", 2)), more=(), content=b"text", sign=True, sign_flags=macho.ADHOC):
    """A file with the load commands of a program, some names, and a right signature."""
    commands = [named(macho.ID, own)] if own else []
    commands += [named(macho.LOAD, name) for name in libraries] + [rpath(name) for name in rpaths] + list(more)
    if version:
        commands.append(command(macho.BUILD_VERSION, struct.pack("<IIII", platform, version[0] << 16 | version[1] << 8, 0, 0)))
    size = sum(map(len, commands)) + 24 + (16 if sign else 0)
    strings, entries = b"\0", b""
    for name, library in symbols:
        # Library None: the name is defined here.
        kind_of, ordinal = (0x0F, 0) if library is None else (0x01, library)
        entries += struct.pack("<IBBHQ", len(strings), kind_of, 0, ordinal << 8, 0)
        strings += name.encode() + b"\0"
    table = 32 + size
    end = table + len(entries) + len(strings)
    limit = -(-(end + len(content)) // 16) * 16
    commands.append(command(macho.SYMTAB, struct.pack("<4I", table, len(symbols), table + len(entries), len(strings))))
    if sign:
        pages = -(-limit // PAGE)
        commands.append(command(macho.SIGNATURE, struct.pack("<II", limit, 20 + 44 + 2 + 32 * pages)))
    header = struct.pack("<8I", macho.MAGIC, macho.ARM64, 0, kind, len(commands), size, flags, 0)
    data = (header + b"".join(commands) + entries + strings + content).ljust(limit, b"\0")
    if not sign:
        return data
    hashes = b"".join(hashlib.sha256(data[i * PAGE:min((i + 1) * PAGE, limit)]).digest() for i in range(pages))
    directory = struct.pack(">9I4BI", macho.DIRECTORY, 46 + len(hashes), 0x20400, sign_flags, 46, 44, 0, pages, limit,
                            32, 2, 0, 12, 0) + b"t\0" + hashes
    return data + struct.pack(">5I", macho.SUPERBLOB, 20 + len(directory), 1, 0, 20) + directory


def library(names=("_x_run",), **more):
    return build(kind=macho.LIBRARY, own="@rpath/libx.dylib", libraries=("/usr/lib/libSystem.B.dylib",), rpaths=(),
                 symbols=[(name, None) for name in names], **more)


def found_in(data, beside=None):
    return macho.faults(data, "14.0", ["/home/someone/tiles"], {"libx.dylib": library()} if beside is None else beside)


class Checker(unittest.TestCase):
    def test_what_is_right_passes(self):
        self.assertEqual(found_in(build()), [])
        self.assertEqual(found_in(build(content=bytes(3 * PAGE))), [])
        self.assertEqual(found_in(library(), {}), [])

    def test_planted_violations_are_found(self):
        for expected, data in [
            ("a path of the machine", build(content=b"at /home/someone/tiles/src/x.rs:1")),
            ("looks for libraries in `/opt/x`", build(rpaths=("@executable_path", "/opt/x"))),
            ("looks for libraries in `@executable_path/../../x`", build(rpaths=("@executable_path", "@executable_path/../../x"))),
            ("elsewhere than in its own folder", build(rpaths=())),
            ("elsewhere than in its own folder", build(rpaths=("@loader_path/lib",))),
            ("needs `/usr/local/lib/libz.dylib`", build(libraries=("/usr/local/lib/libz.dylib", "@rpath/libx.dylib"))),
            ("needs `libz.dylib`", build(libraries=("libz.dylib", "@rpath/libx.dylib"))),
            ("needs `@rpath/liby.dylib`", build(libraries=("/usr/lib/libSystem.B.dylib", "@rpath/liby.dylib"))),
            ("needs `/usr/lib/../../x.dylib`", build(libraries=("/usr/lib/../../x.dylib", "@rpath/libx.dylib"))),
            ("`_x_stop` isn't in libx.dylib", build(symbols=(("_x_stop", 2),))),
            ("`_x_run` is in no library", build(symbols=(("_x_run", 0xFE),))),
            ("version 15.0, instead of macOS 14.0", build(version=(15, 0))),
            ("platform 2", build(platform=2)),
            ("doesn't say for which macOS", build(version=None)),
            ("can't be loaded at every address", build(flags=macho.TWO_LEVEL)),
            ("doesn't say which library", build(flags=macho.POSITION_INDEPENDENT)),
            ("variables of the loader", build(more=[command(macho.ENVIRONMENT, b"\x0c\0\0\0A=B\0")])),
            ("neither a program nor a library", build(kind=1)),
            ("isn't signed", build(sign=False)),
            ("isn't ad hoc", build(sign_flags=0)),
            ("isn't at its end", build() + b"more"),
        ]:
            with self.subTest(expected):
                found = found_in(data)
                self.assertTrue(any(expected in fault for fault in found), f"{expected!r} isn't in {found}")
        self.assertIn("its own name `/opt/libx.dylib` isn't below @rpath",
                      found_in(build(kind=macho.LIBRARY, own="/opt/libx.dylib")))

    def test_every_changed_byte_before_the_signature_is_found(self):
        good = build(content=bytes(200))
        limit = macho.Binary(good).signature[0]
        for at in range(limit):
            self.assertTrue(found_in(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1:]), f"byte {at}")

    def test_a_damaged_file_is_reported_and_breaks_nothing(self):
        good = build()
        for length in range(len(good)):
            self.assertTrue(found_in(good[:length]), f"{length} bytes")
        for at in range(len(good)):
            for value in (0, 0x7F, 0xFF):
                found_in(good[:at] + bytes([value]) + good[at + 1:])


if __name__ == "__main__":
    unittest.main()
