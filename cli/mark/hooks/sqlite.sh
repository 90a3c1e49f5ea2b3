#!/bin/sh
# SQLite databases on volumes of a group, for `landfall mark`:
#
#     landfall mark db --name nightly --freeze /srv/data \
#         --pre 'sqlite.sh pre /srv/data/app.db' --post 'sqlite.sh post'
#
# Before the mark it takes the write lock of each database (BEGIN IMMEDIATE) and keeps it until the mark is set: nobody
# is in the middle of a transaction. A WAL is copied into its database meanwhile. It refuses if a database lies where
# nothing is frozen. It needs the program sqlite3, and has to run as a user who may write the databases.
#
# What the point is then: each database file is whole by itself. There is no hot journal to roll back, and nothing is
# in a WAL that is not in the database too. Both could be thrown away.
#
# Without it, and with --freeze alone, the point is what a crash would leave: a transaction under way leaves its
# journal, or its part of the WAL, and SQLite takes it back when the database is opened next. That is safe too, but the
# journal has to be there, and whoever opens the database has to be allowed to write.
#
# What it costs: other writers wait, and get SQLITE_BUSY if their own busy timeout is shorter. Readers of a database
# with a WAL may wait for the thaw. A writer that never lets go (locking_mode = EXCLUSIVE, a transaction left open), one
# that never pauses (the locks of SQLite know no turns), and a reader that holds back the WAL make it fail, in time:
# then --timeout and --retries help, or nothing is marked.
#
# Several databases are locked one after another, and all are locked when the mark is set. Who writes to two of them in
# two transactions may be between these.
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

# The locks are kept while this folder is there. It is another one for each try, so that a guard that is late lets go
# of nobody else's.
held=${TMPDIR:-/tmp}/landfall-sqlite-${LANDFALL_TRY:?is set by landfall mark}

# A session, which waits for others half a second less than there is: then it can be said what was in the way.
database() {
    sqlite3 -batch -bail -init /dev/null -cmd ".timeout $((LANDFALL_TIMEOUT * 1000 - 500))" "$@"
}

# Keeps the lock of database $1, under the number $2, and says so by a file. No mark is taken any more when
# LANDFALL_TIMEOUT is over: if nobody removes the folder, the lock goes some time after that.
hold() {
    {
        echo 'BEGIN IMMEDIATE;'
        echo ".once '$held/$2.locked'"
        echo "SELECT 'locked';"
        seconds=$((LANDFALL_TIMEOUT + 5))
        while [ -d "$held" ] && [ "$seconds" -gt 0 ]; do
            # Ten looks a second.
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                [ -d "$held" ] || break
                sleep 0.1
            done
            seconds=$((seconds - 1))
        done
        rm -rf -- "$held"
    } | {
        database "$1" || : >"$held/$2.failed"
    }
}

# Copies the WAL of database $1 into it. Nobody writes: it comes to an end as soon as no reader needs what was before.
# The answer: whether somebody else is at it, the pages in the WAL, and those of them that are copied. A database
# without a WAL answers 0|-1|-1.
checkpoint() {
    while :; do
        answer=$(database "$1" 'PRAGMA wal_checkpoint(PASSIVE)')
        pages=${answer#*|}
        if [ "${answer%%|*}" = 0 ] && [ "${pages%|*}" = "${pages#*|}" ]; then
            return 0
        fi
        sleep 0.1
    done
}

case ${1:-} in
    pre)
        shift
        : "${LANDFALL_TIMEOUT:?is set by landfall mark}"
        if [ $# = 0 ]; then
            echo 'no database is named' >&2
            exit 2
        fi
        mkdir -m 0700 -- "$held"
        number=0
        for file in "$@"; do
            # SQLite would make one that is not there.
            if [ ! -f "$file" ]; then
                echo "$file: there is no such database" >&2
                exit 1
            fi
            frozen "$file"
            number=$((number + 1))
            hold "$file" "$number" >"$held/$number.said" 2>&1 &
            while [ ! -s "$held/$number.locked" ]; do
                if [ -e "$held/$number.failed" ]; then
                    echo "$file: $(cat "$held/$number.said")" >&2
                    exit 1
                fi
                sleep 0.02
            done
            checkpoint "$file"
        done
        ;;
    post)
        rm -rf -- "$held"
        ;;
    *)
        echo "usage: $0 pre DATABASE... | post" >&2
        exit 2
        ;;
esac
