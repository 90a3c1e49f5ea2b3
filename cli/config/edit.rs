//! A volume is put into a configuration file that somebody has written: comments and order stay as they are.
//!
//! The new text is checked before it is written, and replaces the old one as a whole: a power cut leaves the one or the
//! other.

use super::Config;
use crate::exit::Failure;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

/// A volume that joins a group.
pub(crate) struct Addition<'a> {
    /// The group.
    pub(crate) group: &'a str,
    /// The volume.
    pub(crate) volume: &'a str,
    /// Bytes, as a size of the file: `"10GiB"`.
    pub(crate) size: String,
    /// Its disk, absolute.
    pub(crate) backing: &'a Path,
}

/// A configuration file before and after a change.
pub(crate) struct Edited {
    path: PathBuf,
    before: String,
    after: String,
}

impl Edited {
    /// The file with a volume that is protected in place.
    ///
    /// # Errors
    /// If the file cannot be read, or would not be a configuration with it; nothing is written.
    pub(crate) fn with_volume(path: &Path, addition: &Addition<'_>) -> Result<Edited, Failure> {
        let Addition { group, volume, size, backing } = addition;
        // A link is followed: the file that it leads to is replaced.
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::usage(format_args!("the configuration {} cannot be changed: {error}", path.display()))
        };
        let path = std::fs::canonicalize(path).map_err(|error| cannot(&error))?;
        let before = std::fs::read_to_string(&path).map_err(|error| cannot(&error))?;
        let mut document: DocumentMut = before.parse().map_err(|error| cannot(&error))?;
        let named = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(group);
        let groups = document.get_mut("group").and_then(Item::as_array_of_tables_mut);
        let table = groups.and_then(|groups| groups.iter_mut().find(named));
        let table = table.ok_or_else(|| cannot(&format_args!("it has no group {group}")))?;
        let volumes = table.entry("volume").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let volumes = volumes
            .as_array_of_tables_mut()
            .ok_or_else(|| cannot(&format_args!("the volumes of {group} are not [[group.volume]]")))?;
        let mut added = Table::new();
        added.insert("name", value(*volume));
        added.insert("size", value(size.as_str()));
        let text = backing.to_str().ok_or_else(|| cannot(&"the disk's path is not UTF-8"))?;
        added.insert("backing", value(text));
        added.insert("in_place", value(true));
        added.decor_mut().set_prefix("\n");
        volumes.push(added);
        let after = document.to_string();
        Config::parse(&path, &after)?;
        Ok(Edited { path, before, after })
    }

    /// Writes the new text, durably.
    ///
    /// # Errors
    /// Of the system; the file is as it was then.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        self.replace(&self.after)
    }

    /// Puts the old text back.
    ///
    /// # Errors
    /// Of the system, or if somebody has changed the file since.
    pub(crate) fn undo(&self) -> Result<(), Failure> {
        let now = std::fs::read_to_string(&self.path).unwrap_or_default();
        if now != self.after {
            return Err(Failure::failed(format_args!(
                "{} was changed meanwhile: take the volume out of it by hand",
                self.path.display()
            )));
        }
        self.replace(&self.before)
    }

    fn replace(&self, text: &str) -> Result<(), Failure> {
        let written = || -> std::io::Result<()> {
            let fresh = self.path.with_extension("new");
            let mut file = File::create(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(std::fs::metadata(&self.path)?.permissions())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &self.path)?;
            let dir = self.path.parent().unwrap_or(Path::new("/"));
            File::open(dir)?.sync_all()
        };
        written().map_err(|error| {
            Failure::failed(format_args!("{} could not be written: {error}", self.path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const TEXT: &str = r#"# Ours.
[node]
name = "east"
data_dir = "data"
ca = "ca.pem"
certificate = "east.pem"
key = "east.key"

[[group]]
name = "db"
role = "primary" # the first one

[[group.volume]]
name = "data"
size = "1GiB"

# The other.
[[group]]
name = "web"
role = "primary"

[[group.volume]]
name = "www"
size = "1GiB"
"#;

    fn addition<'a>(group: &'a str, volume: &'a str, backing: &'a Path) -> Addition<'a> {
        Addition { group, volume, size: "2GiB".to_owned(), backing }
    }

    #[test]
    fn a_volume_is_added_and_taken_out_again() {
        let scratch = Scratch::new("edit").unwrap();
        let path = scratch.path().join("landfall.toml");
        std::fs::write(&path, TEXT).unwrap();
        let disk = Path::new("/dev/shm/old \"disk\".img");
        let edited = Edited::with_volume(&path, &addition("db", "old", disk)).unwrap();
        edited.write().unwrap();
        let config = Config::load(&path).unwrap();
        let db = &config.groups[0];
        assert_eq!((db.name.as_str(), db.volumes.len(), config.groups[1].volumes.len()), ("db", 2, 1));
        assert_eq!((db.volumes[1].backing.as_deref(), db.volumes[1].in_place), (Some(disk), true));
        let text = std::fs::read_to_string(&path).unwrap();
        for line in TEXT.lines() {
            assert!(text.contains(line), "{line} is gone from\n{text}");
        }
        edited.undo().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);
    }

    #[test]
    fn what_would_be_no_configuration_is_not_written() {
        let scratch = Scratch::new("edit").unwrap();
        let path = scratch.path().join("landfall.toml");
        std::fs::write(&path, TEXT).unwrap();
        let disk = Path::new("/dev/shm/disk.img");
        for (group, volume) in [("nobody", "old"), ("db", "data"), ("db", "../up")] {
            assert!(Edited::with_volume(&path, &addition(group, volume, disk)).is_err(), "{group}/{volume}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), TEXT);
    }
}
