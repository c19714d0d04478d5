# Sourced by the scripts beside it: places, and what they share.

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$TARGET/tools
export PATH="$TOOLS/bin:$PATH"

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# A directory for test data on a disk: below TMFS_TEST_DIR, else /tmp, or /var/tmp where /tmp is kept in memory.
make_work() {
    local base=${TMFS_TEST_DIR:-/tmp}
    case $(stat -f -c %T "$base") in tmpfs|overlayfs) base=/var/tmp ;; esac
    WORK=$(mktemp -d "$base/tmfs-test-XXXXXX")
    chmod 755 "$WORK"
}

# Takes away what lies at or below $WORK: mounts by their path, then files. Nothing else is touched.
clean_work() {
    local point
    [ -n "${WORK:-}" ] && [ -d "$WORK" ] || return 0
    awk -v dir="$WORK" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac | while IFS= read -r point; do
        point=$(printf '%b' "${point//\\0/\\00}")
        "$(tmfs_binary)" unmount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null || fusermount3 -uz "$point" || true
    done
    chattr -R -f -i "$WORK" 2>/dev/null || true
    chmod -R u+rwX "$WORK" 2>/dev/null || true
    rm -rf --one-file-system "$WORK"
}

tmfs_binary() {
    if [ -n "${TMFS_BIN:-}" ]; then printf '%s\n' "$TMFS_BIN"; else printf '%s\n' "$TARGET/${TMFS_PROFILE:-debug}/tmfs"; fi
}
