#!/usr/bin/env python3
"""Usage: stick.py IMAGE DEVICE MOUNT

A flash drive for tests. IMAGE, an exFAT image, appears as the one file of a FUSE file system at DEVICE, and `plug` mounts
what is in it, by the exFAT driver of the system, at MOUNT; an ext4 image is mounted by the kernel, through a loop device. Like a real drive it holds writes in a cache of its own until
it is told to sync: what was not synced may be lost, in any order, sector by sector, when power goes.

It speaks FUSE's kernel protocol (linux/fuse.h) itself, so that nothing has to be built or linked. Commands come on
standard input, one a line, each answered by one line; at its end everything is unmounted. Run it as

    unshare --mount --propagation private --pid --fork --kill-child -- stick.py …

so that the mounts are nobody else's and end with it, however it ends.

    plug [ro|ext4]         mount it (read-only; as ext4)
    unplug                 unmount it; the drive forgets its faults and what it had not written
    rate BYTES_PER_S       be no faster than that; 0 is as fast as possible
    cut WRITES SEED KEEP   power goes at that many writes from now (0: now): of what was not synced, KEEP per cent of the
                           sectors stay, at random; afterwards every access fails with EIO, as for a drive that was pulled
    lie                    syncs are answered, but what came in pieces of a page or more, so all content of files, is dropped
    stat                   counts since it was plugged in
"""

import ctypes
import errno
import os
import random
import struct
import subprocess
import sys
import threading
import time

SECTOR = 512
ROOT, DISK = 1, 2
(LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR,
 INTERRUPT, DESTROY, BATCH_FORGET) = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 36, 38, 42
WRITE_BYTES_MAX = 128 << 10
# A sleep takes a fraction of a millisecond longer than it was asked to: short ones are saved up, and what a long one
# took too long is made good by those after it. Without that 128 KiB at a time come at 30 MB/s and no faster.
SLEEP_MIN_S, OVERSLEPT_MAX_S = 0.002, 0.004
DIRECT_IO = 1
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2
LIBC = ctypes.CDLL(None, use_errno=True)


class Gone(Exception):
    """Carries the error number that a request is answered with."""


class Drive:
    """The sectors, the volatile cache over them, and the faults."""

    def __init__(self, image):
        self.file = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.lock = threading.Lock()
        self.renew()

    def renew(self):
        self.pending, self.dead, self.lies, self.doubtful = {}, False, False, set()
        self.rate, self.free_at, self.cut_at, self.on_read = 0, 0.0, None, None
        self.counts = dict(reads=0, writes=0, syncs=0, kept=0, lost=0)

    def pace(self, count):
        if self.rate:
            now = time.monotonic()
            self.free_at = max(self.free_at, now - OVERSLEPT_MAX_S) + count / self.rate
            if self.free_at - now > SLEEP_MIN_S:
                time.sleep(self.free_at - now)

    def check(self):
        if self.dead:
            raise Gone(errno.EIO)

    def read(self, offset, count):
        self.pace(count)
        with self.lock:
            self.check()
            self.counts["reads"] += 1
            if self.on_read:
                self.on_read()
                self.on_read = None
            data = bytearray(os.pread(self.file, count, offset))
            for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)) if self.pending else ():
                if sector in self.pending:
                    start = sector * SECTOR - offset
                    skip = max(0, -start)
                    piece = self.pending[sector][skip:skip + len(data) - max(0, start)]
                    data[max(0, start):max(0, start) + len(piece)] = piece
            return bytes(data)

    def write(self, offset, data):
        self.pace(len(data))
        with self.lock:
            self.check()
            self.counts["writes"] += 1
            at, done = offset, 0
            while done < len(data):
                sector, skip = divmod(at, SECTOR)
                piece = data[done:done + SECTOR - skip]
                if len(piece) < SECTOR:
                    old = self.pending.get(sector) or os.pread(self.file, SECTOR, sector * SECTOR)
                    piece = old[:skip] + piece + old[skip + len(piece):]
                self.pending[sector] = piece
                (self.doubtful.add if self.lies and len(data) >= 4096 else self.doubtful.discard)(sector)
                done += SECTOR - skip
                at += SECTOR - skip
            # The write under way is torn like all that was not synced.
            if self.cut_at and self.counts["writes"] >= self.cut_at[0]:
                self.cut(*self.cut_at[1:])
                raise Gone(errno.EIO)
            return len(data)

    def sync(self):
        with self.lock:
            self.check()
            self.counts["syncs"] += 1
            for sector, piece in self.pending.items():
                if sector not in self.doubtful:
                    os.pwrite(self.file, piece, sector * SECTOR)
            self.pending.clear()
            self.doubtful.clear()

    def cut(self, seed, keep):
        dice = random.Random(seed)
        for sector, piece in sorted(self.pending.items()):
            if dice.randrange(100) < keep:
                os.pwrite(self.file, piece, sector * SECTOR)
                self.counts["kept"] += 1
            else:
                self.counts["lost"] += 1
        self.pending.clear()
        self.dead = True


class Device:
    """The FUSE file system with the one file."""

    def __init__(self, drive, folder):
        self.drive = drive
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if LIBC.mount(b"stick", folder.encode(), b"fuse", MS_NOSUID | MS_NODEV, options):
            raise OSError(ctypes.get_errno(), "the device can't be mounted")
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                request = os.read(self.fuse, WRITE_BYTES_MAX + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, code, unique, node, _, _, _, _ = struct.unpack_from("<IIQQIIII", request)
            if code in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                number, body = 0, self.answer(code, node, request[40:])
            except Gone as fault:
                number, body = fault.args[0], b""
            try:
                os.write(self.fuse, struct.pack("<IiQ", 16 + len(body), -number, unique) + body)
            except OSError:
                pass  # Whoever asked was killed meanwhile.
            if code == DESTROY:
                return

    def attributes(self, node):
        mode, size = (0o40755, 0) if node == ROOT else (0o100600, self.drive.size)
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, code, node, body):
        if code == INIT:
            major, minor, readahead, flags = struct.unpack_from("<4I", body)
            return struct.pack("<4IHHIIHHI7I", 7, 31, readahead, 0, 16, 12, WRITE_BYTES_MAX, 1, 0, 0, 0, *[0] * 7)
        if code == LOOKUP:
            if body.rstrip(b"\0") != b"disk":
                raise Gone(errno.ENOENT)
            return struct.pack("<4Q2I", DISK, 0, 3600, 3600, 0, 0) + self.attributes(DISK)
        if code in (GETATTR, SETATTR):
            return struct.pack("<Q2I", 3600, 0, 0) + self.attributes(node)
        if code in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 0, DIRECT_IO, 0)
        if code == READ:
            _, offset, count = struct.unpack_from("<QQI", body)
            return self.drive.read(offset, count)
        if code == WRITE:
            _, offset, count = struct.unpack_from("<QQI", body)
            return struct.pack("<2I", self.drive.write(offset, body[40:40 + count]), 0)
        if code == FSYNC:
            self.drive.sync()
            return b""
        if code in (FLUSH, RELEASE, RELEASEDIR, DESTROY):
            return b""
        if code == READDIR:
            return b""
        raise Gone(errno.ENOSYS)


class Volume:
    """The mounted exFAT.

    The driver opens its device by name and then hands the name to the kernel, which wants a block device there. It is
    given a link: to our file when it opens it, and to an idle loop device from its first read on. With the loop device
    in between, the kernel's cache of that would answer whoever reads back what he wrote.
    """

    def __init__(self, drive, device, mount):
        self.drive, self.disk, self.mount = drive, os.path.join(device, "disk"), mount
        self.driver, self.loop = None, None

    def point(self, target):
        link = self.mount + ".device"
        os.symlink(target, link + ".new")
        os.rename(link + ".new", link)
        return link

    def plug(self, how=""):
        if how == "ext4":
            find = ["losetup", "--find", "--show", self.disk]
            self.loop = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
            subprocess.run(["mount", "-t", "ext4", self.loop, self.mount], check=True, capture_output=True)
            return
        idle = self.mount + ".idle"
        with open(idle, "wb") as file:
            file.truncate(1 << 20)
        loop = subprocess.run(["losetup", "--find", "--show", idle], check=True, capture_output=True, text=True).stdout.strip()
        link = self.point(self.disk)
        self.drive.on_read = lambda: self.point(loop)
        before = os.stat(self.mount).st_dev
        try:
            # In the foreground, so that its end can be waited for; what it would tell about each request is not wanted.
            self.driver = subprocess.Popen(
                ["mount.exfat-fuse", "-d", "-o", "noatime,ro" if how == "ro" else "noatime", link, self.mount],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2000):
                if self.driver.poll() is not None:
                    raise OSError(errno.EIO, "the exFAT driver refused the image")
                if os.stat(self.mount).st_dev != before:
                    return
                time.sleep(0.005)
            raise OSError(errno.ETIMEDOUT, "the exFAT driver doesn't answer")
        finally:
            # Where it is in use it goes when the mount goes.
            subprocess.run(["losetup", "--detach", loop], check=False, capture_output=True)
            os.remove(idle)

    def unplug(self):
        if self.driver:
            # Lazily: a program that was killed may not be gone yet.
            LIBC.umount2(self.mount.encode(), MNT_DETACH)
            try:
                self.driver.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.driver.kill()
                self.driver.wait()
            self.driver = None
        if self.loop:
            LIBC.umount2(self.mount.encode(), MNT_DETACH)
            subprocess.run(["losetup", "--detach", self.loop], check=False, capture_output=True)
            self.loop = None
        told = self.told()
        self.drive.renew()
        return told

    def told(self):
        return " ".join(f"{name}={value}" for name, value in self.drive.counts.items()) + f" dead={int(self.drive.dead)}"


def obey(line, drive, volume):
    """Runs one command and gives the rest of its answer."""
    command, *values = line.split()
    if command == "plug":
        volume.plug(*values)
    elif command == "unplug":
        return volume.unplug()
    elif command == "rate":
        drive.rate = int(values[0])
    elif command == "cut":
        writes, seed, keep = map(int, values)
        with drive.lock:
            if writes:
                drive.cut_at = (drive.counts["writes"] + writes, seed, keep)
            else:
                drive.cut(seed, keep)
    elif command == "lie":
        drive.lies = True
    elif command == "stat":
        return volume.told()
    else:
        raise OSError(errno.EINVAL, f"no such command: {command}")
    return ""


def main():
    image, device, mount = sys.argv[1:]
    for folder in (device, mount):
        os.makedirs(folder, exist_ok=True)
    drive = Drive(image)
    Device(drive, device)
    volume = Volume(drive, device, mount)
    print("ok", flush=True)
    for line in sys.stdin:
        try:
            print("ok", obey(line, drive, volume), flush=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print("error", error, flush=True)
    volume.unplug()
    LIBC.umount2(device.encode(), MNT_DETACH)


main()
