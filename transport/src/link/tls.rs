//! Who a node is, and how one node proves it to another.
//!
//! Invariants:
//!
//! - Nothing is trusted but the project's own CA: no platform store, no fallback, no anonymous side.
//! - TLS 1.3 only; no 0-RTT (early data can be replayed) and no session tickets, so that every connection proves
//!   both identities anew.
//! - A node's name is the one URI `landfall://node/<name>` among its certificate's subject alternative names. DNS
//!   names and addresses in a certificate mean nothing here: a node keeps its identity when it moves.
//!
//! What a proven name may do is not decided here but by [`super::serve::Grants`]. Revocation is by list (CRL) and by
//! exchanging the CA; both take effect on established connections when credentials are reloaded.

use super::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder};

/// What stands before a node's name in the URI of its certificate.
pub const URI_PREFIX: &str = "landfall://node/";

/// The longest name of a node, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// A node's name, as certificates and configurations spell it: 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`Error::Name`].
    pub fn new(name: &str) -> Result<NodeName, Error> {
        let fits = (1..=MAX_NAME_BYTES).contains(&name.len());
        let clean = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if fits && clean { Ok(NodeName(name.to_owned())) } else { Err(Error::Name) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI that a certificate for this node carries.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{URI_PREFIX}{}", self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an identity cannot be used or is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a node's name.
    #[error("a node's name is 1 to {MAX_NAME_BYTES} characters of a-z, 0-9, '.', '_' and '-'")]
    Name,
    /// A file is not PEM, or does not hold what it should.
    #[error("the {what} cannot be read: {source}")]
    Pem {
        /// Which one.
        what: &'static str,
        /// What the parser says.
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds nothing of what it should.
    #[error("the {0} holds no certificate")]
    Empty(&'static str),
    /// A certificate that is malformed, expired, revoked, or not of this CA.
    #[error("the certificate is not valid: {0}")]
    Certificate(#[from] webpki::Error),
    /// Not exactly one name of the form `landfall://node/<name>`.
    #[error("the certificate carries {0} names of the form {URI_PREFIX}<name>, expected was one")]
    Names(usize),
    /// A valid certificate of another node.
    #[error("the peer is node {actual}, expected was {expected}")]
    WrongNode {
        /// Who was dialled.
        expected: NodeName,
        /// Who answered.
        actual: NodeName,
    },
    /// The system clock cannot be read, so no certificate's validity is known.
    #[error("the time is not known")]
    NoTime,
    /// The TLS library refuses (a key that does not belong to its certificate, mostly).
    #[error("the identity cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Which side of a handshake a certificate is shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dials: the primary.
    Dialler,
    /// The one that listens: the replica.
    Listener,
}

/// A node's own identity and whom it believes. Immutable: a reload makes a new one.
pub struct Credentials {
    name: NodeName,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The files that make an identity, as PEM text.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    /// The CA's certificates. Several while one CA follows another.
    pub ca: &'a [u8],
    /// The node's certificate, then intermediates if there are any.
    pub chain: &'a [u8],
    /// The certificate's private key.
    pub key: &'a [u8],
    /// Revocation lists of the CA; may be empty.
    pub crl: &'a [u8],
}

impl Credentials {
    /// Reads an identity and checks it as a peer will, so that an expired or foreign certificate is found when
    /// it is loaded and not when a region is lost.
    ///
    /// # Errors
    ///
    /// Any of [`Error`] but [`Error::WrongNode`].
    pub fn from_pem(pem: Pem<'_>) -> Result<Credentials, Error> {
        Credentials::with_clock(pem, Arc::new(DefaultTimeProvider))
    }

    /// As [`Credentials::from_pem`], with a clock of the caller's, for simulated time.
    ///
    /// # Errors
    ///
    /// As [`Credentials::from_pem`].
    pub fn with_clock(pem: Pem<'_>, clock: Arc<dyn TimeProvider>) -> Result<Credentials, Error> {
        let ca = certificates(pem.ca, "CA file")?;
        let anchors = ca
            .iter()
            .map(|certificate| webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()?;
        let chain = certificates(pem.chain, "certificate file")?;
        let key = PrivateKeyDer::from_pem_slice(pem.key)
            .map_err(|source| Error::Pem { what: "private key", source })?;
        let revoked = CertificateRevocationListDer::pem_slice_iter(pem.crl)
            .map(|der| {
                let der = der.map_err(|source| Error::Pem { what: "revocation list", source })?;
                Ok(webpki::OwnedCertRevocationList::from_der(&der)?.into())
            })
            .collect::<Result<_, Error>>()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unnamed = NodeName(String::new());
        let mut own = Credentials { name: unnamed, chain, key, anchors, revoked, provider, clock };
        // Each node dials in one role and listens in the other, in the course of its life.
        own.name = own.verify_peer(&own.chain, Side::Dialler)?;
        own.verify_peer(&own.chain, Side::Listener)?;
        let own = Arc::new(own);
        own.server_config()?;
        Ok(Arc::into_inner(own).expect("the configuration just made is gone"))
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Checks a peer's chain (leaf first) against the CA, the lists and the time, and tells its name.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`], [`Error::Names`], [`Error::Name`], [`Error::NoTime`].
    pub fn verify_peer(&self, chain: &[CertificateDer<'_>], side: Side) -> Result<NodeName, Error> {
        let now = self.clock.current_time().ok_or(Error::NoTime)?;
        let (leaf, intermediates) = chain.split_first().ok_or(Error::Names(0))?;
        self.verify_at(leaf, intermediates, side, now)
    }

    /// What a dialler needs to reach the node `expected` and no other.
    pub(super) fn client_config(self: &Arc<Self>, expected: NodeName) -> Result<ClientConfig, Error> {
        let verifier = Verifier { credentials: self.clone(), expected: Some(expected) };
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok(config)
    }

    /// What a listener needs.
    pub(super) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let verifier = Verifier { credentials: self.clone(), expected: None };
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    fn verify_at(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<NodeName, Error> {
        let certificate = EndEntityCert::try_from(leaf)?;
        let usage = match side {
            Side::Dialler => KeyUsage::client_auth(),
            Side::Listener => KeyUsage::server_auth(),
        };
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // Without a list there is nothing to check. With one, a certificate that no list speaks of is good: the
        // operator need not renew empty lists.
        let revocation = (!lists.is_empty()).then(|| {
            RevocationOptionsBuilder::new(&lists)
                .expect("there is a list")
                .with_status_policy(webpki::UnknownStatusPolicy::Allow)
                .build()
        });
        certificate.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &self.anchors,
            intermediates,
            now,
            usage,
            revocation,
            None,
        )?;
        let mut names = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(URI_PREFIX));
        match (names.next(), names.count()) {
            (Some(name), 0) => NodeName::new(name),
            (first, more) => Err(Error::Names(usize::from(first.is_some()) + more)),
        }
    }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { what, source })?;
    if all.is_empty() { Err(Error::Empty(what)) } else { Ok(all) }
}

/// The check that the TLS library calls in a handshake, the same for both sides.
#[derive(Debug)]
struct Verifier {
    credentials: Arc<Credentials>,
    /// Who was dialled; a listener finds out.
    expected: Option<NodeName>,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let actual = self.credentials.verify_at(leaf, intermediates, side, now).map_err(alert)?;
        match &self.expected {
            Some(expected) if *expected != actual => {
                Err(alert(Error::WrongNode { expected: expected.clone(), actual }))
            }
            _ => Ok(()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.credentials.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.credentials.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The error as the TLS library's, so that the peer gets the fitting alert.
fn alert(error: Error) -> rustls::Error {
    use webpki::Error as Webpki;
    rustls::Error::InvalidCertificate(match &error {
        Error::Certificate(Webpki::CertExpired { .. }) => CertificateError::Expired,
        Error::Certificate(Webpki::CertNotValidYet { .. }) => CertificateError::NotValidYet,
        Error::Certificate(Webpki::CertRevoked) => CertificateError::Revoked,
        Error::Certificate(Webpki::UnknownIssuer) => CertificateError::UnknownIssuer,
        Error::Certificate(Webpki::InvalidSignatureForPublicKey) => CertificateError::BadSignature,
        _ => CertificateError::Other(OtherError(Arc::new(error))),
    })
}

fn only_tls13() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Side::Listener, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint would tell a stranger the CA's name, and our peers need none.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Side::Dialler, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
