//! A node's reports in the words of the control API.

use super::Node;
use super::branches;
use super::groups::{Group, LinkInfo};
use super::marks;
use super::retention::retention;
use super::volumes::Found;
use crate::config::{Config, OnFull};
use crate::control::api::{
    At, AtRest, CatchUp, CatchingUp, Checks, Content, Fault, FaultCode, Group as Shown, KeptMark, Link,
    LinkState, Log, Mark, Mismatch, Moment, Mount, Node as ShownNode, OnMismatch, Points, Positions, Record,
    Reign, Repair, Replica, Role, Rotten, Round, Span, State, Status, Stretch, Upstream, Verdict, Verified,
    Volume, WaitsFor, Window,
};
use crate::point::{Point, Which};
use crate::time;
use crate::units::Bytes;
use engine::event;
use engine::node::check;
use engine::node::report::Report;
use engine::node::verify::RoundReport;
use engine::state;
use engine::types::{Lsn, Timestamp};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn status(node: &Node) -> Status {
    let mut groups: Vec<Shown> = node.groups.values().map(group).collect();
    groups.extend(node.closed.iter().map(|(name, reason)| closed(name, reason)));
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    let mounts = node.mounts.list();
    for group in &mut groups {
        group.alarms.extend(mounts.iter().filter(|mount| mount.group == group.name).filter_map(costly));
    }
    Status {
        node: ShownNode {
            name: node.name.clone(),
            id: node.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: Moment(node.since),
            listen: node.listen,
            nbd: node.nbd_at.clone(),
        },
        groups,
        mounts,
    }
}

/// A warning of a point that holds half of what it may of the log.
fn costly(mount: &Mount) -> Option<String> {
    let pin = mount.pin.filter(|pin| pin.held_bytes >= pin.limit_bytes / 2)?;
    Some(format!(
        "mount {} holds {} of log beyond retention, and is ended at {} (`pin_limit`); `landfall unmount {}` ends it now",
        mount.mount.0,
        Bytes(pin.held_bytes),
        Bytes(pin.limit_bytes),
        mount.mount.0
    ))
}

fn rotten(found: &engine::node::reread::Rotten) -> Rotten {
    let at = At { lsn: found.lsn, time: Moment(found.found) };
    Rotten { at, segment: found.segment, reason: found.reason.clone() }
}

fn closed(name: &str, reason: &str) -> Shown {
    Shown {
        name: name.to_owned(),
        id: None,
        role: Role::Replica,
        state: State::Failed { reason: reason.to_owned() },
        epoch: Default::default(),
        positions: Positions::default(),
        replicas: Vec::new(),
        primary: None,
        volumes: Vec::new(),
        log: Log::default(),
        uncommitted: None,
        takes_back: false,
        window: None,
        round: None,
        verified: None,
        at_rest: AtRest::default(),
        checks: None,
        alarms: Vec::new(),
    }
}

fn group(group: &Arc<Group>) -> Shown {
    let report = group.report();
    let now = time::now();
    let mut alarms: Vec<String> = Vec::new();
    if let Some((done, all)) = report.hydration {
        let percent = (done * 100).checked_div(all).unwrap_or(100);
        alarms.push(format!(
            "the volumes' disks are being filled, {percent} % done; reads and writes are served"
        ));
    }
    if report.log_bytes * 10 > report.log_limit_bytes * 8 {
        alarms.push(match group.config.on_full {
            OnFull::Stall => {
                "the log is nearly full: at its limit writes wait until a replica catches up".to_owned()
            }
            OnFull::Track => "the log is nearly full: it is given up for replicas that are behind, and what \
                              changes is tracked for them"
                .to_owned(),
        });
    }
    if let Some(open) = report.coarse.last().filter(|last| last.to.is_none()) {
        alarms.push(match report.points {
            Some(points) => format!(
                "a sync span is under way: LSNs from {} on are no recovery points until it ends; the newest is {}",
                open.from, points.latest
            ),
            None => "the first copy of the disks is under way: there is no recovery point yet".to_owned(),
        });
    }
    let branches = group.engine.peek(engine::node::Node::branch_bytes);
    if branches * 4 > report.log_limit_bytes {
        alarms.push(format!(
            "branches take {} of the log; `landfall branches list {}` tells which, `branches drop` gives one up",
            Bytes(branches),
            report.name
        ));
    }
    if report.draining {
        alarms.push("writes wait: the group is being handed over to a replica".to_owned());
    }
    if let Some(at) = report.handed_over {
        alarms.push(format!(
            "the group was handed over at LSN {at}, and the replica has not answered as its primary yet; if it is lost, \
             `landfall failover {} --to latest` has this node go on",
            report.name
        ));
    }
    if let Some(at) = report.uncommitted {
        alarms.push(format!(
            "the failover to LSN {at} is not committed: what lies around it is kept until `landfall failover commit {}`",
            report.name
        ));
    }
    let wrong = report.checks.as_ref().map_or(0, |checks| checks.open.len());
    if wrong > 0 {
        alarms.push(format!(
            "verification has found {wrong} parts of this copy that are not what the primary holds"
        ));
    }
    for found in &report.reread.rotten {
        let what = match report.role {
            state::Role::Primary => "replicas that do not have it yet get a sync span instead",
            _ => {
                "points behind it may not be read; `landfall verify` on the primary has what is newest sent again"
            }
        };
        alarms.push(format!(
            "the log's file {:08} cannot be read from LSN {} on: {}; {what}",
            found.segment, found.lsn, found.reason
        ));
    }
    if let Some((volume, extent, reason)) = report.checks.as_ref().and_then(|checks| checks.damaged.as_ref())
    {
        let name = report.volumes.iter().find(|known| known.id == *volume);
        alarms.push(format!(
            "a record of the log has rotted, volume {} at byte {}: {reason}; points are not retired before the \
             primary has sent that part again",
            name.map_or("?", |known| &known.name),
            extent.offset
        ));
    }
    Shown {
        name: report.name.clone(),
        id: report.group.map(|id| id.to_string()),
        role: match report.role {
            state::Role::Replica => Role::Replica,
            state::Role::Primary | state::Role::Fenced => Role::Primary,
        },
        state: state_of(&report, group.config.on_full),
        epoch: report.epoch,
        positions: positions(group, &report),
        // A replica dials nobody, whoever its configuration names for the day that it is the primary.
        replicas: match report.role {
            state::Role::Replica => Vec::new(),
            _ => report.replicas.iter().map(|known| replica(group, known, now)).collect(),
        },
        primary: upstream(group, &report),
        volumes: volumes(group, &report),
        log: Log { used_bytes: report.log_bytes, limit_bytes: report.log_limit_bytes },
        window: window(group, &report),
        uncommitted: report.uncommitted,
        takes_back: report.takes_back,
        round: report.round.as_ref().map(round),
        verified: (report.role == state::Role::Primary).then_some(Verified {
            rounds: report.verified.rounds,
            bytes: report.verified.bytes,
            mismatched: report.verified.mismatched,
            unreadable_bytes: report.verified.unreadable_bytes,
            sent_again: report.verified.sent_again,
        }),
        at_rest: AtRest {
            passes: report.reread.passes,
            bytes: report.reread.bytes,
            rotten: report.reread.rotten.iter().map(rotten).collect(),
        },
        checks: report.checks.as_ref().map(|found| checks(found, &report)),
        alarms,
    }
}

/// A round of verification.
pub(super) fn round(round: &RoundReport) -> Round {
    Round {
        number: round.number,
        on_mismatch: match round.on_mismatch {
            event::OnMismatch::Repair => OnMismatch::Repair,
            event::OnMismatch::Report => OnMismatch::Report,
        },
        begun: Moment(round.begun),
        ended: round.ended.map(Moment),
        done_bytes: round.done_bytes,
        total_bytes: round.total_bytes,
        records: round.records,
        busy_bytes: round.busy_bytes,
        unreadable_bytes: round.unreadable_bytes,
        waits: round.waits,
        replicas: round
            .replicas
            .iter()
            .map(|verdict| Verdict {
                replica: verdict.replica.clone(),
                same: verdict.same,
                mismatched: verdict.mismatched,
                skipped: verdict.skipped,
                unchecked: verdict.unchecked,
            })
            .collect(),
    }
}

fn checks(checks: &check::ChecksReport, report: &Report) -> Checks {
    let name = |id| report.volumes.iter().find(|volume| volume.id == id).map(|volume| volume.name.clone());
    Checks {
        same: checks.same,
        mismatched: checks.mismatched,
        skipped: checks.skipped,
        repaired: checks.repaired,
        open: checks
            .open
            .iter()
            .map(|open| Mismatch {
                volume: name(open.volume).unwrap_or_default(),
                offset_bytes: open.extent.offset,
                len_bytes: open.extent.len,
                lsn: open.at,
                time: Moment(open.time),
                expected: open.expected.to_string(),
                found: open.found.as_ref().ok().map(ToString::to_string),
                error: open.found.as_ref().err().cloned(),
                repair: match open.repair {
                    check::Repair::NotWanted => Repair::NotWanted,
                    check::Repair::Asked => Repair::Asked,
                    check::Repair::GivenUp => Repair::GivenUp,
                },
            })
            .collect(),
    }
}

fn state_of(report: &Report, on_full: OnFull) -> State {
    match (&report.failed, report.role) {
        (Some(failed), _) => State::Failed { reason: failed.reason.clone() },
        (None, state::Role::Fenced) => {
            State::Fenced { epoch: report.fenced_by.unwrap_or_default(), by: "a newer primary".to_owned() }
        }
        (None, state::Role::Primary)
            if report.log_bytes >= report.log_limit_bytes && on_full == OnFull::Stall =>
        {
            State::Stalled { reason: "the log is at its limit".to_owned() }
        }
        (None, state::Role::Primary) => State::Serving,
        (None, state::Role::Replica) if report.group.is_none() => State::Waiting,
        (None, state::Role::Replica) => State::Following,
    }
}

fn positions(group: &Group, report: &Report) -> Positions {
    let primary = report.role != state::Role::Replica;
    let furthest = report.replicas.iter().map(|replica| replica.acknowledged).max();
    let shipped = Lsn(group.shipped.load(Ordering::Relaxed)).max(furthest.unwrap_or_default());
    Positions {
        appended: report.appended,
        durable: report.durable,
        shipped: (primary && furthest.is_some()).then_some(shipped),
        replica_durable: furthest.filter(|_| primary),
        horizon: report
            .points
            .filter(|points| points.latest > Lsn::ZERO)
            .map(|points| points.horizon.max(Lsn(1))),
    }
}

fn link(info: Option<LinkInfo>) -> Link {
    match info {
        Some(info) => {
            let rtt_us = info.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
            Link { state: info.state, since: Some(Moment(info.since)), rtt_us, reason: info.reason }
        }
        None => Link { state: LinkState::Connecting, since: None, rtt_us: None, reason: None },
    }
}

fn replica(group: &Group, known: &engine::node::report::ReplicaReport, now: Timestamp) -> Replica {
    let address = group.config.replicas.iter().find(|replica| replica.name == known.name);
    Replica {
        name: known.name.clone(),
        address: address.map(|replica| replica.address.clone()).unwrap_or_default(),
        link: link(group.links.of(&known.name)),
        durable: (known.acknowledged > Lsn::ZERO).then_some(known.acknowledged),
        lag: Stretch {
            writes: known.lag_records,
            bytes: known.lag_bytes.unwrap_or(0),
            ms: known.lag_since.map_or(0, |since| ms_between(since, now)),
        },
        catching_up: known.lacking.map(|lacking| catching_up(group, known, lacking)),
        alarms: known.alarm.iter().cloned().collect(),
    }
}

fn catching_up(
    group: &Group,
    known: &engine::node::report::ReplicaReport,
    lacking: engine::node::report::Lacking,
) -> CatchingUp {
    let state = match lacking.state {
        engine::node::report::CatchUp::Tracked => CatchUp::Tracked,
        engine::node::report::CatchUp::Span => CatchUp::Span,
        engine::node::report::CatchUp::NeedsCopy => CatchUp::NeedsCopy,
    };
    let bytes_s = group.pace_of(&known.name, lacking.bytes).filter(|_| state == CatchUp::Span);
    let waits_for = match (state, known.connected) {
        (CatchUp::Span, false) => Some(WaitsFor::Link),
        (CatchUp::Span, true) if bytes_s == Some(0) && !group.engine.peek(|node| node.has_room_to_copy()) => {
            Some(WaitsFor::Room)
        }
        _ => None,
    };
    CatchingUp { state, bytes: lacking.bytes, bytes_s, waits_for }
}

pub(super) fn ms_between(earlier: Timestamp, later: Timestamp) -> u64 {
    later.0.saturating_sub(earlier.0) / 1_000_000
}

fn upstream(group: &Group, report: &Report) -> Option<Upstream> {
    if report.role != state::Role::Replica {
        return None;
    }
    let (name, info) = group.upstream.newest()?;
    let told = report.primary.map(|(durable, _)| durable);
    let writes = told.map_or(0, |told| told.0.saturating_sub(report.durable.0));
    Some(Upstream {
        link: link(Some(info)),
        name,
        durable: told,
        // What has not come cannot be weighed; its number is known.
        lag: Stretch {
            writes,
            bytes: 0,
            ms: if writes == 0 { 0 } else { report.primary.map_or(0, |(_, ms)| ms) },
        },
    })
}

pub(super) fn volumes(group: &Group, report: &Report) -> Vec<Volume> {
    let serves = report.role == state::Role::Primary;
    let connections = group.connections.lock().expect("no holder of the lock panics");
    let shown = report.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        size_bytes: volume.size,
        export: serves.then(|| Config::export(&report.name, &volume.name)),
        connections: connections.get(&volume.name).map_or(0, |counter| counter.load(Ordering::Relaxed)),
        seed: group.seeds.of(&volume.name),
    });
    shown.collect()
}

fn window(group: &Group, report: &Report) -> Option<Window> {
    let points = report.points.filter(|points| points.latest > Lsn::ZERO)?;
    let (horizon, latest) = (group.at(points.horizon.max(Lsn(1))), group.at(points.latest));
    Some(Window { horizon, latest, retention: Some(retention(group, report, horizon, latest)) })
}

/// One record, without its bytes.
pub(super) fn record(group: &Group, lsn: Lsn) -> Result<Record, Fault> {
    let name = &group.config.name;
    let found = group.engine.peek(|node| {
        let header = node.log().header_of(lsn);
        header.map(|found| {
            found.map(|header| {
                let volume = node.volume_specs().find(|spec| spec.id == header.volume);
                (header, volume.map(|spec| spec.name.clone()))
            })
        })
    });
    match found {
        Ok(Some((header, volume))) => Ok(Record {
            at: At { lsn, time: Moment(header.time) },
            epoch: header.epoch,
            kind: header.kind.name().to_owned(),
            volume,
            offset_bytes: header.extent.offset,
            len_bytes: header.extent.len,
        }),
        Ok(None) => {
            Err(Fault::new(FaultCode::NotFound, format_args!("group {name}: LSN {lsn} is not in the log")))
        }
        Err(error) => Err(Fault::new(FaultCode::Corrupt, format_args!("group {name}: {error}"))),
    }
}

/// The point that an operator means.
pub(super) fn resolve(group: &Arc<Group>, point: &Point) -> Result<Found, Fault> {
    if let Some(id) = point.branch {
        return branches::resolve(group, id, &point.which, Content::Whole);
    }
    let marked = marks::resolve(group, &point.which)?;
    let found = group.engine.peek(|node| {
        let at = match &point.which {
            Which::Latest => node.window().ok_or_else(|| node.no_window())?.latest,
            Which::Lsn(lsn) => *lsn,
            Which::Time(time) => node.point_at(*time)?,
            Which::Mark(_) | Which::LatestApp => marked,
        };
        node.check_open(at).map(|()| at)
    });
    let at = found.map_err(|error| {
        let mut fault = no_point(group, &error);
        if let Which::Lsn(lsn) = point.which
            && let Some(id) = branches::that_holds(group, lsn)
        {
            fault.next =
                Some(format!("`lsn:{lsn}@{id}` is that LSN on the branch {id}, which was set aside"));
        }
        fault
    })?;
    Ok(Found { at, branch: None })
}

/// The point that an operator means, if a failover can go to it.
pub(super) fn resolve_in_window(group: &Arc<Group>, point: &Point) -> Result<Found, Fault> {
    let found = resolve(group, point)?;
    let lsn = found.at;
    if found.branch.is_none() && group.engine.peek(|node| node.is_kept(lsn)) {
        let mut fault = Fault::new(
            FaultCode::Refused,
            format_args!(
                "group {}: LSN {lsn} is a mark kept behind the window: a failover goes to a point of the window",
                group.config.name
            ),
        );
        fault.next = Some(format!(
            "`landfall mount-point`, `landfall drill` and `landfall restore` open it; `landfall points list {}` shows the window",
            group.config.name
        ));
        return Err(fault);
    }
    Ok(found)
}

pub(super) fn no_point(group: &Group, error: &engine::node::points::Error) -> Fault {
    let mut fault = Fault::new(FaultCode::Refused, format_args!("group {}: {error}", group.config.name));
    fault.next = Some(match error {
        engine::node::points::Error::NotKept => "ask on a node that is its replica".to_owned(),
        _ => format!("`landfall points list {}` shows what can be selected", group.config.name),
    });
    fault
}

pub(super) fn points(group: &Arc<Group>, all_marks: bool) -> Result<Points, Fault> {
    let report = group.report();
    let kept = group.engine.peek(|node| !matches!(node.no_window(), engine::node::points::Error::NotKept));
    if report.group.is_some() && !kept {
        return Err(no_point(group, &engine::node::points::Error::NotKept));
    }
    let spans = report.coarse.iter().map(|coarse| Span {
        first: At { lsn: coarse.from, time: Moment(Timestamp(0)) },
        end: coarse.to.map(|to| group.at(to)),
    });
    let window = window(group, &report);
    let horizon = report.points.map_or(Lsn::ZERO, |points| points.horizon);
    let mut reigns = Vec::new();
    for (index, reign) in report.history.iter().enumerate() {
        let end = report.history.get(index + 1).map_or(report.durable, |next| next.branch.lsn);
        let first = reign.branch.lsn.next().max(horizon);
        if first <= end {
            reigns.push(Reign {
                epoch: reign.epoch,
                node: reign.node.to_string(),
                first: group.at(first),
                last: group.at(end),
            });
        }
    }
    let marks = group.engine.marks().into_iter();
    let marks = marks.map(|(lsn, mark)| Mark {
        at: At { lsn, time: Moment(mark.time) },
        name: mark.name,
        kind: marks::kind_of(mark.kind),
    });
    let kept = group.engine.peek(engine::node::Node::kept_marks).into_iter();
    let kept = kept.map(|(mark, bytes)| KeptMark {
        at: At { lsn: mark.at, time: Moment(mark.time) },
        name: mark.name,
        kind: marks::kind_of(mark.kind),
        used_bytes: bytes,
    });
    Ok(Points {
        kept: kept.collect(),
        spans: spans.collect(),
        group: report.name.clone(),
        window,
        reigns,
        marks: marks.collect(),
        periodic_marks: marks::periodic(group, all_marks),
        branches: branches::list(group)?,
    })
}
