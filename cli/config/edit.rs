//! A volume is put into a configuration file that somebody has written, or gets another size there: comments and order stay as they are.
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
        Edited::with(path, group, |volumes| {
            let mut added = Table::new();
            added.insert("name", value(*volume));
            added.insert("size", value(size.as_str()));
            added.insert("backing", value(backing.to_str().ok_or("the disk's path is not UTF-8")?));
            added.insert("in_place", value(true));
            added.decor_mut().set_prefix("\n");
            volumes.push(added);
            Ok(())
        })
    }

    /// The file with another size of a volume, as the file says it: `"10GiB"`.
    ///
    /// # Errors
    /// If the file cannot be read, has no such volume, or would not be a configuration with it; nothing is written.
    pub(crate) fn with_size(path: &Path, group: &str, volume: &str, size: &str) -> Result<Edited, Failure> {
        Edited::with(path, group, |volumes| {
            let table =
                volumes.iter_mut().find(|table| is_named(table, volume)).ok_or("it has no such volume")?;
            match table.get_mut("size").and_then(Item::as_value_mut) {
                // What stands behind it in its line stays.
                Some(known) => {
                    let decor = known.decor().clone();
                    *known = size.into();
                    *known.decor_mut() = decor;
                }
                None => {
                    table.insert("size", value(size));
                }
            }
            Ok(())
        })
    }

    /// The file with a seed of a replica's volume, which need not have been named before.
    ///
    /// # Errors
    /// If the file cannot be read, or would not be a configuration with it; nothing is written.
    pub(crate) fn with_seed(path: &Path, group: &str, volume: &str, seed: &Path) -> Result<Edited, Failure> {
        Edited::with(path, group, |volumes| {
            let seed = value(seed.to_str().ok_or("the seed's path is not UTF-8")?);
            if let Some(table) = volumes.iter_mut().find(|table| is_named(table, volume)) {
                table.insert("seed_from", seed);
                return Ok(());
            }
            let mut added = Table::new();
            added.insert("name", value(volume));
            added.insert("seed_from", seed);
            added.decor_mut().set_prefix("\n");
            volumes.push(added);
            Ok(())
        })
    }

    fn with(
        path: &Path,
        group: &str,
        change: impl FnOnce(&mut ArrayOfTables) -> Result<(), &'static str>,
    ) -> Result<Edited, Failure> {
        // A link is followed: the file that it leads to is replaced.
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::usage(format_args!("the configuration {} cannot be changed: {error}", path.display()))
        };
        let path = std::fs::canonicalize(path).map_err(|error| cannot(&error))?;
        let before = std::fs::read_to_string(&path).map_err(|error| cannot(&error))?;
        let mut document: DocumentMut = before.parse().map_err(|error| cannot(&error))?;
        let groups = document.get_mut("group").and_then(Item::as_array_of_tables_mut);
        let table = groups.and_then(|groups| groups.iter_mut().find(|table| is_named(table, group)));
        let table = table.ok_or_else(|| cannot(&format_args!("it has no group {group}")))?;
        let volumes = table.entry("volume").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        let volumes = volumes
            .as_array_of_tables_mut()
            .ok_or_else(|| cannot(&format_args!("the volumes of {group} are not [[group.volume]]")))?;
        change(volumes).map_err(|error| cannot(&error))?;
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

fn is_named(table: &Table, name: &str) -> bool {
    table.get("name").and_then(Item::as_str) == Some(name)
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
    fn a_size_is_changed_and_all_else_stays() {
        let scratch = Scratch::new("edit").unwrap();
        let path = scratch.path().join("landfall.toml");
        let text = TEXT.replacen("\"1GiB\"\n", "\"1GiB\" # enough\n", 1);
        std::fs::write(&path, &text).unwrap();
        Edited::with_size(&path, "db", "data", "3GiB").unwrap().write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text.replacen("1GiB", "3GiB", 1));
        assert!(Edited::with_size(&path, "db", "www", "3GiB").is_err());
        assert!(Edited::with_size(&path, "db", "data", "3").is_err());
    }

    #[test]
    fn a_seed_is_named_and_named_anew() {
        let scratch = Scratch::new("edit").unwrap();
        let path = scratch.path().join("landfall.toml");
        let replica = "role = \"replica\"\naccept = [\"west\"]";
        let text = TEXT.replace("role = \"primary\" # the first one", replica)
            + "\n[[peer]]\nname = \"west\"\naddress = \"west.example:7350\"\n";
        std::fs::write(&path, &text).unwrap();
        for (volume, seed) in [("data", "/a.img"), ("data", "/b.img"), ("old", "/c.img")] {
            Edited::with_seed(&path, "db", volume, Path::new(seed)).unwrap().write().unwrap();
        }
        let seeds: Vec<_> = Config::load(&path).unwrap().groups[0]
            .volumes
            .iter()
            .map(|volume| (volume.name.clone(), volume.seed_from.clone().unwrap()))
            .collect();
        let expected = [("data", "/b.img"), ("old", "/c.img")];
        assert_eq!(seeds, expected.map(|(name, seed)| (name.to_owned(), PathBuf::from(seed))));
        assert!(Edited::with_seed(&path, "web", "www", Path::new("/d.img")).is_err(), "a primary");
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
