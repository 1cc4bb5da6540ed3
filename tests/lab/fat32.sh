#!/bin/sh
# The init of a user-mode Linux, whose kernel has FAT: mounts the image that is its first disk at $FAT_FOLDER/mount, runs the
# commands in $FAT_FOLDER/commands, and halts. The root is the host's. `remount` there has the kernel forget what it knows.
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME="$FAT_FOLDER/home"
mount -t proc proc /proc
# Not `insmod`, which few machines have without a reason.
python3 -c 'import ctypes, os, sys
FINIT_MODULE = 313
for name in sys.argv[1:]:
    ctypes.CDLL(None).syscall(FINIT_MODULE, os.open(name, os.O_RDONLY), b"", 0)' \
    "/usr/lib/uml/modules/$(uname -r)/kernel/fs/nls/nls_cp437.ko" \
    "/usr/lib/uml/modules/$(uname -r)/kernel/fs/nls/nls_iso8859-1.ko" \
    "/usr/lib/uml/modules/$(uname -r)/kernel/fs/nls/nls_utf8.ko" \
    "/usr/lib/uml/modules/$(uname -r)/kernel/fs/fat/fat.ko" \
    "/usr/lib/uml/modules/$(uname -r)/kernel/fs/fat/vfat.ko"
plug() { mount -t vfat -o utf8 /dev/ubda "$FAT_FOLDER/mount"; }
remount() { umount "$FAT_FOLDER/mount" && echo 3 >/proc/sys/vm/drop_caches && plug; }
plug && . "$FAT_FOLDER/commands"
umount "$FAT_FOLDER/mount" && echo whole >"$FAT_FOLDER/end"
echo o >/proc/sysrq-trigger
sleep 10
