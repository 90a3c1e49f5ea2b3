#!/bin/sh
# PostgreSQL on volumes of a group, for `landfall mark`:
#
#     landfall mark db --name nightly --freeze /srv/data --pre 'postgresql.sh pre'
#
# Before the mark it writes a checkpoint, and refuses if a part of the cluster lies where nothing is frozen. Behind the
# mark there is nothing to do. psql is run as the system's user postgres if this is root; PGHOST, PGPORT, PGUSER and the
# like say which server. The role has to be a superuser, or have pg_checkpoint and pg_read_all_settings.
#
# What the point is then:
# - The filesystem is clean, and each write of PostgreSQL to it is there as a whole or not at all: no page is torn.
# - Exactly the transactions are there whose commit had reached the disk; those under way are gone, as after a power
#   cut. With synchronous_commit = off the last few commits may be missing, as after a power cut.
# - A server that starts on it says that it was interrupted, and replays what is left of the WAL since the checkpoint:
#   next to nothing, but not nothing. A server that runs cannot be copied in another way. Who wants no replay at all
#   stops the server in the script before (`pg_ctl stop -m fast`), and starts it in the one behind.
#
# What is not needed:
# - pg_backup_start. It is for copies that are made file by file while the server writes to them. It belongs to the
#   session that called it, and what a restore needs of it, the file backup_label, is only told by pg_backup_stop, so
#   it would not be in the point. All volumes of a point are of one moment: plain crash recovery is right, and with a
#   backup_label from elsewhere it would be wrong.
# - A session that holds a transaction or a lock: others go on writing to the WAL all the same.
#
# What each step gives: without the checkpoint the point is just as whole, and has more to replay. Without --freeze it
# is what a crash would leave: the filesystem's journal is replayed, then the WAL, and pages that are torn come out of
# the WAL (full_page_writes, which has to stay on). That is a good point, but one that has to be recovered: it should
# be marked without this script, and says then that it is as a crash would leave it.
set -eu

# Whether something lies on a filesystem that is about to be frozen. Whether that is a volume of the group is for you
# to know.
frozen() {
    device=$(stat -L -c %d -- "$1") || return 1
    while IFS= read -r dir; do
        if [ -n "$dir" ] && [ "$(stat -L -c %d -- "$dir")" = "$device" ]; then
            return 0
        fi
    done <<END
${LANDFALL_FREEZE:-}
END
    echo "$1 is on no filesystem that is frozen; name it with --freeze, or mark without this script" >&2
    return 1
}

ask() {
    if [ "$(id -u)" = 0 ] && id postgres >/dev/null 2>&1; then
        runuser -u postgres -- psql -X -A -t -q -v ON_ERROR_STOP=1 -d "${PGDATABASE:-postgres}" -c "$1"
    else
        psql -X -A -t -q -v ON_ERROR_STOP=1 -d "${PGDATABASE:-postgres}" -c "$1"
    fi
}

case ${1:-} in
    pre)
        # Where the user postgres may be.
        cd /
        data=$(ask 'SHOW data_directory')
        frozen "$data"
        frozen "$data/pg_wal"
        for space in "$data"/pg_tblspc/*; do
            if [ -e "$space" ]; then
                frozen "$space"
            fi
        done
        ask CHECKPOINT
        ;;
    post) ;;
    *)
        echo "usage: $0 pre|post" >&2
        exit 2
        ;;
esac
