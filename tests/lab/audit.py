#!/usr/bin/env python3
"""Usage: audit.py BUNDLE COMMAND…

Runs COMMAND under strace and lists, one a line, every file call that could write outside BUNDLE, every path under HOME
that was touched at all, every socket, and every file that was read and is not a part of the system that any program
reads. A file of the host that was looked for and isn't there is no finding: the OpenSSL that is linked in looks for
/usr/local/ssl/openssl.cnf. Where such a file exists, it is one. In the folders of AUDIT_NAMES, separated by colons, names
may be listed and looked at; no file may be opened there. Exit: 1 with findings, 2 where nothing could be traced, else that of COMMAND.
"""

import os
import re
import subprocess
import sys

# What the C library, the loader and the questions about the machine read.
SYSTEM = (
    "/usr/lib", "/usr/share/locale", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime",
    "/usr/share/zoneinfo", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys", "/proc/swaps", "/sys/class/block", "/proc/filesystems", "/proc/mounts", "/sys/devices/system/cpu", "/sys/fs/cgroup", "/sys/kernel/mm", "/dev/null", "/dev/urandom",
    "/dev/random", "/dev/tty",
    # The drive's own device: what was written to it is read back from there, not from memory.
    "/dev/block",
    # Which networks there are: `doctor --offline` looks.
    "/proc/net/dev",
)
# What a namespace of one's own is told through is no file either.
DEVICES = ("/dev/null", "/dev/tty", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups")
# Calls that change what their path names; `open` is judged by its flags.
CHANGES = (
    "creat", "unlink", "rename", "mkdir", "rmdir", "link", "symlink", "mknod", "chmod", "chown", "fchmodat", "fchownat", "utime",
    "futimesat", "truncate", "setxattr", "lsetxattr", "removexattr", "mount", "umount", "pivot_root", "swapon",
)
TRACED = "trace=%file,%network,ftruncate,fchmod,fchown,fallocate,memfd_create,io_uring_setup"
CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+|\?)")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
FOLDER = re.compile(r"^(?:AT_FDCWD|\d+)<([^>]*)>")
OF_FILE = re.compile(r"^\d+<([^>]*)>")


def is_below(path, folders):
    """Says whether a path is one of the folders or lies in one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def paths_of(call, arguments, here):
    """Gives the absolute paths that a call names."""
    count = 2 if call.startswith(("rename", "link")) else 1
    base = FOLDER.match(arguments)
    for path in QUOTED.findall(arguments)[:count]:
        if path:
            yield os.path.normpath(os.path.join(base[1] if base else here, path))
    of_file = OF_FILE.match(arguments)
    if of_file and call in ("ftruncate", "fchmod", "fchown", "fallocate"):
        yield of_file[1]


def judge(line, bundle, home, here, program, names):
    """Gives what is wrong with one line of the trace, or None."""
    found = CALL.match(line)
    if not found:
        return None
    call, arguments, _ = found.groups()
    if call == "socketpair" and arguments.startswith("AF_UNIX"):
        # A pipe within the process, such as the line editor's for signals; nobody can find it.
        return None
    if call in ("socket", "connect", "bind", "listen", "sendto", "sendmsg", "socketpair", "io_uring_setup"):
        return "network"
    for path in paths_of(call, arguments, here):
        writes = re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)", arguments) if call.startswith("open") else (
            call.startswith(CHANGES) or call in ("ftruncate", "fchmod", "fchown", "fallocate"))
        if writes and not is_below(path, (bundle, *DEVICES)):
            return "write"
        if is_below(path, names) and (not call.startswith("open") or "O_DIRECTORY" in arguments):
            continue
        if is_below(path, (home,)):
            return "home"
        # That it isn't there is no excuse: elsewhere it may be.
        if call.startswith("open") and not is_below(path, (bundle, program, *SYSTEM)):
            return "read"
    return None


def main():
    bundle, command = os.path.realpath(sys.argv[1]), sys.argv[2:]
    home = os.path.realpath(os.environ["HOME"])
    allowed = os.environ.pop("AUDIT_READS", command[0])
    log = os.environ.pop("AUDIT_LOG")
    names = [os.path.realpath(name) for name in os.environ.pop("AUDIT_NAMES", "").split(":") if name]
    traced = subprocess.run(
        ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", TRACED, "-e", "signal=none", "-o", log, *command], check=False)
    with open(log, errors="replace") as trace:
        lines = trace.read().splitlines()
    judged = [(judge(line, bundle, home, os.getcwd(), os.path.realpath(allowed), names), line) for line in lines]
    findings = [f"audit: {what}: {line[:240]}" for what, line in judged if what]
    print(*findings, sep="\n", end="\n" if findings else "", file=sys.stderr)
    if not any(CALL.match(line) for line in lines):
        print("audit: nothing was traced", file=sys.stderr)
        return 2
    return 1 if findings else traced.returncode


sys.exit(main())
