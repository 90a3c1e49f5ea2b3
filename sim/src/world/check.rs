//! What should be true, checked against timelines that share no code with the engine.
//!
//! Each guarantee has functions called `invariant_…`; README and DESIGN carry the same numbers.

use super::guest::flatten;
use super::machine::Machine;
use super::{DIR, Result, World};
use crate::autopsy;
use crate::clock::Span;
use crate::ledger::{Key, Timeline, key};
use crate::reference::{Effect, Image, Operation, Prefix};
use crate::rng::PPM;
use crate::run::{NodeSample, Sample, Violation};
use crate::workload::Alignment;
use engine::event::Kind;
use engine::guest::{Op, Request};
use engine::node::config::AckPolicy;
use engine::node::primary::Submitted;
use engine::peer::Hello;
use engine::read::Wait;
use engine::state::Role;
use engine::types::{Extent, Lsn, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a sector.
const SECTOR: usize = 512;
/// An empty one.
const ZEROS: [u8; SECTOR] = [0; SECTOR];

impl World {
    /// A program has just opened its node.
    pub(super) fn check_opened(&mut self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let node = &live.node;
        let (role, death) = (node.role(), m.death);
        let seen = node.state().epoch_seen();
        if seen < m.seen_epoch {
            let detail = format!("epoch {} had been seen, after the restart it knows {seen}", m.seen_epoch);
            return Err(self.broken("invariant_one_writer", machine, detail));
        }
        if !node.is_born() {
            if m.promised.lsn > Lsn::ZERO || m.reign.is_some() {
                let detail = format!("it had acknowledged LSN {}, and is empty", m.promised.lsn);
                return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
            }
            return Ok(());
        }
        match role {
            Role::Primary => {
                let own = key(node.history().last().expect("a primary has a reign"));
                if self.timelines.contains_key(&own) {
                    self.check_writer(machine, own, death)?;
                } else {
                    self.take_reign(machine)?;
                    self.count("reign found at a start", u64::from(own.0.0 > 1));
                }
                self.machines[machine].reign = Some(own);
                self.check_log(machine, own)?;
                let tip = self.machines[machine].live.as_ref().map(|live| live.node.log().tip());
                let tip = tip.expect("it has just been opened");
                self.note_position(machine, own, tip.position())?;
                self.check_image(machine, tip.lsn, "invariant_honest_acknowledgement")?;
                self.invariant_branches_kept(machine)
            }
            Role::Replica => {
                let tip = node.log().tip().position();
                if tip.lsn < m.promised.lsn && !m.is_excused() {
                    let detail = format!(
                        "LSN {} had been acknowledged, after the restart the log ends at {}",
                        m.promised.lsn, tip.lsn
                    );
                    return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
                }
                let reign = node.history().last().map(key);
                if let Some(reign) = reign {
                    self.note_position(machine, reign, tip)?;
                    self.check_log(machine, reign)?;
                }
                self.invariant_retired_before_folded(machine)?;
                self.check_points(machine, 1)
            }
            Role::Fenced => {
                self.count("opened fenced", 1);
                Ok(())
            }
        }
    }

    /// A primary is back after a death: what is left is what has to be (guarantees 1, 2 and 3).
    fn check_writer(&mut self, machine: usize, own: Key, death: crate::reference::Death) -> Result {
        let m = &self.machines[machine];
        let node = &m.live.as_ref().expect("it has just been opened").node;
        let records = autopsy::records(node, &m.disk);
        let records = match records {
            Ok(records) => records,
            Err(_) if m.is_excused() => return Ok(()),
            Err(detail) => return Err(self.broken("invariant_log_is_whole", machine, detail)),
        };
        let end = autopsy::end_before_opening(node, &records);
        let timeline = &self.timelines[&own];
        let must = timeline.reference.must_survive(death);
        let left = timeline.prefix_at(end);
        if left < must && !m.damaged {
            let (lost, need) = (end, timeline.lsn_of(must));
            let detail = format!("after a {death:?} death the log ends at LSN {lost}, {need} was promised");
            return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
        }
        for other in self.machines.iter().filter(|other| other.id != m.id) {
            let follows =
                other.live.as_ref().is_some_and(|live| live.node.history().last().map(key) == Some(own));
            if follows && other.promised.lsn > end && !m.damaged && !other.wiped {
                let detail = format!(
                    "{} holds LSN {}, this primary's log ends at {end}",
                    other.name, other.promised.lsn
                );
                return Err(self.broken("invariant_prefix", machine, detail));
            }
        }
        self.invariant_write_ahead(machine, own, end)?;
        let lost = timeline.reference.end().0 - left.0;
        self.count("unanswered operations lost", lost);
        let timeline = self.timelines.get_mut(&own).expect("it was just there");
        timeline.rewind(end);
        Ok(())
    }

    /// Guarantee 1: each sector of a backing device holds a state of the durable log.
    pub(super) fn invariant_write_ahead(&self, machine: usize, own: Key, upto: Lsn) -> Result {
        let m = &self.machines[machine];
        if m.is_excused() {
            return Ok(());
        }
        let backings = self.images(machine, "volumes");
        match self.stray_sectors(&self.timelines[&own], upto, &backings).first() {
            None => Ok(()),
            Some((volume, sector)) => {
                let detail = format!(
                    "volume {volume}, sector {sector}: the backing holds what is in no state up to LSN {upto}"
                );
                Err(self.broken("invariant_write_ahead", machine, detail))
            }
        }
    }

    /// Guarantee 5: a base image holds nothing above the horizon that is durably on record.
    pub(super) fn invariant_retired_before_folded(&self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let node = &live.node;
        let Some(timeline) = node.history().last().and_then(|reign| self.timelines.get(&key(reign))) else {
            return Ok(());
        };
        if m.is_excused() || !live.bulk.is_idle() {
            return Ok(());
        }
        let horizon = node.state().horizon;
        let bases = self.images(machine, "base");
        match self.stray_sectors(timeline, horizon, &bases).first() {
            None => Ok(()),
            Some((volume, sector)) => {
                let detail = format!(
                    "volume {volume}, sector {sector}: the base image is beyond the horizon at LSN {horizon}"
                );
                Err(self.broken("invariant_retired_before_folded", machine, detail))
            }
        }
    }

    /// The plain files of all volumes in a folder, padded to the volumes' sizes.
    fn images(&self, machine: usize, folder: &str) -> Image {
        let sizes = &self.options.workload.volumes;
        sizes
            .iter()
            .enumerate()
            .map(|(index, size)| {
                let path = format!("{DIR}/{folder}/v{index}.img");
                let mut bytes = self.machines[machine].disk.peek(&path).unwrap_or_default();
                bytes.resize(*size as usize, 0);
                bytes
            })
            .collect()
    }

    /// Guarantee 2 and the log's own truth: the records in the files are the operations, in their order, bit for
    /// bit.
    pub(super) fn check_log(&mut self, machine: usize, own: Key) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let records = match autopsy::records(&live.node, &m.disk) {
            Ok(records) => records,
            Err(_) if m.is_excused() => return Ok(()),
            Err(detail) => return Err(self.broken("invariant_log_is_whole", machine, detail)),
        };
        let Some(timeline) = self.timelines.get(&own) else { return Ok(()) };
        if self.any_damaged() {
            return Ok(());
        }
        self.invariant_log_is_the_operations(machine, timeline, &records)
    }

    fn invariant_log_is_the_operations(
        &self,
        machine: usize,
        timeline: &Timeline,
        records: &[autopsy::Record],
    ) -> Result {
        for record in records {
            let header = &record.header;
            let known = timeline.at(header.lsn);
            let detail = match (known, header.kind) {
                (None, Kind::Write | Kind::Zero) => "a record that nobody asked for".to_owned(),
                (None, _) => continue,
                (Some(_), kind) if !kind.changes_bytes() => {
                    format!("a {} record where an operation was accepted", kind.name())
                }
                (Some(entry), kind) => {
                    let operation = &entry.operation;
                    let place = header.volume.0 as usize == operation.volume + 1
                        && header.extent == Extent::new(operation.offset, operation.len());
                    let bytes = match (&operation.effect, kind) {
                        (crate::reference::Effect::Write(bytes), Kind::Write) => {
                            record.payload() == &bytes[..]
                        }
                        (crate::reference::Effect::Write(bytes), _) => bytes.iter().all(|byte| *byte == 0),
                        (crate::reference::Effect::Zeros(_), kind) => kind == Kind::Zero,
                    };
                    if place && bytes {
                        continue;
                    }
                    "a record that is not the operation".to_owned()
                }
            };
            let detail = format!("LSN {}: {detail}", header.lsn);
            return Err(self.broken("invariant_prefix", machine, detail));
        }
        let (Some(first), Some(end)) = (records.first(), records.last()) else { return Ok(()) };
        let (first, end) = (first.header.lsn, end.header.lsn);
        match timeline
            .range(first..=end)
            .find(|(lsn, _)| records.binary_search_by_key(*lsn, |record| record.header.lsn).is_err())
        {
            None => Ok(()),
            Some((lsn, _)) => {
                Err(self.broken("invariant_prefix", machine, format!("LSN {lsn} is missing in the log")))
            }
        }
    }

    /// What a node serves, or its newest point, is the state at an LSN.
    pub(super) fn check_image(&mut self, machine: usize, at: Lsn, invariant: &'static str) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let Some(own) = live.node.history().last().map(key) else { return Ok(()) };
        let image = match live.node.role() {
            Role::Primary => self.read_head(machine)?,
            _ => self.read_point(machine, at)?,
        };
        let Some(image) = image else { return Ok(()) };
        let Some(timeline) = self.timelines.get(&own) else { return Ok(()) };
        self.compare(machine, timeline, &image, at, invariant)
    }

    fn compare(
        &self,
        machine: usize,
        timeline: &Timeline,
        image: &Image,
        at: Lsn,
        invariant: &'static str,
    ) -> Result {
        // A writer whose disk dropped what was durable has written another history over it.
        let rewritten = self.machines.iter().any(|m| m.damaged && m.reign.is_some());
        if rewritten || self.machines[machine].damaged || timeline.is_state_at(at, image) {
            return Ok(());
        }
        let why = timeline.reference.check(image, Prefix(0), timeline.reference.end());
        let why = match why {
            Ok(prefix) => format!("it is the state at LSN {}", timeline.lsn_of(prefix)),
            Err(wrong) => wrong.to_string(),
        };
        Err(self.broken(invariant, machine, format!("not the state at LSN {at}: {why}")))
    }

    /// All volumes as guests see them; nothing if the disk may refuse.
    fn read_head(&mut self, machine: usize) -> Result<Option<Image>> {
        let time = self.now();
        let now = self.machines[machine].clock.now(time);
        let mut image = Vec::new();
        for (index, size) in self.options.workload.volumes.clone().iter().enumerate() {
            let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
            if !live.node.volume_specs().any(|spec| spec.id.0 as usize == index + 1) {
                // It is defined later than the point that was promoted.
                image.push(vec![0; *size as usize]);
                continue;
            }
            let op = Op::Read(Extent::new(0, *size));
            let mut requests = vec![Request { cookie: u64::MAX, op, fua: false }];
            let mut out = Submitted::default();
            live.node.submit(now, VolumeId(index as u32 + 1), &mut requests, &mut out);
            let Some((_, _, plan)) = out.reads.pop() else {
                if self.machines[machine].is_excused() {
                    return Ok(None);
                }
                let detail = format!("volume {index} is not served: {:?}", out.ready);
                return Err(self.broken("invariant_reads_succeed", machine, detail));
            };
            match plan.read(Wait::Yes) {
                Ok(pieces) => image.push(flatten(&pieces)),
                Err(_) if self.machines[machine].is_excused() => return Ok(None),
                Err(error) => {
                    let detail = format!("volume {index} of a sound disk cannot be read: {error}");
                    return Err(self.broken("invariant_reads_succeed", machine, detail));
                }
            }
        }
        let _ = self.machines[machine].disk.take_latency();
        Ok(Some(image))
    }

    /// All volumes at a point; nothing if the disk may refuse.
    pub(super) fn read_point(&mut self, machine: usize, at: Lsn) -> Result<Option<Image>> {
        let sizes = self.options.workload.volumes.clone();
        let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
        if let Err(error) = live.node.pin(at) {
            let detail = format!("the point at LSN {at} cannot be opened: {error}");
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        let mut image = Vec::new();
        let mut failed = None;
        for (index, size) in sizes.iter().enumerate() {
            let plan = live.node.plan_point(VolumeId(index as u32 + 1), at, Extent::new(0, *size));
            match plan.map(|plan| plan.read_all()) {
                Some(Ok(bytes)) => image.push(bytes.to_vec()),
                // The volume is defined later than this point.
                None => image.push(vec![0; *size as usize]),
                Some(Err(error)) => failed = Some(error),
            }
        }
        live.node.unpin(at);
        let _ = self.machines[machine].disk.take_latency();
        match failed {
            None => Ok(Some(image)),
            Some(_) if self.machines[machine].is_excused() => Ok(None),
            Some(error) => {
                let detail = format!("the point at LSN {at} cannot be read from a sound disk: {error}");
                Err(self.broken("invariant_reads_succeed", machine, detail))
            }
        }
    }

    /// Guarantees 4 and 5: points of a node, at both ends of its window and in between, are exact.
    pub(super) fn check_points(&mut self, machine: usize, between: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let Some(window) = live.node.window() else { return Ok(()) };
        let Some(own) = live.node.history().last().map(key) else { return Ok(()) };
        if !self.timelines.contains_key(&own) || self.machines[machine].damaged {
            return Ok(());
        }
        if window.latest < window.horizon {
            let detail = format!("the window is from LSN {} to {}", window.horizon, window.latest);
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        let mut points = vec![window.horizon, window.latest];
        for _ in 0..between {
            points.push(Lsn(self.rng.between(window.horizon.0, window.latest.0)));
        }
        for at in points {
            self.invariant_points_exact(machine, own, at)?;
        }
        self.count("points read", between as u64 + 2);
        Ok(())
    }

    fn invariant_points_exact(&mut self, machine: usize, own: Key, at: Lsn) -> Result {
        let Some(image) = self.read_point(machine, at)? else { return Ok(()) };
        let timeline = &self.timelines[&own];
        self.compare(machine, timeline, &image, at, "invariant_points_exact")
    }

    /// Guarantee 5: the horizon never goes back, and the base is never ahead of it.
    pub(super) fn invariant_points_stay_retired(&self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let state = live.node.state();
        if state.base > state.horizon {
            let detail = format!("the base is at LSN {}, the horizon at {}", state.base, state.horizon);
            return Err(self.broken("invariant_retired_before_folded", machine, detail));
        }
        Ok(())
    }

    /// Guarantee 10: memory and disk have limits.
    pub(super) fn invariant_bounded(&self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let limits = &self.options.limits;
        let used = live.node.log().used_bytes();
        if used > limits.log.log_bytes {
            let detail = format!("the log uses {used} bytes, the limit is {}", limits.log.log_bytes);
            return Err(self.broken("invariant_bounded", machine, detail));
        }
        Ok(())
    }

    /// Guarantee 7: what a promotion left behind is still in the files.
    pub(super) fn invariant_branches_kept(&mut self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        if m.is_excused() {
            return Ok(());
        }
        for branch in &live.node.state().branches {
            let found = autopsy::anywhere(&m.disk, DIR, live.node.log().seed(), branch.epoch);
            // Forwards from the branching point, by the chain: several records may stand at an LSN.
            let mut ends = BTreeSet::from([branch.after.checksum]);
            let mut lsn = branch.after.lsn;
            while lsn < branch.last {
                lsn = lsn.next();
                let headers = found.get(&lsn).into_iter().flatten();
                ends = headers.filter(|h| ends.contains(&h.previous)).map(|h| h.checksum).collect();
                if ends.is_empty() {
                    let detail = format!(
                        "LSN {lsn} of the branch ({}, {}] is in no file any more",
                        branch.after.lsn, branch.last
                    );
                    return Err(self.broken("invariant_branches_kept", machine, detail));
                }
            }
        }
        self.count("branches seen", u64::from(!self.branches(machine)));
        Ok(())
    }

    fn branches(&self, machine: usize) -> bool {
        self.machines[machine].live.as_ref().is_none_or(|live| live.node.state().branches.is_empty())
    }

    /// A replica let a primary in.
    pub(super) fn check_welcome(&mut self, machine: usize, peer: usize, hello: &Hello) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let durable = live.node.durable();
        if durable.lsn > hello.durable.lsn {
            let detail =
                format!("it holds LSN {}, the primary it welcomes {}", durable.lsn, hello.durable.lsn);
            return Err(self.broken("invariant_prefix", machine, detail));
        }
        let _ = peer;
        let reign = key(hello.history.last().expect("a hello has a history"));
        self.note_position(machine, reign, durable)?;
        if self.rng.chance(PPM / 4) {
            self.check_log(machine, reign)?;
            self.invariant_branches_kept(machine)?;
        }
        Ok(())
    }

    /// A promoted node's disks are whole.
    pub(super) fn check_filled(&mut self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let tip = live.node.log().tip().lsn;
        self.check_image(machine, tip, "invariant_points_exact")
    }

    /// A look at a node at a random moment.
    pub(super) fn probe(&mut self, machine: usize) -> Result {
        self.invariant_bounded(machine)?;
        self.invariant_honest_lag(machine)?;
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        if !live.node.is_born() || live.node.failed().is_some() {
            return Ok(());
        }
        let (role, durable) = (live.node.role(), live.node.durable().lsn);
        let own = self.machines[machine].reign;
        self.count("probes", 1);
        match (role, own) {
            (Role::Primary, Some(own)) => {
                self.invariant_write_ahead(machine, own, durable)?;
                let tip = self.machines[machine].live.as_ref().map(|live| live.node.log().tip().lsn);
                self.check_image(machine, tip.unwrap_or_default(), "invariant_reads_are_right")?;
            }
            (Role::Replica, _) => self.invariant_retired_before_folded(machine)?,
            _ => {}
        }
        if role != Role::Fenced {
            self.check_points(machine, 2)?;
        }
        Ok(())
    }

    /// The lag that is reported is never less than what is lost at a failover: a primary believes of a replica only
    /// what that replica has said.
    fn invariant_honest_lag(&self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        if live.node.role() != Role::Primary || self.any_damaged() {
            return Ok(());
        }
        let own = live.node.history().last().map(key);
        for report in live.node.report(m.clock.now(self.now())).replicas {
            let Some(replica) = self.machines.iter().find(|other| other.name == report.name) else {
                continue;
            };
            let Some(their) = &replica.live else { continue };
            let follows = their.node.history().last().map(key) == own && their.node.role() == Role::Replica;
            if follows && report.acknowledged > their.node.durable().lsn {
                let detail = format!(
                    "it reports that {} holds LSN {}, which holds {}",
                    report.name,
                    report.acknowledged,
                    their.node.durable().lsn
                );
                return Err(self.broken("invariant_honest_lag", machine, detail));
            }
        }
        Ok(())
    }

    /// Notes what a failover costs: the first one is what the figures tell of.
    pub(super) fn figure_failover(&mut self, machine: usize, at: Lsn) {
        let time = self.now();
        let Some(live) = &self.machines[machine].live else { return };
        let history = live.node.history();
        let Some(parent) = history.len().checked_sub(2).map(|index| key(&history[index])) else { return };
        let Some(timeline) = self.timelines.get(&parent) else { return };
        let lost: Vec<_> = timeline.range(at.next()..).filter(|(_, entry)| entry.answered).collect();
        let kept = timeline.range(..=at).next_back().map(|(_, entry)| entry.at);
        let last = lost.last().map(|(_, entry)| entry.at);
        if self.figures.rpo.is_some() {
            return;
        }
        self.figures.rpo = Some(match (kept, last) {
            (_, None) => Span(0),
            (kept, Some(last)) => last.since(kept.unwrap_or_default()),
        });
        self.figures.lost_writes = lost.len() as u64;
        self.figures.lost_bytes = lost.iter().map(|(_, entry)| entry.operation.len()).sum();
        let attack = |entry: &crate::ledger::Entry| match &entry.operation.effect {
            crate::reference::Effect::Write(bytes) => {
                bytes.iter().all(|byte| *byte == crate::options::SCRAMBLE)
            }
            crate::reference::Effect::Zeros(_) => false,
        };
        self.figures.attack_kept = timeline.range(..=at).filter(|(_, entry)| attack(entry)).count() as u64;
        self.failover = Some((self.outage.unwrap_or(time), machine));
    }

    /// A look at all nodes for the report.
    pub(super) fn sample(&mut self) {
        let at = self.now();
        let nodes: Vec<NodeSample> = self
            .machines
            .iter()
            .map(|m| match &m.live {
                None => NodeSample::default(),
                Some(live) => NodeSample {
                    up: true,
                    role: match live.node.role() {
                        Role::Replica => 0,
                        Role::Primary => 1,
                        Role::Fenced => 2,
                    },
                    epoch: live.node.state().epoch().0,
                    durable: live.node.durable().lsn.0,
                    horizon: live.node.state().horizon.0,
                    linked: live.is_linked(),
                },
            })
            .collect();
        for m in &self.machines {
            let Some(live) = m.live.as_ref().filter(|live| live.node.role() == Role::Primary) else {
                continue;
            };
            for replica in live.node.report(m.clock.now(at)).replicas {
                // An old primary is no replica, though it is still on the list.
                let follows = |other: &&Machine| other.name == replica.name && other.reign.is_none();
                if !self.machines.iter().any(|other| follows(&other)) {
                    continue;
                }
                let lag = replica.lag_bytes.unwrap_or_default();
                self.figures.max_lag_bytes = self.figures.max_lag_bytes.max(lag);
            }
        }
        if let Some((since, machine)) = self.failover
            && self.figures.rto.is_none()
            && let Some(guest) = self.machines[machine].reign.and_then(|key| self.guests.get(&key))
            && let Some(first) = guest.first_answer
        {
            self.figures.rto = Some(first.since(since));
        }
        self.samples.push(Sample { at, nodes });
    }

    // -- the end

    /// The serving primaries of the newest epoch.
    fn winners(&self) -> Vec<usize> {
        let serving: Vec<usize> = (0..self.machines.len()).filter(|machine| self.serves(*machine)).collect();
        let epoch = |machine: &usize| self.machines[*machine].reign.map(|key| key.0);
        let newest = serving.iter().filter_map(epoch).max();
        serving.into_iter().filter(|machine| epoch(machine) == newest).collect()
    }

    /// Whether a replica that does not keep up has a reason that only a new copy of it can remove.
    fn is_beyond_help(&self, machine: usize, primary: usize) -> bool {
        let (Some(live), Some(of)) = (&self.machines[machine].live, &self.machines[primary].live) else {
            return false;
        };
        let (node, of) = (&live.node, &of.node);
        let common = node.history().iter().zip(of.history()).take_while(|(a, b)| a == b).count();
        let ends = [node.history().get(common), of.history().get(common)];
        let cut = ends.iter().flatten().map(|reign| reign.branch.lsn).fold(node.durable().lsn, Lsn::min);
        // What its disk broke, and branches that leave no room until an operator decides on them.
        let line: u64 = node.segments().iter().map(|segment| segment.header.len).sum();
        let limits = node.log().limits();
        let branches = node.log().used_bytes() - line;
        self.machines[machine].damaged
            || branches + 4 * limits.segment_bytes > limits.log_bytes
            || cut.next() < of.log().first()
            || cut < node.state().horizon
            || cut.next() < node.log().first()
    }

    /// Whether all that can be has become one.
    pub(super) fn has_converged(&self) -> bool {
        self.straggler().is_none()
    }

    /// What is still open.
    fn straggler(&self) -> Option<(usize, String)> {
        for (machine, m) in self.machines.iter().enumerate() {
            let Some(live) = &m.live else { return Some((machine, "its program does not run".to_owned())) };
            if let Some(failed) = live.node.failed().filter(|_| !m.damaged) {
                return Some((machine, format!("it failed: {}", failed.reason)));
            }
        }
        let winners = self.winners();
        let [winner] = winners.as_slice() else { return None };
        let primary = &self.machines[*winner].live.as_ref().expect("it serves").node;
        let tip = primary.log().tip();
        if tip != primary.log().durable() {
            return Some((*winner, format!("LSN {} is not durable", tip.lsn)));
        }
        if primary.is_hydrating() {
            return Some((*winner, "its disks are not whole".to_owned()));
        }
        // With nobody to follow, nothing is ever safe in another region.
        let alone = !self
            .machines
            .iter()
            .any(|m| m.live.as_ref().is_some_and(|live| live.node.role() == Role::Replica));
        let mut all_follow = !alone || self.options.ack == AckPolicy::Local;
        for (machine, m) in self.machines.iter().enumerate() {
            let node = &m.live.as_ref().expect("all run").node;
            match node.role() {
                Role::Replica if self.is_beyond_help(machine, *winner) => all_follow = false,
                Role::Replica => {
                    if node.durable() != tip.position() {
                        let at = node.durable().lsn;
                        return Some((machine, format!("it stands at LSN {at}, the primary at {}", tip.lsn)));
                    }
                }
                Role::Primary if machine != *winner && !m.damaged => {
                    return Some((machine, "it still serves, though a newer primary does".to_owned()));
                }
                Role::Primary => {}
                Role::Fenced => {}
            }
        }
        let key = self.machines[*winner].reign?;
        let outstanding = self.guests.get(&key).map_or(0, super::guest::Guest::outstanding);
        // An old primary follows nobody: what it lacks stays in the log, and once that is full, writes wait.
        let log = self.machines[*winner].live.as_ref().expect("all run").node.log();
        let full = log.used_bytes() + log.limits().segment_bytes > log.limits().log_bytes;
        let mut lives = self.machines.iter().filter_map(|m| m.live.as_ref());
        let held = full && lives.any(|live| live.node.role() == Role::Fenced);
        if all_follow && !held && outstanding > 0 {
            return Some((*winner, format!("{outstanding} requests are not answered")));
        }
        None
    }

    pub(super) fn not_converged(&self) -> Violation {
        match self.straggler() {
            Some((machine, why)) => self.broken("convergence", machine, why),
            None => self.violation("convergence", None, "it converged too late".to_owned()),
        }
    }

    /// Everything is quiet: the logs are the same bytes, the volumes the same state.
    pub(super) fn final_checks(&mut self) -> Result {
        self.sample();
        for machine in 0..self.machines.len() {
            self.probe(machine)?;
            self.invariant_branches_kept(machine)?;
            let reign =
                self.machines[machine].live.as_ref().and_then(|live| live.node.history().last().map(key));
            if let Some(reign) = reign {
                self.check_log(machine, reign)?;
            }
        }
        let winners = self.winners();
        if let [winner] = winners.as_slice() {
            self.count("converged on one primary", 1);
            for machine in 0..self.machines.len() {
                self.invariant_logs_are_identical(*winner, machine)?;
            }
        } else {
            self.count("ended without one primary", 1);
        }
        let answered =
            self.timelines.values().map(|t| t.range(..).filter(|(_, e)| e.answered).count() as u64);
        self.figures.writes = answered.max().unwrap_or(0);
        Ok(())
    }

    /// Guarantee 2, at the end: byte for byte.
    fn invariant_logs_are_identical(&self, primary: usize, replica: usize) -> Result {
        let (a, b) = (&self.machines[primary], &self.machines[replica]);
        let (Some(of), Some(live)) = (&a.live, &b.live) else { return Ok(()) };
        if primary == replica || live.node.role() != Role::Replica || live.node.durable() != of.node.durable()
        {
            return Ok(());
        }
        let (Ok(ours), Ok(theirs)) =
            (autopsy::records(&of.node, &a.disk), autopsy::records(&live.node, &b.disk))
        else {
            return match self.any_damaged() || a.rules || b.rules {
                true => Ok(()),
                false => Err(self.broken("invariant_log_is_whole", replica, "unreadable records".to_owned())),
            };
        };
        let first = ours.first().map(|r| r.header.lsn).max(theirs.first().map(|r| r.header.lsn));
        let Some(first) = first else { return Ok(()) };
        let from = |records: &[autopsy::Record]| records.partition_point(|r| r.header.lsn < first);
        if ours[from(&ours)..] != theirs[from(&theirs)..] {
            return Err(self.broken(
                "invariant_prefix",
                replica,
                format!("its log differs from {}'s behind LSN {first}", a.name),
            ));
        }
        Ok(())
    }

    /// The sectors that are in none of the states up to an LSN.
    fn stray_sectors(&self, timeline: &Timeline, upto: Lsn, found: &Image) -> Vec<(usize, u64)> {
        let whole = |(_, entry): (_, &crate::ledger::Entry)| entry.operation.is_aligned();
        match timeline.range(..=upto).all(whole) {
            true => Self::stray_whole_sectors(timeline, upto, found),
            false => self.stray_pieces(timeline, upto, found),
        }
    }

    /// [`World::stray_sectors`] where guests write whole sectors: what a sector has ever held is what it began with,
    /// zeros, and what each operation on it left there. The newest operations explain the most, so they come first.
    fn stray_whole_sectors(timeline: &Timeline, upto: Lsn, found: &Image) -> Vec<(usize, u64)> {
        let mut stray: Vec<Vec<bool>> = found
            .iter()
            .map(|bytes| bytes.chunks(SECTOR).map(|sector| sector != &ZEROS[..sector.len()]).collect())
            .collect();
        let mut left: usize = stray.iter().flatten().filter(|stray| **stray).count();
        for (_, entry) in timeline.range(..=upto).rev() {
            if left == 0 {
                break;
            }
            let Operation { volume, offset, effect } = &entry.operation;
            // Zeros explain nothing that is not explained from the beginning.
            let Effect::Write(data) = effect else { continue };
            let first = *offset as usize / SECTOR;
            for (sector, data) in data.chunks(SECTOR).enumerate() {
                let sector = first + sector;
                if stray[*volume][sector] && found[*volume][sector * SECTOR..][..SECTOR] == *data {
                    stray[*volume][sector] = false;
                    left -= 1;
                }
            }
        }
        let of_volume = |(volume, stray): (usize, Vec<bool>)| {
            stray.into_iter().enumerate().filter(|(_, stray)| *stray).map(move |(at, _)| (volume, at as u64))
        };
        stray.into_iter().enumerate().flat_map(of_volume).collect()
    }

    /// [`World::stray_sectors`] where guests write less than sectors: two pieces of one sector may be applied by
    /// halves (and are applied again), so each byte has to be of some state.
    fn stray_pieces(&self, timeline: &Timeline, upto: Lsn, found: &Image) -> Vec<(usize, u64)> {
        let by_bytes = self.options.workload.alignment == Alignment::Bytes;
        let mut stray: BTreeMap<(usize, u64), Vec<bool>> = BTreeMap::new();
        for (volume, bytes) in found.iter().enumerate() {
            for (sector, bytes) in bytes.chunks(512).enumerate() {
                if bytes.iter().any(|byte| *byte != 0) {
                    let zeros = bytes.iter().map(|byte| by_bytes && *byte == 0).collect();
                    stray.insert((volume, sector as u64), zeros);
                }
            }
        }
        let mut image: Image = found.iter().map(|volume| vec![0; volume.len()]).collect();
        for (_, entry) in timeline.range(..=upto) {
            if stray.is_empty() {
                break;
            }
            let operation = &entry.operation;
            let sectors = operation.offset / 512..(operation.offset + operation.len()).div_ceil(512);
            // A sector that is looked for has been so from the start: what touches none of them can be left out.
            let place = |sector: u64| (operation.volume, sector);
            if stray.range(place(sectors.start)..place(sectors.end)).next().is_none() {
                continue;
            }
            operation.apply(&mut image);
            for sector in sectors {
                let place = (operation.volume, sector);
                let Some(explained) = stray.get_mut(&place) else { continue };
                let start = sector as usize * 512;
                let range = start..start + explained.len();
                let (is, has) = (&image[operation.volume][range.clone()], &found[operation.volume][range]);
                if by_bytes {
                    explained.iter_mut().zip(is.iter().zip(has)).for_each(|(byte, (a, b))| *byte |= a == b);
                }
                if is == has || by_bytes && explained.iter().all(|byte| *byte) {
                    stray.remove(&place);
                }
            }
        }
        stray.into_keys().collect()
    }
}
