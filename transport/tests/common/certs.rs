//! Certificates for tests: a CA, nodes, and everything that can be wrong with them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ED25519, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::Duration;
use transport::link::tls::{Credentials, Error, NodeName, Pem, URI_PREFIX};

/// A certificate authority.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub chain: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub enum Validity {
    /// For the whole life of the tests.
    Now,
    /// It was, in 2001.
    Expired,
    /// It will be, in 2090.
    Future,
}

pub fn name(name: &str) -> NodeName {
    NodeName::new(name).expect("a valid name")
}

impl Ca {
    pub fn new() -> Ca {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::default();
        // Each CA has a name of its own, as in life.
        let serial = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        params.distinguished_name.push(DnType::CommonName, format!("test CA {serial}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a certificate");
        Ca { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for the node of that name.
    pub fn issue(&self, node: &str, serial: u64, validity: Validity) -> Leaf {
        self.issue_with(&[format!("{URI_PREFIX}{node}")], serial, validity)
    }

    /// A certificate with any URIs.
    pub fn issue_with(&self, uris: &[String], serial: u64, validity: Validity) -> Leaf {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ascii"))).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (from, until) = match validity {
            Validity::Now => (2000, 2100),
            Validity::Expired => (2000, 2002),
            Validity::Future => (2090, 2100),
        };
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// A list that revokes one certificate.
    pub fn revoke(&self, serial: u64) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2000, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2001, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("as PEM")
    }

    /// The credentials of a node with a good certificate of this CA.
    pub fn node(&self, node: &str) -> Arc<Credentials> {
        load(&self.pem, &self.issue(node, 7, Validity::Now), "").expect("good credentials")
    }
}

pub fn load(ca: &str, leaf: &Leaf, crl: &str) -> Result<Arc<Credentials>, Error> {
    Credentials::from_pem(pem(ca, leaf, crl)).map(Arc::new)
}

/// As [`load`], for a node whose clock stands at that many seconds since 1970.
pub fn load_at(ca: &str, leaf: &Leaf, seconds: u64) -> Result<Arc<Credentials>, Error> {
    let clock = Arc::new(Stopped(UnixTime::since_unix_epoch(Duration::from_secs(seconds))));
    Credentials::with_clock(pem(ca, leaf, ""), clock).map(Arc::new)
}

fn pem<'a>(ca: &'a str, leaf: &'a Leaf, crl: &'a str) -> Pem<'a> {
    Pem { ca: ca.as_bytes(), chain: leaf.chain.as_bytes(), key: leaf.key.as_bytes(), crl: crl.as_bytes() }
}

#[derive(Debug)]
struct Stopped(UnixTime);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}
