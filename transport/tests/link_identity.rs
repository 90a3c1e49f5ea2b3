//! Who may speak to whom, over real QUIC on loopback: identities, rights, and their end (R19).

mod common;

use common::certs::{Ca, Leaf, Validity, load, load_at, name};
use common::nodes::{Link, Origin, Replica, patient_dial, patient_serve, until};
use engine::peer::Rebuff;
use std::sync::Arc;
use transport::link::serve::Grants;
use transport::link::tls::{Credentials, Error, NodeName, Side, URI_PREFIX};

/// Dials with these credentials until it was refused twice, and checks that no hello reached the replica's logs.
async fn refused_in_the_handshake(
    credentials: Arc<Credentials>,
    origin: &Arc<Origin>,
    replica: &Replica,
) -> String {
    let before = origin.told(|told| told.downs().len());
    let link = Link::dial(credentials, origin, replica.address, patient_dial());
    until("it is refused, again and again", || origin.told(|told| told.downs().len()) >= before + 2).await;
    drop(link);
    assert_eq!(replica.copy(origin).hellos(), 0);
    assert_eq!(origin.told(|told| (told.ups(), told.rebuffs.len())), (0, 0));
    origin.told(|told| told.downs()[before].to_owned())
}

/// A certificate of a CA that the replica does not know, and a replica whose CA the primary does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_ca_is_refused_by_either_side() {
    let [ca, stranger] = [Ca::new(), Ca::new()];
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    // The primary refuses the replica.
    let reason = refused_in_the_handshake(stranger.node("east"), &origin, &replica).await;
    assert!(reason.contains("UnknownIssuer"), "{reason}");
    // The replica refuses the primary, which believes in both CAs.
    let both = format!("{}{}", ca.pem, stranger.pem);
    let leaf = stranger.issue("east", 1, Validity::Now);
    let reason = refused_in_the_handshake(load(&both, &leaf, "").expect("good"), &origin, &replica).await;
    assert!(reason.contains("aborted by peer"), "{reason}");
    until("the replica has counted", || (replica.counts)().handshakes_failed >= 2).await;
    assert_eq!((replica.counts)().welcomed, 0);
}

/// A certificate that has expired, or is not valid yet, by the clock of the side that checks it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_out_of_their_time_are_refused() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    for (validity, seconds) in [(Validity::Expired, 978_400_000), (Validity::Future, 3_800_000_000)] {
        let leaf = ca.issue("east", 1, validity);
        assert!(
            matches!(load(&ca.pem, &leaf, ""), Err(Error::Certificate(_))),
            "its owner finds out on loading"
        );
        // A node whose clock is as wrong as its certificate dials all the same.
        let credentials = load_at(&ca.pem, &leaf, seconds).expect("good by its own clock");
        refused_in_the_handshake(credentials, &origin, &replica).await;
    }
    assert_eq!((replica.counts)().welcomed, 0);
}

/// The node that answers has a good certificate, but is not the one that was dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_at_the_replicas_address_is_refused() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let _link = Link::dial_node(ca.node("east"), &origin, replica.address, "south", patient_dial());
    until("it is refused", || origin.told(|told| told.downs().len()) >= 2).await;
    let reason = origin.told(|told| told.downs()[0].to_owned());
    assert!(reason.contains("west") && reason.contains("south"), "{reason}");
    assert_eq!(replica.copy(&origin).hellos(), 0);
}

/// A good certificate gives no right to another's group, nor to a group that does not exist; the answers are the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_node_asking_for_anothers_group_is_refused() {
    let ca = Ca::new();
    let [orders, mail, nothing] = ["orders", "mail", "nothing"].map(Origin::new);
    let replica = Replica::start(&ca, &[&orders, &mail], patient_serve());
    let grants = Grants::none().and(&name("east"), "orders").and(&name("north"), "mail");
    replica.reload(ca.node("west"), grants);
    let mut refused = 0;
    for (node, origin) in [("east", &mail), ("north", &orders), ("east", &nothing)] {
        let link = Link::dial(ca.node(node), origin, replica.address, patient_dial());
        until("it is refused", || origin.told(|told| told.rebuffs.contains(&Rebuff::NotAllowed))).await;
        drop(link);
        refused += 1;
    }
    assert!((replica.counts)().not_allowed >= refused);
    assert_eq!(
        (replica.copy(&mail).hellos(), replica.copy(&orders).hellos()),
        (0, 0),
        "the logs were not asked"
    );
    orders.write(10, 100);
    let _link = Link::dial(ca.node("east"), &orders, replica.address, patient_dial());
    orders.all_acked().await;
}

/// A certificate on the revocation list: the established session ends when the list is loaded, and there is no
/// other. The same for a right that is taken back, and for a CA that is exchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_sessions_that_no_longer_hold() {
    let [ca, next] = [Ca::new(), Ca::new()];
    let rights = Grants::none().and(&name("east"), "orders");
    let west = ca.issue("west", 1, Validity::Now);
    let both = format!("{}{}", ca.pem, next.pem);
    let reloads: [(&str, Arc<Credentials>, Grants); 3] = [
        ("revoked", load(&ca.pem, &west, &ca.revoke(2)).expect("good"), rights.clone()),
        ("without right", ca.node("west"), Grants::none().and(&name("east"), "mail")),
        (
            "of the old CA",
            load(&next.pem, &next.issue("west", 1, Validity::Now), "").expect("good"),
            rights.clone(),
        ),
    ];
    for (what, credentials, grants) in reloads {
        let origin = Origin::new("orders");
        let replica = Replica::start(&ca, &[&origin], patient_serve());
        let copy = replica.copy(&origin);
        let east = load(&both, &ca.issue("east", 2, Validity::Now), "").expect("good");
        let _link = Link::dial(east, &origin, replica.address, patient_dial());
        origin.write(10, 100);
        origin.all_acked().await;
        // A reload that changes nothing for this peer ends nothing.
        replica.reload(ca.node("west"), rights.clone().and(&name("north"), "mail"));
        origin.write(10, 100);
        origin.all_acked().await;
        replica.reload(credentials, grants);
        until("the session ends", || origin.told(|told| told.downs().len()) >= 2).await;
        origin.write(10, 100);
        assert_eq!((copy.received(), (replica.counts)().welcomed), (20, 1), "{what}");
    }
}

/// The primary's side likewise: a replica whose certificate is revoked is left, and not dialled with success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_leaves_a_revoked_replica() {
    let ca = Ca::new();
    let origin = Origin::new("orders");
    let replica = Replica::start(&ca, &[&origin], patient_serve());
    let east = ca.issue("east", 2, Validity::Now);
    let link = Link::dial(load(&ca.pem, &east, "").expect("good"), &origin, replica.address, patient_dial());
    origin.write(10, 100);
    origin.all_acked().await;
    link.credentials.send_replace(load(&ca.pem, &east, "").expect("good"));
    origin.write(10, 100);
    origin.all_acked().await;
    assert_eq!(origin.told(|told| told.ups()), 1);
    // `Ca::node` gives every certificate the number 7.
    link.credentials.send_replace(load(&ca.pem, &east, &ca.revoke(7)).expect("good"));
    until("the link is down for good", || origin.told(|told| told.downs().len()) >= 3).await;
    assert_eq!(origin.told(|told| told.ups()), 1);
    assert!(
        origin.told(|told| told.downs()[1].contains("Revoked")),
        "{:?}",
        origin.told(|told| told.downs().len())
    );
}

/// New identities on both sides, of a new CA, one after the other: with both CAs trusted in between, the link is
/// never refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_can_be_exchanged_without_an_outage() {
    let [old, new] = [Ca::new(), Ca::new()];
    let both = format!("{}{}", old.pem, new.pem);
    let origin = Origin::new("orders");
    let replica = Replica::start(&old, &[&origin], patient_serve());
    let rights = Grants::none().and(&name("east"), "orders");
    let link = Link::dial(old.node("east"), &origin, replica.address, patient_dial());
    let issue = |ca: &Ca, trusted: &str, node: &str| {
        load(trusted, &ca.issue(node, 1, Validity::Now), "").expect("good")
    };
    let steps: [(&str, &Ca, &Ca); 4] =
        [(&old.pem, &old, &old), (&both, &old, &old), (&both, &new, &old), (&both, &new, &new)];
    for (trusted, west, east) in steps {
        replica.reload(issue(west, trusted, "west"), rights.clone());
        link.credentials.send_replace(issue(east, trusted, "east"));
        origin.write(10, 100);
        origin.all_acked().await;
    }
    let downs = origin.told(|told| told.downs().iter().map(ToString::to_string).collect::<Vec<_>>());
    assert!(downs.is_empty(), "{downs:?}");
}

/// What a certificate's names may be: exactly one node, whatever else stands there.
#[test]
fn names_in_certificates() {
    let ca = Ca::new();
    let uri = |node: &str| format!("{URI_PREFIX}{node}");
    let cases: [(&[String], Option<&str>); 7] = [
        (&[uri("east")], Some("east")),
        (&["https://example.org/east".into(), uri("east.1_a-b")], Some("east.1_a-b")),
        (&["https://example.org/east".into()], None),
        (&[uri("east"), uri("west")], None),
        (&[uri("")], None),
        (&[uri("East")], None),
        (&[uri("east/orders")], None),
    ];
    for (uris, expected) in cases {
        let loaded = load(&ca.pem, &ca.issue_with(uris, 1, Validity::Now), "");
        assert_eq!(loaded.ok().map(|own| own.name().as_str().to_owned()).as_deref(), expected, "{uris:?}");
    }
    assert!(NodeName::new(&"x".repeat(64)).is_ok() && NodeName::new(&"x".repeat(65)).is_err());
}

/// What is found when an identity is loaded, before any peer sees it.
#[test]
fn bad_identities_are_found_on_loading() {
    let [ca, stranger] = [Ca::new(), Ca::new()];
    let [good, other] = [1, 2].map(|serial| ca.issue("east", serial, Validity::Now));
    assert!(load(&ca.pem, &good, "").is_ok());
    assert!(matches!(load(&stranger.pem, &good, ""), Err(Error::Certificate(_))));
    assert!(matches!(load("", &good, ""), Err(Error::Empty("CA file"))));
    let mixed = Leaf { chain: good.chain.clone(), key: other.key.clone() };
    assert!(matches!(load(&ca.pem, &mixed, ""), Err(Error::Tls(_))), "the key of another certificate");
    let keyless = Leaf { chain: good.chain.clone(), key: String::new() };
    assert!(matches!(load(&ca.pem, &keyless, ""), Err(Error::Pem { what: "private key", .. })));
    let empty = Leaf { chain: String::new(), key: good.key.clone() };
    assert!(matches!(load(&ca.pem, &empty, ""), Err(Error::Empty("certificate file"))));
    assert!(matches!(load(&ca.pem, &good, &ca.revoke(1)), Err(Error::Certificate(_))), "revoked itself");
    assert!(load(&ca.pem, &good, &ca.revoke(9)).is_ok());
    let credentials = load(&ca.pem, &good, "").expect("good");
    assert!(matches!(credentials.verify_peer(&[], Side::Dialler), Err(Error::Names(0))));
}
