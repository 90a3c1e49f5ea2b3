//! `landfall log export-trace`: what guests did to a group's volumes, as a file without one byte of theirs.
//!
//! The log is read whole and left as it is, under the rules of `log inspect`. The file appears under its name complete
//! or not at all. `landfall sim` plays it: the format is that of [`sim::recorded`].

use crate::args::ExportTrace;
use crate::exit::{Context, Failure};
use ::sim::recorded::{FORMAT, Header, Line, VERSION, Volume};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The volumes that are known before the first record.
pub(crate) type Volumes = Vec<Volume>;

/// Takes the volumes, then each record.
pub(crate) trait Sink {
    /// Before any record.
    fn begin(&mut self, volumes: Volumes) -> Result<(), Failure>;
    /// A record, in the order of the log.
    fn line(&mut self, line: &Line) -> Result<(), Failure>;
}

/// Writes lines of JSON.
struct Lines<W> {
    out: W,
    name: String,
}

impl<W: Write> Lines<W> {
    fn put(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.out, value)
            .map_err(std::io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"));
        written.context(|| format!("{} cannot be written", self.name))
    }
}

impl<W: Write> Sink for Lines<W> {
    fn begin(&mut self, volumes: Volumes) -> Result<(), Failure> {
        self.put(&Header { format: FORMAT.to_owned(), version: VERSION, volumes })
    }

    fn line(&mut self, line: &Line) -> Result<(), Failure> {
        self.put(line)
    }
}

/// A file that goes away unless it is finished.
struct Fresh {
    path: PathBuf,
    done: bool,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Carries out `log export-trace`.
pub(crate) fn run(
    arguments: &ExportTrace,
    read: impl FnOnce(&ExportTrace, &mut dyn Sink) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(path) = &arguments.output else {
        let mut lines = Lines { out: BufWriter::new(std::io::stdout().lock()), name: "stdout".to_owned() };
        read(arguments, &mut lines)?;
        return lines.out.flush().context(|| "stdout cannot be written".to_owned());
    };
    let name = path.display().to_string();
    let cannot = || format!("{name} cannot be written");
    let file_name =
        path.file_name().ok_or_else(|| Failure::usage(format_args!("{name} is no name of a file")))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(file_name);
    hidden.push(format!(".{}", std::process::id()));
    let mut fresh = Fresh { path: path.with_file_name(hidden), done: false };
    let out = BufWriter::new(File::create(&fresh.path).context(cannot)?);
    let mut lines = Lines { out, name: name.clone() };
    read(arguments, &mut lines)?;
    let file = lines.out.into_inner().map_err(std::io::IntoInnerError::into_error).context(cannot)?;
    file.sync_all().context(cannot)?;
    std::fs::rename(&fresh.path, path).context(cannot)?;
    fresh.done = true;
    let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).context(cannot)
}
