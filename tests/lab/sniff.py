"""sniff.py FILE: writes each packet that this network namespace sends or gets to FILE, in hexadecimal, one a line.

Prints `ready` when it listens. `sniff.py --mark TEXT` sends a packet with TEXT to the broadcast address instead: when it is in
the file, all that was sent before it is.
"""

import socket
import sys

ETH_P_ALL = 3
PORT_DISCARD = 9


def mark(text: str) -> None:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wire\0")
    out.sendto(text.encode(), ("255.255.255.255", PORT_DISCARD))


def sniff(path: str) -> None:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    with open(path, "w", encoding="ascii", buffering=1) as file:
        print("ready", flush=True)
        while True:
            file.write(packets.recv(65536).hex() + "\n")


if sys.argv[1] == "--mark":
    mark(sys.argv[2])
else:
    sniff(sys.argv[1])
