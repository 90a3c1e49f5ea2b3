//! One connection: two ends, and the stream of packets towards each.

use super::{Close, End, Host};
use crate::clock::Time;
use std::collections::VecDeque;

#[derive(Clone, Debug)]
pub(super) enum Packet<M> {
    Open,
    Message { message: M, bytes: u64 },
    Fin(Close),
}

/// What an end knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Gone,
}

/// The packets under way towards an end, in order.
#[derive(Clone, Debug)]
pub(super) struct Stream<M> {
    /// With the moment from which each may arrive, which never decreases.
    packets: VecDeque<(Time, Packet<M>)>,
    bytes: u64,
    /// Arrivals that found the way cut.
    stalled: u64,
    last_arrival: Time,
    held_back_until: Option<Time>,
    /// The next packet is one that the end tells itself.
    local: bool,
}

impl<M> Stream<M> {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_local(&self) -> bool {
        self.local
    }
}

impl<M> Default for Stream<M> {
    fn default() -> Stream<M> {
        Stream {
            packets: VecDeque::new(),
            bytes: 0,
            stalled: 0,
            last_arrival: Time(0),
            held_back_until: None,
            local: false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Conn<M> {
    hosts: [Host; 2],
    phases: [Phase; 2],
    streams: [Stream<M>; 2],
}

impl<M> Conn<M> {
    pub(super) fn new(dialer: Host, listener: Host) -> Conn<M> {
        Conn {
            hosts: [dialer, listener],
            phases: [Phase::Opening; 2],
            streams: [Stream::default(), Stream::default()],
        }
    }

    pub(super) fn host(&self, end: End) -> Host {
        self.hosts[end as usize]
    }

    pub(super) fn is_open(&self, end: End) -> bool {
        self.phases[end as usize] == Phase::Open
    }

    pub(super) fn is_gone(&self, end: End) -> bool {
        self.phases[end as usize] == Phase::Gone
    }

    /// Whether no end will ever hear of it again. (A listener that was never reached has nothing to hear.)
    pub(super) fn is_over(&self) -> bool {
        self.is_gone(End::Dialer) && !self.is_open(End::Listener)
    }

    pub(super) fn is_drained(&self) -> bool {
        self.streams.iter().all(|stream| stream.packets.is_empty())
    }

    pub(super) fn open(&mut self, end: End) {
        self.phases[end as usize] = Phase::Open;
    }

    pub(super) fn leave(&mut self, end: End) {
        self.phases[end as usize] = Phase::Gone;
    }

    pub(super) fn stream(&self, towards: End) -> &Stream<M> {
        &self.streams[towards as usize]
    }

    pub(super) fn push(&mut self, towards: End, at: Time, packet: Packet<M>) {
        let stream = &mut self.streams[towards as usize];
        if let Packet::Message { bytes, .. } = &packet {
            stream.bytes += bytes;
        }
        stream.packets.push_back((at, packet));
    }

    /// Something that an end learns by itself, whatever the way is like.
    pub(super) fn push_local(&mut self, towards: End, now: Time, packet: Packet<M>) {
        self.push(towards, now, packet);
        self.streams[towards as usize].local = true;
        self.streams[towards as usize].held_back_until = None;
    }

    /// The next packet, if it has arrived.
    pub(super) fn pop(&mut self, towards: End, now: Time) -> Option<Packet<M>> {
        let stream = &mut self.streams[towards as usize];
        stream.packets.front().filter(|(at, _)| *at <= now)?;
        let (_, packet) = stream.packets.pop_front()?;
        if let Packet::Message { bytes, .. } = &packet {
            stream.bytes -= bytes;
        }
        stream.local = false;
        Some(packet)
    }

    pub(super) fn clear(&mut self, towards: End) {
        let stream = &mut self.streams[towards as usize];
        stream.packets.clear();
        stream.bytes = 0;
        stream.stalled = 0;
        stream.last_arrival = Time(0);
    }

    /// When a packet arrives that would take until `at`, behind those before it.
    pub(super) fn in_order(&mut self, towards: End, at: Time) -> Time {
        let stream = &mut self.streams[towards as usize];
        stream.last_arrival = stream.last_arrival.max(at);
        stream.last_arrival
    }

    pub(super) fn stall(&mut self, towards: End) {
        let stream = &mut self.streams[towards as usize];
        // Arrivals of packets that are gone need not be made up for.
        stream.stalled = (stream.stalled + 1).min(stream.packets.len() as u64);
    }

    pub(super) fn take_stalled(&mut self, towards: End) -> u64 {
        std::mem::take(&mut self.streams[towards as usize].stalled)
    }

    pub(super) fn hold_back(&mut self, towards: End, until: Time) {
        let held = &mut self.streams[towards as usize].held_back_until;
        *held = (*held).max(Some(until));
    }

    pub(super) fn held_back(&self, towards: End) -> Option<Time> {
        self.streams[towards as usize].held_back_until
    }
}
