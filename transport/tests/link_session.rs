//! Both ends of a session as state machines, without a network: R01, R02, R03, R05, R07, R08, R11, R12, R13.

mod common;

use bytes::Bytes;
use common::{Rng, samples};
use engine::log::chain::Tip;
use engine::peer::{Ask, Batch, Jump, Needs, Rebuff, TakesBack};
use engine::types::{Checksum, Epoch, Incarnation, Lsn, Mono, Now, Position, Timestamp};
use samples::{batch, heartbeat, hello, position, welcome};
use std::collections::VecDeque;
use transport::link::decoder::Accept;
use transport::link::frame::{Acceptance, Frame, Heartbeat, Kind, MAX_BATCH_BYTES, Offer};
use transport::link::receiver::{self, Receiver};
use transport::link::sender::{self, Sender, Want};
use transport::link::session::{
    Config, FEATURES, MINOR, Reason, SCRUBS, SEEDS, SPANS, TAKES_BACK, Violation,
};

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms * 1_000_000), wall: Timestamp(1_000_000_000_000 + ms * 1_000_000) }
}

fn small() -> Config {
    Config { window_bytes: 100, batch_bytes: 40, unsettled_bytes: 2_000, ..Config::default() }
}

fn accept(features: u64) -> Frame {
    Frame::Welcome(Acceptance { minor: 0, features, welcome: welcome(77) })
}

/// A sender whose log is durable up to 99, in each state that is not closed, with a replica that has no feature.
fn senders(config: &Config) -> [(&'static str, Sender); 3] {
    senders_with(config, 0)
}

fn senders_with(config: &Config, features: u64) -> [(&'static str, Sender); 3] {
    let opening = || {
        let mut sender = Sender::new(config.clone(), at(0), hello(99), TakesBack::No);
        assert!(matches!(sender.poll_transmit(), Some(Frame::Hello(_))));
        sender
    };
    let attaching = || {
        let mut sender = opening();
        sender.handle_frame(at(1), accept(features));
        let needs = (features != 0).then(Needs::default);
        assert_eq!(sender.poll_event(), Some(sender::Event::Welcomed(welcome(77), needs)));
        assert!(matches!(sender.poll_transmit(), Some(Frame::Heartbeat(_))));
        sender
    };
    let mut streaming = attaching();
    streaming.handle_attached(None);
    [("opening", opening()), ("attaching", attaching()), ("streaming", streaming)]
}

fn streaming_sender(config: &Config) -> Sender {
    let [_, _, (_, sender)] = senders(config);
    sender
}

/// A receiver in each state that is not closed, with a primary that has no feature; the last one stands at 77.
fn receivers(config: &Config) -> [(&'static str, Receiver); 3] {
    receivers_with(config, 0)
}

fn receivers_with(config: &Config, features: u64) -> [(&'static str, Receiver); 3] {
    let listening = || Receiver::new(config.clone(), at(0));
    let deciding = || {
        let mut receiver = listening();
        receiver.handle_frame(at(1), Frame::Hello(Offer { minor: 9, features, hello: hello(99) }));
        let takes_back = (features != 0).then_some(TakesBack::No);
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Hello(hello(99), takes_back)));
        receiver
    };
    let mut streaming = deciding();
    streaming.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    assert!(matches!(streaming.poll_transmit(), Some(Frame::Welcome(_))));
    [("listening", listening()), ("deciding", deciding()), ("streaming", streaming)]
}

fn streaming_receiver(config: &Config) -> Receiver {
    let [_, _, (_, receiver)] = receivers(config);
    receiver
}

fn lost(reason: impl Into<Reason>) -> Option<sender::Event> {
    Some(sender::Event::Lost(reason.into()))
}

/// A frame of each kind, sound in itself.
fn sample(kind: Kind) -> Frame {
    match kind {
        Kind::Hello => Frame::Hello(Offer { minor: 0, features: 0, hello: hello(99) }),
        Kind::Welcome => accept(0),
        Kind::Rebuff => Frame::Rebuff(Rebuff::Failed),
        Kind::Batch => Frame::Batch(batch(78, 1, 1)),
        Kind::Ack => Frame::Ack(position(2, 77)),
        Kind::Heartbeat => Frame::Heartbeat(heartbeat(77)),
        Kind::Needs => Frame::Needs(Needs { coarse: true, lacks: Vec::new() }),
        Kind::Jump => Frame::Jump(samples::jump(77, 90)),
        Kind::Ask => Frame::Ask(Ask::Handover),
        Kind::Held => Frame::Held(vec![samples::held(1, 0, 4_096)]),
        Kind::Thin => Frame::Thin(samples::thin(78)),
    }
}

/// Which frames each state of the primary's end takes; any other ends the session, has no other effect, and
/// nothing is sent any more. Those of a feature are not taken without it (R18).
#[test]
fn sender_every_state_and_frame() {
    let legal: &[(&str, u64, &[Kind])] = &[
        ("opening", 0, &[Kind::Welcome, Kind::Rebuff, Kind::Needs]),
        ("attaching", 0, &[Kind::Rebuff, Kind::Heartbeat]),
        ("streaming", 0, &[Kind::Rebuff, Kind::Heartbeat, Kind::Ack]),
        ("opening", SPANS, &[Kind::Welcome, Kind::Rebuff, Kind::Needs]),
        ("attaching", SPANS, &[Kind::Rebuff, Kind::Heartbeat, Kind::Ask]),
        ("streaming", SPANS, &[Kind::Rebuff, Kind::Heartbeat, Kind::Ack, Kind::Ask]),
        ("opening", SPANS | SEEDS, &[Kind::Welcome, Kind::Rebuff, Kind::Needs]),
        ("attaching", SPANS | SEEDS, &[Kind::Rebuff, Kind::Heartbeat, Kind::Ask, Kind::Held]),
        ("streaming", SPANS | SEEDS, &[Kind::Rebuff, Kind::Heartbeat, Kind::Ack, Kind::Ask, Kind::Held]),
    ];
    for (row, (state, features, legal)) in legal.iter().enumerate() {
        for kind in Kind::ALL {
            let mut all = senders_with(&small(), *features).into_iter();
            let (name, mut sender) = all.nth(row % 3).expect("three states");
            assert_eq!(name, *state);
            sender.handle_frame(at(3), sample(kind));
            let event = sender.poll_event();
            if legal.contains(&kind) {
                assert!(!matches!(event, Some(sender::Event::Lost(_))), "{state}, {kind:?}: {event:?}");
            } else {
                let Some(sender::Event::Lost(reason)) = event else { panic!("{state}, {kind:?}: {event:?}") };
                let needs = match kind {
                    Kind::Ask => SPANS,
                    Kind::Held => SEEDS,
                    _ => 0,
                };
                assert_out_of_place(&reason, kind, *state != "opening" && needs & !features != 0);
                assert!(sender.is_closed());
                assert_eq!(
                    (sender.poll_event(), sender.poll_transmit(), sender.poll_timeout()),
                    (None, None, None)
                );
            }
        }
    }
}

/// As [`sender_every_state_and_frame`], for the replica's end.
#[test]
fn receiver_every_state_and_frame() {
    let legal: &[(&str, u64, &[Kind])] = &[
        ("listening", 0, &[Kind::Hello]),
        ("deciding", 0, &[]),
        ("streaming", 0, &[Kind::Batch, Kind::Heartbeat]),
        ("listening", SPANS, &[Kind::Hello]),
        ("deciding", SPANS, &[]),
        ("streaming", SPANS, &[Kind::Batch, Kind::Heartbeat, Kind::Jump]),
        ("listening", SPANS | SEEDS, &[Kind::Hello]),
        ("deciding", SPANS | SEEDS, &[]),
        ("streaming", SPANS | SEEDS, &[Kind::Batch, Kind::Thin, Kind::Heartbeat, Kind::Jump]),
    ];
    for (row, (state, features, legal)) in legal.iter().enumerate() {
        for kind in Kind::ALL {
            let mut all = receivers_with(&small(), *features).into_iter();
            let (name, mut receiver) = all.nth(row % 3).expect("three states");
            assert_eq!(name, *state);
            receiver.handle_frame(at(3), sample(kind));
            let event = receiver.poll_event();
            if legal.contains(&kind) {
                assert!(!matches!(event, Some(receiver::Event::Lost(_))), "{state}, {kind:?}: {event:?}");
            } else {
                let Some(receiver::Event::Lost(reason)) = event else {
                    panic!("{state}, {kind:?}: {event:?}");
                };
                let needs = match kind {
                    Kind::Jump => SPANS,
                    Kind::Thin => SEEDS,
                    _ => 0,
                };
                assert_out_of_place(&reason, kind, *state == "streaming" && needs & !features != 0);
                assert!(receiver.is_closed() && !receiver.wants_input());
                assert_eq!(
                    (receiver.poll_event(), receiver.poll_transmit(), receiver.poll_timeout()),
                    (None, None, None)
                );
            }
        }
    }
}

/// The frame has no place in the state, or would have one if its feature were in force.
fn assert_out_of_place(reason: &Reason, kind: Kind, lacks_feature: bool) {
    match reason {
        Reason::Violation(Violation::Unexpected { frame, .. }) => {
            assert_eq!((*frame, lacks_feature), (kind, false));
        }
        Reason::Violation(Violation::NotInForce { frame }) => {
            assert_eq!((*frame, lacks_feature), (kind, true));
        }
        other => panic!("{kind:?}: {other}"),
    }
}

/// A closed session ignores whatever still arrives, at either end.
#[test]
fn closed_sessions_ignore_everything() {
    let mut sender = streaming_sender(&small());
    sender.handle_frame(at(3), Frame::Rebuff(Rebuff::NoSpace));
    assert_eq!(sender.poll_event(), Some(sender::Event::Rebuffed(Rebuff::NoSpace)));
    assert_eq!(sender.poll_event(), lost(Reason::Rebuffed));
    let mut receiver = streaming_receiver(&small());
    receiver.handle_frame(at(3), Frame::Ack(position(2, 77)));
    assert!(matches!(receiver.poll_event(), Some(receiver::Event::Lost(_))));
    for (_, frame) in samples::frames() {
        sender.handle_frame(at(4), frame.clone());
        receiver.handle_frame(at(4), frame);
    }
    sender.handle_attached(None);
    sender.handle_records(batch(78, 1, 1));
    sender.handle_timeout(at(100_000));
    receiver.handle_verdict(at(5), Ok((Needs::default(), welcome(77))));
    receiver.handle_rebuff(Rebuff::Failed);
    receiver.handle_ask(Ask::Handover);
    receiver.handle_durable(at(5), position(2, 78));
    receiver.handle_timeout(at(100_000));
    assert_eq!((sender.poll_event(), sender.poll_transmit(), sender.poll_want()), (None, None, None));
    assert_eq!((receiver.poll_event(), receiver.poll_transmit()), (None, None));
}

/// The opening as both sides see it; the hello carries epoch, position and checksum (R11), the welcome the
/// features that both have (R18).
#[test]
fn opening() {
    let mut sender = Sender::new(Config::default(), at(0), hello(99), TakesBack::No);
    let mut receiver = Receiver::new(Config::default(), at(0));
    assert_eq!(receiver.accepts(), Accept::Control);
    let Some(frame) = sender.poll_transmit() else { panic!("the hello is ready at once") };
    assert_eq!(
        frame,
        Frame::Hello(Offer { minor: MINOR, features: SPANS | SCRUBS | SEEDS, hello: hello(99) })
    );
    receiver.handle_frame(at(1), frame);
    assert!(!receiver.wants_input(), "nothing is read while the engine decides");
    assert_eq!(receiver.poll_event(), Some(receiver::Event::Hello(hello(99), Some(TakesBack::No))));
    assert_eq!(receiver.poll_transmit(), None);
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    assert_eq!((receiver.accepts(), receiver.wants_input()), (Accept::Batches, true));
    sender.handle_frame(at(3), receiver.poll_transmit().expect("the welcome"));
    assert_eq!(sender.poll_event(), Some(sender::Event::Welcomed(welcome(77), Some(Needs::default()))));
    assert_eq!(sender.poll_want(), None, "nothing is shipped before the engine has verified the welcome");
    sender.handle_attached(None);
    assert_eq!(sender.poll_want(), Some(Want { from: Lsn(78), max_bytes: 1 << 20 }));
}

/// R18: a newer primary offers features that this replica does not know; the answer names none of them. A
/// replica that accepts what was not offered is broken.
#[test]
fn features_are_the_intersection() {
    let mut receiver = Receiver::new(Config::default(), at(0));
    receiver.handle_frame(at(1), Frame::Hello(Offer { minor: 7, features: u64::MAX, hello: hello(99) }));
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    let Some(Frame::Welcome(acceptance)) = receiver.poll_transmit() else { panic!("a welcome") };
    assert_eq!(acceptance.features, FEATURES);

    for (takes_back, offered) in [(TakesBack::No, SPANS | SCRUBS | SEEDS), (TakesBack::Yes, FEATURES)] {
        for accepted in [!offered, 1 << 63, TAKES_BACK | 1 << 4] {
            let mut sender = Sender::new(Config::default(), at(0), hello(99), takes_back);
            sender.handle_frame(at(1), accept(accepted));
            assert_eq!(sender.poll_event(), lost(Violation::Features { offered, accepted }));
        }
    }
}

/// Guarantee 2: what is not durable here is not wanted, and not taken.
#[test]
fn nothing_above_the_durable_lsn_is_shipped() {
    let mut sender = streaming_sender(&small());
    sender.handle_records(batch(78, 22, 1));
    assert!(matches!(sender.poll_transmit(), Some(Frame::Batch(_))));
    assert_eq!(sender.poll_want(), None, "all up to 99 was sent");
    sender.handle_durable(Lsn(100));
    assert_eq!(sender.poll_want(), Some(Want { from: Lsn(100), max_bytes: 40 }));
}

/// As above: a driver that tries is stopped.
#[test]
#[should_panic(expected = "LSN 100 is above the durable 99")]
fn a_batch_above_the_durable_lsn_is_a_bug() {
    streaming_sender(&small()).handle_records(batch(78, 23, 1));
}

/// As above: so is one that leaves a gap.
#[test]
#[should_panic(expected = "does not continue what was sent")]
fn a_batch_with_a_gap_is_a_bug() {
    streaming_sender(&small()).handle_records(batch(79, 1, 1));
}

/// R13: whatever the replica does not acknowledge, bytes in flight stay within the window; one acknowledgement
/// opens it again. A single record may be longer than the window.
#[test]
fn the_window_bounds_what_is_in_flight() {
    let mut sender = streaming_sender(&small());
    sender.handle_durable(Lsn(10_000));
    let mut next = 78;
    while let Some(want) = sender.poll_want() {
        assert_eq!(want, Want { from: Lsn(next), max_bytes: 40 });
        sender.handle_records(batch(next, 2, 20));
        assert_eq!(sender.poll_want(), None, "one batch at a time waits for transmission");
        assert!(matches!(sender.poll_transmit(), Some(Frame::Batch(_))));
        next += 2;
    }
    assert_eq!((sender.in_flight_bytes(), next), (80, 82));
    // An acknowledgement may lie in the middle of a batch: the batch counts until all of it is durable.
    sender.handle_frame(at(3), Frame::Ack(position(2, 78)));
    assert_eq!((sender.in_flight_bytes(), sender.poll_want()), (80, None));
    sender.handle_frame(at(3), Frame::Ack(position(2, 79)));
    assert_eq!(sender.in_flight_bytes(), 40);
    let want = sender.poll_want().expect("there is room again");
    let huge =
        Batch { first: want.from, last: want.from, bytes: vec![Bytes::from(vec![1; MAX_BATCH_BYTES])] };
    sender.handle_records(huge);
    assert_eq!(sender.in_flight_bytes(), 40 + MAX_BATCH_BYTES);
    assert!(matches!(sender.poll_transmit(), Some(Frame::Batch(_))));
    assert_eq!(sender.poll_want(), None);
    sender.handle_frame(at(4), Frame::Ack(position(2, want.from.0)));
    assert_eq!(sender.in_flight_bytes(), 0);
    assert!(sender.poll_want().is_some());
}

/// The number of batches in flight is limited, too: tiny ones take more memory than their bytes.
#[test]
fn the_number_of_batches_in_flight_is_bounded() {
    let mut sender = streaming_sender(&Config { max_batches: 3, ..Config::default() });
    for lsn in 78..81 {
        assert!(sender.poll_want().is_some());
        sender.handle_records(batch(lsn, 1, 1));
        assert!(sender.poll_transmit().is_some());
    }
    assert_eq!(sender.poll_want(), None);
    sender.handle_frame(at(3), Frame::Ack(position(2, 78)));
    assert!(sender.poll_want().is_some());
}

/// A record that no frame can carry ends the session instead of the process.
#[test]
fn a_record_that_fits_no_frame_ends_the_session() {
    let mut sender = streaming_sender(&Config::default());
    let bytes = vec![Bytes::from(vec![1; MAX_BATCH_BYTES + 1])];
    sender.handle_records(Batch { first: Lsn(78), last: Lsn(78), bytes });
    assert!(matches!(sender.poll_event(), Some(sender::Event::Lost(Reason::Unsendable(_)))));
    assert_eq!(sender.poll_transmit(), None);
}

/// R02: an acknowledgement of what was never sent ends the session; nothing advances.
#[test]
fn lying_acks_never_advance() {
    for lsn in [80, 99, 100, u64::MAX] {
        let mut sender = streaming_sender(&small());
        sender.handle_records(batch(78, 2, 1));
        assert!(sender.poll_transmit().is_some());
        let lie = Position { lsn: Lsn(lsn), ..position(2, 79) };
        sender.handle_frame(at(3), Frame::Ack(lie));
        assert_eq!(
            sender.poll_event(),
            lost(Violation::AckBeyondSent { acked: Lsn(lsn), sent: Lsn(79) }),
            "no Acked event before it"
        );
    }
}

/// R02: acknowledgements never go back, in LSN or epoch, and do not change their mind about a checksum. The same
/// one again does no harm.
#[test]
fn acks_never_go_back() {
    let start = || {
        let mut sender = streaming_sender(&small());
        sender.handle_records(batch(78, 4, 1));
        assert!(sender.poll_transmit().is_some());
        sender.handle_frame(at(3), Frame::Ack(position(2, 80)));
        assert_eq!(sender.poll_event(), Some(sender::Event::Acked(position(2, 80))));
        sender.handle_frame(at(3), Frame::Ack(position(2, 80)));
        assert_eq!(sender.poll_event(), None, "a repeated one is no news");
        sender
    };
    for after in [
        position(2, 79),
        position(2, 0),
        position(1, 81),
        Position { checksum: Checksum(1), ..position(2, 80) },
    ] {
        let mut sender = start();
        sender.handle_frame(at(4), Frame::Ack(after));
        assert_eq!(sender.poll_event(), lost(Violation::AckWentBack { before: position(2, 80), after }));
    }
    let mut sender = start();
    sender.handle_frame(at(4), Frame::Ack(position(2, 81)));
    assert_eq!(sender.poll_event(), Some(sender::Event::Acked(position(2, 81))));
}

/// R07: a replica that was promoted stands in a later epoch: its position is never taken for an acknowledgement.
#[test]
fn a_position_of_a_later_epoch_is_no_ack() {
    let mut sender = streaming_sender(&small());
    sender.handle_records(batch(78, 4, 1));
    sender.handle_frame(at(4), Frame::Ack(position(3, 79)));
    assert_eq!(sender.poll_event(), lost(Violation::AckFromBeyond { acked: Epoch(3), own: Epoch(2) }));
}

/// R01: a batch repeated, skipped, overlapping, going back or from the future: refused, and nothing of it is
/// appended.
#[test]
fn batches_must_be_contiguous() {
    for first in [1, 77, 78, 79, 81, 1000] {
        let mut receiver = streaming_receiver(&small());
        receiver.handle_frame(at(3), Frame::Batch(batch(78, 2, 5)));
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Append(batch(78, 2, 5))));
        receiver.handle_frame(at(3), Frame::Batch(batch(first, 2, 5)));
        assert_eq!(
            receiver.poll_event(),
            Some(receiver::Event::Lost(Violation::Gap { expected: Lsn(80), first: Lsn(first) }.into()))
        );
    }
}

/// R03: an acknowledgement comes from durability alone, never from receipt; those that wait become one.
#[test]
fn acks_follow_durability_and_are_coalesced() {
    let mut receiver = streaming_receiver(&small());
    receiver.handle_frame(at(3), Frame::Batch(batch(78, 10, 5)));
    assert_eq!(receiver.poll_transmit(), None, "received is not durable");
    receiver.handle_durable(at(4), position(2, 77));
    assert_eq!(receiver.poll_transmit(), None, "the welcome said so already");
    for lsn in [79, 82, 85] {
        receiver.handle_durable(at(5), position(2, lsn));
    }
    assert_eq!(receiver.poll_transmit(), Some(Frame::Ack(position(2, 85))));
    receiver.handle_durable(at(6), position(2, 80));
    assert_eq!(receiver.poll_transmit(), None, "never back");
}

/// R03, R07: a promotion moves this node's durable position beyond what the session brought: that is not
/// acknowledged to the old primary.
#[test]
fn what_the_session_did_not_bring_is_not_acknowledged() {
    let mut receiver = streaming_receiver(&small());
    receiver.handle_frame(at(3), Frame::Batch(batch(78, 2, 5)));
    receiver.handle_durable(at(4), position(3, 80));
    assert_eq!(receiver.poll_transmit(), None);
}

/// R13: above the limit of received and not yet durable bytes nothing more is read, whatever the size of the
/// batches; durability opens it again.
#[test]
fn unsettled_bytes_stop_the_reading() {
    for len in [1, 100, 5_000] {
        let mut receiver = streaming_receiver(&small());
        let mut next = 78;
        while receiver.wants_input() {
            receiver.handle_frame(at(3), Frame::Batch(batch(next, 1, len)));
            next += 1;
            assert!(next < 100, "batches of {len} bytes are never too many");
        }
        assert!(receiver.unsettled_bytes() > 2_000);
        assert!(receiver.unsettled_bytes() <= 2_000 + len + 256);
        receiver.handle_durable(at(4), position(2, next - 1));
        assert_eq!((receiver.unsettled_bytes(), receiver.wants_input()), (0, true));
    }
}

/// R05: no space, or a failed log, in mid-session: the primary is told why; batches not yet taken are dropped
/// unacknowledged.
#[test]
fn a_rebuff_in_mid_session_reaches_the_primary() {
    for rebuff in [Rebuff::NoSpace, Rebuff::Failed, Rebuff::Superseded { history: samples::history() }] {
        let mut receiver = streaming_receiver(&small());
        receiver.handle_frame(at(3), Frame::Batch(batch(78, 2, 5)));
        receiver.handle_durable(at(4), position(2, 78));
        receiver.handle_rebuff(rebuff.clone());
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Lost(Reason::Rebuffed)));
        let frame = receiver.poll_transmit().expect("the rebuff is still sent");
        assert_eq!(receiver.poll_transmit(), None, "and nothing behind it");
        let mut sender = streaming_sender(&small());
        sender.handle_frame(at(5), frame);
        assert_eq!(sender.poll_event(), Some(sender::Event::Rebuffed(rebuff)));
        assert_eq!(sender.poll_event(), lost(Reason::Rebuffed));
    }
}

/// R07, R08: the answers to a stale and to a rival primary carry the whole other history.
#[test]
fn a_refused_hello_carries_the_history() {
    for rebuff in
        [Rebuff::Superseded { history: samples::history() }, Rebuff::Rival { history: samples::history() }]
    {
        let [_, (_, mut receiver), _] = receivers(&small());
        receiver.handle_verdict(at(2), Err(rebuff.clone()));
        assert!(receiver.is_closed());
        let [(_, mut sender), _, _] = senders(&small());
        sender.handle_frame(at(3), receiver.poll_transmit().expect("the rebuff"));
        assert_eq!(sender.poll_event(), Some(sender::Event::Rebuffed(rebuff)));
        assert_eq!(sender.poll_event(), lost(Reason::Rebuffed));
    }
}

/// R12: both ends send heartbeats, with wall clock and durable LSN, and end the session when they hear none.
#[test]
fn silence_ends_a_session() {
    let mut sender = streaming_sender(&small());
    let mut receiver = streaming_receiver(&small());
    // For a minute, heartbeats alone keep it up.
    let mut heard = (0, 0);
    for ms in (0..60_000).step_by(100) {
        let now = at(ms);
        sender.handle_timeout(now);
        receiver.handle_timeout(now);
        while let Some(frame) = sender.poll_transmit() {
            receiver.handle_frame(now, frame);
        }
        while let Some(frame) = receiver.poll_transmit() {
            sender.handle_frame(now, frame);
        }
        while let Some(event) = receiver.poll_event() {
            let expected = Heartbeat { wall: now.wall, durable: Lsn(99) };
            assert_eq!(event, receiver::Event::Heard(expected));
            heard.0 += 1;
        }
        while let Some(event) = sender.poll_event() {
            assert_eq!(event, sender::Event::Heard(Heartbeat { wall: now.wall, durable: Lsn(77) }));
            heard.1 += 1;
        }
    }
    assert!(heard.0 >= 50 && heard.1 >= 50, "{heard:?}");
    // Then the network goes black.
    for end in 0..2 {
        let deadline = loop {
            let next = [sender.poll_timeout(), receiver.poll_timeout()][end];
            let Some(next) = next else { break None };
            let now = Now { mono: next, ..at(0) };
            if end == 0 {
                sender.handle_timeout(now);
                while sender.poll_transmit().is_some() {}
                if let Some(event) = sender.poll_event() {
                    assert_eq!(event, sender::Event::Lost(Reason::Silent { ms: 5_000 }));
                    break Some(next);
                }
            } else {
                receiver.handle_timeout(now);
                while receiver.poll_transmit().is_some() {}
                if let Some(event) = receiver.poll_event() {
                    assert_eq!(event, receiver::Event::Lost(Reason::Silent { ms: 5_000 }));
                    break Some(next);
                }
            }
        };
        let deadline = deadline.expect("the session ends").ms_since(Mono(0));
        assert!((63_000..=65_000).contains(&deadline), "{deadline} ms");
    }
}

/// R12: a frame of 32 MiB on a slow line: its bytes are signs of life before the frame is whole.
#[test]
fn bytes_of_an_unfinished_frame_are_signs_of_life() {
    let mut receiver = streaming_receiver(&small());
    let mut sender = streaming_sender(&small());
    for ms in (0..60_000).step_by(1_000) {
        receiver.handle_timeout(at(ms));
        receiver.handle_activity(at(ms));
        sender.handle_timeout(at(ms));
        sender.handle_activity(at(ms));
    }
    assert!(!receiver.is_closed() && !sender.is_closed());
}

/// R13: a replica that does not read cannot hear, so it does not take the primary's silence for death; once it
/// reads again it does.
#[test]
fn a_paused_receiver_does_not_time_out() {
    let mut receiver = streaming_receiver(&small());
    receiver.handle_frame(at(3), Frame::Batch(batch(78, 1, 3_000)));
    assert!(!receiver.wants_input());
    receiver.handle_activity(at(4));
    receiver.handle_timeout(at(60_000));
    assert!(!receiver.is_closed());
    assert!(
        matches!(receiver.poll_transmit(), Some(Frame::Heartbeat(_))),
        "but it still says that it is there"
    );
    receiver.handle_durable(at(60_000), position(2, 78));
    assert!(receiver.wants_input());
    receiver.handle_timeout(at(64_999));
    assert!(!receiver.is_closed());
    receiver.handle_timeout(at(65_000));
    assert!(receiver.is_closed());
}

/// R19: a peer that connects and says nothing, and a replica that never answers.
#[test]
fn an_opening_that_does_not_come_ends_the_session() {
    let [(_, mut sender), _, _] = senders(&small());
    let mut receiver = Receiver::new(small(), at(0));
    // Trickled bytes do not extend the time for a hello.
    receiver.handle_activity(at(9_000));
    sender.handle_activity(at(9_000));
    for deadline in [sender.poll_timeout(), receiver.poll_timeout()] {
        assert_eq!(deadline, Some(at(10_000).mono));
    }
    sender.handle_timeout(at(10_000));
    receiver.handle_timeout(at(10_000));
    assert_eq!(sender.poll_event(), lost(Reason::Opening { ms: 10_000 }));
    assert_eq!(receiver.poll_event(), Some(receiver::Event::Lost(Reason::Opening { ms: 10_000 })));
}

/// Heartbeats do not pile up behind a blocked stream.
#[test]
fn waiting_heartbeats_become_one() {
    let mut sender = streaming_sender(&small());
    for ms in 1..60 {
        sender.handle_timeout(at(ms * 1_000));
        sender.handle_activity(at(ms * 1_000));
    }
    let Some(Frame::Heartbeat(newest)) = sender.poll_transmit() else { panic!("a heartbeat waits") };
    assert_eq!(newest.wall, at(59_000).wall);
    assert_eq!(sender.poll_transmit(), None);
}

/// R01, R02, R03, R05, R12, R13: random histories over lines that lose their ends. At every step the replica
/// holds a prefix of what was durable at the primary, acknowledged ≤ durable at the replica, and what is in
/// flight is bounded; in the end both are equal.
#[test]
fn invariants_over_random_histories() {
    let (mut lines_lost, mut paused, mut refused, mut jumps, mut asked) = (0, 0, 0, 0, 0);
    for seed in 0..500 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step(true);
            world.invariant_order();
        }
        for _ in 0..5_000 {
            world.step(false);
            world.invariant_order();
            if world.replica_durable == world.durable && world.acked == world.durable {
                break;
            }
        }
        assert_eq!(world.replica_durable, world.durable, "seed {seed}: the replica catches up");
        assert_eq!(world.acked, world.durable, "seed {seed}: and the primary knows");
        lines_lost += world.lines_lost;
        paused += world.paused;
        refused += world.refused;
        jumps += world.jumps;
        asked += world.asked;
        assert!(world.knows_spans || world.jumps + world.asked == 0, "seed {seed}: as before them");
    }
    assert!(lines_lost > 1_000 && paused > 100 && refused > 100, "{lines_lost} {paused} {refused}");
    assert!(jumps > 500 && asked > 500, "{jumps} {asked}");
}

/// A primary and a replica whose records are one byte for each LSN (its low byte), on virtual time.
struct World {
    rng: Rng,
    now: u64,
    config: Config,
    durable: u64,
    replica: Vec<u8>,
    replica_durable: u64,
    acked: u64,
    line: Option<Line>,
    lines_lost: u64,
    paused: u64,
    refused: u64,
    /// Else an end of each session is of the version before sync spans.
    knows_spans: bool,
    jumps: u64,
    asked: u64,
}

struct Line {
    sender: Sender,
    receiver: Receiver,
    there: VecDeque<Frame>,
    back: VecDeque<Frame>,
}

impl World {
    fn new(seed: u64) -> World {
        let config = Config {
            window_bytes: 60,
            batch_bytes: 20,
            max_batches: 4,
            unsettled_bytes: 600,
            ..Config::default()
        };
        World {
            rng: Rng(seed),
            now: 0,
            config,
            durable: 0,
            replica: Vec::new(),
            replica_durable: 0,
            acked: 0,
            line: None,
            lines_lost: 0,
            paused: 0,
            refused: 0,
            knows_spans: !seed.is_multiple_of(4),
            jumps: 0,
            asked: 0,
        }
    }

    fn position(lsn: u64) -> Position {
        if lsn == 0 { Position::default() } else { Position { epoch: Epoch(1), ..position(1, lsn) } }
    }

    fn tip(lsn: u64) -> Tip {
        let Position { epoch, lsn, checksum } = World::position(lsn);
        Tip { lsn, epoch, incarnation: Incarnation(1), checksum }
    }

    fn step(&mut self, faults: bool) {
        self.now += 1 + self.rng.below(20);
        let now = at(self.now);
        if faults {
            self.durable += self.rng.below(8);
        }
        let sync = self.rng.below(if faults { 6 } else { 2 }) == 0;
        if sync {
            self.replica_durable = self.replica.len() as u64;
        }
        let Some(mut line) = self.line.take() else {
            let mut greeting = hello(0);
            greeting.durable = World::position(self.durable);
            self.line = Some(Line {
                sender: Sender::new(self.config.clone(), now, greeting, TakesBack::No),
                receiver: Receiver::new(self.config.clone(), now),
                there: VecDeque::new(),
                back: VecDeque::new(),
            });
            return;
        };
        if faults && self.rng.below(25) == 0 {
            // The line breaks; with it, at times, what the replica had not synced.
            self.lines_lost += 1;
            if self.rng.below(2) == 0 {
                self.replica.truncate(self.replica_durable as usize);
            }
            return;
        }
        line.sender.handle_durable(Lsn(self.durable));
        line.receiver.handle_durable(now, World::position(self.replica_durable));
        line.sender.handle_timeout(now);
        line.receiver.handle_timeout(now);
        if let Some(want) = line.sender.poll_want() {
            let last = self.durable.min(want.from.0 + self.rng.below(want.max_bytes as u64));
            let bytes: Vec<u8> = (want.from.0..=last).map(|lsn| lsn as u8).collect();
            line.sender.handle_records(Batch {
                first: want.from,
                last: Lsn(last),
                bytes: vec![Bytes::from(bytes)],
            });
        }
        // The line holds a few frames: a peer that does not read holds the other.
        while line.there.len() < 3 {
            let Some(mut frame) = line.sender.poll_transmit() else { break };
            if let Frame::Hello(offer) = &mut frame
                && !self.knows_spans
            {
                offer.features = 0;
            }
            line.there.push_back(frame);
        }
        if self.rng.below(20) == 0 {
            line.receiver.handle_ask(Ask::Repair(samples::lack(1, self.now, 512)));
        }
        line.back.extend(std::iter::from_fn(|| line.receiver.poll_transmit()));
        if !line.receiver.wants_input() {
            self.paused += 1;
        } else if self.rng.below(3) > 0
            && let Some(frame) = line.there.pop_front()
        {
            line.receiver.handle_frame(now, frame);
        }
        while self.rng.below(3) > 0 {
            let Some(frame) = line.back.pop_front() else { break };
            line.sender.handle_frame(now, frame);
        }
        while let Some(event) = line.receiver.poll_event() {
            match event {
                receiver::Event::Hello(_, takes_back) => {
                    assert_eq!(takes_back, self.knows_spans.then_some(TakesBack::No));
                    // What an older session brought and nobody synced is synced before the answer.
                    self.replica_durable = self.replica.len() as u64;
                    let mut answer = welcome(0);
                    answer.durable = World::position(self.replica_durable);
                    let no_space = faults && self.rng.below(10) == 0;
                    self.refused += u64::from(no_space);
                    let count = if self.knows_spans { self.rng.below(3) * 2_047 } else { 0 };
                    let needs = Needs { coarse: false, lacks: samples::lacks(count as usize) };
                    let verdict = if no_space { Err(Rebuff::NoSpace) } else { Ok((needs, answer)) };
                    line.receiver.handle_verdict(now, verdict);
                }
                receiver::Event::Jump(jump) => {
                    assert_eq!(jump.from, World::position(self.replica.len() as u64), "in its place");
                    // As if the records had come, in this world.
                    let first = self.replica.len() as u64 + 1;
                    self.replica.extend((first..=jump.to.lsn.0).map(|lsn| lsn as u8));
                    self.jumps += 1;
                }
                receiver::Event::Append(batch) => {
                    assert_eq!(batch.first.0, self.replica.len() as u64 + 1, "appended in order");
                    self.replica.extend(batch.bytes.concat());
                    if faults && self.rng.below(30) == 0 {
                        line.receiver.handle_rebuff(Rebuff::NoSpace);
                        self.refused += 1;
                    }
                }
                receiver::Event::Heard(heard) => assert!(heard.durable.0 <= self.durable),
                receiver::Event::AppendThin(_) => panic!("no seed was told of"),
                receiver::Event::Lost(reason) => assert_eq!(reason, Reason::Rebuffed),
            }
        }
        let mut over = false;
        while let Some(event) = line.sender.poll_event() {
            match event {
                sender::Event::Welcomed(welcome, needs) => {
                    assert!(welcome.durable.lsn.0 >= self.acked, "the replica went back");
                    assert_eq!(needs.is_some(), self.knows_spans);
                    if let Some(needs) = &needs {
                        assert_eq!(needs.lacks, samples::lacks(needs.lacks.len()), "whole and in order");
                        assert_eq!(needs.lacks.len() % 2_047, 0);
                    }
                    let ahead = self.durable - welcome.durable.lsn.0;
                    let to = welcome.durable.lsn.0 + self.rng.below(ahead + 1);
                    let jumps = needs.is_some() && to > welcome.durable.lsn.0;
                    line.sender
                        .handle_attached(jumps.then(|| Jump { from: welcome.durable, to: World::tip(to) }));
                    self.acked = welcome.durable.lsn.0;
                }
                sender::Event::Acked(position) => {
                    assert!(position.lsn.0 > self.acked);
                    self.acked = position.lsn.0;
                }
                sender::Event::Asked(_) => self.asked += 1,
                sender::Event::Heard(heard) => assert!(heard.durable.0 <= self.replica_durable),
                sender::Event::Rebuffed(rebuff) => assert_eq!(rebuff, Rebuff::NoSpace),
                sender::Event::Lost(reason) => {
                    assert_eq!(reason, Reason::Rebuffed);
                    over = true;
                }
            }
        }
        assert!(line.sender.in_flight_bytes() <= self.config.window_bytes);
        assert!(line.receiver.unsettled_bytes() <= self.config.unsettled_bytes + 20 + 256);
        if !over {
            self.line = Some(line);
        }
    }

    fn invariant_order(&self) {
        assert!(self.acked <= self.replica_durable, "acknowledged ≤ replica-durable");
        assert!(self.replica_durable <= self.replica.len() as u64, "replica-durable ≤ received");
        assert!(self.replica.len() as u64 <= self.durable, "received ≤ durable");
        let expected = (1..=self.replica.len() as u64).map(|lsn| lsn as u8);
        assert!(self.replica.iter().copied().eq(expected), "the replica holds a prefix");
    }
}
