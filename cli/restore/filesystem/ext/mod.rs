//! ext2, ext3 and ext4: what a mount would show, the journal's replay included, without a mount.
//!
//! | module | what it is |
//! |---|---|
//! | [`superblock`] | sizes and places |
//! | [`journal`] | the replay, in memory |
//! | [`inode`] | what a file is |
//! | [`blocks`] | where its content is |
//! | [`folder`] | the names in a folder |
//! | [`attributes`] | extended attributes |
//! | [`crc`] | the checksum of all of them |
//!
//! The names of files are of their inodes: two names of one file are told by that. Metadata is checked against its
//! checksums where the filesystem has them; content has none.

mod attributes;
mod blocks;
mod crc;
mod folder;
mod inode;
mod journal;
mod superblock;

use super::{Attribute, Filesystem, Kind, Listing, NodeId, Place, Run, Stat};
use crate::restore::source::{Source, Trouble, Window, check_range};
use attributes::Value;
use blocks::Blocks;
use inode::{Inode, Layout};
use journal::{Replay, Replayed};
use superblock::{Journal, Superblock};

const ROOT: NodeId = 2;

/// The longest target of a symbolic link that the kernel takes.
const MAX_LINK_BYTES: u64 = 4096;

/// What of the entries of a folder that would be longer than its filesystem is not looked at.
const MAX_FOLDER_BYTES: u64 = 16 << 30;

/// A filesystem of this kind.
pub(super) struct Ext {
    volume: Replayed,
    sb: Superblock,
    notes: Vec<String>,
}

impl Ext {
    /// Opens what is in `window`. None if it is something else.
    pub(super) fn open(window: Window) -> Result<Option<Ext>, Trouble> {
        match Superblock::read(&window, window.len()) {
            Ok(None) => Ok(None),
            Ok(Some(sb)) => Ext::with(window, sb).map(Some),
            Err(trouble @ Trouble::Damaged(_)) => match Ext::open_copy(window)? {
                Some(found) => Ok(Some(found)),
                None => Err(trouble),
            },
            Err(other) => Err(other),
        }
    }

    /// The same where the first superblock is lost: by its copy. Whatever else may be there is to be looked for before,
    /// since a copy may be left over from what was there once.
    pub(super) fn open_copy(window: Window) -> Result<Option<Ext>, Trouble> {
        match Superblock::read_copy(&window, window.len()) {
            None => Ok(None),
            Some(sb) => Ext::with(window, sb).map(Some),
        }
    }

    fn with(window: Window, before: Superblock) -> Result<Ext, Trouble> {
        let mut replay = match before.journal {
            None => Replay::default(),
            Some(Journal::Elsewhere) => Replay::without(
                "its journal is on another device: what it alone has is not seen here".to_owned(),
            ),
            Some(Journal::Inode(inode)) => match read_journal(&window, &before, inode) {
                Err(trouble @ Trouble::Damaged(_)) => {
                    Replay::without(format!("its journal was not replayed: {trouble}"))
                }
                other => other?,
            },
        };
        let mut notes = std::mem::take(&mut replay.notes);
        let volume = Replayed::new(window, before.block_size, replay);
        // The journal may have a newer one.
        let sb = match before.is_copy {
            true => Superblock::read_copy(&volume, volume.len()),
            false => Superblock::read(&volume, volume.len())?,
        };
        let Some(sb) = sb.filter(|sb| sb.block_size == before.block_size) else {
            return Err(Trouble::damaged("its journal would replace the superblock by something else"));
        };
        notes.extend(sb.notes.iter().cloned());
        Ok(Ext { volume, sb, notes })
    }

    fn inode(&self, node: NodeId) -> Result<Inode, Trouble> {
        let number =
            u32::try_from(node).map_err(|_| Trouble::damaged(format_args!("there is no inode {node}")))?;
        Inode::read(&self.volume, &self.sb, number)
    }

    /// All content of an inode that has at most `limit` bytes of it.
    fn content(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>, Trouble> {
        let size = inode.stat.size;
        if size > limit {
            return Err(Trouble::damaged(format_args!("it cannot be {size} bytes long")));
        }
        let mut content = vec![0; size as usize];
        let faults = self.each_run(inode, &mut |run| {
            let to = content.get_mut(run.at as usize..(run.at + run.len) as usize);
            let to = to.ok_or_else(|| Trouble::damaged("its content lies behind its end"))?;
            match run.place {
                Place::Volume(place) => self.volume.read(place, to),
                Place::Inline(bytes) => {
                    to.copy_from_slice(&bytes);
                    Ok(())
                }
            }
        })?;
        faults.into_iter().next().map_or(Ok(content), Err)
    }

    fn each_run(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(Run) -> Result<(), Trouble>,
    ) -> Result<Vec<Trouble>, Trouble> {
        match inode.layout()? {
            Layout::Extents => Blocks::new(&self.volume, &self.sb, inode, each).extents(),
            Layout::Blocks => Blocks::new(&self.volume, &self.sb, inode, each).numbers(),
            Layout::Inline => {
                let bytes = self.inline_content(inode)?;
                if !bytes.is_empty() {
                    each(Run { at: 0, len: bytes.len() as u64, place: Place::Inline(bytes) })?;
                }
                Ok(Vec::new())
            }
        }
    }

    /// In the field that otherwise leads to the content, and on in an attribute.
    fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>, Trouble> {
        let mut bytes = inode.map().to_vec();
        if let Some(at) = inode.attributes_at {
            let (kept, trouble) = attributes::in_inode(&inode.bytes, at);
            if let Some(trouble) = trouble {
                return Err(trouble);
            }
            if let Some(Value::Here(rest)) =
                kept.iter().find(|kept| kept.is_inline_content()).map(|kept| &kept.value)
            {
                bytes.extend_from_slice(rest);
            }
        }
        // What a file is longer than that is a hole, as the kernel has it.
        bytes.truncate(usize::try_from(inode.stat.size).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    fn value(&self, value: &Value<'_>) -> Result<Vec<u8>, Trouble> {
        match value {
            Value::Here(bytes) => Ok(bytes.to_vec()),
            Value::Inode { inode, len } => {
                let inode = self.inode(NodeId::from(*inode))?;
                if inode.stat.size != u64::from(*len) {
                    return Err(Trouble::damaged("an extended attribute is not as long as it says"));
                }
                self.content(&inode, u64::from(attributes::MAX_VALUE_BYTES))
            }
        }
    }
}

fn read_journal(window: &Window, sb: &Superblock, number: u32) -> Result<Replay, Trouble> {
    let inode = Inode::read(window, sb, number)?;
    let mut runs = Vec::new();
    let mut each = |run| {
        runs.push(run);
        Ok(())
    };
    let blocks = Blocks::new(window, sb, &inode, &mut each);
    let faults = match inode.layout()? {
        Layout::Extents => blocks.extents()?,
        Layout::Blocks => blocks.numbers()?,
        Layout::Inline => return Err(Trouble::damaged("its inode is damaged")),
    };
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => journal::read(window, &runs, sb.block_size, sb.blocks),
    }
}

impl Filesystem for Ext {
    fn kind(&self) -> &'static str {
        self.sb.kind()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn root(&self) -> NodeId {
        ROOT
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Trouble> {
        Ok(self.inode(node)?.stat)
    }

    fn list(&self, folder: NodeId) -> Result<Listing, Trouble> {
        let inode = self.inode(folder)?;
        if inode.stat.kind != Kind::Folder {
            return Err(Trouble::damaged("it is no folder"));
        }
        let form =
            folder::Form { has_file_types: self.sb.has_file_types(), checksum_seed: inode.checksum_seed };
        let mut listing = Listing::default();
        if inode.layout()? == Layout::Inline {
            let bytes = self.inline_content(&inode)?;
            // The folder above, and two stretches of entries.
            let (field, rest) = bytes.split_at(bytes.len().min(inode::MAP_BYTES));
            let first = folder::entries(field.get(4..).unwrap_or_default(), form, &mut listing);
            if first.and_then(|()| folder::entries(rest, form, &mut listing)).is_none() {
                listing.faults.push(Trouble::damaged("names in it are lost: an entry makes no sense"));
            }
            return Ok(listing);
        }
        if inode.stat.size > MAX_FOLDER_BYTES {
            return Err(Trouble::damaged(format_args!("it cannot be {} bytes long", inode.stat.size)));
        }
        let block_size = self.sb.block_size;
        let mut unreadable = Vec::new();
        let faults = self.each_run(&inode, &mut |run| {
            let Place::Volume(place) = run.place else { return Ok(()) };
            for index in 0..run.len / block_size {
                match self.volume.read_vec(place + index * block_size, block_size as usize) {
                    Ok(bytes) => folder::block(&bytes, run.at / block_size + index, form, &mut listing),
                    Err(trouble) if trouble.is_lost() => return Err(trouble),
                    Err(trouble) => unreadable.push(trouble),
                }
            }
            Ok(())
        })?;
        listing.faults.extend(faults);
        listing.faults.extend(unreadable);
        Ok(listing)
    }

    fn link_target(&self, node: NodeId) -> Result<Vec<u8>, Trouble> {
        let inode = self.inode(node)?;
        let size = inode.stat.size;
        // What is short enough is in the inode itself, whatever its flags say.
        let target = match inode.layout()? {
            Layout::Blocks | Layout::Extents if size < inode::MAP_BYTES as u64 => {
                inode.map().get(..size as usize).unwrap_or_default().to_vec()
            }
            _ => self.content(&inode, MAX_LINK_BYTES)?,
        };
        if target.is_empty() || target.contains(&0) {
            return Err(Trouble::damaged("it leads to nothing that could be a path"));
        }
        Ok(target)
    }

    fn attributes(&self, node: NodeId) -> (Vec<Attribute>, Option<Trouble>) {
        let inode = match self.inode(node) {
            Ok(inode) => inode,
            Err(trouble) => return (Vec::new(), Some(trouble)),
        };
        let (mut found, mut trouble) = (Vec::new(), None);
        let mut take = |(kept, fault): (Vec<attributes::Kept<'_>>, Option<Trouble>)| {
            trouble = trouble.take().or(fault);
            for kept in kept.iter().filter(|kept| !kept.is_inline_content()) {
                match self.value(&kept.value).and_then(|value| kept.with_value(value)) {
                    Ok(attribute) => found.push(attribute),
                    Err(fault) => trouble = trouble.take().or(Some(fault)),
                }
            }
        };
        if let Some(at) = inode.attributes_at {
            take(attributes::in_inode(&inode.bytes, at));
        }
        let block = inode.attributes_block;
        if block != 0 {
            let bytes = check_range(block, 1, self.sb.blocks)
                .and_then(|()| self.volume.read_vec(block * self.sb.block_size, self.sb.block_size as usize));
            match bytes {
                Ok(bytes) => take(attributes::in_block(&bytes)),
                Err(fault) => trouble = trouble.or(Some(fault)),
            }
        }
        (found, trouble)
    }

    fn runs(
        &self,
        node: NodeId,
        each: &mut dyn FnMut(Run) -> Result<(), Trouble>,
    ) -> Result<Vec<Trouble>, Trouble> {
        self.each_run(&self.inode(node)?, each)
    }

    fn read(&self, place: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        self.volume.read(place, buf)
    }
}

#[cfg(test)]
pub(super) mod tests;
