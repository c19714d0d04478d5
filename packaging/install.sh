#!/usr/bin/env bash
# Installs tmfs, and sets up a service for a data dir. All input is checked before anything is changed; running it again
# with the same options changes nothing. Neither installing nor --uninstall ever touches what is in a data dir or a store.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: install.sh [-p=DIR] [OPTIONS]

  -p=DIR   --path=DIR          the data dir to set up a service for (without it: only the program)
  -i=N     --interval=N        heights between snapshots that are followed (default: 10, or the preset's); with nothing
                               to follow, the first at or after each multiple is kept
  -c=N     --capacity=N        how many heights are kept (default: 100)
  -m=MODE  --mode=MODE         auto, chunk, btrfs, zfs or external (default: auto)
  -a=ALGO  --algorithm=ALGO    fair keeps the newest, fade thins out with age (default: fair)
           --follow=SOURCE     who knows the height: evm:URL, cometbft:URL, substrate:URL, bitcoin:URL, solana:URL,
                               monero:URL, exec:COMMAND or file:PATH
           --preset=FAMILY     what suits a family of nodes: cometbft, geth, reth, monero, bitcoin, ...
           --node=UNIT         the node's systemd unit, which is to start after the mount and stop before it
           --no-start          enable the service, but do not start it
           --prefix=DIR        where the program goes (default: /usr/local)
           --binary=FILE       the program to install (default: bin/tmfs beside this script)
           --dry-run           say what would be done, and do nothing
           --uninstall         with --path: take that service away; else the program. Data, stores and
                               configurations stay
  -h       --help

The ancestor's --snapshot-itv, -cap, -mode, -algo and -volume are understood too. DESTDIR is put before every path.

Example: install.sh -p=/var/lib/geth -i=100 -c=100 -a=fade --preset=geth --node=geth.service
TEXT
}

die() { printf 'install.sh: %s\n' "$*" >&2; exit "${status:-2}"; }
fail() { status=1; die "$@"; }
note() { printf '%s\n' "$*"; }

# --- what is asked for

path='' interval='' capacity='' mode='' algorithm='' follow='' preset='' node='' binary=''
prefix=/usr/local start=1 dry='' uninstall=''
for arg in "$@"; do
    value=${arg#*=}
    case $arg in
        -p=*|--path=*|--volume=*|--snapshot-volume=*) path=$value ;;
        -i=*|--interval=*|--itv=*|--snapshot-itv=*) interval=$value ;;
        -c=*|--capacity=*|--cap=*|--snapshot-cap=*) capacity=$value ;;
        -m=*|--mode=*|--snapshot-mode=*) mode=$value ;;
        -a=*|--algorithm=*|--algo=*|--snapshot-algo=*) algorithm=$value ;;
        --follow=*) follow=$value ;;
        --preset=*) preset=$value ;;
        --node=*) node=$value ;;
        --prefix=*) prefix=$value ;;
        --binary=*) binary=$value ;;
        --no-start) start= ;;
        --dry-run) dry=1 ;;
        --uninstall) uninstall=1 ;;
        -h|--help) usage; exit 0 ;;
        *) die "$arg: not an option; install.sh --help lists them" ;;
    esac
    case $arg in *=) die "${arg%=}: takes a value, as in ${arg}VALUE" ;; esac
done

root=${DESTDIR:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What systemd-escape --path gives, also where systemd is not.
escape_path() {
    local LC_ALL=C text=$1 out='' at char
    while [[ $text == *//* ]]; do text=${text//\/\//\/}; done
    text=${text#/}; text=${text%/}
    for ((at = 0; at < ${#text}; at++)); do
        char=${text:at:1}
        case $char in
            /) out+=- ;;
            .) if [ "$at" = 0 ]; then out+='\x2e'; else out+=.; fi ;;
            [a-zA-Z0-9:_]) out+=$char ;;
            *) out+=$(printf '%s' "$char" | od -An -v -tx1 | sed 's/ \(..\)/\\x\1/g' | tr -d ' \n') ;;
        esac
    done
    printf '%s' "$out"
}

positive() { [[ $2 =~ ^[1-9][0-9]{0,17}$ ]] || die "$1=$2: not a whole number above 0"; }
plain_text() { [[ $2 != *[$'"\\\n\r\t']* ]] || die "$1=$2: cannot hold quotes, backslashes or control characters"; }

[[ $prefix == /* ]] || die "--prefix=$prefix: not an absolute path"
[ -z "$interval" ] || positive --interval "$interval"
[ -z "$capacity" ] || positive --capacity "$capacity"
case $mode in ''|auto|chunk|btrfs|zfs|external) ;; *) die "--mode=$mode: not auto, chunk, btrfs, zfs or external" ;; esac
case $algorithm in ''|fair|fade) ;; *) die "--algorithm=$algorithm: not fair or fade" ;; esac
case $follow in
    ''|evm:*|cometbft:*|substrate:*|bitcoin:*|solana:*|monero:*|exec:*|file:*) ;;
    *) die "--follow=$follow: not evm:, cometbft:, substrate:, bitcoin:, solana:, monero:, exec: or file:" ;;
esac
plain_text --follow "$follow"
[[ $preset =~ ^[a-z0-9-]*$ ]] || die "--preset=$preset: not the name of a preset"
[[ -z $node || $node =~ ^[A-Za-z0-9:_.@\\-]+\.service$ ]] || die "--node=$node: not the name of a systemd service"
if [ -z "$path" ]; then
    for given in "$interval" "$capacity" "$mode" "$algorithm" "$follow" "$preset" "$node"; do
        [ -z "$given" ] || die "name the data dir with --path=DIR: the other options are about it"
    done
else
    [[ $path == /* && $path != *$'\n'* ]] || die "--path=$path: not an absolute path"
    # A mount whose daemon has died is still a directory.
    if [ -e "$path" ] || [ -n "$uninstall" ] || grep -qF " $path " /proc/self/mountinfo; then
        path=$(realpath -m -- "$path")
    else
        die "--path=$path: no such directory"
    fi
    [ ! -e "$path" ] || [ -d "$path" ] || die "--path=$path: not a directory"
    [ "$path" != / ] || die "--path=/: not a data dir"
fi
[ -n "$root" ] || [ "$(id -u)" = 0 ] || [ -n "$dry" ] || fail "needs root (or DESTDIR)"

bin=$prefix/bin/tmfs
unit_dir=/etc/systemd/system
instance=''
[ -z "$path" ] || instance=$(escape_path "$path")
config=/etc/tmfs/$instance.toml
service=tmfs@$instance.service
# Whether systemd is to be told.
systemd=''
[ -n "$root" ] || [ ! -d /run/systemd/system ] || systemd=1
if [ -n "$systemd" ] && [ -n "$node" ] && ! systemctl cat -- "$node" > /dev/null 2>&1; then
    die "--node=$node: systemd knows no such unit"
fi

# --- doing it, or saying so

# Puts a file where it belongs, if it is not there already.
put() { # MODE SOURCE DESTINATION
    local to=$root$3
    if cmp -s -- "$2" "$to" && [ "$(stat -c %a -- "$to")" = "${1#0}" ]; then return; fi
    note "${dry:+would }install $to"
    [ -z "$dry" ] || return 0
    mkdir -p -- "$(dirname -- "$to")"
    # Under another name first: the program may be running, and nobody is to see half of it.
    install -m "$1" -- "$2" "$to.new"
    mv -f -- "$to.new" "$to"
}

link() { # TARGET NAME
    local to=$root$2
    [ "$(readlink -- "$to" || true)" != "$1" ] || return 0
    note "${dry:+would }link $to"
    [ -n "$dry" ] || { mkdir -p -- "$(dirname -- "$to")"; ln -sfn -- "$1" "$to"; }
}

take_away() { # FILE
    local file=$root$1
    [ -e "$file" ] || [ -L "$file" ] || return 0
    note "${dry:+would }remove $file"
    [ -n "$dry" ] || rm -f -- "$file"
}

tell_systemd() {
    if [ -z "$systemd" ]; then
        note "systemd is not running here: systemctl $*"
    elif [ -n "$dry" ]; then
        note "would run systemctl $*"
    else
        systemctl "$@"
    fi
}

owned_by_dpkg() { [ -z "$root" ] && command -v dpkg > /dev/null && dpkg -S "$1" > /dev/null 2>&1; }

helpers=(mount.tmfs mount.fuse.tmfs umount.tmfs umount.fuse.tmfs)
completions=(bash-completion/completions/tmfs zsh/site-functions/_tmfs fish/vendor_completions.d/tmfs.fish)

tmfs_mounts() { awk '/ - fuse\.tmfs / { print $5 }' /proc/self/mountinfo; }
is_mounted() { tmfs_mounts | while IFS= read -r point; do printf '%b\n' "${point//\\0/\\00}"; done | grep -qxF -- "$1"; }

# Says what becomes of a data dir that tmfs keeps.
say_how_to_eject() { # DIR
    # Looked at from outside: opening the store would write to it.
    [ -e "$1/THIS-IS-A-TMFS-DATA-DIR.txt" ] || is_mounted "$1" || return 0
    note "$1: stays as it is, with its store and its history. For a plain directory again: tmfs eject $1"
}

unescape_path() { printf '/%b' "$(printf '%s' "$1" | sed 's/-/\//g')"; }

# --- taking away

if [ -n "$uninstall" ]; then
    if [ -n "$path" ]; then
        if [ -n "$systemd" ]; then
            # Refused by the unmount while files are open: asked before anything changes.
            if is_mounted "$path" && [ -z "$dry" ] && ! "$bin" unmount "$path"; then
                fail "$path: not unmounted; stop what uses it, then run this again (nothing was changed)"
            fi
            # Says by itself what it does not know any more.
            tell_systemd disable --now "$service" || true
        elif [ -z "$root" ] && is_mounted "$path"; then
            fail "$path: mounted; \`tmfs unmount $path\` first (nothing was changed)"
        fi
        for drop_in in "$root$unit_dir"/*.service.d/tmfs.conf; do
            [ ! -e "$drop_in" ] || ! grep -qF -- "$service" "$drop_in" || {
                take_away "${drop_in#"$root"}"
                [ -n "$dry" ] || rmdir --ignore-fail-on-non-empty -- "$(dirname -- "$drop_in")"
            }
        done
        [ -z "$systemd" ] || tell_systemd daemon-reload
        [ ! -e "$root$config" ] || note "$root$config: kept"
        say_how_to_eject "$path"
        exit 0
    fi
    ! owned_by_dpkg "$bin" || fail "$bin is of a Debian package: apt-get remove tmfs"
    [ -n "$root" ] || [ -z "$(tmfs_mounts)" ] ||
        fail "tmfs is mounted on $(tmfs_mounts | head -n 1); unmount first (install.sh --uninstall --path=DIR)"
    for file in "$root"/etc/tmfs/*.toml; do
        [ -e "$file" ] || continue
        name=$(basename "$file" .toml)
        say_how_to_eject "$(unescape_path "$name")"
        [ -z "$systemd" ] || tell_systemd disable "tmfs@$name.service" || true
        note "$file: kept"
    done
    for name in "${helpers[@]}"; do take_away "/sbin/$name"; done
    for name in "${completions[@]}"; do take_away "$prefix/share/$name"; done
    for page in "$root$prefix"/share/man/man1/tmfs.1 "$root$prefix"/share/man/man1/tmfs-*.1; do
        take_away "${page#"$root"}"
    done
    take_away "$unit_dir/tmfs@.service"
    take_away "$bin"
    [ -z "$systemd" ] || tell_systemd daemon-reload
    exit 0
fi

# --- putting in place

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

program=1
if [ -z "$binary" ] && [ -x "$here/bin/tmfs" ]; then binary=$here/bin/tmfs; fi
if [ -z "$binary" ]; then
    # Beside an installed package: only the service is set up.
    program=''
    binary=$root$bin
    if [ ! -x "$binary" ] && [ -x "$root/usr/bin/tmfs" ]; then
        bin=/usr/bin/tmfs binary=$root/usr/bin/tmfs
    fi
    [ -x "$binary" ] || die "no program to install beside this script; name one with --binary=FILE"
fi
[ -x "$binary" ] || die "--binary=$binary: not a program"
[ -z "$program" ] || ! owned_by_dpkg "$bin" || fail "$bin is of a Debian package: upgrade that"
"$binary" --version > /dev/null 2>&1 || die "$binary: does not run on this machine"

if [ -n "$path" ]; then
    # What is followed has the interval; heights that are off it, where blocks come faster than questions, are kept like
    # the others. Where somebody asks for each height, the first at or after each multiple stays.
    asked='' followed=''
    if [ -n "$follow$preset" ]; then followed=$interval; else asked=${interval:-10}; fi
    {
        echo "# Written by install.sh. docs/SEMANTICS.md says what else can stand here."
        [ -z "$preset" ] || printf 'preset = "%s"\n' "$preset"
        printf '\n[mount]\nbackend = "%s"\n' "${mode:-auto}"
        [ -z "$follow$followed" ] || printf '\n[follow]\n'
        [ -z "$follow" ] || printf 'source = "%s"\n' "$follow"
        [ -z "$followed" ] || printf 'interval = %s\n' "$followed"
        printf '\n[retention]\n'
        [ -z "$asked" ] || printf 'interval = %s\n' "$asked"
        printf 'capacity = %s\nalgorithm = "%s"\n' "${capacity:-100}" "${algorithm:-fair}"
        if [ "$mode" = external ]; then
            # Each of them fails, so that nothing is taken over before they are filled in.
            echo
            echo '# To be filled in: words of a command each, with {live}, {name} and {view} (docs/SEMANTICS.md).'
            echo '[external]'
            echo 'create = ["/bin/false", "{live}", "{name}"]'
            echo 'list = ["/bin/false"]'
            echo 'delete = ["/bin/false", "{name}"]'
            echo 'rollback = ["/bin/false", "{live}", "{name}"]'
            echo '# mount-view = ["/bin/false", "{name}", "{view}"]'
        fi
    } > "$work/config"
    # The program reads it before it looks at the directory, and says what is wrong with it by status 2.
    found=0
    said=$("$binary" mount --config "$work/config" "$work/none" 2>&1) || found=$?
    # The last line of it, without the program's and the file's name.
    said=${said##*$'\n'}
    said=${said#tmfs: }
    [ "$found" != 2 ] || die "the program refuses these options: ${said#"$work/config: "}"
fi

if [ -n "$program" ]; then
    if [ ! -d "$here/man" ] || [ ! -d "$here/completions" ]; then
        "$binary" man --dir "$work/man"
        mkdir "$work/completions"
        "$binary" completions bash > "$work/completions/tmfs.bash"
        "$binary" completions zsh > "$work/completions/_tmfs"
        "$binary" completions fish > "$work/completions/tmfs.fish"
        texts=$work
    else
        texts=$here
    fi
    sed "s#/usr/bin/tmfs#$bin#g" "$here/tmfs@.service" > "$work/unit"
    put 0755 "$binary" "$bin"
    for name in "${helpers[@]}"; do link "$bin" "/sbin/$name"; done
    for page in "$texts"/man/*.1; do put 0644 "$page" "$prefix/share/man/man1/$(basename "$page")"; done
    put 0644 "$texts/completions/tmfs.bash" "$prefix/share/${completions[0]}"
    put 0644 "$texts/completions/_tmfs" "$prefix/share/${completions[1]}"
    put 0644 "$texts/completions/tmfs.fish" "$prefix/share/${completions[2]}"
    put 0644 "$work/unit" "$unit_dir/tmfs@.service"
fi
if [ -n "$path" ]; then
    if [ -e "$root$config" ] && ! cmp -s "$work/config" "$root$config"; then
        note "${dry:+would }keep what $root$config says now as $root$config.old"
        [ -n "$dry" ] || cp -p -- "$root$config" "$root$config.old"
    fi
    put 0600 "$work/config" "$config"
    if [ -n "$node" ]; then
        printf '[Unit]\nRequires=%s\nAfter=%s\n' "$service" "$service" > "$work/drop-in"
        put 0644 "$work/drop-in" "$unit_dir/$node.d/tmfs.conf"
    fi
fi
[ -z "$systemd" ] || tell_systemd daemon-reload
if [ -n "$path" ]; then
    tell_systemd enable "$service"
    if [ "$mode" = external ]; then
        note "$root$config: fill in the commands of [external], then systemctl start $service"
    elif [ -n "$start" ]; then
        # Does nothing where it runs; the first start takes the directory over, with the node stopped.
        tell_systemd start "$service"
    fi
fi
