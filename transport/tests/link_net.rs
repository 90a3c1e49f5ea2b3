//! The link over real QUIC on loopback, through a network that fails: R02, R05, R07, R11, R12, R13.

mod common;

use common::certs::Ca;
use common::nodes::{Link, Origin, Replica, patient_dial, patient_serve, quick_dial, quick_serve, until};
use common::relay::{Faults, Relay, Way};
use common::samples;
use engine::peer::Rebuff;
use engine::types::Lsn;
use std::sync::atomic::Ordering;
use transport::link::driver::LinkState;

const CUT: Faults =
    Faults { cut: true, hold: false, loss: 0, duplicate: 0, delay_ms: 0, jitter_ms: 0, max_bytes: None };

/// Everything written arrives, in order, byte for byte, and is acknowledged with the checksum that the primary
/// has there (R11); what comes later, too; long records as well as short ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_arrive_and_are_acknowledged() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    origin.write(2_000, 4_096);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.all_acked().await;
    for (count, len) in [(1, 0), (1, 32 << 20), (3_000, 100), (1, (32 << 20) - 12), (5, 1 << 20)] {
        origin.write(count, len);
    }
    origin.all_acked().await;
    replica.copy(&origin).invariant_equal(&origin);
    until("both hear each other", || {
        origin.told(|told| told.heartbeats) > 1 && replica.copy(&origin).heartbeats() > 1
    })
    .await;
}

/// One group, two replicas, each at its own pace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_replicas_of_one_group() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let near = Replica::start(&ca, &[&origin], patient_serve());
    let far = Replica::start(&ca, &[&origin], patient_serve());
    far.copy(&origin).block(true);
    let _links =
        [&near, &far].map(|replica| Link::dial(ca.node("east"), &origin, replica.address, patient_dial()));
    origin.write(500, 10_000);
    until("the near one has all", || near.copy(&origin).received() == 500).await;
    assert_eq!(far.copy(&origin).received(), 0);
    far.copy(&origin).block(false);
    until("the far one, too", || far.copy(&origin).received() == 500).await;
    near.copy(&origin).invariant_equal(&origin);
    far.copy(&origin).invariant_equal(&origin);
}

/// R02, R12: the network dies in the middle of batches, again and again; each time the session goes on where
/// the replica stands, without a gap or a duplicate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumes_after_outages_in_mid_batch() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], quick_serve());
    let relay = Relay::to(replica.address, 1).await;
    let copy = replica.copy(&origin);
    let _link = Link::dial(ca.node("east"), &origin, relay.address, quick_dial());
    for round in 0..4 {
        let before = copy.received();
        // Slow enough that the cut comes in the middle.
        relay.set_both(Faults { delay_ms: 10, ..Faults::default() });
        origin.write(8_000, 1_000);
        until("some of it has arrived", || copy.received() > before).await;
        relay.set_both(CUT);
        until("the outage is noticed", || origin.told(|told| told.downs().len()) > round).await;
        relay.set_both(Faults::default());
        until("the link is up again", || origin.told(|told| told.ups()) > round + 1).await;
    }
    origin.all_acked().await;
    copy.invariant_equal(&origin);
    let resumed = origin.told(|told| told.attached.iter().any(|lsn| *lsn > Lsn::ZERO && *lsn < Lsn(32_000)));
    assert!(resumed, "at least one outage was in the middle");
}

/// R01: a network that loses, duplicates, delays and reorders packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_changes_nothing_but_the_speed() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let relay = Relay::to(replica.address, 2).await;
    relay.set_both(Faults { loss: 30, duplicate: 50, delay_ms: 2, jitter_ms: 10, ..Faults::default() });
    let _link = Link::dial(ca.node("east"), &origin, relay.address, patient_dial());
    origin.write(500, 2_000);
    origin.all_acked().await;
    replica.copy(&origin).invariant_equal(&origin);
}

/// R12: a black hole in one direction (the packets of the other arrive) is noticed by the silence, at both ends,
/// and the link comes back when the network does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_way_black_hole_is_noticed_and_overcome() {
    for way in [Way::There, Way::Back] {
        let ca = Ca::new();
        let origin = Origin::new("orders");
        let replica = Replica::start(&ca, &[&origin], quick_serve());
        let copy = replica.copy(&origin);
        let relay = Relay::to(replica.address, 3).await;
        let _link = Link::dial(ca.node("east"), &origin, relay.address, quick_dial());
        origin.write(100, 1_000);
        origin.all_acked().await;
        relay.set(way, CUT);
        origin.write(100, 1_000);
        until("the primary notices", || origin.told(|told| !told.downs().is_empty())).await;
        until("the replica notices", || {
            copy.states().iter().any(|state| matches!(state, LinkState::Down { .. }))
        })
        .await;
        relay.set(way, Faults::default());
        origin.all_acked().await;
        copy.invariant_equal(&origin);
    }
}

/// R12: a path that stops carrying long packets is found out and used with shorter ones; the session lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mtu_black_hole_is_survived() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let relay = Relay::to(replica.address, 4).await;
    let _link = Link::dial(ca.node("east"), &origin, relay.address, patient_dial());
    origin.write(2_000, 4_000);
    origin.all_acked().await;
    assert!(relay.longest(Way::There) > 8_000, "long packets are in use");
    relay.set_both(Faults { max_bytes: Some(1_300), ..Faults::default() });
    origin.write(500, 4_000);
    origin.all_acked().await;
    replica.copy(&origin).invariant_equal(&origin);
    assert_eq!((replica.counts)().welcomed, 1, "in one session");
}

/// R12: the dialler's address changes under a running session (a NAT forgot it): the connection moves along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_a_nat_rebinding() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let relay = Relay::to(replica.address, 5).await;
    let _link = Link::dial(ca.node("east"), &origin, relay.address, patient_dial());
    for _ in 0..3 {
        origin.write(200, 1_000);
        origin.all_acked().await;
        relay.rebind();
    }
    origin.write(200, 1_000);
    origin.all_acked().await;
    replica.copy(&origin).invariant_equal(&origin);
    assert_eq!((replica.counts)().welcomed, 1, "one session for all of it");
}

/// R12, R01: the replica still believes in a connection that is dead; the primary dials again, is welcomed, and
/// what the old connection still brings is not appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_replaces_a_half_open_one() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let mut patient = quick_serve();
    patient.session.silence_ms = 60_000;
    patient.quic.idle_timeout_ms = 60_000;
    let replica = Replica::start(&ca, &[&origin], patient);
    let copy = replica.copy(&origin);
    let relay = Relay::to(replica.address, 6).await;
    let old = Link::dial(ca.node("east"), &origin, relay.address, quick_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    // What the old connection sends from here on is held up in the network.
    relay.set(Way::There, Faults { hold: true, ..Faults::default() });
    origin.write(300, 1_000);
    until("the old connection has sent them", || origin.read_bytes() >= 400 * 1_012).await;
    let _new = Link::dial(ca.node("east"), &origin, replica.address, quick_dial());
    origin.all_acked().await;
    assert_eq!((replica.counts)().welcomed, 2);
    until("the old session is over", || (replica.counts)().replaced == 1).await;
    drop(old);
    relay.set(Way::There, Faults::default());
    origin.write(100, 1_000);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
}

/// R12: as above, while the old session is in the middle of an append that does not return: the new one is not
/// welcomed before it has, or its position would be overtaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_waits_for_an_append_in_progress() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], quick_serve());
    let copy = replica.copy(&origin);
    let old = Link::dial(ca.node("east"), &origin, replica.address, quick_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    copy.block(true);
    origin.write(100, 1_000);
    until("the append hangs", || copy.is_waiting()).await;
    drop(old);
    let _new = Link::dial(ca.node("east"), &origin, replica.address, quick_dial());
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(copy.received(), 100);
    copy.block(false);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
}

/// R13: a replica that receives and does not sync, or does not even append, holds the primary's memory within
/// its window and its own within its limit; everything arrives once it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_replica_bounds_the_memory_of_both() {
    let ca = Ca::new();
    let (mut dial, mut serve) = (quick_dial(), quick_serve());
    dial.session.window_bytes = 8 << 20;
    dial.session.batch_bytes = 256 << 10;
    serve.session.unsettled_bytes = 2 << 20;
    serve.quic.receive_window_bytes = 1 << 20;
    for stuck in ["append", "sync"] {
        let origin = Origin::new("orders");
        let replica = Replica::start(&ca, &[&origin], serve.clone());
        let copy = replica.copy(&origin);
        let stick = |on: bool| if stuck == "append" { copy.block(on) } else { copy.lazy(on) };
        stick(true);
        let _link = Link::dial(ca.node("east"), &origin, replica.address, dial.clone());
        origin.write(6_000, 10_000);
        // What the replica and the stack take in: its limit, the receive window, what waits to be written.
        until("the primary has sent what there is room for", || origin.read_bytes() >= 3 << 20).await;
        // Longer than the limit of silence: being slow is no reason to lose the session.
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        assert!(origin.read_bytes() <= 8 << 20, "{stuck}: {} bytes read", origin.read_bytes());
        let limit = (2 << 20) + (256 << 10);
        assert!(copy.received_bytes() <= limit, "{stuck}: {} bytes received", copy.received_bytes());
        assert_eq!(origin.told(|told| told.acked.lsn), Lsn::ZERO);
        stick(false);
        origin.all_acked().await;
        assert!(origin.peak_in_flight.load(Ordering::Relaxed) <= 8 << 20, "{stuck}");
        assert!(copy.peak_unsynced() <= limit, "{stuck}: {}", copy.peak_unsynced());
        copy.invariant_equal(&origin);
    }
}

/// R13: a group whose replica log stands still does not slow another group of the same two nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_group_does_not_hold_up_another() {
    let ca = Ca::new();
    let [stuck, other] = ["stuck", "other"].map(Origin::new);
    let replica = Replica::start(&ca, &[&stuck, &other], patient_serve());
    replica.copy(&stuck).block(true);
    let _links =
        [&stuck, &other].map(|origin| Link::dial(ca.node("east"), origin, replica.address, patient_dial()));
    stuck.write(5_000, 10_000);
    other.write(5_000, 10_000);
    other.all_acked().await;
    assert_eq!(replica.copy(&stuck).received(), 0);
    replica.copy(&stuck).block(false);
    stuck.all_acked().await;
    replica.copy(&stuck).invariant_equal(&stuck);
    replica.copy(&other).invariant_equal(&other);
}

/// R13: the disk of one group hangs at the replica while its primary dials again and again: that takes one thread,
/// and another group has what it needs of the few there are.
#[test]
fn a_hanging_disk_holds_up_one_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let ca = Ca::new();
        let [hanging, other] = ["hanging", "other"].map(Origin::new);
        let replica = Replica::start(&ca, &[&hanging, &other], quick_serve());
        let mut hasty = quick_dial();
        hasty.session.opening_ms = 50;
        hanging.write(100, 1_000);
        let link = Link::dial(ca.node("east"), &hanging, replica.address, quick_dial());
        hanging.all_acked().await;
        replica.copy(&hanging).block(true);
        hanging.write(100, 1_000);
        until("the append hangs", || replica.copy(&hanging).is_waiting()).await;
        drop(link);
        let _hasty = Link::dial(ca.node("east"), &hanging, replica.address, hasty);
        until("it has dialled a few times", || hanging.told(|told| told.downs().len()) >= 10).await;
        let _other = Link::dial(ca.node("east"), &other, replica.address, quick_dial());
        other.write(100, 1_000);
        other.all_acked().await;
        assert_eq!(replica.copy(&hanging).received(), 100);
        replica.copy(&hanging).block(false);
        hanging.all_acked().await;
        replica.copy(&hanging).invariant_equal(&hanging);
    });
}

/// A replica that is behind reads from the primary's disk, on other threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_reads_from_the_disk() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    *origin.cold_below.lock().expect("unused") = Lsn(1_001);
    origin.write(2_000, 5_000);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.all_acked().await;
    replica.copy(&origin).invariant_equal(&origin);
    assert!(origin.told(|told| told.cold_reads) > 0);
}

/// R05: no space at the replica, in mid-session: the primary is told, keeps what it has, and goes on when there
/// is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_space_is_waited_for() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    copy.set_refusing(Some(Rebuff::NoSpace));
    until("the primary is told in mid-session", || {
        origin.told(|told| told.rebuffs.first() == Some(&Rebuff::NoSpace))
    })
    .await;
    origin.write(100, 1_000);
    until("and again at its next hello", || origin.told(|told| told.rebuffs.len()) >= 2).await;
    assert_eq!(origin.told(|told| told.acked.lsn), Lsn(100));
    copy.set_refusing(None);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
}

/// R07: the replica is promoted while records stream: the old primary gets the new history and dials no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_primary_is_told_in_mid_session() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    let superseded = Rebuff::Superseded { history: samples::history() };
    copy.set_refusing(Some(superseded.clone()));
    until("the old primary is told", || origin.told(|told| told.rebuffs == [superseded.clone()])).await;
    until("and dials no more", || origin.told(|told| told.states.last() == Some(&LinkState::Idle))).await;
    origin.write(100, 1_000);
    assert_eq!((copy.received(), copy.hellos()), (100, 1));
}

/// A replica that is not there yet, then is; then dies, and another process comes with the same logs, elsewhere
/// under the same name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dials_until_somebody_answers() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let place = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = place.local_addr().expect("bound");
    let mut dial = quick_dial();
    dial.connect_ms = 300;
    let _link = Link::dial(ca.node("east"), &origin, address, dial);
    until("it has tried", || origin.told(|told| told.downs().len()) >= 3).await;
    let elsewhere = Replica::start(&ca, &[&origin], quick_serve());
    drop(place);
    let first = elsewhere.restart_at(quick_serve(), address);
    origin.write(100, 1_000);
    origin.all_acked().await;
    drop(first);
    until("the end is noticed", || origin.told(|told| told.downs().len()) >= 4).await;
    // The address is free once the first one's last task is gone.
    until("the address is free", || std::net::UdpSocket::bind(address).is_ok()).await;
    let second = elsewhere.restart_at(quick_serve(), address);
    origin.write(100, 1_000);
    origin.all_acked().await;
    second.copy(&origin).invariant_equal(&origin);
    assert_eq!(origin.told(|told| told.attached.last().copied()), Some(Lsn(100)));
}
