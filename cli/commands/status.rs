//! `landfall status`: how the node is, what lags, what somebody should look at.

use crate::args::Global;
use crate::commands::retention;
use crate::control::api::{
    CatchUp, CatchingUp, Group, Link, LinkState, Moment, Mount, Repair, Role, State, Status, Stretch,
    Verdict, WaitsFor,
};
use crate::exit::Failure;
use crate::human::{self, Table, clean};
use crate::time;
use crate::units::{Bytes, count, duration_ms};
use engine::types::{Lsn, Timestamp};
use std::fmt::Write as _;

/// Carries it out.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let status = global.connect()?.status()?;
    human::answer(global.form(), &status, |status| text(status, time::now()))
}

/// The answer for people.
fn text(status: &Status, now: Timestamp) -> String {
    let node = &status.node;
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        out.push_str(&clean(&text.to_string()));
        out.push('\n');
    };
    line(format_args!(
        "node {} ({}), up {}, process {}",
        node.name,
        node.version,
        ago(node.since, now),
        node.pid
    ));
    if let Some(listen) = node.listen {
        line(format_args!("  replication  {listen}"));
    }
    for endpoint in &node.nbd {
        line(format_args!("  nbd          {endpoint}"));
    }
    for group in &status.groups {
        out.push('\n');
        group_text(&mut out, group, now);
    }
    if !status.mounts.is_empty() {
        let mut table =
            Table::new(&["MOUNT", "GROUP", "LSN", "TIME", "KIND", "HOLDS", "SERVED AT"]).right(&[0, 2]);
        for mount in &status.mounts {
            table.row(&[
                mount.mount.0.to_string(),
                mount.group.clone(),
                mount.at.lsn.to_string(),
                time::format(mount.at.time.0),
                kind(mount, now),
                holds(mount, now),
                mount.endpoint.to_string(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    out
}

/// What a mount costs: log that would be retired by now, and since when it is mounted.
fn holds(mount: &Mount, now: Timestamp) -> String {
    mount.pin.map_or_else(
        || "-".to_owned(),
        |pin| format!("{} of log, {}", Bytes(pin.held_bytes), ago(pin.since, now)),
    )
}

/// What a mount is, and what it takes.
fn kind(mount: &Mount, now: Timestamp) -> String {
    let used = mount.scratch.map_or_else(
        || "read-only".to_owned(),
        |used| format!("writable, {} of {}", Bytes(used.used_bytes), Bytes(used.limit_bytes)),
    );
    match mount.drill {
        Some(drill) => {
            let left = drill.ends.0.0.saturating_sub(now.0) / 1_000_000;
            format!("drill, {used}, ends in {}", duration_ms(left))
        }
        None => used,
    }
}

fn group_text(out: &mut String, group: &Group, now: Timestamp) {
    let role = match group.role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    };
    let mut line = |text: std::fmt::Arguments<'_>| {
        out.push_str(&clean(&text.to_string()));
        out.push('\n');
    };
    line(format_args!("group {}: {role}, {}, epoch {}", group.name, state(&group.state), group.epoch));
    for alarm in &group.alarms {
        line(format_args!("  ! {alarm}"));
    }
    let mut positions = String::new();
    let at = &group.positions;
    let named = [
        ("appended", Some(at.appended)),
        ("durable", Some(at.durable)),
        ("shipped", at.shipped),
        ("replica-durable", at.replica_durable),
        ("horizon", at.horizon),
    ];
    for (name, lsn) in named {
        if let Some(Lsn(lsn)) = lsn {
            let _ = write!(positions, "{}{name} {lsn}", if positions.is_empty() { "" } else { ", " });
        }
    }
    line(format_args!("  positions    {positions}"));
    line(format_args!("  log          {} of {}", Bytes(group.log.used_bytes), Bytes(group.log.limit_bytes)));
    match &group.window {
        Some(window) => line(format_args!(
            "  points       {} ({}) to {} ({})",
            window.horizon.lsn,
            time::format(window.horizon.time.0),
            window.latest.lsn,
            time::format(window.latest.time.0)
        )),
        None => line(format_args!("  points       none")),
    }
    for text in group.window.iter().flat_map(retention::lines) {
        line(format_args!("               {text}"));
    }
    let mut links = Table::new(&["PEER", "LINK", "DURABLE", "LAG", "RTT"]).right(&[2]).indent(2);
    let mut any = false;
    let durable = |lsn: Option<Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
    for replica in &group.replicas {
        any = true;
        links.row(&[
            &replica.name,
            &link(&replica.link, now),
            &durable(replica.durable),
            &lag(replica.lag),
            &rtt(&replica.link),
        ]);
    }
    if let Some(primary) = &group.primary {
        any = true;
        let name = format!("{} (primary)", primary.name);
        links.row(&[
            &name,
            &link(&primary.link, now),
            &durable(primary.durable),
            &lag(primary.lag),
            &rtt(&primary.link),
        ]);
    }
    if any {
        out.push_str(&links.render());
    }
    for replica in &group.replicas {
        if let Some(CatchingUp { state, bytes, bytes_s, waits_for }) = replica.catching_up {
            let pace = match (waits_for, bytes_s) {
                (Some(WaitsFor::Link), _) => "; it goes on when the link is back".to_owned(),
                (Some(WaitsFor::Room), _) => {
                    "; it waits for room in the log, which guests fill faster than replicas follow".to_owned()
                }
                (None, None) => String::new(),
                (None, Some(0)) => "; nothing was copied in the last seconds".to_owned(),
                (None, Some(pace)) => {
                    let left = duration_ms(bytes.saturating_mul(1_000) / pace);
                    format!(", at {}/s: about {left} left", Bytes(pace))
                }
            };
            let (name, bytes) = (clean(&replica.name), Bytes(bytes));
            let _ = match state {
                CatchUp::Tracked => writeln!(
                    out,
                    "  {name} is away for longer than the log holds: {bytes} have changed since, and are copied when \
                     it is back"
                ),
                CatchUp::Span => {
                    writeln!(out, "  {name} is in a sync span: {bytes} are yet to be copied{pace}")
                }
                CatchUp::NeedsCopy => writeln!(
                    out,
                    "  {name} needs a copy of everything, {bytes}: `landfall resync {} {name}` allows it",
                    clean(&group.name)
                ),
            };
        }
        for alarm in &replica.alarms {
            let _ = writeln!(out, "  ! {}: {}", clean(&replica.name), clean(alarm));
        }
    }
    verification_text(out, group);
    if !group.volumes.is_empty() {
        let mut volumes = Table::new(&["VOLUME", "SIZE", "EXPORT", "CONNECTIONS"]).right(&[1, 3]).indent(2);
        for volume in &group.volumes {
            volumes.row(&[
                &volume.name,
                &Bytes(volume.size_bytes).to_string(),
                volume.export.as_deref().unwrap_or("-"),
                &volume.connections.to_string(),
            ]);
        }
        out.push_str(&volumes.render());
        for volume in &group.volumes {
            let Some(seed) = &volume.seed else { continue };
            let (name, path, used) = (clean(&volume.name), seed.path.display(), Bytes(seed.used_bytes));
            let _ = match &seed.fault {
                None => writeln!(out, "  {name} has a seed, {path}: {used} did not have to travel"),
                Some(fault) => {
                    writeln!(out, "  ! {name} has a seed, {path}, which is left alone: {}", clean(fault))
                }
            };
        }
    }
}

fn verification_text(out: &mut String, group: &Group) {
    if let Some(round) = &group.round {
        let sum = |of: fn(&Verdict) -> u64| round.replicas.iter().map(of).sum::<u64>();
        let different = sum(|verdict| verdict.mismatched);
        let (done, total) = (Bytes(round.done_bytes), Bytes(round.total_bytes));
        let state = match round.ended {
            Some(ended) => format!("ended {}", time::format(ended.0)),
            None if round.waits => format!("{done} of {total}, waits for a replica"),
            None => format!("{done} of {total}"),
        };
        let same = count(sum(|verdict| verdict.same));
        let _ =
            writeln!(out, "  verification {state}: {same} parts the same, {} different", count(different));
    }
    let Some(checks) =
        group.checks.as_ref().filter(|checks| checks.same + checks.mismatched + checks.skipped > 0)
    else {
        return;
    };
    let _ = writeln!(
        out,
        "  verification {} parts the same as the primary's, {} different, of which {} are well again",
        count(checks.same),
        count(checks.mismatched),
        count(checks.repaired)
    );
    for open in &checks.open {
        let found = match (&open.found, &open.error) {
            (Some(found), _) => format!("digest {found}"),
            (None, error) => error.as_ref().map_or_else(String::new, |error| clean(error)),
        };
        let repair = match open.repair {
            Repair::NotWanted => "reported alone",
            Repair::Asked => "asked for again",
            Repair::GivenUp => "GIVEN UP: it was sent again, and does not stay",
        };
        let _ = writeln!(
            out,
            "  ! {}: {} at byte {}, LSN {}, {}: {found}, on the primary digest {}; {repair}",
            clean(&open.volume),
            Bytes(open.len_bytes),
            open.offset_bytes,
            open.lsn,
            time::format(open.time.0),
            open.expected
        );
    }
}

/// A state in words, with its reason.
pub(crate) fn state(state: &State) -> String {
    match state {
        State::Starting => "starting".to_owned(),
        State::Serving => "serving".to_owned(),
        State::Stalled { reason } => format!("STALLED: {reason}"),
        State::Following => "following".to_owned(),
        State::Waiting => "waiting for a primary".to_owned(),
        State::Fenced { epoch, by } => format!("FENCED by epoch {epoch}, told by {by}"),
        State::Failed { reason } => format!("FAILED: {reason}"),
    }
}

fn link(link: &Link, now: Timestamp) -> String {
    let word = match link.state {
        LinkState::Connected => "connected",
        LinkState::Connecting => "connecting",
        LinkState::Refused => "refused",
    };
    let since = link.since.map_or_else(String::new, |since| format!(" {}", ago(since, now)));
    let reason = link.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("{word}{since}{reason}")
}

fn rtt(link: &Link) -> String {
    link.rtt_us.map_or_else(|| "-".to_owned(), |us| format!("{}.{}ms", us / 1_000, us % 1_000 / 100))
}

fn lag(lag: Stretch) -> String {
    if lag.writes == 0 { "none".to_owned() } else { stretch(lag) }
}

/// `12 writes, 48 KiB, 340ms`.
pub(crate) fn stretch(stretch: Stretch) -> String {
    let noun = if stretch.writes == 1 { "write" } else { "writes" };
    format!("{} {noun}, {}, {}", count(stretch.writes), Bytes(stretch.bytes), duration_ms(stretch.ms))
}

/// The time since a moment.
pub(crate) fn ago(moment: Moment, now: Timestamp) -> String {
    duration_ms(now.0.saturating_sub(moment.0.0) / 1_000_000)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::control::api::{
        At, AtRest, Copied, Drill, EndsBy, Log, MountId, Node, Pin, Positions, Replica, Retention, Upstream,
        Used, Volume, Window,
    };
    use crate::control::api::{Checks, Endpoint, Mismatch, OnMismatch, Round};
    use engine::types::Epoch;

    const NOW: Timestamp = Timestamp(1_751_373_296_789_000_000);

    fn before(seconds: u64) -> Moment {
        Moment(Timestamp(NOW.0 - seconds * 1_000_000_000))
    }

    pub(crate) fn sample() -> Status {
        let volume = Volume {
            name: "data".to_owned(),
            size_bytes: 10 << 30,
            export: Some("db/data".to_owned()),
            connections: 2,
            seed: None,
        };
        let window = Window {
            horizon: At { lsn: Lsn(7), time: before(3_600) },
            latest: At { lsn: Lsn(90), time: before(1) },
            retention: Some(Retention {
                reach_ms: 3_600_000,
                up_to_now: true,
                limit_ms: 86_400_000,
                limit_bytes: 8 << 30,
                used_bytes: 1 << 30,
                ends_by: Some(EndsBy::Bytes),
                ends_in_ms: Some(7 * 3_600_000),
                copied: vec![Copied { from: before(60), to: before(50) }],
            }),
        };
        let connected = Link {
            state: LinkState::Connected,
            since: Some(before(725)),
            rtt_us: Some(12_345),
            reason: None,
        };
        let group = Group {
            name: "db".to_owned(),
            id: Some("00ff".to_owned()),
            role: Role::Primary,
            state: State::Serving,
            epoch: Epoch(3),
            positions: Positions {
                appended: Lsn(100),
                durable: Lsn(99),
                shipped: Some(Lsn(95)),
                replica_durable: Some(Lsn(90)),
                horizon: None,
            },
            replicas: vec![Replica {
                name: "west".to_owned(),
                address: "west:10900".to_owned(),
                link: connected.clone(),
                durable: Some(Lsn(90)),
                lag: Stretch { writes: 1_234, bytes: 5 << 20, ms: 340 },
                catching_up: None,
                alarms: vec!["acknowledged less than before".to_owned()],
            }],
            primary: None,
            volumes: vec![volume.clone()],
            log: Log { used_bytes: 3 << 30, limit_bytes: 16 << 30 },
            window: Some(window.clone()),
            uncommitted: None,
            takes_back: false,
            round: None,
            verified: None,
            at_rest: AtRest::default(),
            checks: None,
            alarms: Vec::new(),
        };
        let other = Group {
            name: "mail".to_owned(),
            id: None,
            role: Role::Replica,
            state: State::Failed { reason: "fdatasync of 00000001.seg: I/O error".to_owned() },
            positions: Positions { horizon: Some(Lsn(7)), ..Positions::default() },
            replicas: Vec::new(),
            primary: Some(Upstream {
                name: "north".to_owned(),
                link: Link {
                    state: LinkState::Refused,
                    since: None,
                    rtt_us: None,
                    reason: Some("a newer epoch 4 exists".to_owned()),
                },
                durable: None,
                lag: Stretch::default(),
            }),
            volumes: Vec::new(),
            window: None,
            alarms: vec!["needs somebody".to_owned()],
            ..group.clone()
        };
        Status {
            node: Node {
                name: "east".to_owned(),
                id: "abcd".to_owned(),
                version: "0.1.0".to_owned(),
                pid: 42,
                since: before(90_000),
                listen: Some("127.0.0.1:10900".parse().unwrap()),
                nbd: vec![Endpoint::Unix("/run/nbd.sock".into())],
            },
            groups: vec![group, other],
            mounts: vec![Mount {
                mount: MountId(1),
                group: "db".to_owned(),
                at: window.horizon,
                branch: None,
                endpoint: Endpoint::Tcp("127.0.0.1:1234".parse().unwrap()),
                volumes: vec![volume],
                scratch: None,
                drill: None,
                pin: Some(Pin { since: before(60), held_bytes: 1 << 30, limit_bytes: 4 << 30 }),
                mark: None,
            }],
        }
    }

    #[test]
    fn a_catch_up_says_how_long_it_takes() {
        let line = |bytes_s, waits_for| {
            let mut status = sample();
            let state = CatchUp::Span;
            let lack = CatchingUp { state, bytes: 600 << 20, bytes_s, waits_for };
            status.groups[0].replicas[0].catching_up = Some(lack);
            let text = text(&status, NOW);
            text.lines().find(|line| line.contains("sync span")).expect("it is told").trim().to_owned()
        };
        let begins = "west is in a sync span: 600 MiB are yet to be copied";
        assert_eq!(line(None, None), begins, "too early to say");
        assert_eq!(line(Some(20 << 20), None), format!("{begins}, at 20 MiB/s: about 30s left"));
        assert_eq!(line(Some(0), None), format!("{begins}; nothing was copied in the last seconds"));
        assert!(line(Some(0), Some(WaitsFor::Room)).contains("waits for room in the log"));
        assert!(line(Some(9), Some(WaitsFor::Link)).contains("when the link is back"));
    }

    #[test]
    fn status_reads_well() {
        let expected = "\
node east (0.1.0), up 1d 1h, process 42
  replication  127.0.0.1:10900
  nbd          /run/nbd.sock

group db: primary, serving, epoch 3
  positions    appended 100, durable 99, shipped 95, replica-durable 90
  log          3 GiB of 16 GiB
  points       7 (2025-07-01T11:34:56.789Z) to 90 (2025-07-01T12:34:55.789Z)
               any write of the last 1h (limit: 1d, or 8 GiB of log, of which 1 GiB are used: ends first by bytes, in about 7h)
               but for 2025-07-01T12:33:56.789Z to 2025-07-01T12:34:06.789Z, copied as one
  PEER  LINK              DURABLE  LAG                         RTT
  west  connected 12m 5s       90  1,234 writes, 5 MiB, 340ms  12.3ms
  ! west: acknowledged less than before
  VOLUME    SIZE  EXPORT   CONNECTIONS
  data    10 GiB  db/data            2

group mail: replica, FAILED: fdatasync of 00000001.seg: I/O error, epoch 3
  ! needs somebody
  positions    appended 0, durable 0, horizon 7
  log          3 GiB of 16 GiB
  points       none
  PEER             LINK                             DURABLE  LAG   RTT
  north (primary)  refused: a newer epoch 4 exists        -  none  -

MOUNT  GROUP  LSN  TIME                      KIND       HOLDS             SERVED AT
    1  db       7  2025-07-01T11:34:56.789Z  read-only  1 GiB of log, 1m  127.0.0.1:1234
";
        assert_eq!(text(&sample(), NOW), expected);
    }

    #[test]
    fn what_verification_has_found_reads_well() {
        let mut group = sample().groups.remove(0);
        let verdict =
            Verdict { replica: "west".to_owned(), same: 10_239, mismatched: 1, skipped: 0, unchecked: 0 };
        group.round = Some(Round {
            number: 7,
            on_mismatch: OnMismatch::Repair,
            begun: before(9),
            ended: None,
            done_bytes: 1 << 30,
            total_bytes: 10 << 30,
            records: 10_240,
            busy_bytes: 0,
            unreadable_bytes: 0,
            waits: true,
            replicas: vec![verdict],
        });
        let open = |found: Option<&str>, error: Option<&str>, repair| Mismatch {
            volume: "data".to_owned(),
            offset_bytes: 3 << 20,
            len_bytes: 1 << 20,
            lsn: Lsn(88),
            time: before(1),
            expected: "99aa".to_owned(),
            found: found.map(str::to_owned),
            error: error.map(str::to_owned),
            repair,
        };
        let open =
            vec![open(Some("77bb"), None, Repair::Asked), open(None, Some("I/O error"), Repair::GivenUp)];
        group.checks = Some(Checks { same: 5, mismatched: 3, skipped: 0, repaired: 1, open });
        let mut out = String::new();
        verification_text(&mut out, &group);
        let expected = "  verification 1 GiB of 10 GiB, waits for a replica: 10,239 parts the same, 1 different
  verification 5 parts the same as the primary's, 3 different, of which 1 are well again
  ! data: 1 MiB at byte 3145728, LSN 88, 2025-07-01T12:34:55.789Z: digest 77bb, on the primary digest 99aa; asked for again
  ! data: 1 MiB at byte 3145728, LSN 88, 2025-07-01T12:34:55.789Z: I/O error, on the primary digest 99aa; GIVEN UP: it was sent again, and does not stay
";
        assert_eq!(out, expected);
    }

    #[test]
    fn a_drill_says_what_it_takes_and_when_it_ends() {
        let mut mount = sample().mounts.remove(0);
        mount.scratch = Some(Used { used_bytes: 3 << 20, limit_bytes: 8 << 30 });
        assert_eq!(kind(&mount, NOW), "writable, 3 MiB of 8 GiB");
        let ends = Moment(Timestamp(NOW.0 + 90 * 60 * 1_000_000_000));
        mount.drill = Some(Drill { begun: before(60), ends });
        assert_eq!(kind(&mount, NOW), "drill, writable, 3 MiB of 8 GiB, ends in 1h 30m");
    }

    #[test]
    fn json_is_read_back() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), sample());
    }
}
