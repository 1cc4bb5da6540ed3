# Thin names for what tools/ does.

# Build, make a bundle and start it
start *ARGS:
    tools/start {{ARGS}}

# Everything that must hold
test *FILTER:
    tools/test {{FILTER}}

# Quick: compile and lint
check:
    cargo clippy --locked --all-targets -- -D warnings

# Power cuts by the hundred, on an exFAT of its own: minutes
soak *TIMES:
    tools/soak {{TIMES}}

# Fuzz one parser for a while: just fuzz gguf 60
fuzz TARGET SECONDS="60":
    tools/fuzz {{TARGET}} {{SECONDS}}

# The Mac's program, made on Linux: just mac check, just mac
mac *ARGS:
    tools/mac {{ARGS}}

# Speed, as ratios against peers in the same run
bench *ARGS:
    tools/bench {{ARGS}}

# What linking and syncing cost
bench-sync *ARGS:
    tools/bench-sync {{ARGS}}

# Linux on arm64, cross-compiled: its tests under qemu; just arm64 build: the program
arm64 *ARGS:
    tools/arm64 {{ARGS}}
