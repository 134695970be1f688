//! Simulates files and directories. A name is durable once its directory was synced, independent of the file.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
};

use super::{Losses, PowerCut, file::File};
use crate::support::seeded_rng::Random;

/// Inode number of a file or directory. Never reused.
pub type Ino = u64;

/// Errors of operations on the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    NotFound,
    Exists,
    IsDirectory,
    NotDirectory,
    NotEmpty,
}

#[derive(Clone, Debug)]
enum Node {
    File(File),
    Directory(Directory),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    live: BTreeMap<OsString, Ino>,
    synced: BTreeMap<OsString, Ino>,
}

/// A name in a directory.
type Name = (Ino, OsString);

/// An unsynced change of names. A rename is atomic.
#[derive(Clone, Debug)]
enum Change {
    Put(Name, Ino),
    Remove(Name),
    Move(Name, Name, Ino),
}

impl Change {
    fn is_in(&self, directory: Ino) -> bool {
        match self {
            Self::Put((at, _), _) | Self::Remove((at, _)) => *at == directory,
            Self::Move((from, _), (to, _), _) => *from == directory || *to == directory,
        }
    }
}

/// All files and directories.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next: Ino,
    /// In the order of the changes.
    unsynced: Vec<Change>,
}

impl Tree {
    /// Inode number of the root directory.
    pub const ROOT: Ino = 1;

    pub fn new() -> Self {
        let root = Node::Directory(Directory::default());
        Self { nodes: HashMap::from([(Self::ROOT, root)]), next: Self::ROOT + 1, unsynced: Vec::new() }
    }

    pub fn is_directory(&self, ino: Ino) -> Result<bool, TreeError> {
        self.nodes.get(&ino).map(|node| matches!(node, Node::Directory(_))).ok_or(TreeError::NotFound)
    }

    pub fn file(&self, ino: Ino) -> Result<&File, TreeError> {
        match self.nodes.get(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(TreeError::IsDirectory),
            None => Err(TreeError::NotFound),
        }
    }

    pub fn file_mut(&mut self, ino: Ino) -> Result<&mut File, TreeError> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(TreeError::IsDirectory),
            None => Err(TreeError::NotFound),
        }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, TreeError> {
        match self.nodes.get(&ino) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(TreeError::NotDirectory),
            None => Err(TreeError::NotFound),
        }
    }

    fn names(&mut self, ino: Ino, synced: bool) -> Option<&mut BTreeMap<OsString, Ino>> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory(directory)) => Some(if synced { &mut directory.synced } else { &mut directory.live }),
            _ => None,
        }
    }

    pub fn look_up(&self, directory: Ino, name: &OsStr) -> Result<Ino, TreeError> {
        self.directory(directory)?.live.get(name).copied().ok_or(TreeError::NotFound)
    }

    pub fn list(&self, directory: Ino) -> Result<Vec<(OsString, Ino)>, TreeError> {
        Ok(self.directory(directory)?.live.iter().map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    pub fn create(&mut self, directory: Ino, name: &OsStr, is_directory: bool) -> Result<Ino, TreeError> {
        if self.directory(directory)?.live.contains_key(name) {
            return Err(TreeError::Exists);
        }
        let ino = self.next;
        self.next += 1;
        let node = if is_directory { Node::Directory(Directory::default()) } else { Node::File(File::default()) };
        self.nodes.insert(ino, node);
        self.change(Change::Put((directory, name.to_owned()), ino));
        Ok(ino)
    }

    pub fn remove(&mut self, directory: Ino, name: &OsStr, is_directory: bool) -> Result<(), TreeError> {
        let ino = self.look_up(directory, name)?;
        match (self.is_directory(ino)?, is_directory) {
            (true, false) => return Err(TreeError::IsDirectory),
            (false, true) => return Err(TreeError::NotDirectory),
            (true, true) if !self.directory(ino)?.live.is_empty() => return Err(TreeError::NotEmpty),
            _ => {}
        }
        self.change(Change::Remove((directory, name.to_owned())));
        Ok(())
    }

    /// Renames a file or directory. Atomically replaces an entry that has the new name.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), TreeError> {
        let ino = self.look_up(from.0, from.1)?;
        self.directory(to.0)?;
        self.change(Change::Move((from.0, from.1.to_owned()), (to.0, to.1.to_owned()), ino));
        Ok(())
    }

    fn change(&mut self, change: Change) {
        self.apply(&change, false);
        self.unsynced.push(change);
    }

    fn apply(&mut self, change: &Change, synced: bool) {
        match change {
            Change::Put((at, name), ino) => {
                self.names(*at, synced).map(|names| names.insert(name.clone(), *ino));
            }
            Change::Remove((at, name)) => {
                self.names(*at, synced).map(|names| names.remove(name));
            }
            Change::Move((from, old), (to, new), ino) => {
                self.names(*from, synced).map(|names| names.remove(old));
                self.names(*to, synced).map(|names| names.insert(new.clone(), *ino));
            }
        }
    }

    /// Makes all changes of names in a directory durable.
    pub fn sync_directory(&mut self, directory: Ino) -> Result<(), TreeError> {
        self.directory(directory)?;
        let (covered, others) = std::mem::take(&mut self.unsynced).into_iter().partition(|one| one.is_in(directory));
        self.unsynced = others;
        let covered: Vec<Change> = covered;
        covered.iter().for_each(|change| self.apply(change, true));
        Ok(())
    }

    /// Simulates a power cut.
    pub fn cut_power(&mut self, cut: PowerCut, random: &mut Random) -> Losses {
        let mut losses = Losses::default();
        let unsynced = std::mem::take(&mut self.unsynced);
        let first = random.within(0..=unsynced.len() as u64) as usize;
        for (at, change) in unsynced.iter().enumerate() {
            let kept = match cut {
                PowerCut::LoseAll => false,
                PowerCut::Torn => at < first,
                PowerCut::Reordered => random.one_in(2),
            };
            if kept {
                self.apply(change, true);
            } else {
                losses.names += 1;
            }
        }
        // In the order of inode numbers, so that a seed repeats the choices.
        let mut inos: Vec<Ino> = self.nodes.keys().copied().collect();
        inos.sort_unstable();
        for ino in inos {
            match self.nodes.get_mut(&ino) {
                Some(Node::File(file)) => losses.add(file.cut_power(cut, random)),
                Some(Node::Directory(directory)) => directory.live.clone_from(&directory.synced),
                None => {}
            }
        }
        self.remove_unreachable();
        losses
    }

    /// Removes files and directories without a name.
    fn remove_unreachable(&mut self) {
        let (mut reached, mut queue) = (HashSet::new(), vec![Self::ROOT]);
        while let Some(ino) = queue.pop() {
            if reached.insert(ino)
                && let Some(Node::Directory(directory)) = self.nodes.get(&ino)
            {
                queue.extend(directory.live.values());
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }

    /// Avoids inode numbers of another tree, because the kernel may still know them.
    pub fn skip_inos_of(&mut self, other: &Self) {
        self.next = self.next.max(other.next);
    }

    /// Returns the bytes of all files, with files whose name was removed since the last power cut.
    pub fn bytes(&self) -> usize {
        let files = self.nodes.values().map(|node| match node {
            Node::File(file) => file.len(),
            Node::Directory(_) => 0,
        });
        files.sum()
    }
}
