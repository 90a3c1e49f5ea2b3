//! `landfall init` and `landfall cert issue`: everything that a node needs before it starts.
//!
//! ```text
//! DIR/landfall.toml            the configuration
//! DIR/certificates/            this node's identity; if it was issued elsewhere and stands there, it is used
//! DIR/ca/ca.pem, ca.key        else a new authority, or with --join another's; keep the key off the nodes
//! DIR/data/                    made by the daemon
//! ```
//!
//! Invariants:
//! - nothing is overwritten;
//! - the configuration is written last: where it stands, `init` was finished, and repeating it changes nothing;
//! - cut off in between, it can be repeated: what is whole is taken over, what is half is reported.

use crate::args;
use crate::certs::{self, Authority, Made};
use crate::config::{Config, Role, check, template};
use crate::exit::{Context, Failure};
use crate::human::{self, Form};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What `init` answers.
#[derive(Debug, Serialize)]
struct Report {
    node: String,
    config: PathBuf,
    /// Absent if the identity was issued elsewhere.
    authority: Option<PathBuf>,
    certificates: PathBuf,
    /// Nothing was changed.
    already: bool,
}

/// Carries out `landfall init`.
pub(crate) fn init(arguments: &args::Init, form: Form) -> Result<(), Failure> {
    let report = prepare(arguments)?;
    human::answer(form, &report, |report| {
        if report.already {
            return format!("{} is there already: nothing was changed\n", report.config.display());
        }
        let mut text = format!("node           {}\n", report.node);
        text += &format!("configuration  {}\n", report.config.display());
        text += &format!("certificates   {}\n", report.certificates.display());
        if let Some(authority) = &report.authority {
            text += &format!("authority      {}\n", authority.display());
        }
        text
    })?;
    if form == Form::Text && !report.already {
        let config = report.config.display();
        human::say(format_args!(
            "next: look through the configuration, then `landfall agent --config {config}` (or `replica`)."
        ));
        if let Some(authority) = &report.authority {
            human::say(format_args!(
                "Another node's identity: `landfall cert issue NODE --ca {0} --out DIR`; carry DIR there as\n\
                 `certificates` and run `landfall init` beside it. Keep {0}/ca.key off the nodes: whoever has it\n\
                 can be any node.",
                authority.display()
            ));
        }
    }
    Ok(())
}

fn prepare(arguments: &args::Init) -> Result<Report, Failure> {
    certs::make_dir(&arguments.dir)?;
    let dir = std::fs::canonicalize(&arguments.dir)
        .context(|| format!("{} cannot be used", arguments.dir.display()))?;
    let config = dir.join("landfall.toml");
    let authority_dir = match &arguments.join {
        Some(join) => std::fs::canonicalize(join)
            .context(|| format!("the authority {} cannot be used", join.display()))?,
        None => dir.join("ca"),
    };
    let certificates = dir.join("certificates");
    if config.exists() {
        let node = Config::load(&config)?.node.name;
        if arguments.name.as_ref().is_some_and(|name| *name != node) {
            return Err(Failure::refused(format_args!(
                "{} is there already, for the node {node}: nothing was changed",
                config.display()
            ))
            .next("use another --dir for another node"));
        }
        let authority = authority_dir.exists().then_some(authority_dir);
        return Ok(Report { node, config, authority, certificates, already: true });
    }
    let node = arguments.name.clone().unwrap_or_else(host_name);
    let text = template(arguments, &node).render();
    // Before any file is made: what the arguments cannot mean is found here.
    if let Some(group) = arguments
        .groups
        .iter()
        .enumerate()
        .find(|(at, _)| arguments.peers.is_empty() && !arguments.volume_groups.contains(at))
    {
        return Err(Failure::usage(format_args!("the group {} has neither a volume nor a peer", group.1))
            .next("name its volumes with --volume, or with --peer the node that it is received from"));
    }
    Config::parse(&config, &text).map_err(|failure| Failure {
        what: format!("these arguments do not fit together: {}", failure.what),
        ..failure
    })?;
    let own = certs::node_files(&certificates, &node);
    let issued =
        arguments.join.is_none() && [&own.ca, &own.certificate, &own.key].iter().all(|file| file.exists());
    let authority_dir = if issued {
        certs::load(&own, &node)?;
        authority_dir.exists().then_some(authority_dir)
    } else {
        let authority = match &arguments.join {
            Some(_) => Authority::load(&authority_dir)?,
            None => Authority::ensure(&authority_dir)?.0,
        };
        certs::ensure_node(&authority, &node, &certificates)?;
        Some(authority_dir)
    };
    certs::write_new(&config, &text, 0o644)?;
    Ok(Report { node, config, authority: authority_dir, certificates, already: false })
}

fn template(arguments: &args::Init, node: &str) -> template::Template {
    let peer_names: Vec<String> = arguments.peers.iter().map(|peer| peer.name.clone()).collect();
    let dialled = arguments.peers.iter().filter(|peer| peer.address.is_some());
    let replicas: Vec<String> = dialled.map(|peer| peer.name.clone()).collect();
    let group = |(at, name): (usize, &String)| {
        let volumes: Vec<_> = arguments
            .volumes
            .iter()
            .zip(&arguments.volume_groups)
            .filter(|(_, group)| **group == at)
            .map(|(volume, _)| (volume.name.clone(), volume.size.0, volume.backing.clone()))
            .collect();
        template::Group {
            name: name.clone(),
            role: if volumes.is_empty() { Role::Replica } else { Role::Primary },
            // Both directions: after a failover the roles are the other way round.
            replicas: replicas.clone(),
            accept: peer_names.clone(),
            volumes,
        }
    };
    template::Template {
        name: node.to_owned(),
        data_dir: "data".into(),
        certificates: "certificates".into(),
        listen: arguments.listen,
        peers: arguments.peers.iter().map(|peer| (peer.name.clone(), peer.address.clone())).collect(),
        groups: arguments.groups.iter().enumerate().map(group).collect(),
    }
}

/// This host's name up to the first dot, or `node` if that cannot be a name.
fn host_name() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let short = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    if check::valid_node_name(&short) { short } else { "node".to_owned() }
}

/// What `cert issue` answers.
#[derive(Debug, Serialize)]
struct Issued {
    node: String,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    already: bool,
}

/// Carries out `landfall cert issue`.
pub(crate) fn issue(arguments: &args::Issue, form: Form) -> Result<(), Failure> {
    let authority = Authority::load(&arguments.ca)?;
    let made = certs::ensure_node(&authority, &arguments.name, Path::new(&arguments.out))?;
    let files = certs::node_files(&arguments.out, &arguments.name);
    let report = Issued {
        node: arguments.name.clone(),
        ca: files.ca,
        certificate: files.certificate,
        key: files.key,
        already: made == Made::Before,
    };
    human::answer(form, &report, |report| {
        let note = if report.already { "  (was there already)" } else { "" };
        format!(
            "certificate  {}{note}\nkey          {}\n",
            report.certificate.display(),
            report.key.display()
        )
    })
}
