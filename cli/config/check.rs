//! What must hold between the keys of a configuration: the first violation is reported, with its place.

use super::diagnose::{Complaint, nearest};
use super::file::{self, File, Size};
use super::{
    Ack, Certificates, Config, Group, Keep, Link, MAX_GROUPS, MAX_NAME_BYTES, MAX_PEERS, MAX_REPLICAS,
    MAX_SOCKET_PATH_BYTES, MAX_VOLUME_BYTES, MAX_VOLUMES, Nbd, Node, OnFull, Peer, Replica, Retention, Role,
    Tls, Verify, Volume,
};
use crate::units::{Bytes, GIB, KIB, MIB, TIB, duration_ms, exact_bytes};
use engine::kept::MAX_KEPT;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

type Checked<T> = Result<T, Complaint>;

/// Checks a file and fills in the defaults.
pub(crate) fn check(path: &Path, file: File) -> Checked<Config> {
    // Absolute: paths are told to clients, which run elsewhere. It only fails for an empty path.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let mut warnings = Vec::new();
    let node = node(base, &file.node)?;
    let nbd = nbd(base, &node, &file.nbd, &mut warnings)?;
    let link = link(&file.link)?;
    let peers = peers(&file.peer, &node)?;
    let groups = groups(base, &file.group, &peers, &node)?;
    if groups.iter().any(|group| !group.accept.is_empty()) && node.listen.is_none() {
        warnings
            .push("a group accepts replication, but [node] has no `listen`: nobody can connect".to_owned());
    }
    Ok(Config { path: path.to_owned(), node, nbd, link, peers, groups, warnings })
}

fn node(base: &Path, node: &file::Node) -> Checked<Node> {
    node_name(&node.name, "a node")?;
    let data_dir = base.join(&node.data_dir);
    Ok(Node {
        name: node.name.get_ref().clone(),
        control: socket(base, node.control.as_ref(), &data_dir.join("control.sock"), &node.name)?,
        data_dir,
        listen: node.listen,
        certificates: Certificates {
            ca: base.join(&node.ca),
            certificate: base.join(&node.certificate),
            key: base.join(&node.key),
        },
    })
}

fn nbd(base: &Path, node: &Node, nbd: &file::Nbd, warnings: &mut Vec<String>) -> Checked<Nbd> {
    let fallback = node.data_dir.join("nbd.sock");
    let socket = match &nbd.socket {
        None => fallback,
        Some(given) => socket(base, Some(given), &fallback, given)?,
    };
    let tls = match &nbd.tls {
        None => Tls::Off,
        Some(mode) if *mode.get_ref() == file::Tls::Off => Tls::Off,
        Some(mode) => {
            let (Some(ca), Some(certificate), Some(key)) = (&nbd.ca, &nbd.certificate, &nbd.key) else {
                return Err(Complaint::about(mode, "TLS needs `ca`, `certificate` and `key` under [nbd]"));
            };
            let certificates =
                Certificates { ca: base.join(ca), certificate: base.join(certificate), key: base.join(key) };
            match mode.get_ref() {
                file::Tls::Required => Tls::Required(certificates),
                _ => Tls::Offered(certificates),
            }
        }
    };
    if let Some(tcp) = nbd.tcp
        && !tcp.ip().is_loopback()
        && !matches!(tls, Tls::Required(_))
    {
        warnings
            .push(format!("volumes are served at {tcp} to anyone who can connect: set tls = \"required\""));
    }
    let max_connections = within(nbd.max_connections.as_ref(), 256, 1..=65_536)?;
    Ok(Nbd { socket, tcp: nbd.tcp, tls, max_connections })
}

fn link(link: &file::Link) -> Checked<Link> {
    let heartbeat =
        duration(link.heartbeat.as_ref(), "1s", Duration::from_millis(100), Duration::from_secs(60))?;
    let timeout =
        duration(link.timeout.as_ref(), "10s", Duration::from_millis(300), Duration::from_secs(600))?;
    if timeout < heartbeat * 3 {
        let what = "`timeout` must be at least three times `heartbeat`: one lost packet is not a lost link";
        let given = link.timeout.as_ref().or(link.heartbeat.as_ref());
        return Err(Complaint::about(given.expect("the defaults hold this"), what));
    }
    Ok(Link {
        window: size(link.window.as_ref(), 64 * MIB, MIB, 4 * GIB, 1)?,
        heartbeat,
        timeout,
        max_backoff: duration(
            link.max_backoff.as_ref(),
            "10s",
            Duration::from_millis(100),
            Duration::from_secs(3_600),
        )?,
        max_mtu: within(link.max_mtu.as_ref(), 8_952, 1_200..=65_527)?,
        max_connections: within(link.max_connections.as_ref(), 64, 1..=65_536)?,
    })
}

fn peers(peers: &[file::Peer], node: &Node) -> Checked<Vec<Peer>> {
    let mut names = Names::new("peer", MAX_PEERS);
    peers
        .iter()
        .map(|peer| {
            node_name(&peer.name, "a peer")?;
            names.add(&peer.name)?;
            if *peer.name.get_ref() == node.name {
                return Err(Complaint::about(&peer.name, "a node is not its own peer"));
            }
            if let Some(address) = &peer.address {
                let port = address.get_ref().rsplit_once(':').filter(|(host, _)| !host.is_empty());
                if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
                    let what = format_args!("`{}` is not an address", address.get_ref()).to_string();
                    return Err(Complaint::about(address, what)
                        .next("write a host and a port, as in `west.example.com:10900`"));
                }
            }
            let address = peer.address.as_ref().map(|address| address.get_ref().clone());
            Ok(Peer { name: peer.name.get_ref().clone(), address })
        })
        .collect()
}

fn groups(base: &Path, groups: &[file::Group], peers: &[Peer], node: &Node) -> Checked<Vec<Group>> {
    let mut names = Names::new("group", MAX_GROUPS);
    let mut backings = BTreeMap::new();
    groups
        .iter()
        .map(|found| {
            name(&found.name, "a group")?;
            names.add(&found.name)?;
            group(base, found, peers, node, &mut backings)
        })
        .collect()
}

fn group(
    base: &Path,
    group: &file::Group,
    peers: &[Peer],
    node: &Node,
    backings: &mut BTreeMap<PathBuf, String>,
) -> Checked<Group> {
    let role = match group.role.get_ref() {
        file::Role::Primary => Role::Primary,
        file::Role::Replica => Role::Replica,
    };
    let replicas = peer_names(&group.replicas, "replica", peers, node)?
        .into_iter()
        .zip(&group.replicas)
        .map(|(name, given)| {
            let peer = peers.iter().find(|peer| peer.name == name);
            let Some(address) = peer.and_then(|peer| peer.address.clone()) else {
                let what = format!("the peer `{name}` has no address, so it cannot be dialled");
                return Err(Complaint::about(given, what).next("give it one under [[peer]]"));
            };
            Ok(Replica { name, address })
        })
        .collect::<Checked<Vec<_>>>()?;
    let accept = peer_names(&group.accept, "accepted peer", peers, node)?;
    let ack = match &group.ack {
        Some(ack) if *ack.get_ref() == file::Ack::Replica => {
            if replicas.is_empty() {
                return Err(Complaint::about(ack, "`ack = \"replica\"` needs at least one of `replicas`"));
            }
            Ack::Replica
        }
        _ => Ack::Local,
    };
    match role {
        Role::Primary if group.volume.is_empty() => {
            return Err(Complaint::about(&group.role, "a primary needs at least one [[group.volume]]"));
        }
        Role::Replica if accept.is_empty() => {
            return Err(Complaint::about(
                &group.role,
                "a replica needs `accept`: the peers that may write to it",
            ));
        }
        _ => {}
    }
    // At least the default: the longest write, 32 MiB, must fit into one with its record's header.
    let segment = size(group.segment.as_ref(), 64 * MIB, 64 * MIB, GIB, 4 * KIB)?;
    // Four: one being written, one being synced, one being sent, one being recycled.
    let log_limit = size(group.log_limit.as_ref(), 16 * GIB, 4 * segment.0, 64 * TIB, 1)?;
    Ok(Group {
        name: group.name.get_ref().clone(),
        role,
        volumes: volumes(base, group, role, backings)?,
        replicas,
        accept,
        ack,
        on_full: match group.on_full {
            None | Some(file::OnFull::Track) => OnFull::Track,
            Some(file::OnFull::Stall) => OnFull::Stall,
        },
        log_limit,
        segment,
        overlay_limit: size(group.overlay_limit.as_ref(), 256 * MIB, 64 * MIB, 64 * GIB, 1)?,
        ship_delay: duration(group.ship_delay.as_ref(), "5ms", Duration::ZERO, Duration::from_secs(10))?,
        retention: Retention {
            time: duration(
                group.retention.time.as_ref(),
                "24h",
                Duration::from_secs(1),
                Duration::from_secs(10 * 365 * 86_400),
            )?,
            bytes: size(group.retention.bytes.as_ref(), 8 * GIB, 4 * segment.0, u64::MAX, 1)?,
        },
        keep: keep(&group.keep)?,
        verify: Verify {
            every: match &group.verify.every {
                None => None,
                given => Some(duration(
                    given.as_ref(),
                    "7d",
                    Duration::from_secs(60),
                    Duration::from_secs(10 * 365 * 86_400),
                )?),
            },
            rate: size(group.verify.rate.as_ref(), 64 * MIB, MIB, 64 * GIB, 1)?,
        },
        marks: marks(group.marks.as_ref())?,
        pin_limit: size(group.pin_limit.as_ref(), log_limit.0 / 4, segment.0, log_limit.0, 1)?,
    })
}

/// The marks that are kept: more than the engine can keep would be a promise that it breaks.
fn keep(given: &file::Keep) -> Checked<Keep> {
    let mut sum = 0;
    let mut count = |given: Option<&Spanned<u32>>| {
        let Some(given) = given else { return Ok(0) };
        sum += u64::from(*given.get_ref());
        if sum > MAX_KEPT as u64 {
            let what = format!("{sum} marks are more than can be kept: at most {MAX_KEPT} in all");
            return Err(Complaint::about(given, what));
        }
        Ok(*given.get_ref())
    };
    Ok(Keep {
        minutes: count(given.minutes.as_ref())?,
        hours: count(given.hours.as_ref())?,
        days: count(given.days.as_ref())?,
        named: count(given.named.as_ref())?,
        bytes: size(given.bytes.as_ref(), 64 * GIB, MIB, u64::MAX, 1)?,
    })
}

fn volumes(
    base: &Path,
    group: &file::Group,
    role: Role,
    backings: &mut BTreeMap<PathBuf, String>,
) -> Checked<Vec<Volume>> {
    let mut names = Names::new("volume", MAX_VOLUMES);
    group
        .volume
        .iter()
        .map(|volume| {
            name(&volume.name, "a volume")?;
            names.add(&volume.name)?;
            let bytes = match &volume.size {
                Some(given) => Some(size(Some(given), 0, 512, MAX_VOLUME_BYTES, 512)?),
                None if role == Role::Primary => {
                    let what = format!("the volume `{}` needs a `size`", volume.name.get_ref());
                    return Err(Complaint::about(&volume.name, what));
                }
                None => None,
            };
            let backing = volume.backing.as_ref().map(|path| base.join(path.get_ref()));
            if let (Some(path), Some(given)) = (&backing, &volume.backing) {
                let here = Config::export(group.name.get_ref(), volume.name.get_ref());
                if let Some(other) = backings.insert(path.clone(), here) {
                    let what = format!("{} is the backing of `{other}` already", path.display());
                    return Err(Complaint::about(given, what));
                }
            }
            let in_place = volume.in_place.as_ref().is_some_and(|given| *given.get_ref());
            if let (true, None, Some(given)) = (in_place, &backing, &volume.in_place) {
                return Err(Complaint::about(given, "data is protected in place on a `backing`; name it"));
            }
            let seed_from = volume.seed_from.as_ref().map(|path| base.join(path.get_ref()));
            if let (Some(given), Role::Primary) = (&volume.seed_from, role) {
                let what = "a seed is a replica's: its copy is compared with this node's disk";
                return Err(Complaint::about(given, what));
            }
            Ok(Volume { name: volume.name.get_ref().clone(), size: bytes, backing, in_place, seed_from })
        })
        .collect()
}

/// Letters, digits, `-`, `_` and `.`: what is safe in a file name, a URI and an export name alike.
pub(crate) fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with(['.', '-'])
}

/// What [`valid_name`] wants, in words.
pub(crate) const NAME_RULE: &str =
    "use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a letter, a digit or `_`";

/// The same without capitals: a certificate's name is compared byte by byte, and people do not.
pub(crate) fn valid_node_name(name: &str) -> bool {
    valid_name(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// What [`valid_node_name`] wants, in words.
pub(crate) const NODE_NAME_RULE: &str =
    "use 1 to 64 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter, a digit or `_`";

fn name(given: &Spanned<String>, whose: &str) -> Checked<()> {
    judge_name(given, whose, valid_name, NAME_RULE)
}

fn node_name(given: &Spanned<String>, whose: &str) -> Checked<()> {
    judge_name(given, whose, valid_node_name, NODE_NAME_RULE)
}

fn judge_name(given: &Spanned<String>, whose: &str, valid: fn(&str) -> bool, rule: &str) -> Checked<()> {
    if valid(given.get_ref()) {
        return Ok(());
    }
    Err(Complaint::about(given, format_args!("`{}` is not a name for {whose}", given.get_ref())).next(rule))
}

/// Names that must differ, and may not be too many.
struct Names<'a> {
    what: &'static str,
    limit: usize,
    seen: std::collections::BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn new(what: &'static str, limit: usize) -> Names<'a> {
        Names { what, limit, seen: std::collections::BTreeSet::new() }
    }

    fn add(&mut self, given: &'a Spanned<String>) -> Checked<()> {
        if self.seen.len() == self.limit {
            return Err(Complaint::about(
                given,
                format_args!("there are more than {} {}s", self.limit, self.what),
            ));
        }
        if !self.seen.insert(given.get_ref()) {
            return Err(Complaint::about(
                given,
                format_args!("there are two {}s named `{}`", self.what, given.get_ref()),
            ));
        }
        Ok(())
    }
}

fn peer_names(
    given: &[Spanned<String>],
    what: &'static str,
    peers: &[Peer],
    node: &Node,
) -> Checked<Vec<String>> {
    let mut names = Names::new(what, if what == "replica" { MAX_REPLICAS } else { MAX_PEERS });
    for name in given {
        names.add(name)?;
        if *name.get_ref() == node.name {
            return Err(Complaint::about(name, format_args!("`{}` is this node itself", node.name)));
        }
        if !peers.iter().any(|peer| peer.name == *name.get_ref()) {
            let complaint =
                Complaint::about(name, format_args!("there is no [[peer]] named `{}`", name.get_ref()));
            let known: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
            return Err(match nearest(name.get_ref(), &known) {
                Some(meant) => complaint.next(format_args!("did you mean `{meant}`?")),
                None => complaint.next("add it: name and address"),
            });
        }
    }
    Ok(given.iter().map(|name| name.get_ref().clone()).collect())
}

fn socket<T>(
    base: &Path,
    given: Option<&Spanned<PathBuf>>,
    fallback: &Path,
    otherwise_at: &Spanned<T>,
) -> Checked<PathBuf> {
    let path = given.map_or_else(|| fallback.to_owned(), |given| base.join(given.get_ref()));
    let length = path.as_os_str().as_bytes().len();
    if length <= MAX_SOCKET_PATH_BYTES {
        return Ok(path);
    }
    let what = format!(
        "the socket's path {} has {length} bytes, Linux takes {MAX_SOCKET_PATH_BYTES}",
        path.display()
    );
    Err(given.map_or_else(|| Complaint::about(otherwise_at, &what), |given| Complaint::about(given, &what)))
}

fn size(given: Option<&Spanned<Size>>, default: u64, min: u64, max: u64, unit: u64) -> Checked<Bytes> {
    let Some(given) = given else { return Ok(Bytes(default.max(min))) };
    let Size(bytes) = *given.get_ref();
    if bytes.0 < min || bytes.0 > max {
        let range = match max {
            u64::MAX => format!("at least {}", exact_bytes(min)),
            _ => format!("between {} and {}", exact_bytes(min), exact_bytes(max)),
        };
        return Err(Complaint::about(
            given,
            format_args!("{} is out of range: {range}", exact_bytes(bytes.0)),
        ));
    }
    if !bytes.0.is_multiple_of(unit) {
        let down = exact_bytes(bytes.0 - bytes.0 % unit);
        return Err(Complaint::about(
            given,
            format_args!("{} is not a multiple of {unit}", exact_bytes(bytes.0)),
        )
        .next(format_args!("the next lower one is {down}")));
    }
    Ok(bytes)
}

fn duration(
    given: Option<&Spanned<file::Duration>>,
    default: &str,
    min: Duration,
    max: Duration,
) -> Checked<Duration> {
    let Some(given) = given else {
        return Ok(crate::units::parse_duration(default).expect("defaults are durations"));
    };
    let file::Duration(found) = *given.get_ref();
    if found < min || found > max {
        let text = |at: Duration| duration_ms(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        let what = format!("{} is out of range: between {} and {}", text(found), text(min), text(max));
        return Err(Complaint::about(given, what));
    }
    Ok(found)
}

/// The time between two periodic marks.
fn marks(given: Option<&Spanned<file::Interval>>) -> Checked<Option<Duration>> {
    let every = match given.map(Spanned::get_ref) {
        Some(file::Interval::Off) => return Ok(None),
        Some(file::Interval::Every(every)) => given.map(|given| Spanned::new(given.span(), *every)),
        None => None,
    };
    duration(every.as_ref(), "5s", Duration::from_secs(1), Duration::from_secs(86_400)).map(Some)
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(
    given: Option<&Spanned<T>>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Checked<T> {
    match given {
        None => Ok(default),
        Some(found) if range.contains(found.get_ref()) => Ok(*found.get_ref()),
        Some(found) => Err(Complaint::about(
            found,
            format_args!(
                "{} is out of range: between {} and {}",
                found.get_ref(),
                range.start(),
                range.end()
            ),
        )),
    }
}
