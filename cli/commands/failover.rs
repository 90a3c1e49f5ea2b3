//! `landfall failover`: says what it will do and what it costs, asks, does it.
//!
//! What was shown is what is done: the request carries the plan's LSN and epoch, so a "latest" that moved or an
//! operator who was quicker is noticed by the daemon and refused.

use crate::args::{self, Global};
use crate::commands::mount::uri;
use crate::commands::reprotect;
use crate::commands::status::{ago, stretch};
use crate::commands::taken;
use crate::control::api::{Failover, Plan, Promotion, Role, Stretch};
use crate::exit::Failure;
use crate::human::{self, Form, Table, clean};
use crate::point::Point;
use crate::time;
use crate::units::{Bytes, duration_ms};
use engine::types::Timestamp;
use std::fmt::Write as _;

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Failover) -> Result<(), Failure> {
    match (&arguments.step, &arguments.begin) {
        (Some(args::FailoverStep::Commit(commit)), _) => reprotect::commit(global, commit),
        (None, Some(begin)) => match &begin.to {
            Some(to) => fail_over(global, begin, to.clone()),
            None => hand_over(global, begin),
        },
        (None, None) => Err(Failure::usage("a group is needed: `landfall failover GROUP --to latest`")),
    }
}

/// A planned failover.
fn hand_over(global: &Global, arguments: &args::FailoverBegin) -> Result<(), Failure> {
    let group = &arguments.group;
    let mut client = global.connect()?;
    human::say(format!(
        "Planned failover of group {0} to this node: the primary lets writes wait until this node has everything, stops \
         serving, and becomes its replica. Nothing is lost.",
        clean(group)
    ));
    if !arguments.yes {
        human::confirm(&format!("Make this node the primary of {group}?"))?;
    }
    let promotion = client.handover(group)?;
    human::answer(global.form(), &promotion, promotion_text)?;
    if global.form() == Form::Text {
        human::say(format!(
            "Point the clients here. The same command on the old primary goes back: `landfall failover {} --planned`.",
            clean(group)
        ));
    }
    Ok(())
}

fn fail_over(global: &Global, arguments: &args::FailoverBegin, to: Point) -> Result<(), Failure> {
    let mut client = global.connect()?;
    let plan = client.plan_failover(&arguments.group, to)?;
    let shown = plan_text(&plan, time::now());
    if arguments.plan {
        return human::answer(global.form(), &plan, |_| shown);
    }
    human::say(shown.trim_end());
    if !arguments.yes {
        human::confirm(&format!("Make this node the primary of {}?", plan.group))?;
    }
    let request =
        Failover { group: plan.group.clone(), to: plan.to.lsn, branch: plan.branch, epoch: plan.epoch };
    let promotion = client.failover(request)?;
    human::answer(global.form(), &promotion, promotion_text)?;
    if global.form() == Form::Text {
        human::say(
            "The old primary refuses writes once it learns of the new epoch; keep its clients away until then.",
        );
        human::say(format!(
            "When this is right: `landfall failover commit {0}`, then `landfall reprotect {0}` has the old primary \
             follow.",
            clean(&plan.group)
        ));
    }
    Ok(())
}

fn plan_text(plan: &Plan, now: Timestamp) -> String {
    let mut out = format!(
        "Failover of group {} to {}.\n",
        clean(&plan.group),
        taken::text(&plan.to, plan.branch, plan.mark.as_ref(), now)
    );
    let _ = match (plan.role, plan.from) {
        (Role::Replica, _) => writeln!(out, "  This node becomes its primary, under epoch {}.", plan.epoch),
        (Role::Primary, None) => {
            writeln!(out, "  This node is its primary already; it begins epoch {}.", plan.epoch)
        }
        (Role::Primary, Some(from)) => writeln!(
            out,
            "  This node is its primary already, promoted at LSN {}, which is not committed. It begins epoch {}, and \
             its volumes are what they were at LSN {} from then on.",
            from.lsn, plan.epoch, plan.to.lsn
        ),
    };
    let none = Stretch::default();
    if plan.set_aside != none {
        let _ = writeln!(
            out,
            "  Set aside as a branch, up to LSN {}: {}.",
            plan.latest.lsn,
            stretch(plan.set_aside)
        );
    }
    let _ = match (plan.not_received == none, plan.last_contact) {
        _ if plan.role == Role::Primary => Ok(()),
        (true, Some(contact)) => writeln!(
            out,
            "  Lost: nothing that the primary told of; it was last heard {} ago, and may have written since.",
            ago(contact, now)
        ),
        (true, None) => writeln!(out, "  Lost: unknown, since no primary was heard since this node started."),
        (false, contact) => writeln!(
            out,
            "  Lost: at least {}; the primary was last heard {} ago.",
            stretch(plan.not_received),
            contact.map_or_else(|| "an unknown time".to_owned(), |contact| ago(contact, now))
        ),
    };
    for warning in &plan.warnings {
        let _ = writeln!(out, "  ! {}", clean(warning));
    }
    out
}

fn promotion_text(promotion: &Promotion) -> String {
    let how = if promotion.already {
        "had been promoted before".to_owned()
    } else {
        format!("promoted in {}", duration_ms(promotion.took_ms))
    };
    let mut out = format!(
        "group {}: {how}, at LSN {}, epoch {}\n",
        clean(&promotion.group),
        promotion.to.lsn,
        promotion.epoch
    );
    let mut table = Table::new(&["VOLUME", "SIZE", "NBD URI"]).right(&[1]).indent(2);
    for volume in &promotion.volumes {
        for endpoint in &promotion.nbd {
            let uri = volume.export.as_ref().map_or_else(|| "-".to_owned(), |export| uri(endpoint, export));
            table.row(&[&volume.name, &Bytes(volume.size_bytes).to_string(), &uri]);
        }
    }
    out.push_str(&table.render());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::sample;
    use crate::control::api::{At, Moment};
    use engine::types::{Epoch, Lsn};

    const NOW: Timestamp = Timestamp(1_751_373_296_789_000_000);

    fn before(seconds: u64) -> Moment {
        Moment(Timestamp(NOW.0 - seconds * 1_000_000_000))
    }

    fn plan() -> Plan {
        Plan {
            group: "db".to_owned(),
            role: Role::Replica,
            to: At { lsn: Lsn(80), time: before(2) },
            branch: None,
            mark: None,
            from: None,
            latest: At { lsn: Lsn(90), time: before(1) },
            epoch: Epoch(4),
            set_aside: Stretch { writes: 10, bytes: 40_960, ms: 1_000 },
            not_received: Stretch { writes: 1, bytes: 4_096, ms: 20 },
            last_contact: Some(before(1)),
            warnings: vec!["the primary east is still connected".to_owned()],
        }
    }

    #[test]
    fn a_plan_states_its_cost() {
        assert_eq!(
            plan_text(&plan(), NOW),
            "Failover of group db to LSN 80 (2025-07-01T12:34:54.789Z): crash-consistent, 2s old.\n  \
             This node becomes its primary, under epoch 4.\n  \
             Set aside as a branch, up to LSN 90: 10 writes, 40 KiB, 1s.\n  \
             Lost: at least 1 write, 4 KiB, 20ms; the primary was last heard 1s ago.\n  \
             ! the primary east is still connected\n"
        );
        let clean = Plan {
            set_aside: Stretch::default(),
            not_received: Stretch::default(),
            warnings: Vec::new(),
            ..plan()
        };
        assert!(plan_text(&clean, NOW).contains("Lost: nothing that the primary told of"));
        let unheard = Plan { last_contact: None, ..clean };
        assert!(plan_text(&unheard, NOW).contains("Lost: unknown"));
    }

    #[test]
    fn a_promotion_says_where_the_disks_are() {
        let status = sample();
        let promotion = Promotion {
            group: "db".to_owned(),
            epoch: Epoch(4),
            to: plan().to,
            already: false,
            took_ms: 42,
            nbd: status.node.nbd,
            volumes: status.groups[0].volumes.clone(),
        };
        assert_eq!(
            promotion_text(&promotion),
            "group db: promoted in 42ms, at LSN 80, epoch 4\n  VOLUME    SIZE  NBD URI\n  data    10 GiB  \
             nbd+unix:///db/data?socket=/run/nbd.sock\n"
        );
        let again = Promotion { already: true, ..promotion };
        assert!(promotion_text(&again).starts_with("group db: had been promoted before, at LSN 80"));
    }
}
