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

# Speed, as ratios against peers in the same run
bench *ARGS:
    tools/bench {{ARGS}}

