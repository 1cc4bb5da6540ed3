"""zig.py ZIG INCLUDE STUBS cc|c++|ar ARGUMENTS…: zig as the C compiler, archiver and linker of cargo's builds for the Mac.

Takes what rustc and the crate cc say to Apple's tools, and leaves out what zig doesn't know or would read otherwise.
"""
import os, sys

zig, include, stubs, tool, *given = sys.argv[1:]
if tool == "ar":
    os.execv(zig, [zig, "ar", *given])
dropped_with_value = {"-arch", "-isysroot", "-target", "-Wl,-exported_symbols_list"}
dropped = ("-mmacosx-version-min=", "-mmacos-version-min=", "--target=", "-Wl,-no_exported_symbols")
# Named here, so that the C of every crate and the link are for one version of macOS, with no sanitizer of zig's.
arguments = ["-target", "aarch64-macos.14.0", "-fno-sanitize=all", "-g0", f"-I{include}", f"-L{stubs}/usr/lib",
             f"-F{stubs}/System/Library/Frameworks", "-Wno-unused-command-line-argument"]
given = iter(given)
for argument in given:
    if argument in dropped_with_value:
        next(given, None)
    elif not argument.startswith(dropped):
        arguments.append(argument)
os.execv(zig, [zig, tool, *arguments])
