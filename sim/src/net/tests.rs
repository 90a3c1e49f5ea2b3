//! What a connection promises, and each way to break it.

use super::*;

const A: Host = Host(0);
const B: Host = Host(1);

fn steady() -> Link {
    Link {
        delay: Span::from_ms(10),
        jitter: Span(0),
        bandwidth: None,
        loss_ppm: 0,
        retransmission: Span::from_ms(50),
    }
}

fn network(link: Link) -> Network<u32> {
    let mut network = Network::new(Rng::new(3).child("network"), link);
    network.set_reach(A, Reach::Listening);
    network.set_reach(B, Reach::Listening);
    network
}

/// Everything that happens until `ms`, as (milliseconds, host, what).
fn until(network: &mut Network<u32>, ms: u64) -> Vec<(u64, u32, What<u32>)> {
    let mut seen = Vec::new();
    while let Some(at) = network.next_at().filter(|at| *at <= Time(ms * 1_000_000)) {
        while let Some(event) = network.poll(at) {
            seen.push((at.0 / 1_000_000, event.host.0, event.what));
        }
    }
    seen
}

fn ms(ms: u64) -> Time {
    Time(ms * 1_000_000)
}

/// A connection from A to B, open at both ends at 20 ms.
fn connected(network: &mut Network<u32>) -> ConnId {
    let conn = network.dial(ms(0), A, B);
    let seen = until(network, 20);
    assert_eq!(seen, [(10, 1, What::Opened { peer: A }), (20, 0, What::Opened { peer: B })]);
    conn
}

fn send(network: &mut Network<u32>, at: u64, conn: ConnId, from: End, messages: &[u32]) {
    for message in messages {
        assert!(network.send(ms(at), conn, from, *message, 1_000));
    }
}

#[test]
fn messages_come_in_order_after_delay_and_transfer() {
    let mut network = network(Link { bandwidth: Some(1_000_000), ..steady() });
    let conn = network.dial(ms(0), A, B);
    until(&mut network, 100);
    send(&mut network, 100, conn, End::Dialer, &[1, 2, 3]);
    assert_eq!(network.in_flight_bytes(conn, End::Dialer), 3_000);
    let seen = until(&mut network, 200);
    assert_eq!(seen, [(111, 1, What::Message(1)), (112, 1, What::Message(2)), (113, 1, What::Message(3))]);
    assert_eq!(network.in_flight_bytes(conn, End::Dialer), 0);
}

#[test]
fn a_lost_frame_delays_those_behind_it_and_jitter_swaps_nothing() {
    let mut network = network(Link { loss_ppm: 300_000, jitter: Span::from_ms(30), ..steady() });
    let conn = network.dial(ms(0), A, B);
    until(&mut network, 1_000);
    let sent: Vec<u32> = (0..200).collect();
    send(&mut network, 1_000, conn, End::Dialer, &sent);
    let seen = until(&mut network, 10_000);
    let got: Vec<u32> = seen
        .iter()
        .filter_map(|(_, _, what)| if let What::Message(n) = what { Some(*n) } else { None })
        .collect();
    assert_eq!(got, sent);
    assert!(network.injected()["lost frame"] > 20);
}

#[test]
fn r02_a_reset_loses_what_is_under_way_and_both_ends_learn_of_it() {
    let mut network = network(steady());
    let conn = connected(&mut network);
    send(&mut network, 20, conn, End::Dialer, &[1]);
    send(&mut network, 25, conn, End::Dialer, &[2]);
    assert_eq!(until(&mut network, 30), [(30, 1, What::Message(1))]);
    network.reset(ms(30), conn);
    assert_eq!(
        until(&mut network, 1_000),
        [(40, 0, What::Closed(Close::Reset)), (40, 1, What::Closed(Close::Reset))]
    );
    assert!(!network.send(ms(50), conn, End::Dialer, 3, 1));
    assert_eq!(network.open_conns().count(), 0);
}

#[test]
fn r12_a_cut_of_one_direction_is_a_black_hole_until_it_heals() {
    let mut network = network(steady());
    let conn = connected(&mut network);
    network.cut(A, B);
    send(&mut network, 20, conn, End::Dialer, &[1, 2]);
    send(&mut network, 20, conn, End::Listener, &[9]);
    assert_eq!(until(&mut network, 5_000), [(30, 0, What::Message(9))], "the other direction works");
    network.mend(ms(5_000), A, B);
    assert_eq!(until(&mut network, 6_000), [(5_010, 1, What::Message(1)), (5_010, 1, What::Message(2))]);

    network.cut(A, B);
    send(&mut network, 6_000, conn, End::Dialer, &[3]);
    until(&mut network, 7_000);
    network.close(ms(7_000), conn, End::Dialer);
    network.mend(ms(9_000), A, B);
    let seen = until(&mut network, 10_000);
    assert_eq!(seen.last(), Some(&(9_010, 1, What::Closed(Close::ByPeer))), "given up meanwhile: {seen:?}");
}

#[test]
fn r01_frames_of_an_old_connection_come_while_a_new_one_is_in_use() {
    let mut network = network(steady());
    let old = connected(&mut network);
    send(&mut network, 20, old, End::Dialer, &[1, 2]);
    network.abandon(ms(21), old, End::Dialer, Span::from_ms(100));
    assert_eq!(until(&mut network, 21), [(21, 0, What::Closed(Close::Reset))]);
    let new = network.dial(ms(21), A, B);
    until(&mut network, 41);
    send(&mut network, 41, new, End::Dialer, &[1, 2, 3]);
    send(&mut network, 45, old, End::Listener, &[7]);
    let seen = until(&mut network, 1_000);
    let at_b: Vec<_> =
        seen.iter().filter(|(_, host, _)| *host == 1).map(|(at, _, what)| (*at, what.clone())).collect();
    let expected = [
        (51, What::Message(1)),
        (51, What::Message(2)),
        (51, What::Message(3)),
        (121, What::Message(1)),
        (121, What::Message(2)),
        (121, What::Closed(Close::Reset)),
    ];
    assert_eq!(at_b, expected);
    assert_eq!(seen.len(), expected.len(), "who gave up hears nothing more");
}

#[test]
fn hosts_that_are_off_do_not_answer_and_those_without_a_listener_refuse() {
    let mut network = network(steady());
    network.set_reach(B, Reach::Refusing);
    network.dial(ms(0), A, B);
    assert_eq!(until(&mut network, 1_000), [(20, 0, What::Closed(Close::Refused))]);
    network.set_reach(B, Reach::Silent);
    let conn = network.dial(ms(1_000), A, B);
    assert_eq!(until(&mut network, 9_000), []);
    network.close(ms(9_000), conn, End::Dialer);
    assert_eq!(until(&mut network, 10_000), []);
    assert_eq!(network.open_conns().count(), 0);
}

#[test]
fn r12_a_vanished_host_leaves_its_peers_alone_until_it_is_back() {
    let mut network = network(steady());
    let conn = connected(&mut network);
    network.vanish(ms(20), B, Notice::Silence);
    network.set_reach(B, Reach::Silent);
    send(&mut network, 30, conn, End::Dialer, &[1]);
    assert_eq!(until(&mut network, 5_000), []);
    network.set_reach(B, Reach::Listening);
    send(&mut network, 5_000, conn, End::Dialer, &[2]);
    assert_eq!(
        until(&mut network, 6_000),
        [(5_020, 0, What::Closed(Close::Reset))],
        "it knows nothing of it"
    );

    let conn = network.dial(ms(6_000), A, B);
    until(&mut network, 7_000);
    network.vanish(ms(7_000), B, Notice::Reset);
    assert_eq!(until(&mut network, 8_000), [(7_010, 0, What::Closed(Close::Reset))]);
    assert!(!network.send(ms(8_000), conn, End::Listener, 1, 1));
}

#[test]
fn stalls_hold_one_direction_and_a_seed_repeats_exactly() {
    let mut network = network(steady());
    let conn = connected(&mut network);
    network.stall(ms(20), conn, End::Listener, Span::from_secs(3));
    send(&mut network, 20, conn, End::Dialer, &[1]);
    send(&mut network, 20, conn, End::Listener, &[2]);
    assert_eq!(until(&mut network, 9_000), [(30, 0, What::Message(2)), (3_020, 1, What::Message(1))]);

    let run = |seed: u64| {
        let link = Link { jitter: Span::from_ms(9), loss_ppm: 100_000, ..steady() };
        let mut network = Network::new(Rng::new(seed), link);
        network.set_reach(B, Reach::Listening);
        let conn = network.dial(ms(0), A, B);
        let mut seen = until(&mut network, 500);
        send(&mut network, 500, conn, End::Dialer, &[1, 2, 3, 4, 5]);
        network.close(ms(505), conn, End::Dialer);
        seen.extend(until(&mut network, 2_000));
        seen
    };
    assert_eq!(run(1), run(1));
    assert!((2..9).any(|seed| run(seed) != run(1)));
}
