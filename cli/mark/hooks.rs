//! `landfall hooks`: the scripts for `landfall mark` that come with the program.
//!
//! - Each is a file of its own in `hooks/`, plain `sh`, that says at its head what a point is with it and without.
//! - Each refuses where the mark would claim more than is true.
//! - Written into a folder they are executable, and synced; what is there is left alone unless it is the same, or the
//!   operator says otherwise.

use crate::args::{self, Global};
use crate::exit::{Context, Failure};
use crate::human;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Who may do what with a script.
const MODE: u32 = 0o755;

/// One of them.
struct Hook {
    name: &'static str,
    about: &'static str,
    script: &'static str,
}

const HOOKS: [Hook; 3] = [
    Hook {
        name: "filesystem",
        about: "filesystems on another machine, as in a guest: frozen there",
        script: include_str!("hooks/filesystem.sh"),
    },
    Hook {
        name: "postgresql",
        about: "a checkpoint right before the freeze: next to nothing to replay",
        script: include_str!("hooks/postgresql.sh"),
    },
    Hook {
        name: "sqlite",
        about: "the write lock is held: no transaction under way, nothing only in a journal or WAL",
        script: include_str!("hooks/sqlite.sh"),
    },
];

/// What `--json` prints of each.
#[derive(Serialize)]
struct HookJson {
    name: &'static str,
    about: &'static str,
    /// Without `--to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<&'static str>,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

/// Lists them, prints one, or writes them out.
pub(crate) fn run(global: &Global, arguments: &args::Hooks) -> Result<(), Failure> {
    let args::Hooks { name, to, overwrite } = arguments;
    let wanted: Vec<&Hook> =
        HOOKS.iter().filter(|hook| name.as_ref().is_none_or(|name| name == hook.name)).collect();
    if let (Some(name), true) = (name, wanted.is_empty()) {
        return Err(Failure::usage(format_args!("there is no script for {name}"))
            .next("`landfall hooks` lists those that there are"));
    }
    let mut list = Vec::new();
    if let Some(dir) = to {
        fs::create_dir_all(dir).context(|| format!("{} cannot be made", dir.display()))?;
        // All or none: what is in the way is found before anything is written.
        let mut files = Vec::new();
        for hook in &wanted {
            let file = dir.join(format!("{}.sh", hook.name));
            let is_there = is_there(&file, hook.script, *overwrite)?;
            files.push((file, is_there));
        }
        for (hook, (file, is_there)) in wanted.iter().zip(files) {
            if !is_there {
                write(&file, hook.script)?;
            }
            list.push(HookJson { name: hook.name, about: hook.about, script: None, file: Some(file) });
        }
        let opened = File::open(dir).context(|| format!("{} cannot be opened", dir.display()))?;
        opened.sync_all().context(|| format!("{} cannot be synced", dir.display()))?;
    } else {
        list.extend(wanted.iter().map(|hook| HookJson {
            name: hook.name,
            about: hook.about,
            script: Some(hook.script),
            file: None,
        }));
    }
    human::answer(global.form(), &list, |list| {
        let line = |hook: &HookJson| match (&hook.file, name) {
            (Some(file), _) => format!("{}\n", file.display()),
            (None, Some(_)) => hook.script.unwrap_or_default().to_owned(),
            (None, None) => format!("{:<12} {}\n", hook.name, hook.about),
        };
        list.iter().map(line).collect()
    })
}

/// Whether the script is there already, as it has to be.
///
/// # Errors
/// If something else is, and may not be replaced.
fn is_there(file: &Path, script: &str, overwrite: bool) -> Result<bool, Failure> {
    match fs::read(file) {
        Ok(found) if found == script.as_bytes() => {
            let metadata = fs::metadata(file).context(|| format!("{} cannot be read", file.display()))?;
            Ok(metadata.permissions().mode() & 0o777 == MODE)
        }
        Ok(_) if overwrite => Ok(false),
        Ok(_) => Err(Failure::refused(format_args!("{} is there, and differs", file.display())).next(
            "look at what was changed in it, then repeat the command with --overwrite, or write elsewhere",
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(|| format!("{} cannot be read", file.display())),
    }
}

/// Writes a script; it has its name only once it is whole.
fn write(file: &Path, script: &str) -> Result<(), Failure> {
    let why = || format!("{} cannot be written", file.display());
    let part = file.with_extension("sh.part");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(why),
        _ => {}
    }
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&part).context(why)?;
    opened.write_all(script.as_bytes()).context(why)?;
    // Whatever the umask is.
    opened.set_permissions(PermissionsExt::from_mode(MODE)).context(why)?;
    opened.sync_all().context(why)?;
    fs::rename(&part, file).context(why)
}
