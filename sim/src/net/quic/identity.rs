//! Who the simulated hosts are: certificates of one authority, made from keys that are fixed.
//!
//! Fixed Ed25519 keys give certificates and signatures of constant length, so that equal runs send datagrams of
//! equal lengths. The keys protect nothing: they are in this file.

use super::super::Host;
use crate::clock::EPOCH;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use transport::link::tls::{Credentials, NodeName, Pem};

/// Hosts that a world can have.
const MAX_HOSTS: usize = crate::scenario::MAX_NODES;

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The name in a host's certificate. Names of scenarios follow no rule, these do.
pub(super) fn name(host: Host) -> NodeName {
    NodeName::new(&format!("node-{}", host.0)).expect("a valid name")
}

/// A host's identity. Made once for all runs of a process.
pub(super) fn credentials(host: Host) -> Arc<Credentials> {
    static ALL: OnceLock<Vec<Arc<Credentials>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let authority = Authority::new();
        (0..MAX_HOSTS).map(|host| authority.issue(Host(host as u32))).collect()
    });
    all.get(host.0 as usize).expect("a world has fewer hosts").clone()
}

/// Certificates are looked at in 2030, where virtual time begins: how they expire is no business of a world's.
#[derive(Debug)]
struct Stopped;

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_nanos(EPOCH.0)))
    }
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = key(0xFF);
        let mut params = params(1);
        params.distinguished_name.push(DnType::CommonName, "simulated authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("a certificate");
        Authority { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, host: Host) -> Arc<Credentials> {
        let key = key(host.0 as u8);
        let mut params = params(2);
        params.subject_alt_names.push(SanType::URI(name(host).uri().try_into().expect("ascii")));
        params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        let pem = Pem { ca: self.pem.as_bytes(), chain: chain.as_bytes(), key: key.as_bytes(), crl: &[] };
        Arc::new(Credentials::with_clock(pem, Arc::new(Stopped)).expect("good credentials"))
    }
}

fn params(serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_before = date_time_ymd(2_020, 1, 1);
    params.not_after = date_time_ymd(2_120, 1, 1);
    params
}

fn key(number: u8) -> KeyPair {
    let der: Vec<u8> = PKCS8_PREFIX.into_iter().chain([number; 32]).collect();
    KeyPair::try_from(der).expect("a key")
}
