//! Sync spans over real QUIC on loopback: needs, jumps and asks between real ends, and beside older versions (R06,
//! R09, R18).

mod common;

use bytes::Bytes;
use common::certs::Ca;
use common::nodes::{Link, Origin, PATIENCE, Replica, patient_dial, patient_serve, until};
use common::samples;
use engine::peer::TakesBack;
use engine::peer::{Ask, MAX_LACKS, Needs, Rebuff, Welcome};
use engine::types::{Lsn, Position};
use std::sync::Arc;
use transport::link::decoder::{Accept, Decoder};
use transport::link::frame::{Acceptance, Frame};
use transport::link::quic;

/// R06: the primary's log no longer holds what the replica needs: it takes the replica ahead, and the records go on
/// from there, in the same session. The next session needs no jump.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jump_takes_the_replica_ahead() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    let link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    drop(link);
    origin.write(900, 1_000);
    *origin.jump_to.lock().expect("unused") = Lsn(700);
    let before = origin.read_bytes();
    let link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.all_acked().await;
    copy.invariant_equal(&origin);
    let jumps: Vec<(Lsn, Lsn)> = copy.jumps().iter().map(|jump| (jump.from.lsn, jump.to.lsn)).collect();
    assert_eq!(jumps, [(Lsn(100), Lsn(700))]);
    assert_eq!(origin.read_bytes() - before, 300 * 1_012, "what was left out was not read either");
    drop(link);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.write(100, 1_000);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
    assert_eq!(
        (copy.jumps().len(), origin.told(|told| told.attached.clone())),
        (1, [0, 100, 1_000].map(Lsn).to_vec())
    );
}

/// R06: a jump may lead to the very end of the log, which the replica then holds; and to what has become durable since
/// the hello, of which the session had not been told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jump_may_lead_to_the_end() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    origin.write(100, 1_000);
    *origin.jump_to.lock().expect("unused") = Lsn(100);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.all_acked().await;
    assert_eq!((copy.jumps().len(), copy.received(), origin.read_bytes()), (1, 100, 0));
    origin.write(50, 1_000);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
}

/// R05, R06: a replica that refuses the jump has changed nothing; the jump is made again in the next session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_jump_is_made_again() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    copy.spoil_jumps(2);
    origin.write(1_000, 1_000);
    *origin.jump_to.lock().expect("unused") = Lsn(500);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    origin.all_acked().await;
    copy.invariant_equal(&origin);
    origin.told(|told| assert_eq!(told.rebuffs, [Rebuff::NoSpace, Rebuff::NoSpace]));
    assert_eq!((copy.jumps().len(), copy.hellos()), (1, 3));
}

/// R06, R12: the primary comes anew while the jump of its old session is being put on record: it is not welcomed
/// before that is done, and then needs no second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_waits_for_a_jump_in_progress() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    copy.block(true);
    origin.write(1_000, 1_000);
    *origin.jump_to.lock().expect("unused") = Lsn(500);
    let old = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    until("the jump hangs", || copy.is_waiting()).await;
    drop(old);
    let _new = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!((copy.received(), copy.hellos()), (0, 1));
    copy.block(false);
    origin.all_acked().await;
    copy.invariant_equal(&origin);
    // What came behind the jump before the old session's end may have been appended: it goes on from there.
    let attached = origin.told(|told| told.attached.clone());
    assert!(matches!(attached[..], [Lsn(0), Lsn(500..=1_000)]), "attached at {attached:?}");
    assert_eq!(copy.jumps().len(), 1);
}

/// R06: what a replica lacks arrives whole, however much it is, and in each session anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_needs_arrive_whole() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    origin.write(100, 1_000);
    for (session, (coarse, count)) in
        [(false, 100_000), (true, MAX_LACKS), (true, 0), (false, 0)].into_iter().enumerate()
    {
        let needs = Needs { coarse, lacks: samples::lacks(count) };
        *copy.needs.lock().expect("no panic inside") = needs.clone();
        let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
        until("it is attached", || origin.told(|told| told.needs.len()) == session + 1).await;
        origin.told(|told| assert!(told.needs[session].as_ref() == Some(&needs), "{count} lacks"));
        origin.write(10, 1_000);
        origin.all_acked().await;
        assert_eq!(origin.told(|told| told.downs().len()), 0);
    }
    copy.invariant_equal(&origin);
}

/// Asks reach the primary once in each session, in order, from the first that is still wanted; a number that was
/// sent is not sent again while the list changes around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_reach_the_primary() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    let repair = |at: u64| Ask::Repair(samples::lack(1, at << 12, 4_096));
    copy.set_asks(&[(1, repair(1)), (2, repair(2))]);
    let link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    until("both are heard", || origin.told(|told| told.asked.len()) == 2).await;
    copy.set_asks(&[(2, repair(2)), (5, Ask::Handover)]);
    until("the new one, too", || origin.told(|told| told.asked.len()) == 3).await;
    copy.set_asks(&[]);
    copy.set_asks(&[(7, repair(7))]);
    until("and the next", || origin.told(|told| told.asked.len()) == 4).await;
    origin.write(10, 100);
    origin.all_acked().await;
    let heard = [repair(1), repair(2), Ask::Handover, repair(7)];
    origin.told(|told| assert_eq!(told.asked, heard));
    // The next session knows nothing of this one.
    drop(link);
    let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
    until("what is still wanted is asked again", || origin.told(|told| told.asked.len()) == 5).await;
    origin.told(|told| assert_eq!(told.asked[4], repair(7)));
}

/// R09: whether an old primary is taken back is said in each hello anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_back_is_offered_in_each_hello() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let copy = replica.copy(&origin);
    for takes_back in [TakesBack::No, TakesBack::Yes] {
        *origin.takes_back.lock().expect("no panic inside") = takes_back;
        let _link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
        origin.write(10, 100);
        origin.all_acked().await;
        assert_eq!(copy.takes_back(), Some(takes_back));
    }
}

/// R18: a replica of the version before sync spans. It is told nothing that it does not know: no jump is made, though
/// one is due, and the records flow as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_replica_is_served() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    origin.write(300, 1_000);
    *origin.jump_to.lock().expect("unused") = Lsn(200);
    let config = patient_serve().quic;
    let endpoint = quic::bind("127.0.0.1:0".parse().expect("an address"), &config).expect("a socket");
    endpoint.set_server_config(Some(quic::server_config(&ca.node("west"), &config).expect("usable")));
    let address = endpoint.local_addr().expect("bound");
    let _link = Link::dial(ca.node("east"), &origin, address, patient_dial());
    let received = old_replica(endpoint, origin.clone());
    let _open = tokio::time::timeout(PATIENCE, received).await.expect("all records come");
    origin.all_acked().await;
    origin.told(|told| assert_eq!((&told.needs[..], told.downs().len()), (&[None][..], 0)));
}

/// Accepts one session without any feature, and acknowledges what comes, until all of it has. The session ends when
/// what is returned is dropped.
async fn old_replica(
    endpoint: quinn::Endpoint,
    origin: Arc<Origin>,
) -> (quinn::Endpoint, quinn::SendStream, quinn::RecvStream) {
    let connection = loop {
        let incoming = endpoint.accept().await.expect("open");
        if incoming.remote_address_validated() {
            break incoming.await.expect("a good certificate");
        }
        incoming.retry().expect("not validated yet");
    };
    connection.set_receive_window(quinn::VarInt::from_u32(16 << 20));
    let (mut out, mut back) = connection.accept_bi().await.expect("a stream");
    let mut decoder = Decoder::new(Accept::Batches);
    let mut last = Lsn::ZERO;
    while last < origin.position().lsn {
        let chunk =
            back.read_chunk(64 << 10, true).await.expect("the connection lives").expect("more to come");
        decoder.push(chunk.bytes);
        while let Some(frame) = decoder.poll().expect("a frame") {
            let answer = match frame {
                Frame::Hello(_) => {
                    let welcome =
                        Welcome { node: samples::REPLICA, durable: Position::default(), horizon: Lsn(1) };
                    Frame::Welcome(Acceptance { minor: 0, features: 0, welcome })
                }
                Frame::Batch(batch) => {
                    assert_eq!(batch.first, last.next());
                    last = batch.last;
                    Frame::Ack(origin.at(last).expect("it was sent"))
                }
                Frame::Heartbeat(_) => continue,
                other => panic!("an older replica does not know {other:?}"),
            };
            let mut pieces: Vec<Bytes> = Vec::new();
            answer.encode(&mut pieces).expect("within the limits");
            out.write_all_chunks(&mut pieces).await.expect("there is a window");
        }
    }
    (endpoint, out, back)
}
