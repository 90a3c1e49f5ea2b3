//! Mistakes of people: orders that cannot be carried out, strangers that call, configurations that do not fit, a second
//! start of a program that runs. Each is refused, and changes nothing.

use super::{DIR, Result, World};
use crate::disk::Dice;
use engine::catalog::MarkKind;
use engine::guest::{Op, Request};
use engine::node::branches::DropError;
use engine::node::config::{Begins, Config, NewVolume, Start};
use engine::node::mark::MarkError;
use engine::node::open::{self, examine};
use engine::node::primary::Submitted;
use engine::node::promote::{CommitError, PromoteError};
use engine::node::reconsider::Target;
use engine::node::{Node, points};
use engine::peer::{Hello, Rebuff, TakesBack, Welcome};
use engine::state::{Branch, Role};
use engine::types::{Epoch, Extent, GroupId, Lsn, NodeId, Now, Timestamp, VolumeId};
use std::fmt::Debug;
use std::sync::Arc;

/// Nobody's name.
const NOBODY: &str = "nobody";
/// Nobody's number.
const STRANGER: NodeId = NodeId([0xAA; 16]);

/// What has come of mistakes.
#[derive(Default)]
struct Outcomes {
    refused: u64,
    /// Those that were not refused as they had to be.
    wrong: Vec<String>,
}

impl Outcomes {
    fn expect<T: Debug, E: Debug>(
        &mut self,
        what: &str,
        result: std::result::Result<T, E>,
        is_right: impl Fn(&E) -> bool,
    ) {
        match result {
            Err(error) if is_right(&error) => self.refused += 1,
            other => self.wrong.push(format!("{what}: {other:?}")),
        }
    }
}

impl World {
    /// Whoever can err does, at a running node; the next start of its program begins with mistakes, too.
    pub(super) fn err(&mut self, machine: usize) -> Result {
        let now = self.machines[machine].clock.now(self.now());
        let m = &mut self.machines[machine];
        m.errs_at_start = true;
        let Some(live) = &mut m.live else { return Ok(()) };
        if live.node.failed().is_some() || !live.node.is_born() || live.promote.is_some() {
            return Ok(());
        }
        let observing = m.disk.observe();
        let before = live.node.state().clone();
        let mut outcomes = Outcomes::default();
        order(&mut live.node, now, &mut outcomes);
        call(&mut live.node, now, &mut outcomes);
        look(&mut live.node, now, &mut outcomes);
        let second = m.disk.start();
        let opened = Node::open(now, Arc::new(second.clone()), live.node.config().clone());
        outcomes
            .expect("a second start", opened.map(drop), |error| matches!(error, open::Error::Locked { .. }));
        let examined = examine(Arc::new(second.clone()), DIR).map(drop);
        outcomes
            .expect("a look at a log in use", examined, |error| matches!(error, open::Error::Locked { .. }));
        drop(observing);
        let changed = *live.node.state() != before;
        let mut fate = m.rng.clone();
        m.disk.kill(second.id(), &mut Dice::new(&mut fate));
        if self.check_power(machine)? {
            return Ok(());
        }
        self.weigh(machine, &outcomes)?;
        if changed && !self.machines[machine].is_excused() {
            let detail = "an order that was refused has changed the state on record".to_owned();
            return Err(self.broken("invariant_mistakes_are_refused", machine, detail));
        }
        self.pump(machine)
    }

    fn weigh(&mut self, machine: usize, outcomes: &Outcomes) -> Result {
        self.count("mistakes refused", outcomes.refused);
        match outcomes.wrong.first() {
            Some(wrong) if !self.machines[machine].is_excused() => {
                Err(self.broken("invariant_mistakes_are_refused", machine, wrong.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The program is started with configurations that do not fit, one after the other; its log is read by hand.
    pub(super) fn err_at_start(&mut self, machine: usize, config: &Config) -> Result {
        if !std::mem::take(&mut self.machines[machine].errs_at_start) {
            return Ok(());
        }
        let now = self.machines[machine].clock.now(self.now());
        let excused = self.machines[machine].is_excused();
        let m = &mut self.machines[machine];
        let process = m.disk.start();
        let examined = examine(Arc::new(process.clone()), DIR);
        let _ = m.disk.take_latency();
        m.disk.kill(process.id(), &mut Dice::new(&mut m.rng.clone()));
        if self.check_power(machine)? {
            return Ok(());
        }
        // Before all of the group is on record a start makes what is missing.
        let volumes = self.options.workload.volumes.len();
        let is_made = examined.as_ref().is_ok_and(|examined| examined.state.volumes.len() == volumes);
        let mut outcomes = Outcomes::default();
        let mut tries: Vec<(&str, Config)> = Vec::new();
        let mut limits = config.clone();
        limits.limits.log.segment_bytes = 1;
        tries.push(("limits that cannot be", limits));
        if let Start::Primary { group, volumes } = &config.start
            && is_made
        {
            for (what, name, size) in [
                ("a volume of an odd size", "odd".to_owned(), 1000),
                ("a volume with a name that leads elsewhere", "../up".to_owned(), 4096),
            ] {
                let mut volumes = volumes.clone();
                volumes.retain(|volume: &NewVolume| volume.name != name);
                volumes.insert(0, NewVolume { name, size, begins: Begins::Empty });
                let start = Start::Primary { group: *group, volumes };
                tries.push((what, Config { start, ..config.clone() }));
            }
            // Disks that are not what they should be, of a new volume and of the first one.
            let disk = &self.machines[machine].disk;
            let (full, short, none) = ("mistakes/full.img", "mistakes/short.img", "mistakes/none.img");
            disk.plant_file(full, &[7; 8192]);
            disk.plant_file(short, &[0; 512]);
            for (what, path, begins) in [
                ("a new volume on a disk that holds data", full, Begins::Empty),
                ("a new volume on a disk that is too small", short, Begins::Empty),
                ("a disk that is not there, to be protected in place", none, Begins::InPlace),
                ("a disk that is too small, to be protected in place", short, Begins::InPlace),
            ] {
                let mut volumes = volumes.clone();
                volumes.push(NewVolume { name: "new".to_owned(), size: 4096, begins });
                let start = Start::Primary { group: *group, volumes };
                let backings = [("new".to_owned(), path.to_owned())].into();
                tries.push((what, Config { start, backings, ..config.clone() }));
            }
            for (what, path) in
                [("a volume whose disk is gone", none), ("a volume whose disk has shrunk", short)]
            {
                let backings = [(volumes[0].name.clone(), path.to_owned())].into();
                tries.push((what, Config { backings, ..config.clone() }));
            }
        }
        for (what, config) in tries {
            let m = &mut self.machines[machine];
            let process = m.disk.start();
            m.life += 1;
            let opened = Node::open(now, Arc::new(process.clone()), config).map(|(node, _)| node.role());
            let _ = m.disk.take_latency();
            let mut fate = m.rng.clone();
            let _ = m.rng.next_u64();
            m.disk.kill(process.id(), &mut Dice::new(&mut fate));
            m.life += 1;
            if self.check_power(machine)? {
                return Ok(());
            }
            match opened {
                // Whoever is not the primary takes the volumes as they come.
                Ok(Role::Replica | Role::Fenced) => {}
                Err(
                    open::Error::BadLimits { .. }
                    | open::Error::BadVolume { .. }
                    | open::Error::BackingNotEmpty { .. }
                    | open::Error::BackingTooSmall { .. }
                    | open::Error::BackingMissing { .. }
                    | open::Error::NothingThere { .. },
                ) => outcomes.refused += 1,
                _ if excused => {}
                other => outcomes.wrong.push(format!("{what}: {other:?}")),
            }
        }
        match examined {
            Ok(examined) if examined.log.is_ok() => self.count("logs read by hand", 1),
            Err(open::Error::StateMissing { .. }) => {}
            _ if excused => {}
            Ok(examined) => {
                let error = examined.log.err().map(|error| error.to_string());
                outcomes.wrong.push(format!("a log that is read by hand: {error:?}"));
            }
            Err(error) => outcomes.wrong.push(format!("a log that is read by hand: {error}")),
        }
        self.weigh(machine, &outcomes)
    }
}

/// Orders that cannot be carried out.
fn order(node: &mut Node, now: Now, outcomes: &mut Outcomes) {
    let (role, epoch) = (node.role(), node.next_epoch());
    let beyond = Lsn(u64::MAX - 1);
    let early = Epoch(epoch.0 + 7);
    // An old primary that gave its group away may go on.
    if node.state().handed_over.is_none() {
        let promoted = node.promote(now, beyond, epoch);
        outcomes.expect("promoting at a point that is none", promoted, |error| match role {
            Role::Primary => matches!(error, PromoteError::AlreadyPrimary { .. }),
            Role::Fenced => matches!(error, PromoteError::Fenced { .. }),
            Role::Replica => !matches!(error, PromoteError::Failed(_)),
        });
        let promoted = node.promote(now, node.durable().lsn, early);
        outcomes.expect("promoting to an epoch that nobody decided on", promoted, |error| match role {
            Role::Replica => matches!(error, PromoteError::Conflict { .. } | PromoteError::Empty),
            _ => !matches!(error, PromoteError::Failed(_)),
        });
        let within = node.coarse().last().map(|stretch| stretch.begun);
        if let Some(within) = within.filter(|&within| node.check_point(within).is_err()) {
            let promoted = node.promote(now, within, epoch);
            outcomes
                .expect("promoting in a span", promoted, |error| !matches!(error, PromoteError::Failed(_)));
        }
    }
    if let (Role::Primary, Some(&reign)) = (role, node.history().last())
        && reign.epoch > Epoch(1)
    {
        match node.promote(now, reign.branch.lsn, reign.epoch) {
            Ok(promotion) if promotion.repeated => outcomes.refused += 1,
            other => outcomes.wrong.push(format!("asking for a promotion again: {other:?}")),
        }
    }
    if role != Role::Primary {
        let not_primary = |error: &CommitError| matches!(error, CommitError::NotPrimary(_));
        outcomes.expect("a commit", node.commit(now), not_primary);
        outcomes.expect("taking back", node.take_back(now), not_primary);
    } else if node.state().uncommitted.is_some() {
        outcomes
            .expect("taking back", node.take_back(now), |error| matches!(error, CommitError::Uncommitted));
    }
    if role != Role::Replica {
        outcomes.expect("asking oneself for the group", node.ask_for_group(now), |_| true);
    }
    outcomes.expect("a copy for nobody", node.allow_full_copy(NOBODY), |_| true);
    let moved = node.reconsider(now, Target::Line(beyond), early);
    outcomes.expect("moving a promotion in an epoch that nobody decided on", moved, |error| match role {
        Role::Primary => matches!(error, PromoteError::Committed { .. } | PromoteError::Conflict { .. }),
        Role::Fenced => matches!(error, PromoteError::Fenced { .. }),
        Role::Replica => *error == PromoteError::NotPromoted,
    });
    let marked = node.mark(now, "two words", MarkKind::Bookmark);
    outcomes.expect("a mark that nobody could write", marked, |error| match role {
        Role::Primary => matches!(error, MarkError::BadName),
        _ => matches!(error, MarkError::NotPrimary(_)),
    });
    let is_refused = |error: &open::Error| {
        matches!(error, open::Error::BadVolume { .. } | open::Error::NotNow { .. } | open::Error::Busy)
    };
    outcomes.expect("another size of a volume that is none", node.resize(now, NOBODY, 4096), is_refused);
    let volume = NewVolume { name: "../up".to_owned(), size: 4096, begins: Begins::Empty };
    outcomes.expect("a name that leads elsewhere", node.add_volume(now, &volume, None), is_refused);
    let branch = Branch { epoch: early, after: node.durable(), last: beyond };
    outcomes.expect("dropping a branch that is none", node.drop_branch(now, &branch), |error| {
        *error == DropError::NotFound
    });
}

/// Calls of strangers, and of nodes that have seen less.
fn call(node: &mut Node, now: Now, outcomes: &mut Outcomes) {
    let history = node.history().to_vec();
    let Some(&reign) = history.last() else { return };
    let group = node.state().group;
    let name = node.config().name.clone();
    let durable = node.durable();
    let hello = |name: &str, group, history: &[_]| Hello {
        group,
        name: name.to_owned(),
        node: STRANGER,
        history: history.to_vec(),
        durable,
        first: Lsn(1),
    };
    let mut try_hello = |what: &str, hello: &Hello, is_right: fn(&Rebuff) -> bool| {
        outcomes.expect(what, node.accept(now, hello, TakesBack::No), is_right);
    };
    let is_refused = |rebuff: &Rebuff| matches!(rebuff, Rebuff::NotAllowed);
    try_hello("a call for another group", &hello(NOBODY, group, &history), is_refused);
    try_hello("a call without a history", &hello(&name, group, &[]), is_refused);
    let other = GroupId([0xAA; 16]);
    try_hello("a call of a namesake", &hello(&name, other, &history), |rebuff| *rebuff == Rebuff::WrongGroup);
    if let [older @ .., _] = &history[..]
        && !older.is_empty()
    {
        try_hello("a call of an older primary", &hello(&name, group, older), |rebuff| {
            matches!(rebuff, Rebuff::Superseded { .. })
        });
    }
    let mut rival = history.clone();
    if let Some(last) = rival.last_mut() {
        last.node = STRANGER;
    }
    try_hello("a call of a rival", &hello(&name, group, &rival), |rebuff| {
        matches!(rebuff, Rebuff::Rival { .. } | Rebuff::Superseded { .. })
    });
    let welcome = Welcome { node: STRANGER, durable: reign.branch, horizon: Lsn(0) };
    outcomes.expect("a replica that nobody knows", node.attach(now, NOBODY, &welcome, None), |_| true);
}

/// Questions with no answer, or an odd one.
fn look(node: &mut Node, now: Now, outcomes: &mut Outcomes) {
    let beyond = Lsn(u64::MAX - 1);
    outcomes.expect("a point beyond the newest", node.pin(beyond), |error| {
        matches!(error, points::Error::Outside { .. } | points::Error::NotKept | points::Error::NoneYet)
    });
    outcomes.expect("a point before the first", node.point_at(Timestamp(1)), |_| true);
    if node.asks_for_group() && node.role() != Role::Replica {
        outcomes.wrong.push("who is no replica asks for the group".to_owned());
    }
    for branch in node.branches() {
        if node.state().uncommitted == Some(branch.after.lsn) && node.state().branches.contains(&branch) {
            outcomes.expect("dropping what may be moved to", node.drop_branch(now, &branch), |error| {
                *error == DropError::Uncommitted
            });
        }
        let mut records = 0_u64;
        // What a disk has lost of it is not there; the rest is looked at by the checks.
        let read = node.read_branch(&branch).run(|_| records += 1);
        if read.is_ok_and(|last| last > branch.last) {
            outcomes.wrong.push(format!("a branch goes on behind its end: {branch:?}"));
        }
    }
    if node.role() != Role::Primary || node.volume_specs().all(|spec| spec.id != VolumeId(1)) {
        return;
    }
    let nothing = Extent::new(0, 0);
    let ops = [Op::Read(nothing), Op::Status(nothing), Op::Cache(nothing), Op::Cache(Extent::new(0, 512))];
    let mut batch: Vec<Request> =
        (1..).zip(ops).map(|(cookie, op)| Request { cookie, op, fua: false }).collect();
    let mut out = Submitted::default();
    node.submit(now, VolumeId(1), &mut batch, &mut out);
    let answered = out.ready.len() + out.reads.len();
    if answered + batch.len() != 4 || out.ready.iter().any(|done| done.result.is_err()) && !node.is_draining()
    {
        outcomes.wrong.push(format!("questions about nothing: {answered} answers, {:?}", out.ready));
    }
}
