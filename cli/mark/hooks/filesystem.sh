#!/bin/sh
# Filesystems that `landfall mark --freeze` cannot reach, as they are mounted on another machine: a guest whose disks
# are volumes of the group. There, by whatever reaches it:
#
#     landfall mark db --name nightly --timeout 10s \
#         --pre 'ssh guest /etc/landfall/filesystem.sh pre $LANDFALL_TRY 30 /srv/data' \
#         --post 'ssh guest /etc/landfall/filesystem.sh post $LANDFALL_TRY /srv/data'
#
# For what is mounted on the primary itself, `--freeze DIR` does the same without a script, and needs nothing but the
# primary. Here the mark's guard has to reach the machine, so there is a watch on it as well: it thaws after so many
# seconds (30 above) by itself. They have to be more than --timeout and a second: a mark that is set behind a thaw
# would claim that the applications held still.
#
# What the point is then: the filesystem is clean, no journal has to be replayed, and every write to a file is there as
# a whole or not at all. It says nothing about what applications keep in memory, or write in several steps: for them it
# is a power cut before which the system had written everything out.
#
# Freezing needs root. While a filesystem is frozen for one try, another try fails, and lets go of nothing.
set -eu

# The file that says for which try folder $1 is frozen.
claim() {
    printf '%s/landfall-freeze-%s' "${LANDFALL_RUN:-/run}" "$(stat -L -c %d -- "$1")"
}

claimed() {
    [ "$(cat -- "$(claim "$2")" 2>/dev/null)" = "$1" ]
}

# Thaws folder $2, if it was frozen for the try $1. The claim stays if there was nothing to thaw: a freeze that hangs
# may succeed yet, and is for the watch.
thaw() {
    if claimed "$1" "$2" && fsfreeze --unfreeze "$2" 2>/dev/null; then
        rm -f -- "$(claim "$2")"
    fi
}

# Freezes folder $3 for the try $1, for $2 seconds at the most.
freeze() {
    file=$(claim "$3")
    if ! (set -C && printf '%s\n' "$1" >"$file") 2>/dev/null; then
        echo "$3: $file says that it is frozen for another mark" >&2
        return 1
    fi
    # In a session of its own: it outlives whoever kills this. It is there before anything is frozen.
    setsid sh "$0" watch "$1" "$2" "$3" </dev/null >/dev/null 2>&1 &
    if ! fsfreeze --freeze "$3"; then
        rm -f -- "$file"
        return 1
    fi
}

# Thaws folder $3 when the try $1 has had its $2 seconds, and for a minute whatever is frozen late.
watch() {
    sleep "$2"
    looks=60
    while [ "$looks" -gt 0 ] && claimed "$1" "$3"; do
        thaw "$1" "$3"
        looks=$((looks - 1))
        sleep 1
    done
    if claimed "$1" "$3"; then
        rm -f -- "$(claim "$3")"
    fi
}

usage() {
    echo "usage: $0 pre TRY SECONDS DIR... | post TRY DIR..." >&2
    exit 2
}

case ${1:-} in
    pre)
        [ $# -ge 4 ] || usage
        try=$2 seconds=$3
        shift 3
        case $seconds in
            *[!0-9]* | '') usage ;;
        esac
        for dir in "$@"; do
            freeze "$try" "$seconds" "$dir"
        done
        ;;
    post)
        [ $# -ge 3 ] || usage
        try=$2
        shift 2
        for dir in "$@"; do
            thaw "$try" "$dir"
        done
        ;;
    watch)
        [ $# = 4 ] || usage
        shift
        watch "$@"
        ;;
    *) usage ;;
esac
