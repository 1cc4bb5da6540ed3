#!/bin/sh
# Double-click this on a Mac: it opens Terminal and starts Tiles.
case $0 in
    */*) exec /bin/sh "${0%/*}/tiles" "$@" ;;
    *) exec /bin/sh ./tiles "$@" ;;
esac
