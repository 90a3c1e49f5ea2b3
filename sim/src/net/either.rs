//! The network that a world runs over: connections as messages, or the real stack over datagrams.

#[cfg(feature = "full-stack")]
use super::quic::Quic;
use super::{ConnId, End, Event, Host, Link, Network, Notice, Reach};
use crate::clock::{Span, Time};
use crate::options::{Options, Stack};
use crate::rng::Rng;
use std::collections::BTreeMap;
use transport::link::frame::Frame;

/// Either network. What its methods promise is said at [`Network`]; where the stack differs, at [`super::quic`].
pub(crate) enum Either {
    Messages(Box<Network<Frame>>),
    #[cfg(feature = "full-stack")]
    Full(Box<Quic>),
}

/// Calls the same method of whichever network there is.
macro_rules! of {
    ($either:expr, $net:ident => $call:expr) => {
        match $either {
            Either::Messages($net) => $call,
            #[cfg(feature = "full-stack")]
            Either::Full($net) => $call,
        }
    };
}

impl Either {
    /// The network that the options ask for.
    pub(crate) fn new(rng: Rng, options: &Options) -> Either {
        match options.stack {
            Stack::Messages => Either::Messages(Box::new(Network::new(rng, options.link))),
            #[cfg(feature = "full-stack")]
            Stack::Full => Either::Full(Box::new(Quic::new(rng, options.link, &options.session))),
        }
    }

    pub(crate) fn set_reach(&mut self, host: Host, reach: Reach) {
        of!(self, net => net.set_reach(host, reach));
    }

    pub(crate) fn dial(&mut self, now: Time, from: Host, to: Host) -> ConnId {
        of!(self, net => net.dial(now, from, to))
    }

    pub(crate) fn send(&mut self, now: Time, id: ConnId, from: End, message: Frame, bytes: u64) {
        match self {
            Either::Messages(net) => drop(net.send(now, id, from, message, bytes)),
            // The stack counts bytes by itself.
            #[cfg(feature = "full-stack")]
            Either::Full(net) => drop(net.send(now, id, from, &message)),
        }
    }

    pub(crate) fn close(&mut self, now: Time, id: ConnId, end: End) {
        of!(self, net => net.close(now, id, end));
    }

    pub(crate) fn set_link(&mut self, from: Host, to: Host, link: Link) {
        of!(self, net => net.set_link(from, to, link));
    }

    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        of!(self, net => net.cut(from, to));
    }

    pub(crate) fn mend(&mut self, now: Time, from: Host, to: Host) {
        of!(self, net => net.mend(now, from, to));
    }

    pub(crate) fn reset(&mut self, now: Time, id: ConnId) {
        of!(self, net => net.reset(now, id));
    }

    pub(crate) fn abandon(&mut self, now: Time, id: ConnId, end: End, late: Span) {
        of!(self, net => net.abandon(now, id, end, late));
    }

    pub(crate) fn stall(&mut self, now: Time, id: ConnId, towards: End, span: Span) {
        of!(self, net => net.stall(now, id, towards, span));
    }

    pub(crate) fn vanish(&mut self, now: Time, host: Host, notice: Notice) {
        of!(self, net => net.vanish(now, host, notice));
    }

    pub(crate) fn heal(&mut self, now: Time) {
        of!(self, net => net.heal(now));
    }

    pub(crate) fn injected(&self) -> BTreeMap<&'static str, u64> {
        of!(self, net => net.injected().clone())
    }

    pub(crate) fn open_conns(&self) -> Vec<ConnId> {
        of!(self, net => net.open_conns().collect())
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        of!(self, net => net.next_at())
    }

    pub(crate) fn poll(&mut self, now: Time) -> Option<Event<Frame>> {
        of!(self, net => net.poll(now))
    }
}
