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

# While something else runs on the mount $1: a snapshot about every 50 ms, the last 20 kept; each view's files are read
# while the next operations run. `end_snapshots` ends it, and says in TAKEN which height was the last.
SNAPSHOTS=
begin_snapshots() {
    local data=$1 tmfs
    tmfs=$(tmfs_binary)
    (
        height=0
        while :; do
            height=$((height + 1))
            "$tmfs" -p "$data" snapshot "$height" --no-wait || exit 1
            cat "$data/@height/$height/"* > /dev/null 2>&1 || true
            [ "$height" -le 20 ] || "$tmfs" -p "$data" delete $((height - 20)) > /dev/null || exit 1
            echo "$height" > "$WORK/height"
            sleep 0.05
        done
    ) > "$WORK/snapshots.log" 2>&1 &
    SNAPSHOTS=$!
}
end_snapshots() {
    kill -0 "$SNAPSHOTS" 2>/dev/null || { cat "$WORK/snapshots.log" >&2; die "the snapshots ended early"; }
    kill_snapshots
    TAKEN=$(cat "$WORK/height")
    [ "$TAKEN" -ge 10 ] || die "only $TAKEN snapshots were taken during the run"
    say "${0##*/}: $TAKEN snapshots were taken during the run"
}
kill_snapshots() {
    [ -n "$SNAPSHOTS" ] || return 0
    kill "$SNAPSHOTS" 2>/dev/null || true
    wait "$SNAPSHOTS" 2>/dev/null || true
    SNAPSHOTS=
}

# Compares two files of "name verdict" lines (pass, fail, skip), sorted: what passes natively ($1) must pass mounted
# ($2). Exceptions stand in $3, each a name, then "# reason"; one that passes again counts as a failure. `explain NAME`
# shows what a failed one said.
compare_verdicts() {
    local native=$1 mounted=$2 exclusions=$3 status=0 name
    sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "$exclusions" | sort -u > "$WORK/excluded"
    # What passes natively and does not pass here, or is not even there.
    join -a 1 "$native" "$mounted" | awk '$2 == "pass" && $3 != "pass" { print $1 }' | sort -u > "$WORK/worse"
    while IFS= read -r name; do
        say "FAIL $name: passes on the file system below"
        explain "$name" >&2
        status=1
    done < <(comm -23 "$WORK/worse" "$WORK/excluded")
    while IFS= read -r name; do
        say "FAIL $name: excluded, but it passes now; take it off ${exclusions#"$ROOT"/}"
        status=1
    done < <(comm -13 "$WORK/worse" "$WORK/excluded")
    while IFS= read -r name; do
        say "SKIP $name: $(grep -F "$name" "$exclusions" | sed 's/.*# *//')"
    done < <(comm -12 "$WORK/worse" "$WORK/excluded")
    return "$status"
}
count_verdicts() { awk -v what="$1" '$2 == what { n++ } END { print n + 0 }' "$2"; }
show_verdicts() {
    say "$1: $(count_verdicts pass "$2") passed, $(count_verdicts fail "$2") failed, $(count_verdicts skip "$2") skipped"
}
