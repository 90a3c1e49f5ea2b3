//! The keys of the configuration file, as they are written. What they mean is documented in the template.
//!
//! Every field has a default but the ones that nobody can guess; [`Spanned`] remembers where a value stands, for
//! the messages of [`super::check`].

use crate::units::{self, Bytes};
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) node: Node,
    #[serde(default)]
    pub(crate) nbd: Nbd,
    #[serde(default)]
    pub(crate) link: Link,
    #[serde(default)]
    pub(crate) peer: Vec<Peer>,
    #[serde(default)]
    pub(crate) group: Vec<Group>,
}

/// `[node]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    pub(crate) name: Spanned<String>,
    pub(crate) data_dir: PathBuf,
    pub(crate) control: Option<Spanned<PathBuf>>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// `[nbd]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nbd {
    pub(crate) socket: Option<Spanned<PathBuf>>,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) tls: Option<Spanned<Tls>>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) max_connections: Option<Spanned<u32>>,
}

/// `tls = ...`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tls {
    Off,
    Offered,
    Required,
}

/// `[link]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    pub(crate) window: Option<Spanned<Size>>,
    pub(crate) heartbeat: Option<Spanned<Duration>>,
    pub(crate) timeout: Option<Spanned<Duration>>,
    pub(crate) max_backoff: Option<Spanned<Duration>>,
    pub(crate) max_mtu: Option<Spanned<u16>>,
    pub(crate) max_connections: Option<Spanned<u32>>,
}

/// `[[peer]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) name: Spanned<String>,
    pub(crate) address: Option<Spanned<String>>,
}

/// `[[group]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) name: Spanned<String>,
    pub(crate) role: Spanned<Role>,
    #[serde(default)]
    pub(crate) replicas: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) accept: Vec<Spanned<String>>,
    pub(crate) ack: Option<Spanned<Ack>>,
    pub(crate) on_full: Option<OnFull>,
    pub(crate) log_limit: Option<Spanned<Size>>,
    pub(crate) segment: Option<Spanned<Size>>,
    pub(crate) overlay_limit: Option<Spanned<Size>>,
    pub(crate) ship_delay: Option<Spanned<Duration>>,
    #[serde(default)]
    pub(crate) retention: Retention,
    #[serde(default)]
    pub(crate) keep: Keep,
    #[serde(default)]
    pub(crate) verify: Verify,
    pub(crate) marks: Option<Spanned<Interval>>,
    pub(crate) pin_limit: Option<Spanned<Size>>,
    #[serde(default)]
    pub(crate) volume: Vec<Volume>,
}

/// `role = ...`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Primary,
    Replica,
}

/// `ack = ...`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ack {
    Local,
    Replica,
}

/// `on_full = ...`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnFull {
    Track,
    Stall,
}

/// `retention = { ... }`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) time: Option<Spanned<Duration>>,
    pub(crate) bytes: Option<Spanned<Size>>,
}

/// `keep = { ... }`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keep {
    pub(crate) minutes: Option<Spanned<u32>>,
    pub(crate) hours: Option<Spanned<u32>>,
    pub(crate) days: Option<Spanned<u32>>,
    pub(crate) named: Option<Spanned<u32>>,
    pub(crate) bytes: Option<Spanned<Size>>,
}

/// `verify = { ... }`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    pub(crate) every: Option<Spanned<Duration>>,
    pub(crate) rate: Option<Spanned<Size>>,
}

/// `[[group.volume]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    pub(crate) name: Spanned<String>,
    pub(crate) size: Option<Spanned<Size>>,
    pub(crate) backing: Option<Spanned<PathBuf>>,
    pub(crate) in_place: Option<Spanned<bool>>,
    pub(crate) seed_from: Option<Spanned<PathBuf>>,
}

/// `"5s"` or `"off"`
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interval {
    Off,
    Every(Duration),
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Interval, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Interval::Off);
        }
        let every = units::parse_duration(&text);
        every.map(|every| Interval::Every(Duration(every))).map_err(serde::de::Error::custom)
    }
}

/// `"10GiB"`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size(pub(crate) Bytes);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let text = String::deserialize(deserializer)?;
        units::parse_bytes(&text).map(Size).map_err(serde::de::Error::custom)
    }
}

/// `"5s"`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Duration(pub(crate) std::time::Duration);

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        units::parse_duration(&text).map(Duration).map_err(serde::de::Error::custom)
    }
}
