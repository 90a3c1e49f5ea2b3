//! The commands that speak to a running daemon, and those that read a log on disk.
//!
//! | module | commands |
//! |---|---|
//! | [`status`] | `status` |
//! | [`points`] | `points list` |
//! | [`retention`] | what retention gives, for both |
//! | [`taken`] | the point that a command took, for all |
//! | [`mount`] | `mount-point`, `unmount` |
//! | [`failover`] | `failover` |
//! | [`reprotect`] | `failover commit`, `reprotect` |
//! | [`resync`] | `resync` |
//! | [`verify`] | `verify` |
//! | [`log`] | `log inspect`, `log verify` |
//! | [`export`] | `log export-trace` |

pub(crate) mod branches;
pub(crate) mod export;
pub(crate) mod failover;
pub(crate) mod log;
pub(crate) mod mount;
pub(crate) mod points;
pub(crate) mod protect;
pub(crate) mod reprotect;
pub(crate) mod resize;
pub(crate) mod resync;
pub(crate) mod retention;
pub(crate) mod status;
pub(crate) mod taken;
pub(crate) mod verify;

use crate::args::Global;
use crate::config::Config;
use crate::control::Client;
use crate::exit::Failure;
use crate::human::Form;
use std::path::{Path, PathBuf};

/// The variable that names the configuration.
const CONFIG_VARIABLE: &str = "LANDFALL_CONFIG";

/// Where the configuration is looked for, after the variable.
const CONFIG_PLACES: [&str; 2] = ["landfall.toml", "/etc/landfall/landfall.toml"];

impl Global {
    /// How answers are printed.
    pub(crate) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }

    /// The node's configuration.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        let named = self.config.clone().or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
        if let Some(path) = named {
            return Config::load(&path);
        }
        match CONFIG_PLACES.iter().find(|place| Path::new(place).exists()) {
            Some(place) => Config::load(Path::new(place)),
            None => Err(Failure::usage(format_args!(
                "there is no configuration: neither {} nor {}",
                CONFIG_PLACES[0], CONFIG_PLACES[1]
            ))
            .next("name one with --config, or write one with `landfall init`")),
        }
    }

    /// A connection to the node's daemon.
    pub(crate) fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.load()?.node.control)
    }
}
