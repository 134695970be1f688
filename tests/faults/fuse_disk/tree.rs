//! All files and directories. A name is as durable as the directory it is in was synced, whatever became of the file.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
};

use super::{Cut, Lost, file::File};
use crate::support::seeded_rng::Random;

/// The number of a file or directory. Never used again for another.
pub type Ino = u64;

/// Why something cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    NotThere,
    There,
    NoFile,
    NoDirectory,
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

/// A place in a directory.
type Place = (Ino, OsString);

/// A change of names that no fsync of the directory has covered. A renaming is done or not.
#[derive(Clone, Debug)]
enum Change {
    Put(Place, Ino),
    Remove(Place),
    Move(Place, Place, Ino),
}

impl Change {
    fn touches(&self, directory: Ino) -> bool {
        match self {
            Self::Put((at, _), _) | Self::Remove((at, _)) => *at == directory,
            Self::Move((from, _), (to, _), _) => *from == directory || *to == directory,
        }
    }
}

/// The tree.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next: Ino,
    /// In the order in which they were made.
    waiting: Vec<Change>,
}

impl Tree {
    /// The number of its root.
    pub const ROOT: Ino = 1;

    pub fn new() -> Self {
        let root = Node::Directory(Directory::default());
        Self { nodes: HashMap::from([(Self::ROOT, root)]), next: Self::ROOT + 1, waiting: Vec::new() }
    }

    pub fn is_directory(&self, ino: Ino) -> Result<bool, Trouble> {
        self.nodes.get(&ino).map(|node| matches!(node, Node::Directory(_))).ok_or(Trouble::NotThere)
    }

    pub fn file(&self, ino: Ino) -> Result<&File, Trouble> {
        match self.nodes.get(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(Trouble::NoFile),
            None => Err(Trouble::NotThere),
        }
    }

    pub fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Trouble> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(Trouble::NoFile),
            None => Err(Trouble::NotThere),
        }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, Trouble> {
        match self.nodes.get(&ino) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(Trouble::NoDirectory),
            None => Err(Trouble::NotThere),
        }
    }

    fn names(&mut self, ino: Ino, synced: bool) -> Option<&mut BTreeMap<OsString, Ino>> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory(directory)) => Some(if synced { &mut directory.synced } else { &mut directory.live }),
            _ => None,
        }
    }

    pub fn look_up(&self, directory: Ino, name: &OsStr) -> Result<Ino, Trouble> {
        self.directory(directory)?.live.get(name).copied().ok_or(Trouble::NotThere)
    }

    pub fn list(&self, directory: Ino) -> Result<Vec<(OsString, Ino)>, Trouble> {
        Ok(self.directory(directory)?.live.iter().map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    pub fn create(&mut self, directory: Ino, name: &OsStr, is_directory: bool) -> Result<Ino, Trouble> {
        if self.directory(directory)?.live.contains_key(name) {
            return Err(Trouble::There);
        }
        let ino = self.next;
        self.next += 1;
        let node = if is_directory { Node::Directory(Directory::default()) } else { Node::File(File::default()) };
        self.nodes.insert(ino, node);
        self.change(Change::Put((directory, name.to_owned()), ino));
        Ok(ino)
    }

    pub fn remove(&mut self, directory: Ino, name: &OsStr, is_directory: bool) -> Result<(), Trouble> {
        let ino = self.look_up(directory, name)?;
        match (self.is_directory(ino)?, is_directory) {
            (true, false) => return Err(Trouble::NoFile),
            (false, true) => return Err(Trouble::NoDirectory),
            (true, true) if !self.directory(ino)?.live.is_empty() => return Err(Trouble::NotEmpty),
            _ => {}
        }
        self.change(Change::Remove((directory, name.to_owned())));
        Ok(())
    }

    /// What was at the new place is gone with this, at once.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Trouble> {
        let ino = self.look_up(from.0, from.1)?;
        self.directory(to.0)?;
        self.change(Change::Move((from.0, from.1.to_owned()), (to.0, to.1.to_owned()), ino));
        Ok(())
    }

    fn change(&mut self, change: Change) {
        self.apply(&change, false);
        self.waiting.push(change);
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

    /// The names in a directory survive as they are now.
    pub fn sync_directory(&mut self, directory: Ino) -> Result<(), Trouble> {
        self.directory(directory)?;
        let (covered, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|one| one.touches(directory));
        self.waiting = waiting;
        let covered: Vec<Change> = covered;
        covered.iter().for_each(|change| self.apply(change, true));
        Ok(())
    }

    /// The power goes, and comes again.
    pub fn cut(&mut self, cut: Cut, random: &mut Random) -> Lost {
        let mut lost = Lost::default();
        let waiting = std::mem::take(&mut self.waiting);
        let first = random.within(0..=waiting.len() as u64) as usize;
        for (at, change) in waiting.iter().enumerate() {
            let kept = match cut {
                Cut::Clear => false,
                Cut::Torn => at < first,
                Cut::Reordered => random.once_in(2),
            };
            if kept {
                self.apply(change, true);
            } else {
                lost.names += 1;
            }
        }
        // In the order of their numbers, so that a seed repeats what chance does.
        let mut inos: Vec<Ino> = self.nodes.keys().copied().collect();
        inos.sort_unstable();
        for ino in inos {
            match self.nodes.get_mut(&ino) {
                Some(Node::File(file)) => lost.add(file.cut(cut, random)),
                Some(Node::Directory(directory)) => directory.live.clone_from(&directory.synced),
                None => {}
            }
        }
        self.forget_unreachable();
        lost
    }

    fn forget_unreachable(&mut self) {
        let (mut reached, mut waiting) = (HashSet::new(), vec![Self::ROOT]);
        while let Some(ino) = waiting.pop() {
            if reached.insert(ino)
                && let Some(Node::Directory(directory)) = self.nodes.get(&ino)
            {
                waiting.extend(directory.live.values());
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }

    /// Bytes in all files that can be reached by a name or were when the power last went.
    pub fn bytes(&self) -> usize {
        let files = self.nodes.values().map(|node| match node {
            Node::File(file) => file.len(),
            Node::Directory(_) => 0,
        });
        files.sum()
    }
}
