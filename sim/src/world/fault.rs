//! What goes wrong, when its time has come; and how it is made good again.

use super::{DIR, Ev, Result, World};
use crate::clock::Span;
use crate::disk::{Call, Disk, Fault, Latency, Rule, When};
use crate::net::{End, Host, Link, Notice, Reach};
use crate::options::Event;
use crate::reference::Death;
use crate::trace::Value;
use engine::types::{Epoch, Position};

/// A fault's end.
#[derive(Clone, Debug)]
pub(super) enum Heal {
    Mend { from: usize, to: usize },
    Links,
    Space { machine: usize },
    Latency { machine: usize },
    Restart { machine: usize, life: u64 },
}

impl World {
    /// A planned event happens.
    pub(super) fn strike(&mut self, event: &Event) -> Result {
        let at = self.now();
        self.count(&format!("event: {}", event.name()), 1);
        self.say(self.node_of(event), event.name(), &[("what", Value::Text(event.to_string()))]);
        let later = |span: &Span| at + *span;
        match event {
            Event::PowerCut { node, off } => {
                self.machines[*node].disk.power_off();
                self.end_life(*node, Death::Power);
                self.net.vanish(at, Host(*node as u32), Notice::Silence);
                self.net.set_reach(Host(*node as u32), Reach::Silent);
                self.outage.get_or_insert(at);
                // Whatever start was planned finds a machine that is off; this one finds it on again.
                self.machines[*node].starting = true;
                self.queue.push(later(off), Ev::PowerOn { machine: *node });
            }
            Event::PowerCutAt { node, n, side, off } => {
                if self.machines[*node].disk.is_on() {
                    self.machines[*node].off = Some(*off);
                    self.machines[*node].disk.cut_power_at(*n, *side);
                }
            }
            Event::Kill { node, down } => self.kill(*node, *down)?,
            Event::Restart { node, down } => {
                let now = self.machines[*node].clock.now(at);
                if let Some(live) = &mut self.machines[*node].live {
                    live.node.close(now);
                    if !self.check_power(*node)? {
                        self.collect_answers(*node)?;
                        self.kill(*node, *down)?;
                    }
                }
            }
            Event::Cut { from, to, span } => self.cut(*from, *to, *span),
            Event::Isolate { node, span } => {
                for other in (0..self.machines.len()).filter(|other| other != node) {
                    self.cut(*node, other, *span);
                    self.cut(other, *node, *span);
                }
            }
            Event::Reset => {
                for conn in self.net.open_conns() {
                    self.net.reset(at, conn);
                }
            }
            Event::Abandon { late } => {
                for conn in self.net.open_conns() {
                    let end = if self.rng.chance(500_000) { End::Dialer } else { End::Listener };
                    self.net.abandon(at, conn, end, *late);
                }
            }
            Event::Stall { span } => {
                for conn in self.net.open_conns() {
                    let end = if self.rng.chance(500_000) { End::Dialer } else { End::Listener };
                    self.net.stall(at, conn, end, *span);
                }
            }
            Event::Loss { ppm, span } => {
                self.set_links(Link { loss_ppm: *ppm, ..self.options.link });
                self.queue.push(later(span), Ev::Heal(Heal::Links));
            }
            Event::DiskError { node, call, path, n, errno } => {
                let prefix = format!("{DIR}/{path}");
                let rule = Rule::new(*call, When::Nth(*n), Fault::Fail(*errno)).on(&prefix);
                self.machines[*node].disk.add_rule(rule);
                self.machines[*node].rules = true;
            }
            Event::DiskFull { node, room, span } => {
                let disk = &self.machines[*node].disk;
                disk.set_capacity(Some(disk.used_bytes() + room));
                self.machines[*node].rules = true;
                self.queue.push(later(span), Ev::Heal(Heal::Space { machine: *node }));
            }
            Event::SlowDisk { node, extra, span } => {
                let latency = self.options.nodes[*node].latency;
                let slow = Latency { sync: Span(latency.sync.0 + extra.0), slow_ppm: 100_000, ..latency };
                self.machines[*node].disk.set_latency(slow);
                self.queue.push(later(span), Ev::Heal(Heal::Latency { machine: *node }));
            }
            Event::Rot { node } => {
                let place = self.machines[*node].disk.rot_somewhere(&format!("{DIR}/log/"));
                if place.is_some() {
                    self.machines[*node].damaged = true;
                    self.machines[*node].log_damaged = true;
                }
            }
            Event::RotBase { node } => {
                let place = self.machines[*node].disk.rot_somewhere(&format!("{DIR}/base/"));
                if place.is_some() {
                    self.machines[*node].damaged = true;
                    self.machines[*node].base_rots += 1;
                    let fills = |live: &super::machine::Live| live.node.is_hydrating();
                    if self.machines[*node].live.as_ref().is_some_and(fills) {
                        self.rot_spreads();
                    }
                }
            }
            Event::Verify { on_mismatch } => self.verify(*on_mismatch)?,
            Event::LyingDisk { node, n, by } => {
                let fault = if *by == 0 { Fault::Lose } else { Fault::Misdirect(*by) };
                let rule = Rule::new(Call::Write, When::Nth(*n), fault).on(&format!("{DIR}/log/"));
                self.machines[*node].disk.add_rule(rule);
                self.machines[*node].damaged = true;
                self.machines[*node].log_damaged = true;
            }
            Event::ClockJump { node, ns } => self.machines[*node].clock.jump(*ns),
            Event::ClockDrift { node, ppm } => self.machines[*node].clock.set_drift(*ppm),
            Event::Promote { node, at: point } => {
                if let Some(live) = &mut self.machines[*node].live {
                    let epoch = live.node.next_epoch();
                    live.promote = Some((*point, epoch));
                }
                self.pump(*node)?;
            }
            Event::Reconsider { node, at_ppm, aside } => {
                if let Some(live) = &mut self.machines[*node].live {
                    live.reconsider = Some((*at_ppm, *aside));
                }
                self.pump(*node)?;
            }
            Event::Reprotect { node } => self.reprotect(*node)?,
            Event::Handover { node } => self.ask_for_group(*node)?,
            Event::Wipe { node } => self.wipe(*node),
            Event::Pin { node, at_ppm, span } => self.pin(*node, *at_ppm, *span)?,
            Event::Drill { node, at_ppm, span, writes } => {
                self.start_drill(*node, *at_ppm, *span, *writes)?;
            }
            Event::Mistakes { node } => self.err(*node)?,
            Event::Scramble => self.scramble()?,
            Event::Mark { application } => self.mark(*application)?,
            Event::Resize { volume, ppm } => self.resize(*volume, *ppm)?,
            Event::LookAside { node, at_ppm } => {
                if self.look_at_branch(*node, *at_ppm)?.is_some() {
                    self.count("branches looked at", 1);
                }
                self.check_power(*node)?;
            }
        }
        Ok(())
    }

    fn node_of(&self, event: &Event) -> usize {
        match event {
            Event::PowerCut { node, .. }
            | Event::PowerCutAt { node, .. }
            | Event::Kill { node, .. }
            | Event::Restart { node, .. }
            | Event::Isolate { node, .. }
            | Event::DiskError { node, .. }
            | Event::DiskFull { node, .. }
            | Event::SlowDisk { node, .. }
            | Event::Rot { node }
            | Event::RotBase { node }
            | Event::LyingDisk { node, .. }
            | Event::ClockJump { node, .. }
            | Event::ClockDrift { node, .. }
            | Event::Promote { node, .. }
            | Event::Reconsider { node, .. }
            | Event::Reprotect { node }
            | Event::Handover { node }
            | Event::Wipe { node }
            | Event::Drill { node, .. }
            | Event::Mistakes { node }
            | Event::LookAside { node, .. }
            | Event::Pin { node, .. } => *node,
            Event::Cut { from, .. } => *from,
            Event::Reset
            | Event::Abandon { .. }
            | Event::Stall { .. }
            | Event::Loss { .. }
            | Event::Verify { .. }
            | Event::Mark { .. }
            | Event::Resize { .. }
            | Event::Scramble => 0,
        }
    }

    fn cut(&mut self, from: usize, to: usize, span: Span) {
        self.net.cut(Host(from as u32), Host(to as u32));
        self.queue.push(self.now() + span, Ev::Heal(Heal::Mend { from, to }));
    }

    fn set_links(&mut self, link: Link) {
        let count = self.machines.len() as u32;
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                self.net.set_link(Host(from), Host(to), link);
            }
        }
    }

    /// A replica's machine is replaced by a new one with an empty disk. (A primary's is not: its operator fails
    /// over.)
    fn wipe(&mut self, machine: usize) {
        let at = self.now();
        if self.machines[machine].reign.is_some() || machine == 0 {
            return;
        }
        if self.machines[machine].disk.is_on() {
            self.machines[machine].disk.power_off();
        }
        self.end_life(machine, Death::Power);
        self.net.vanish(at, Host(machine as u32), Notice::Silence);
        self.net.set_reach(Host(machine as u32), Reach::Silent);
        let m = &mut self.machines[machine];
        m.disk = Disk::new(m.rng.child(&format!("new disk {}", m.life)));
        m.disk.set_latency(self.options.nodes[machine].latency);
        m.wiped = true;
        m.odd_base = false;
        m.rules = false;
        m.damaged = false;
        (m.base_rots, m.log_damaged) = (0, false);
        m.promised = Position::default();
        m.seen_epoch = Epoch(0);
        m.role = None;
        m.starting = false;
        self.plan_start(machine, Span::from_ms(50));
    }

    /// A fault ends by itself.
    pub(super) fn heal_one(&mut self, heal: &Heal) -> Result {
        let at = self.now();
        match heal {
            Heal::Mend { from, to } => self.net.mend(at, Host(*from as u32), Host(*to as u32)),
            Heal::Links => self.set_links(self.options.link),
            Heal::Space { machine } => self.machines[*machine].disk.set_capacity(None),
            Heal::Latency { machine } => {
                let latency = self.options.nodes[*machine].latency;
                self.machines[*machine].disk.set_latency(latency);
            }
            Heal::Restart { machine, life } => {
                if self.machines[*machine].life == *life {
                    self.kill(*machine, Span::from_ms(1))?;
                }
            }
        }
        Ok(())
    }

    /// The end of the first phase: every fault is taken away, every program started again with what the operator
    /// has configured by now.
    pub(super) fn heal(&mut self) -> Result {
        let at = self.now();
        self.healed = true;
        self.trace(0, "healed", &[]);
        self.net.heal(at);
        self.set_links(self.options.link);
        for machine in 0..self.machines.len() {
            let m = &mut self.machines[machine];
            m.disk.heal();
            m.clock.heal();
            m.disk.set_latency(self.options.nodes[machine].latency);
            if let Some(live) = &mut m.live {
                live.promote = None;
                live.reconsider = None;
                live.drill = None;
                let pins: Vec<_> = live.pins.drain(..).collect();
                for pin in pins {
                    live.node.unpin(pin.at);
                }
            }
            if self.machines[machine].disk.is_on() && self.machines[machine].live.is_some() {
                self.kill(machine, Span::from_ms(1))?;
            } else {
                self.machines[machine].starting = true;
                self.queue.push(at + Span::from_ms(1), Ev::PowerOn { machine });
            }
        }
        Ok(())
    }
}
