//! Failover of a group to this node: what it would do and cost, and the doing. Also the moving of one that is not
//! committed to another point.

use super::groups::Group;
use super::show;
use crate::control::api::{
    Endpoint, Failover, Fault, FaultCode, LinkState, Moment, Plan, Promotion, Role, Stretch,
};
use crate::point::{Point, Which};
use crate::time;
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::node::report::Report;
use engine::state;
use engine::types::Timestamp;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What a failover to a point would do and cost.
pub(super) fn plan(group: &Arc<Group>, to: Point) -> Result<Plan, Fault> {
    let report = group.report();
    let refused = |message: &str| {
        Fault::new(FaultCode::Refused, format_args!("group {}: {message}", group.config.name))
    };
    match report.role {
        state::Role::Fenced if report.handed_over.is_some() => {
            let at = group.at(report.durable);
            return Ok(Plan {
                group: report.name.clone(),
                role: Role::Replica,
                to: at,
                branch: None,
            mark: None,
                from: None,
                latest: at,
                epoch: group.engine.peek(engine::node::Node::next_epoch),
                set_aside: Stretch::default(),
                not_received: Stretch::default(),
                last_contact: Some(Moment(time::now())),
                warnings: vec![
                    "this node handed the group over to a replica that has not answered as the primary; if it takes \
                     the group after all, it is fenced and what was written there is a branch"
                        .to_owned(),
                ],
            });
        }
        state::Role::Fenced => {
            return Err(refused(
                "this node is an old primary, fenced by a newer one; fail over to a replica",
            ));
        }
        state::Role::Primary if report.history.len() == 1 => {
            return Err(refused("this node is its primary already, and was from the beginning"));
        }
        state::Role::Primary => return plan_move(group, &report, to),
        state::Role::Replica => {}
    }
    let found = show::resolve_in_window(group, &to)?;
    if let Some(id) = found.branch_id() {
        return Err(refused(&format!(
            "a replica is promoted to a point of the line; those of branch {id} can be mounted and restored"
        )));
    }
    let lsn = found.at;
    // Within a sync span the newest point lies before the newest record, and what came since is of no use by itself.
    let newest = report.points.map_or(report.durable, |points| points.latest);
    let (at, latest) = (group.at(lsn), group.at(newest));
    let after = |lsn| group.engine.peek(|node| node.log().bytes_after(lsn)).unwrap_or(0);
    let bytes = after(lsn).saturating_sub(after(newest));
    let left_out: u64 = group.engine.peek(|node| {
        let between = |gap: &&state::Gap| gap.after.lsn >= lsn && gap.to.lsn <= newest;
        node.state().gaps.iter().filter(between).map(|gap| gap.to.lsn.0 - gap.after.lsn.0).sum()
    });
    let now = time::now();
    let mut warnings = Vec::new();
    if let Some((peer, link)) = group.upstream.newest().filter(|(_, link)| link.state == LinkState::Connected)
    {
        let since = time::format(link.since);
        warnings.push(format!("the primary {peer} is connected, since {since}; it will be fenced"));
    }
    if newest < report.durable {
        warnings.push(format!(
            "a sync span is under way: what the primary wrote behind LSN {newest} is no point here before it ends"
        ));
    }
    let told = report.primary.map_or(report.durable, |(durable, _)| durable.max(report.durable));
    let not_received = told.0.saturating_sub(newest.0);
    let heard = report.primary.map(|(_, ms)| Moment(Timestamp(now.0.saturating_sub(ms * 1_000_000))));
    Ok(Plan {
        group: report.name.clone(),
        role: Role::Replica,
        to: at,
        branch: None,
        mark: None,
        from: None,
        latest,
        epoch: group.engine.peek(engine::node::Node::next_epoch),
        set_aside: Stretch {
            writes: newest.0.saturating_sub(lsn.0).saturating_sub(left_out),
            bytes,
            ms: show::ms_between(at.time.0, latest.time.0),
        },
        not_received: Stretch { writes: not_received, bytes: 0, ms: 0 },
        last_contact: heard,
        warnings,
    })
}

/// What moving a failover that is not committed would do. To name its own point, or the newest, is to ask for what was
/// done.
fn plan_move(group: &Arc<Group>, report: &Report, to: Point) -> Result<Plan, Fault> {
    let reign = report.history.last().expect("a primary has a reign");
    let point = group.at(reign.branch.lsn);
    let none = Stretch::default();
    let done = Plan {
        group: report.name.clone(),
        role: Role::Primary,
        to: point,
        branch: None,
        mark: None,
        from: None,
        latest: point,
        epoch: report.epoch,
        set_aside: none,
        not_received: none,
        last_contact: None,
        warnings: vec!["this was done before; nothing will be changed".to_owned()],
    };
    let names_it = to.branch.is_none() && matches!(to.which, Which::Lsn(lsn) if lsn == point.lsn);
    if names_it || to == Point::LATEST {
        return Ok(done);
    }
    if report.uncommitted.is_none() {
        let mut fault = Fault::new(
            FaultCode::Conflict,
            format_args!(
                "group {}: this node is primary already, promoted at LSN {}, and that is committed",
                report.name, point.lsn
            ),
        );
        fault.next = Some(format!("`landfall mount-point {} --at {to}` opens another point", report.name));
        return Err(fault);
    }
    let found = show::resolve_in_window(group, &to)?;
    let branch = found.branch_id();
    if branch.is_none() && found.at == point.lsn {
        return Ok(done);
    }
    let cut = branch.map_or(found.at, |id| id.after);
    let after = |lsn| group.engine.peek(|node| node.log().bytes_after(lsn)).unwrap_or(0);
    let newest = report.durable;
    let mut warnings = Vec::new();
    let clients = clients(group);
    if clients > 0 {
        warnings.push(format!("{clients} NBD connections are open: they have to be closed first"));
    }
    Ok(Plan {
        to: found.with_time(group),
        branch,
        from: Some(point),
        latest: group.at(newest),
        epoch: group.engine.peek(engine::node::Node::next_epoch),
        set_aside: Stretch {
            writes: newest.0.saturating_sub(cut.0),
            bytes: after(cut),
            ms: show::ms_between(group.at(cut).time.0, group.at(newest).time.0),
        },
        warnings,
        ..done
    })
}

/// NBD connections to the group's volumes.
fn clients(group: &Group) -> u32 {
    let connections = group.connections.lock().expect("no holder of the lock panics");
    connections.values().map(|count| count.load(Ordering::Relaxed)).sum()
}

fn too_many(group: &Group, clients: u32) -> Fault {
    let name = &group.config.name;
    let mut fault = Fault::new(
        FaultCode::Refused,
        format_args!(
            "group {name}: {clients} NBD connections to its volumes are open, and would find other data"
        ),
    );
    fault.next = Some("stop the applications, close the connections, and ask again".to_owned());
    fault
}

/// Promotes this node, or moves its promotion.
pub(super) fn carry_out(
    group: &Arc<Group>,
    request: &Failover,
    nbd: &[Endpoint],
) -> Result<Promotion, Fault> {
    let begun = Instant::now();
    let which = Point::lsn(request.to, request.branch);
    // The request of one that was moved already names the epoch that it began.
    let moves =
        group.engine.peek(|node| node.role() == state::Role::Primary && node.next_epoch() == request.epoch);
    let found = moves.then(|| show::resolve_in_window(group, &which)).transpose()?;
    let refused = |error: &PromoteError| {
        let code = match error {
            PromoteError::Conflict { .. }
            | PromoteError::AlreadyPrimary { .. }
            | PromoteError::Committed { .. } => FaultCode::Conflict,
            PromoteError::Failed(_) | PromoteError::Busy => FaultCode::Failed,
            PromoteError::Fenced { .. }
            | PromoteError::Empty
            | PromoteError::NotPromoted
            | PromoteError::Branch(_)
            | PromoteError::Coarse(_)
            | PromoteError::NotSelectable { .. } => FaultCode::Refused,
        };
        Fault::new(code, format_args!("group {}: {error}", request.group))
    };
    let promotion = group.engine.at_rest(|node, now| {
        let promoted = match &found {
            None => node.promote(now, request.to, request.epoch),
            Some(found) => {
                // A client that connects from here on has read nothing yet.
                let clients = clients(group);
                if clients > 0 {
                    return Some(Err(too_many(group, clients)));
                }
                let target = match &found.branch {
                    Some(states) => Target::Branch(states, found.at),
                    None => Target::Line(found.at),
                };
                node.reconsider(now, target, request.epoch)
            }
        };
        match promoted {
            Err(PromoteError::Busy) => None,
            other => Some(other.map_err(|error| refused(&error))),
        }
    })?;
    Ok(Promotion {
        group: request.group.clone(),
        epoch: promotion.reign.epoch,
        to: group.at(promotion.reign.branch.lsn),
        already: promotion.repeated,
        took_ms: begun.elapsed().as_millis() as u64,
        nbd: nbd.to_vec(),
        volumes: show::volumes(group, &group.report()),
    })
}
