//! Programs and their background work: start, run, end.

use super::link::Dial;
use super::machine::{Live, Slot};
use super::{DIR, Ev, GROUP, Result, World};
use crate::clock::Span;
use crate::disk::Dice;
use crate::net::{Host, Notice, Reach};
use crate::reference::Death;
use crate::rng::PPM;
use engine::log::recovery::OpenError;
use engine::node::config::{Config, NewVolume, Start};
use engine::node::work::{Done, Lane};
use engine::node::{Node, open};
use engine::state::Role;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a supervisor waits before it starts a program again that could not start or has failed, as a part of the
/// longest pause between two attempts to link up.
const SUPERVISOR_PART: u64 = 5;

impl World {
    /// What the operator has written into the node's configuration by now: a promoted node keeps no log for the
    /// primaries before it, unless they are to come back.
    fn config_for(&self, machine: usize) -> Config {
        let own = self.machines[machine].reign.map(|key| key.0);
        let own = own.filter(|_| !self.machines[machine].takes_back);
        let others = self.machines.iter().enumerate().filter(|(other, m)| {
            *other != machine
                && match (m.reign, own) {
                    (Some((theirs, _)), Some(own)) => theirs >= own,
                    _ => true,
                }
        });
        let sizes = &self.options.workload.volumes;
        let volumes = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| NewVolume {
                name: format!("v{index}"),
                size: *size,
                begins: self.options.begins,
            })
            .collect();
        let start = match machine {
            0 if !self.machines[0].wiped => Start::Primary { group: self.group, volumes },
            _ => Start::Replica,
        };
        Config {
            name: GROUP.to_owned(),
            node: self.machines[machine].id,
            dir: DIR.to_owned(),
            start,
            backings: BTreeMap::new(),
            replicas: others.map(|(_, m)| m.name.clone()).collect(),
            ack: self.options.ack,
            on_full: self.options.on_full,
            retention: self.options.retention,
            limits: self.options.limits,
            verify: self.options.verify,
        }
    }

    /// Starts the program of a machine.
    pub(super) fn start(&mut self, machine: usize) -> Result {
        if self.machines[machine].live.is_some() || !self.machines[machine].disk.is_on() {
            return Ok(());
        }
        let at = self.now();
        let config = self.config_for(machine);
        let replicas: Vec<usize> = (0..self.machines.len())
            .filter(|other| config.replicas.contains(&self.machines[*other].name))
            .collect();
        self.err_at_start(machine, &config)?;
        let m = &mut self.machines[machine];
        if !m.disk.is_on() {
            return Ok(());
        }
        let process = m.disk.start();
        m.life += 1;
        let opened = Node::open(m.clock.now(at), Arc::new(process.clone()), config);
        let _ = m.disk.take_latency();
        match opened {
            Ok((node, report)) => {
                let live = Live {
                    process,
                    node,
                    sync: Slot::Idle,
                    bulk: Slot::Idle,
                    verify: Slot::Idle,
                    dials: replicas.into_iter().map(|target| (target, Dial::new(at))).collect(),
                    incoming: BTreeMap::new(),
                    wake: None,
                    promote: None,
                    reconsider: None,
                    restarting: false,
                    sync_failed: false,
                    pins: Vec::new(),
                    drill: None,
                };
                m.live = Some(live);
                if self.check_power(machine)? {
                    return Ok(());
                }
                self.net.set_reach(Host(machine as u32), Reach::Listening);
                self.count("starts", 1);
                if report.torn.is_some() {
                    self.count("torn tails", 1);
                }
                self.trace(
                    machine,
                    "start",
                    &[("records", report.records), ("torn", u64::from(report.torn.is_some()))],
                );
                self.check_opened(machine)?;
                if self.check_power(machine)? {
                    return Ok(());
                }
                self.machines[machine].death = Death::Process;
                if let Some(key) = self.machines[machine].reign {
                    self.queue.push(at + Span(1_000), Ev::Guest(key));
                }
                self.pump(machine)
            }
            Err(error) => {
                let mut fate_rng = self.machines[machine].rng.clone();
                let _ = self.machines[machine].rng.next_u64();
                self.machines[machine].disk.kill(process.id(), &mut Dice::new(&mut fate_rng));
                self.machines[machine].life += 1;
                if self.check_power(machine)? {
                    return Ok(());
                }
                self.count("failed starts", 1);
                self.say(machine, "cannot start", &[("why", error.to_string().into())]);
                self.invariant_torn_tails_open(machine, &error)?;
                // A sync of recovery's own may have failed.
                self.machines[machine].death = Death::Power;
                self.plan_start(machine, self.supervisor_pause());
                Ok(())
            }
        }
    }

    /// After a power cut or a kill a log opens; only damage that a program cannot help is refused (guarantee 11).
    fn invariant_torn_tails_open(&mut self, machine: usize, error: &open::Error) -> Result {
        if let open::Error::Log(OpenError::Corrupt { .. }) = error {
            self.count("corruption found", 1);
        }
        if self.machines[machine].is_excused() {
            return Ok(());
        }
        Err(self.broken("invariant_torn_tails_open", machine, format!("the node does not open: {error}")))
    }

    fn supervisor_pause(&self) -> Span {
        Span(self.options.max_retry.0 / SUPERVISOR_PART)
    }

    pub(super) fn plan_start(&mut self, machine: usize, after: Span) {
        if !self.machines[machine].starting {
            self.machines[machine].starting = true;
            self.queue.push(self.now() + after, Ev::Start { machine });
        }
    }

    /// Whether the machine has lost power in mid-call; what the call said is nothing then.
    pub(super) fn check_power(&mut self, machine: usize) -> Result<bool> {
        if self.machines[machine].disk.is_on() {
            return Ok(false);
        }
        self.power_lost(machine)?;
        Ok(true)
    }

    /// The machine has no power.
    pub(super) fn power_lost(&mut self, machine: usize) -> Result {
        let at = self.now();
        self.end_life(machine, Death::Power);
        let notice = if self.rng.chance(PPM / 5) { Notice::Reset } else { Notice::Silence };
        self.net.vanish(at, Host(machine as u32), notice);
        self.net.set_reach(Host(machine as u32), Reach::Silent);
        self.outage.get_or_insert(at);
        if !self.machines[machine].starting {
            self.machines[machine].starting = true;
            let off = match self.machines[machine].off.take() {
                Some(off) => off,
                None => Span(self.machines[machine].rng.below(400_000_000)),
            };
            self.queue.push(at + off, Ev::PowerOn { machine });
        }
        Ok(())
    }

    pub(super) fn power_on(&mut self, machine: usize) -> Result {
        self.machines[machine].starting = false;
        if self.machines[machine].live.is_some() {
            return Ok(());
        }
        let m = &mut self.machines[machine];
        if !m.disk.is_on() {
            let mut rng = m.rng.child(&format!("fate {}", m.life));
            m.disk.power_on(&mut Dice::new(&mut rng));
            m.death = Death::Power;
        }
        self.trace(machine, "power on", &[]);
        self.start(machine)
    }

    /// The program is gone.
    pub(super) fn end_life(&mut self, machine: usize, death: Death) {
        let m = &mut self.machines[machine];
        m.life += 1;
        m.looked = [None; 3];
        let Some(live) = m.live.take() else { return };
        // A failed sync leaves as much open as a power cut: a page may have been dropped as clean.
        // Perhaps one has, and nobody has been told of it yet.
        let untold = m.rules && !live.sync.is_idle();
        if death == Death::Power || live.node.failed().is_some() || untold {
            m.death = Death::Power;
        }
        let counts = [live.node.failed().is_some(), live.node.is_hydrating(), !live.bulk.is_idle()];
        drop(live);
        let reign = m.reign;
        let names = ["death of a failed node", "death while filling disks", "death in bulk work"];
        for (name, happened) in names.iter().zip(counts) {
            if happened {
                self.count(name, 1);
            }
        }
        if let Some(guest) = reign.and_then(|key| self.guests.get_mut(&key)) {
            guest.forget();
        }
        self.trace(machine, "end of life", &[("power", u64::from(death == Death::Power))]);
    }

    /// Kills the program.
    pub(super) fn kill(&mut self, machine: usize, down: Span) -> Result {
        let at = self.now();
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let id = live.process.id();
        let m = &mut self.machines[machine];
        let mut rng = m.rng.child(&format!("kill {}", m.life));
        m.disk.kill(id, &mut Dice::new(&mut rng));
        self.end_life(machine, Death::Process);
        self.net.vanish(at, Host(machine as u32), Notice::Reset);
        self.net.set_reach(Host(machine as u32), Reach::Refusing);
        self.plan_start(machine, down);
        Ok(())
    }

    /// Everything that a machine can do now.
    pub(super) fn pump(&mut self, machine: usize) -> Result {
        for _ in 0..64 {
            if self.check_power(machine)? || self.machines[machine].live.is_none() {
                return Ok(());
            }
            self.collect_answers(machine)?;
            self.pump_sessions(machine)?;
            if self.check_power(machine)? || !self.pump_work(machine)? {
                break;
            }
        }
        self.invariant_bounded(machine)?;
        self.note_role(machine);
        self.plan_wake(machine);
        Ok(())
    }

    /// Counts the transitions of the table of roles.
    fn note_role(&mut self, machine: usize) {
        let node = self.machines[machine].live.as_ref().map(|live| &live.node);
        let Some(role) = node.filter(|node| node.is_born()).map(engine::node::Node::role) else { return };
        let before = self.machines[machine].role.replace(role);
        if let Some(before) = before.filter(|before| *before != role) {
            self.count(&format!("role: {} to {}", role_name(before), role_name(role)), 1);
        }
    }

    /// Starts jobs; whether there is more to do at once.
    fn pump_work(&mut self, machine: usize) -> Result<bool> {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(false) };
        if live.node.failed().is_some() {
            if live.sync.is_idle() && live.bulk.is_idle() && !live.restarting {
                live.restarting = true;
                self.count("failed nodes", 1);
                let live = self.machines[machine].live.as_ref().expect("it was just there");
                let reason = live.node.failed().map(|failed| failed.reason.clone()).unwrap_or_default();
                self.say(machine, "failed", &[("why", reason.clone().into())]);
                if !self.machines[machine].is_excused() {
                    let detail = format!("a node on a sound disk failed: {reason}");
                    return Err(self.broken("invariant_sound_disks_do_not_fail", machine, detail));
                }
                let life = self.machines[machine].life;
                let pause = self.supervisor_pause();
                self.queue.push(at + pause, Ev::Heal(super::fault::Heal::Restart { machine, life }));
            }
            return Ok(false);
        }
        if live.sync.is_idle() && live.bulk.is_idle() && live.promote.is_some() {
            self.try_promotion(machine)?;
            return Ok(true);
        }
        if live.sync.is_idle() && live.bulk.is_idle() && live.verify.is_idle() && live.reconsider.is_some() {
            self.try_to_reconsider(machine)?;
            return Ok(true);
        }
        if live.bulk.is_idle() && live.node.is_filled() {
            let ended = live.node.end_hydration(now);
            self.count("disks filled", 1);
            if self.check_power(machine)? {
                return Ok(false);
            }
            if ended.is_ok() {
                self.check_filled(machine)?;
            }
            return Ok(true);
        }
        if live.promote.is_some() || live.reconsider.is_some() {
            return Ok(false);
        }
        for lane in Lane::ALL {
            let idle = match lane {
                Lane::Sync => live.sync.is_idle(),
                Lane::Make | Lane::Apply | Lane::Copy | Lane::Bulk => live.bulk.is_idle(),
                Lane::Verify => live.verify.is_idle(),
            };
            if !idle {
                continue;
            }
            let Some(job) = live.node.poll_job(now, lane) else { continue };
            let name = job.name();
            let m = &mut self.machines[machine];
            let _ = m.disk.take_latency();
            // It takes effect at the start of its time or at the end, and its machine may die in between.
            let (slot, takes) = if m.rng.chance(PPM / 2) {
                let before = m.disk.failed_syncs();
                let done = job.run();
                if let Some(live) = &mut m.live
                    && lane == Lane::Sync
                {
                    live.sync_failed |= m.disk.failed_syncs() > before;
                }
                (Slot::Ran(done), m.disk.take_latency())
            } else {
                (Slot::ToRun(job), Span(m.rng.below(2_000_000)))
            };
            let life = m.life;
            if self.check_power(machine)? {
                return Ok(false);
            }
            self.count(&format!("job: {name}"), 1);
            self.trace(machine, name, &[("takes", takes.0)]);
            let takes = Span(takes.0.max(1_000));
            self.queue.push(at + takes, Ev::JobDone { machine, life, lane });
            let Some(live) = &mut self.machines[machine].live else { return Ok(false) };
            match lane {
                Lane::Sync => live.sync = slot,
                Lane::Make | Lane::Apply | Lane::Copy | Lane::Bulk => live.bulk = slot,
                Lane::Verify => live.verify = slot,
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// A job's time is over.
    pub(super) fn job_done(&mut self, machine: usize, life: u64, lane: Lane) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let slot = match lane {
            Lane::Sync => std::mem::replace(&mut live.sync, Slot::Idle),
            Lane::Make | Lane::Apply | Lane::Copy | Lane::Bulk => {
                std::mem::replace(&mut live.bulk, Slot::Idle)
            }
            Lane::Verify => std::mem::replace(&mut live.verify, Slot::Idle),
        };
        let done = match slot {
            Slot::Idle => return Ok(()),
            Slot::ToRun(job) => {
                let m = &mut self.machines[machine];
                let before = m.disk.failed_syncs();
                let done = job.run();
                if let Some(live) = &mut m.live
                    && lane == Lane::Sync
                {
                    live.sync_failed |= m.disk.failed_syncs() > before;
                }
                done
            }
            Slot::Ran(done) => done,
        };
        if self.check_power(machine)? {
            return Ok(());
        }
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let is_sync = matches!(done, Done::Sync(_));
        let folded = matches!(done, Done::Fold(Ok(_)));
        let checked = matches!(done, Done::Check(_));
        live.node.finish(now, done);
        let durable = live.node.durable();
        if self.check_power(machine)? {
            return Ok(());
        }
        if is_sync {
            self.invariant_failed_sync_is_final(machine)?;
            self.trace(machine, "durable", &[("lsn", durable.lsn.0)]);
        }
        if checked {
            self.invariant_mismatches_are_real(machine)?;
        }
        if folded {
            let look = self.draw_look();
            self.check_points(machine, 1, look)?;
        }
        self.invariant_points_stay_retired(machine)?;
        self.progress(machine);
        self.pump(machine)
    }

    /// Guarantee 8: once a sync of a log file has failed, the group is in its failed state, and no sync of the same
    /// file that succeeds later means anything.
    fn invariant_failed_sync_is_final(&mut self, machine: usize) -> Result {
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let failed = std::mem::take(&mut live.sync_failed);
        if failed && live.node.failed().is_none() {
            let detail = "a sync of the log failed, and the node goes on".to_owned();
            return Err(self.broken("invariant_failed_sync_is_final", machine, detail));
        }
        Ok(())
    }

    /// Something was done that may have made room.
    pub(super) fn progress(&mut self, machine: usize) {
        if self.is_stalled(machine) {
            let life = self.machines[machine].life;
            self.queue.push(self.now() + Span(1_000), Ev::Retry { machine, life });
        }
    }

    fn plan_wake(&mut self, machine: usize) {
        let at = self.now();
        let session = self.next_session_wake(machine);
        let stalled = self.is_stalled(machine).then(|| at + Span::from_ms(100));
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return };
        let node = live.node.next_wake(m.clock.now(at)).map(|wake| m.clock.time_of(wake));
        let Some(next) = [session, node, stalled].into_iter().flatten().min() else { return };
        // As the real threads do: never a busy loop.
        let next = next.max(at + Span(200_000));
        if live.wake.is_some_and(|planned| planned > at && planned <= next) {
            return;
        }
        let life = m.life;
        if let Some(live) = &mut self.machines[machine].live {
            live.wake = Some(next);
        }
        self.queue.push(next, Ev::Wake { machine, life });
    }

    pub(super) fn wake(&mut self, machine: usize, life: u64) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let at = self.now();
        if let Some(live) = &mut self.machines[machine].live
            && live.wake.is_some_and(|planned| planned <= at)
        {
            live.wake = None;
        }
        if self.is_stalled(machine) {
            self.guest_retries(machine)?;
        }
        self.pump(machine)
    }

    /// Whether a machine serves as primary.
    pub(super) fn serves(&self, machine: usize) -> bool {
        self.machines[machine]
            .live
            .as_ref()
            .is_some_and(|live| live.node.role() == Role::Primary && live.node.failed().is_none())
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::Fenced => "fenced",
    }
}
