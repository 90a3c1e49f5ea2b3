//! What sync spans need of a session, at both its ends as state machines: needs, a jump, asks (R06, R09, R18, R19).

mod common;

use bytes::Bytes;
use common::{Rng, samples};
use engine::peer::{Ask, Batch, Jump, MAX_LACKS, Needs, Rebuff, TakesBack};
use engine::seeds::Thin;
use engine::types::{Checksum, Epoch, Lsn, Mono, Now, Position, Timestamp};
use samples::{batch, hello, jump, lack, lacks, position, welcome};
use transport::link::decoder::{Accept, Decoder};
use transport::link::frame::{Acceptance, Frame, LACKS_PER_FRAME, Offer};
use transport::link::receiver::{self, Receiver};
use transport::link::sender::{self, Sender, Want};
use transport::link::session::{Config, MAX_ASKS, Reason, SCRUBS, SEEDS, SPANS, TAKES_BACK, Violation};

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms * 1_000_000), wall: Timestamp(ms * 1_000_000) }
}

fn config() -> Config {
    Config { batch_bytes: 40, ..Config::default() }
}

fn accept(features: u64) -> Frame {
    Frame::Welcome(Acceptance { minor: 0, features, welcome: welcome(77) })
}

/// A primary whose log is durable up to 99, before the answer to its hello.
fn opening_sender() -> Sender {
    let mut sender = Sender::new(config(), at(0), hello(99), TakesBack::No);
    assert!(matches!(sender.poll_transmit(), Some(Frame::Hello(_))));
    sender
}

/// As above, welcomed at 77 by a replica with these features.
fn attaching_sender(features: u64) -> Sender {
    let mut sender = opening_sender();
    sender.handle_frame(at(1), accept(features));
    assert!(matches!(sender.poll_event(), Some(sender::Event::Welcomed(..))));
    assert!(matches!(sender.poll_transmit(), Some(Frame::Heartbeat(_))));
    sender
}

/// A replica that judges a hello with these features.
fn deciding_receiver(features: u64) -> Receiver {
    let mut receiver = Receiver::new(config(), at(0));
    receiver.handle_frame(at(1), Frame::Hello(Offer { minor: 0, features, hello: hello(99) }));
    assert!(matches!(receiver.poll_event(), Some(receiver::Event::Hello(..))));
    receiver
}

/// As above, welcoming at 77.
fn streaming_receiver(features: u64) -> Receiver {
    let mut receiver = deciding_receiver(features);
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    assert!(matches!(receiver.poll_transmit(), Some(Frame::Welcome(_))));
    receiver
}

fn frames(receiver: &mut Receiver) -> Vec<Frame> {
    std::iter::from_fn(|| receiver.poll_transmit()).collect()
}

/// Through the bytes and back.
fn carried(frame: &Frame) -> Frame {
    let mut pieces = Vec::new();
    frame.encode(&mut pieces).expect("within the limits");
    let mut decoder = Decoder::new(Accept::Control);
    decoder.push(Bytes::from(pieces.concat()));
    decoder.poll().expect("sound").expect("whole")
}

fn lost(violation: Violation) -> Option<sender::Event> {
    Some(sender::Event::Lost(violation.into()))
}

fn gone(violation: Violation) -> Option<receiver::Event> {
    Some(receiver::Event::Lost(violation.into()))
}

/// R06: what a replica lacks arrives whole and in order, with the welcome, in as many frames as it takes; who lacks
/// nothing sends none.
#[test]
fn needs_arrive_whole_before_the_welcome() {
    let full = LACKS_PER_FRAME;
    for (coarse, count, expected) in [
        (false, 0, 0),
        (true, 0, 1),
        (false, 1, 1),
        (true, full, 1),
        (false, full + 1, 2),
        (true, 100_000, 49),
        (false, MAX_LACKS, MAX_LACKS / full),
    ] {
        let needs = Needs { coarse, lacks: lacks(count) };
        let mut receiver = deciding_receiver(SPANS);
        receiver.handle_verdict(at(2), Ok((needs.clone(), welcome(77))));
        let frames = frames(&mut receiver);
        assert_eq!(frames.len(), expected + 1, "{count} lacks");
        let mut sender = opening_sender();
        for frame in &frames {
            assert_eq!(sender.poll_event(), None, "nothing is known before the welcome");
            sender.handle_frame(at(3), carried(frame));
        }
        assert_eq!(sender.poll_event(), Some(sender::Event::Welcomed(welcome(77), Some(needs))));
    }
}

/// R12, R13: long needs on a slow line: each frame extends the time for the opening, single bytes do not, and
/// the replica hears that its primary is alive from the first frame on.
#[test]
fn long_needs_may_take_their_time() {
    let mut receiver = deciding_receiver(SPANS);
    receiver.handle_verdict(
        at(0),
        Ok((Needs { coarse: false, lacks: lacks(20 * LACKS_PER_FRAME) }, welcome(77))),
    );
    let mut sender = opening_sender();
    let mut heartbeats = 0;
    for ms in (0..80_000).step_by(500) {
        if ms % 4_000 == 0 {
            sender.handle_frame(at(ms), receiver.poll_transmit().expect("twenty frames"));
        }
        sender.handle_activity(at(ms));
        sender.handle_timeout(at(ms));
        receiver.handle_timeout(at(ms));
        while let Some(frame) = sender.poll_transmit() {
            heartbeats += u64::from(matches!(frame, Frame::Heartbeat(_)));
            receiver.handle_frame(at(ms), frame);
        }
        assert!(!sender.is_closed() && !receiver.is_closed(), "at {ms} ms");
    }
    assert!(heartbeats >= 79, "{heartbeats}");
    // Of the last frame, some bytes come, again and again, but never all of them.
    for ms in (80_000..87_000).step_by(500) {
        sender.handle_activity(at(ms));
        sender.handle_timeout(at(ms));
    }
    assert_eq!(sender.poll_event(), Some(sender::Event::Lost(Reason::Opening { ms: 10_000 })));
}

/// R19: more lacks than a primary holds in memory for a replica.
#[test]
fn too_many_lacks_end_the_session() {
    let mut sender = opening_sender();
    for part in lacks(MAX_LACKS).chunks(LACKS_PER_FRAME) {
        sender.handle_frame(at(1), Frame::Needs(Needs { coarse: false, lacks: part.to_vec() }));
    }
    assert_eq!(sender.poll_event(), None);
    sender.handle_frame(at(1), Frame::Needs(Needs { coarse: false, lacks: vec![lack(1, 0, 1)] }));
    assert_eq!(sender.poll_event(), lost(Violation::TooManyLacks { lacks: MAX_LACKS + 1 }));
    assert_eq!((sender.poll_event(), sender.poll_transmit(), sender.poll_timeout()), (None, None, None));
}

/// R19: needs have one form; a peer cannot draw them out in ever so many small frames, nor contradict itself.
#[test]
fn scattered_needs_end_the_session() {
    let part = |coarse, count| Frame::Needs(Needs { coarse, lacks: lacks(count) });
    for (case, first, second) in [
        ("behind a part", part(false, 1), part(false, 1)),
        ("behind a long part", part(false, LACKS_PER_FRAME - 1), part(false, 1)),
        ("behind none", part(true, 0), part(true, 1)),
        ("none behind a full one", part(true, LACKS_PER_FRAME), part(true, 0)),
        ("coarse, then not", part(true, LACKS_PER_FRAME), part(false, 1)),
        ("not coarse, then coarse", part(false, LACKS_PER_FRAME), part(true, 1)),
    ] {
        let mut sender = opening_sender();
        sender.handle_frame(at(1), first);
        assert_eq!(sender.poll_event(), None, "{case}");
        sender.handle_frame(at(1), second);
        assert_eq!(sender.poll_event(), lost(Violation::ScatteredNeeds), "{case}");
    }
}

/// R18: needs by a replica that then says that it knows of none.
#[test]
fn needs_without_their_feature_end_the_session() {
    let mut sender = opening_sender();
    sender.handle_frame(at(1), Frame::Needs(Needs { coarse: true, lacks: Vec::new() }));
    sender.handle_frame(at(1), accept(0));
    let frame = transport::link::frame::Kind::Needs;
    assert_eq!(sender.poll_event(), lost(Violation::NotInForce { frame }));
}

/// R18, R06: to a primary that knows of no spans a replica that lacks nothing is what it always was; one that lacks
/// something is too far behind, since the records that follow would not make up for it.
#[test]
fn needs_are_not_kept_from_a_primary_that_cannot_understand_them() {
    let mut receiver = deciding_receiver(0);
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    assert_eq!(frames(&mut receiver), [accept(0)]);
    for needs in [Needs { coarse: true, lacks: Vec::new() }, Needs { coarse: false, lacks: lacks(1) }] {
        let mut receiver = deciding_receiver(TAKES_BACK);
        receiver.handle_verdict(at(2), Ok((needs, welcome(77))));
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Lost(Reason::Rebuffed)));
        let refusal = Rebuff::TooFarBehind { durable: position(2, 77) };
        assert_eq!(frames(&mut receiver), [Frame::Rebuff(refusal)]);
    }
}

/// R05: a replica that fails while its needs are on the way says so, and nothing of them is used.
#[test]
fn a_rebuff_may_come_in_the_middle_of_needs() {
    let mut receiver = deciding_receiver(SPANS);
    receiver.handle_verdict(at(2), Ok((Needs { coarse: true, lacks: lacks(10_000) }, welcome(77))));
    let mut sender = opening_sender();
    sender.handle_frame(at(3), receiver.poll_transmit().expect("needs"));
    receiver.handle_rebuff(Rebuff::NoSpace);
    for frame in frames(&mut receiver) {
        sender.handle_frame(at(4), frame);
    }
    assert_eq!(sender.poll_event(), Some(sender::Event::Rebuffed(Rebuff::NoSpace)));
    assert_eq!(sender.poll_event(), Some(sender::Event::Lost(Reason::Rebuffed)));
}

/// R09, R18: whether an old primary is taken back is offered beside spans, and means nothing without them.
#[test]
fn taking_back_is_offered_beside_spans() {
    for (takes_back, features) in
        [(TakesBack::No, SPANS | SCRUBS | SEEDS), (TakesBack::Yes, SPANS | TAKES_BACK | SCRUBS | SEEDS)]
    {
        let mut sender = Sender::new(config(), at(0), hello(99), takes_back);
        let mut receiver = Receiver::new(config(), at(0));
        receiver.handle_frame(at(1), sender.poll_transmit().expect("the hello"));
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Hello(hello(99), Some(takes_back))));
        receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
        assert_eq!(frames(&mut receiver), [accept(features)]);
    }
    for features in [0, TAKES_BACK, !(SPANS | TAKES_BACK)] {
        let mut receiver = Receiver::new(config(), at(0));
        receiver.handle_frame(at(1), Frame::Hello(Offer { minor: 0, features, hello: hello(99) }));
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Hello(hello(99), None)));
        receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
        assert_eq!(frames(&mut receiver), [accept(0)], "none of {features:#x} is accepted alone");
    }
}

/// R18: what a replica found by scrubs is said to a primary that knows of them, and to no other.
#[test]
fn what_was_checked_is_said_where_it_is_understood() {
    let checked =
        Ask::Checked(engine::peer::Checked { upto: Lsn(70), round: 60, same: 4, ..Default::default() });
    for (features, said) in [(SPANS, false), (SPANS | SCRUBS, true)] {
        let mut receiver = deciding_receiver(features);
        receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
        receiver.handle_ask(checked);
        let sent = frames(&mut receiver);
        assert_eq!(sent.contains(&Frame::Ask(checked)), said, "{sent:?}");
    }
    for (features, taken) in [(SPANS, false), (SPANS | SCRUBS, true)] {
        let mut sender = attaching_sender(features);
        sender.handle_attached(None);
        sender.handle_frame(at(3), Frame::Ask(checked));
        let event = sender.poll_event();
        assert_eq!(event == Some(sender::Event::Asked(checked)), taken, "{event:?}");
        assert_eq!(matches!(event, Some(sender::Event::Lost(Reason::Violation(_)))), !taken, "{event:?}");
    }
}

/// R06: the jump comes in front of any record; the records go on behind its end; that end is acknowledged when the
/// replica has it on record, and not before.
#[test]
fn a_jump_moves_both_ends_ahead() {
    let mut sender = attaching_sender(SPANS);
    let mut receiver = streaming_receiver(SPANS);
    assert_eq!(sender.poll_want(), None);
    sender.handle_attached(Some(jump(77, 90)));
    assert_eq!(sender.poll_want(), Some(Want { from: Lsn(91), max_bytes: 40 }));
    sender.handle_records(batch(91, 2, 1));
    for _ in 0..2 {
        receiver.handle_frame(at(3), carried(&Frame::Heartbeat(samples::heartbeat(99))));
        assert!(matches!(receiver.poll_event(), Some(receiver::Event::Heard(_))), "they may come in front");
    }
    let first = sender.poll_transmit().expect("the jump");
    assert_eq!(first, Frame::Jump(jump(77, 90)));
    receiver.handle_frame(at(3), carried(&first));
    receiver.handle_frame(at(3), sender.poll_transmit().expect("the records"));
    assert_eq!(receiver.poll_event(), Some(receiver::Event::Jump(jump(77, 90))));
    assert_eq!(receiver.poll_event(), Some(receiver::Event::Append(batch(91, 2, 1))));
    receiver.handle_durable(at(4), position(2, 77));
    assert_eq!(receiver.poll_transmit(), None, "received is not durable");
    for lsn in [90, 92] {
        receiver.handle_durable(at(5), position(2, lsn));
        let ack = receiver.poll_transmit().expect("it is on record");
        assert_eq!(ack, Frame::Ack(position(2, lsn)));
        sender.handle_frame(at(6), ack);
        assert_eq!(sender.poll_event(), Some(sender::Event::Acked(position(2, lsn))));
    }
    assert_eq!((sender.in_flight_bytes(), receiver.unsettled_bytes()), (0, 0));
}

/// R11, R19: a jump that starts anywhere but where the replica stands, or leads nowhere, or into the past.
#[test]
fn a_bad_jump_ends_the_session() {
    let elsewhere = |from: Position| Jump { from, ..jump(77, 90) };
    let mut older = jump(77, 90);
    older.to.epoch = Epoch(1);
    for bad in [
        elsewhere(position(2, 76)),
        elsewhere(position(2, 78)),
        elsewhere(position(1, 77)),
        elsewhere(Position { checksum: Checksum(1), ..position(2, 77) }),
        elsewhere(Position::default()),
        jump(77, 77),
        jump(77, 76),
        jump(77, 0),
        older,
    ] {
        let mut receiver = streaming_receiver(SPANS);
        receiver.handle_frame(at(3), carried(&Frame::Jump(bad)));
        let stands = position(2, 77);
        assert_eq!(
            receiver.poll_event(),
            gone(Violation::BadJump { stands, jump: bad }),
            "no event before it"
        );
        assert_eq!(receiver.poll_transmit(), None);
    }
}

/// R19: a second jump, and one behind records, wherever it starts. What came in front of it in the same breath is not
/// taken either: it was never acknowledged.
#[test]
fn a_late_jump_ends_the_session() {
    let second = |first: Frame, late: Jump| {
        let mut receiver = streaming_receiver(SPANS);
        receiver.handle_frame(at(3), first);
        receiver.handle_frame(at(3), Frame::Jump(late));
        assert_eq!(receiver.poll_event(), gone(Violation::LateJump { to: late.to.lsn }));
    };
    second(Frame::Jump(jump(77, 90)), jump(90, 95));
    second(Frame::Jump(jump(77, 90)), jump(77, 90));
    second(Frame::Batch(batch(78, 2, 1)), jump(79, 90));
    second(Frame::Batch(batch(78, 2, 1)), jump(77, 90));
}

/// R01: behind a jump records go on at its end and nowhere else.
#[test]
fn records_behind_a_jump_are_contiguous() {
    for first in [78, 89, 90, 92] {
        let mut receiver = streaming_receiver(SPANS);
        receiver.handle_frame(at(3), Frame::Jump(jump(77, 90)));
        assert_eq!(receiver.poll_event(), Some(receiver::Event::Jump(jump(77, 90))));
        receiver.handle_frame(at(3), Frame::Batch(batch(first, 3, 1)));
        assert_eq!(receiver.poll_event(), gone(Violation::Gap { expected: Lsn(91), first: Lsn(first) }));
    }
}

/// R02: what a jump has left out was never sent, so it cannot be acknowledged; nor what lies ahead.
#[test]
fn lying_acks_around_a_jump_never_advance() {
    for (lsn, sent) in [(78, 77), (89, 77), (91, 90), (u64::MAX, 90)] {
        let mut sender = attaching_sender(SPANS);
        sender.handle_attached(Some(jump(77, 90)));
        let lie = Position { lsn: Lsn(lsn), ..position(2, 90) };
        sender.handle_frame(at(3), Frame::Ack(lie));
        assert_eq!(sender.poll_event(), lost(Violation::AckBeyondSent { acked: Lsn(lsn), sent: Lsn(sent) }));
    }
}

/// R03, R07: nor does an honest replica, whatever else its log has in that place (a promotion here appends, too).
#[test]
fn what_a_jump_has_left_out_is_not_acknowledged() {
    let mut receiver = streaming_receiver(SPANS);
    receiver.handle_frame(at(3), Frame::Jump(jump(77, 90)));
    let other = Position { checksum: Checksum(1), ..position(2, 90) };
    for elsewhere in [position(2, 78), position(3, 78), position(2, 89), other, position(3, 91)] {
        receiver.handle_durable(at(4), elsewhere);
        assert_eq!(receiver.poll_transmit(), None, "{elsewhere:?}");
    }
    receiver.handle_durable(at(4), position(2, 90));
    assert_eq!(receiver.poll_transmit(), Some(Frame::Ack(position(2, 90))));
}

/// Guarantee 2: a driver that jumps beyond what is durable here is stopped.
#[test]
#[should_panic(expected = "attached at LSN 100, durable is 99")]
fn a_jump_above_the_durable_lsn_is_a_bug() {
    attaching_sender(SPANS).handle_attached(Some(jump(77, 100)));
}

/// So is one that jumps from elsewhere.
#[test]
#[should_panic(expected = "a jump that does not start at the welcome")]
fn a_jump_from_elsewhere_is_a_bug() {
    attaching_sender(SPANS).handle_attached(Some(jump(76, 90)));
}

/// R18: and one that jumps with a replica which would take the gap for a violation.
#[test]
#[should_panic(expected = "a jump for a replica that knows of none")]
fn a_jump_without_its_feature_is_a_bug() {
    attaching_sender(0).handle_attached(Some(jump(77, 90)));
}

/// Asks go out in order, no more than the limit wait, and only to a primary that understands them.
#[test]
fn asks_go_out_in_order_and_are_bounded() {
    let repair = |at: u64| Ask::Repair(lack(1, at << 12, 4_096));
    let mut receiver = streaming_receiver(SPANS);
    receiver.handle_ask(Ask::Handover);
    (0..100).for_each(|at| receiver.handle_ask(repair(at)));
    let expected: Vec<Frame> =
        std::iter::once(Ask::Handover).chain((0..63).map(repair)).map(Frame::Ask).collect();
    assert_eq!(expected.len(), MAX_ASKS);
    assert_eq!(frames(&mut receiver), expected);
    receiver.handle_ask(repair(100));
    assert_eq!(frames(&mut receiver), [Frame::Ask(repair(100))], "there is room again");
    receiver.handle_ask(repair(101));
    receiver.handle_rebuff(Rebuff::Failed);
    assert_eq!(frames(&mut receiver), [Frame::Rebuff(Rebuff::Failed)], "what waited is gone");

    let mut old = streaming_receiver(0);
    old.handle_ask(Ask::Handover);
    assert_eq!(old.poll_transmit(), None);
    let mut early = deciding_receiver(SPANS);
    early.handle_ask(Ask::Handover);
    early.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    assert_eq!(frames(&mut early), [accept(SPANS)]);
}

/// A replica cannot know when its welcome has been verified: what it asks before is heard after, up to the limit.
#[test]
fn asks_are_heard_once_attached() {
    let mut sender = attaching_sender(SPANS);
    for at_byte in 0..100 {
        sender.handle_frame(at(2), carried(&Frame::Ask(Ask::Repair(lack(1, at_byte, 1)))));
        assert_eq!(sender.poll_event(), None);
    }
    sender.handle_attached(None);
    for at_byte in 0..MAX_ASKS as u64 {
        assert_eq!(sender.poll_event(), Some(sender::Event::Asked(Ask::Repair(lack(1, at_byte, 1)))));
    }
    assert_eq!(sender.poll_event(), None);
    sender.handle_frame(at(3), carried(&Frame::Ask(Ask::Handover)));
    assert_eq!(sender.poll_event(), Some(sender::Event::Asked(Ask::Handover)));
}

/// A frame of any kind, with numbers close to those of the session.
fn any_frame(rng: &mut Rng) -> Frame {
    let [a, b] = [0; 2].map(|_| 75 + rng.below(12));
    match rng.below(16) {
        0 => Frame::Hello(Offer { minor: 0, features: rng.below(8), hello: hello(99) }),
        1 => accept(rng.below(5)),
        2 => Frame::Rebuff(Rebuff::Failed),
        3..6 => Frame::Batch(batch(a, 1 + rng.below(3), 1)),
        6..8 => Frame::Ack(position(1 + rng.below(3), a)),
        8 => Frame::Heartbeat(samples::heartbeat(a)),
        9..11 => {
            let count = [0, 1, LACKS_PER_FRAME][rng.below(3) as usize];
            Frame::Needs(Needs { coarse: rng.below(2) == 0, lacks: lacks(count) })
        }
        11..14 => Frame::Jump(jump(77 + rng.below(2), b)),
        14 => Frame::Ask(Ask::Handover),
        _ => match rng.below(2) {
            0 => Frame::Held(vec![samples::held(1, a << 12, 4_096)]),
            _ => Frame::Thin(samples::thin(a)),
        },
    }
}

/// R19: whatever frames a peer sends in whatever order, neither end panics, a closed one stays closed and silent, and
/// what comes out keeps the rules: one jump at most, in front of all records, which then are contiguous; acks and asks
/// in their place only.
#[test]
fn any_frames_in_any_order() {
    let (mut jumped, mut appended, mut thin, mut acked, mut asked) = (0, 0, 0, 0, 0);
    for seed in 0..50_000 {
        let mut rng = Rng(seed);
        let spans = rng.below(4) > 0;
        let mut receiver = streaming_receiver(if spans { SPANS | SEEDS } else { 0 });
        let mut next = 78;
        let mut first = true;
        for _ in 0..12 {
            receiver.handle_frame(at(3), any_frame(&mut rng));
            match receiver.poll_event() {
                Some(receiver::Event::Jump(jump)) => {
                    assert!(
                        spans && first && jump.from == position(2, 77) && jump.to.lsn > Lsn(77),
                        "seed {seed}"
                    );
                    (next, first) = (jump.to.lsn.0 + 1, false);
                    jumped += 1;
                }
                Some(receiver::Event::Append(Batch { first: lsn, last, .. })) => {
                    assert_eq!(lsn, Lsn(next), "seed {seed}");
                    (next, first) = (last.0 + 1, false);
                    appended += 1;
                }
                Some(receiver::Event::AppendThin(Thin { first: lsn, last, .. })) => {
                    assert!(spans && lsn == Lsn(next), "seed {seed}");
                    (next, first) = (last.0 + 1, false);
                    thin += 1;
                }
                Some(receiver::Event::Heard(_)) => {}
                Some(receiver::Event::Lost(_)) => assert!(receiver.is_closed()),
                None => assert!(receiver.is_closed(), "seed {seed}"),
                Some(other) => panic!("seed {seed}: {other:?}"),
            }
        }
        let mut sender = opening_sender();
        let mut attached = false;
        let mut sent = 77;
        for round in 0..12 {
            let welcomed = round == 0 && rng.below(2) == 0;
            let frame = if welcomed { accept(rng.below(2)) } else { any_frame(&mut rng) };
            sender.handle_frame(at(3), frame);
            while let Some(event) = sender.poll_event() {
                match event {
                    sender::Event::Welcomed(_, needs) if !attached => {
                        if rng.below(2) == 0 {
                            let jump = needs.is_some().then(|| jump(77, 80));
                            sender.handle_attached(jump);
                            sent = if jump.is_some() { 80 } else { 77 };
                            sender.handle_records(batch(sent + 1, 3, 1));
                            sent += 3;
                            attached = true;
                        }
                    }
                    sender::Event::Acked(position) => {
                        assert!(attached && position.lsn <= Lsn(sent), "seed {seed}");
                        acked += 1;
                    }
                    sender::Event::Asked(_) => {
                        assert!(attached, "seed {seed}");
                        asked += 1;
                    }
                    sender::Event::Heard(_) | sender::Event::Rebuffed(_) => {}
                    sender::Event::Lost(_) => assert!(sender.is_closed()),
                    other @ sender::Event::Welcomed(..) => panic!("seed {seed}: {other:?}"),
                }
            }
            if sender.is_closed() {
                assert_eq!((sender.poll_transmit(), sender.poll_timeout()), (None, None));
            }
        }
    }
    let counts = [jumped, appended, thin, acked, asked];
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
}
