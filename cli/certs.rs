//! The certificates of the replication link: one authority, and an identity for each node.
//!
//! Invariants:
//! - a node's certificate carries its name as a URI, `landfall://node/<name>`, and nothing else that counts: who
//!   a peer is does not depend on addresses or DNS;
//! - keys are Ed25519, in files of mode 0600 that are made new: nothing is ever overwritten;
//! - a certificate is checked against the authority before its file is written, and again when it is loaded;
//! - the authority's key lies apart from the nodes' files, so that it can be taken off the machine.
//!
//! What a certificate means is decided by the link ([`transport::link::tls`]). It does not revoke: a node is shut
//! out by taking its name out of the configurations.

use crate::config::Certificates;
use crate::exit::{Context, Failure};
use crate::time;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use transport::link::tls::{Credentials, Pem, URI_PREFIX};

/// The authority's name. It is the same everywhere, so that an issuer needs its key and nothing else.
const AUTHORITY: &str = "Landfall certificate authority";

const AUTHORITY_YEARS: u64 = 10;
const NODE_YEARS: u64 = 1;

/// The authority: its certificate and its key.
pub(crate) struct Authority {
    pem: String,
    key: KeyPair,
}

/// Whether files were made, or were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Now.
    New,
    /// Before, and they are good.
    Before,
}

impl Authority {
    /// Where the files of an authority lie.
    pub(crate) fn files(dir: &Path) -> (PathBuf, PathBuf) {
        (dir.join("ca.pem"), dir.join("ca.key"))
    }

    /// Loads the authority of a folder, or makes one there.
    pub(crate) fn ensure(dir: &Path) -> Result<(Authority, Made), Failure> {
        let (certificate, key) = Authority::files(dir);
        if !both_or_none(&certificate, &key)? {
            let authority = Authority::generate()?;
            make_dir(dir)?;
            // The key first: a certificate without its key would look finished.
            write_new(&key, &authority.key.serialize_pem(), 0o600)?;
            write_new(&certificate, &authority.pem, 0o644)?;
            return Ok((authority, Made::New));
        }
        Authority::load(dir).map(|authority| (authority, Made::Before))
    }

    /// Loads the authority of a folder.
    pub(crate) fn load(dir: &Path) -> Result<Authority, Failure> {
        let (certificate, key_file) = Authority::files(dir);
        let pem = read(&certificate)?;
        let key = KeyPair::from_pem(&read(&key_file)?)
            .context(|| format!("{} holds no key that can be used", key_file.display()))?;
        let authority = Authority { pem, key };
        // Signs something and checks it: the only proof that key and certificate belong together.
        authority.issue("probe").map_err(|failure| {
            Failure::failed(format_args!(
                "{} is not the key of {}: {failure}",
                key_file.display(),
                certificate.display()
            ))
        })?;
        Ok(authority)
    }

    fn generate() -> Result<Authority, Failure> {
        let key = new_key()?;
        let certificate = Authority::params()
            .and_then(|params| params.self_signed(&key))
            .context(|| "the authority's certificate cannot be made")?;
        Ok(Authority { pem: certificate.pem(), key })
    }

    fn params() -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, AUTHORITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, AUTHORITY_YEARS);
        Ok(params)
    }

    /// A certificate and a key for a node, both as PEM.
    fn issue(&self, node: &str) -> Result<(String, String), Failure> {
        let key = new_key()?;
        let sign = || -> Result<rcgen::Certificate, rcgen::Error> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, node);
            params.subject_alt_names.push(SanType::URI(format!("{URI_PREFIX}{node}").try_into()?));
            params.key_usages.push(KeyUsagePurpose::DigitalSignature);
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.use_authority_key_identifier_extension = true;
            validity(&mut params, NODE_YEARS);
            params.signed_by(&key, &Issuer::from_params(&Authority::params()?, &self.key))
        };
        let certificate = sign().context(|| format!("the certificate of {node} cannot be made"))?;
        let (chain, key) = (certificate.pem(), key.serialize_pem());
        Credentials::from_pem(pem(&self.pem, &chain, &key))
            .context(|| format!("the certificate made for {node} is not accepted"))?;
        Ok((chain, key))
    }
}

/// The files of a node in a folder.
pub(crate) fn node_files(dir: &Path, node: &str) -> Certificates {
    Certificates {
        ca: dir.join("ca.pem"),
        certificate: dir.join(format!("{node}.pem")),
        key: dir.join(format!("{node}.key")),
    }
}

/// Makes a node's files in a folder, unless they are there and good.
pub(crate) fn ensure_node(authority: &Authority, node: &str, dir: &Path) -> Result<Made, Failure> {
    let files = node_files(dir, node);
    let other = || {
        Failure::refused(format_args!("{} is of another authority", files.ca.display()))
            .next("use another folder, or move the files away")
    };
    let ca_is_there = files.ca.exists();
    if ca_is_there && read(&files.ca)? != authority.pem {
        return Err(other());
    }
    if both_or_none(&files.certificate, &files.key)? && ca_is_there {
        return load(&files, node).map(|_| Made::Before);
    }
    make_dir(dir)?;
    if !ca_is_there {
        write_new(&files.ca, &authority.pem, 0o644)?;
    }
    let (certificate, key) = authority.issue(node)?;
    write_new(&files.key, &key, 0o600)?;
    write_new(&files.certificate, &certificate, 0o644)?;
    Ok(Made::New)
}

/// Loads a node's files as the link will, and checks that the authority vouches for this node, now.
pub(crate) fn load(files: &Certificates, node: &str) -> Result<Credentials, Failure> {
    let (ca, chain, key) = (read(&files.ca)?, read(&files.certificate)?, read(&files.key)?);
    let own = files.certificate.display();
    let credentials = Credentials::from_pem(pem(&ca, &chain, &key))
        .context(|| format!("the identity {own} with {} and {}", files.key.display(), files.ca.display()))
        .map_err(|failure| failure.next("`landfall cert issue` makes a new one"))?;
    if credentials.name().as_str() != node {
        let what = format!("{own} is the certificate of the node {}, not of {node}", credentials.name());
        return Err(Failure::failed(what)
            .next("set `name` under [node] to the certificate's, or issue one for this name"));
    }
    Ok(credentials)
}

fn pem<'a>(ca: &'a str, chain: &'a str, key: &'a str) -> Pem<'a> {
    Pem { ca: ca.as_bytes(), chain: chain.as_bytes(), key: key.as_bytes(), crl: &[] }
}

fn new_key() -> Result<KeyPair, Failure> {
    KeyPair::generate_for(&PKCS_ED25519).context(|| "a key cannot be made")
}

/// From yesterday on, since the other region's clock may be behind.
fn validity(params: &mut CertificateParams, years: u64) {
    let on = |(year, month, day): (u64, u64, u64), later: u64| {
        let small = |n: u64| u8::try_from(n).expect("months and days are below 32");
        // The 29th of February is not in every year; the 28th is.
        let day = if month == 2 { day.min(28) } else { day };
        rcgen::date_time_ymd(
            i32::try_from(year + later).expect("years are below 2600"),
            small(month),
            small(day),
        )
    };
    let now = time::now();
    let yesterday = engine::types::Timestamp(now.0.saturating_sub(86_400 * 1_000_000_000));
    params.not_before = on(time::date(yesterday), 0);
    params.not_after = on(time::date(now), years);
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).context(|| format!("{} cannot be read", path.display()))
}

fn both_or_none(certificate: &Path, key: &Path) -> Result<bool, Failure> {
    match (certificate.exists(), key.exists()) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        (there, _) => {
            let (there, absent) = if there { (certificate, key) } else { (key, certificate) };
            Err(Failure::refused(format_args!("{} is there, {} is not", there.display(), absent.display()))
                .next(format_args!("nothing is overwritten: move {} away and run it again", there.display())))
        }
    }
}

/// Makes a folder that only its owner may look into; one that is there keeps its mode.
pub(crate) fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(|| format!("the folder {} cannot be made", dir.display()))
}

/// Writes a file that is not there yet, and syncs it and its name.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(dir)?.sync_all()
    };
    write().context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use std::os::unix::fs::PermissionsExt;
    use transport::link::tls::Side;

    fn node(scratch: &Scratch, name: &str) -> Certificates {
        let (authority, _) = Authority::ensure(&scratch.path().join("ca")).unwrap();
        let dir = scratch.path().join(name);
        assert_eq!(ensure_node(&authority, name, &dir).unwrap(), Made::New);
        node_files(&dir, name)
    }

    #[test]
    fn a_node_is_vouched_for_as_client_and_as_server() {
        let scratch = Scratch::new("certs").unwrap();
        let files = node(&scratch, "east");
        let east = load(&files, "east").unwrap();
        let west = load(&node(&scratch, "west"), "west").unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(&files.certificate).unwrap().collect::<Result<_, _>>().unwrap();
        for side in [Side::Dialler, Side::Listener] {
            assert_eq!(west.verify_peer(&chain, side).unwrap(), *east.name());
        }
        for (path, mode) in [(&files.key, 0o600), (&files.certificate, 0o644), (&files.ca, 0o644)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        let ca_key = Authority::files(&scratch.path().join("ca")).1;
        assert_eq!(fs::metadata(ca_key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// R19.
    #[test]
    fn a_certificate_of_another_authority_name_or_key_is_refused() {
        let (here, there) = (Scratch::new("here").unwrap(), Scratch::new("there").unwrap());
        let (east, west, stranger) = (node(&here, "east"), node(&here, "west"), node(&there, "east"));
        for (files, name, why) in [
            (
                Certificates { ca: stranger.ca.clone(), ..east.clone() },
                "east",
                "the certificate is not valid",
            ),
            (Certificates { key: west.key.clone(), ..east.clone() }, "east", "the identity cannot be used"),
            (east.clone(), "eas", "is the certificate of the node east, not of eas"),
            (east.clone(), "easter", "is the certificate of the node east, not of easter"),
            (Certificates { key: east.ca.clone(), ..east.clone() }, "east", "the private key cannot be read"),
            (Certificates { certificate: east.key.clone(), ..east.clone() }, "east", "holds no certificate"),
            (Certificates { key: here.path().join("none"), ..east.clone() }, "east", "none cannot be read"),
        ] {
            let failure = load(&files, name).err().unwrap();
            assert!(failure.what.contains(why), "{failure}");
        }
    }

    #[test]
    fn nothing_is_made_twice_or_overwritten() {
        let scratch = Scratch::new("twice").unwrap();
        let files = node(&scratch, "east");
        let before = read(&files.key).unwrap();
        let ca = scratch.path().join("ca");
        let (authority, made) = Authority::ensure(&ca).unwrap();
        assert_eq!(made, Made::Before);
        assert_eq!(ensure_node(&authority, "east", &scratch.path().join("east")).unwrap(), Made::Before);
        assert_eq!(read(&files.key).unwrap(), before);
        // Half of a pair is not completed, since that would pair it with the wrong half.
        fs::remove_file(&files.certificate).unwrap();
        let failure = ensure_node(&authority, "east", &scratch.path().join("east")).unwrap_err();
        assert!(failure.what.contains("east.key is there, "), "{failure}");
        // Another authority does not take a folder over.
        let (other, _) = Authority::ensure(&scratch.path().join("other")).unwrap();
        let failure = ensure_node(&other, "west", &scratch.path().join("east")).unwrap_err();
        assert!(failure.what.contains("is of another authority"), "{failure}");
    }

    #[test]
    fn a_wrong_authority_key_is_found_when_it_is_loaded() {
        let scratch = Scratch::new("wrong-key").unwrap();
        let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
        Authority::ensure(&one).unwrap();
        Authority::ensure(&two).unwrap();
        fs::copy(Authority::files(&two).1, Authority::files(&one).1).unwrap();
        let failure = Authority::load(&one).err().unwrap();
        assert!(failure.what.contains("is not the key of"), "{failure}");
    }
}
