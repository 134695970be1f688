//! Mounts the tree as a FUSE file system.
//!
//! Nothing is cached by the kernel, so every read and write arrives here. A `sync_file_range` does not arrive, and
//! syncs nothing. The kernel handles file locks. `fallocate` changes lengths only, because the disk is never full.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::{Ino, Losses, PowerCut, Tree, TreeError};
use crate::support::seeded_rng::Random;

/// Time for which the kernel may cache names and attributes. Zero, because a power cut changes them.
const CACHE_TTL: Duration = Duration::ZERO;

/// Mode of `fallocate` that keeps the length of the file (`linux/falloc.h`).
const FALLOC_FL_KEEP_SIZE: i32 = 1;

/// Blocks of the disk, all of them always free.
const BLOCKS: u64 = 1 << 28;
const BLOCK_BYTES: u32 = 4096;

/// A mounted disk. Dropping it unmounts it.
pub struct MountedDisk {
    // Dropped before the directory, which can only be removed when nothing is mounted on it.
    _session: BackgroundSession,
    directory: tempfile::TempDir,
    disk: Arc<Mutex<Disk>>,
}

/// The tree, and a copy of it after a given number of changes.
struct Disk {
    tree: Tree,
    changes: u64,
    copy_at: Option<u64>,
    copy: Option<Tree>,
    /// Number of syncs of files.
    syncs: u64,
    /// The sync that fails, counted as `syncs`.
    failing_sync: Option<u64>,
}

impl Disk {
    /// Replaces the tree.
    fn set_tree(&mut self, mut tree: Tree) {
        tree.skip_inos_of(&self.tree);
        self.tree = tree;
    }

    /// Changes the tree. Copies it if this was the change after which a copy was requested.
    fn change<T>(&mut self, change: impl FnOnce(&mut Tree) -> Result<T, TreeError>) -> Result<T, TreeError> {
        let result = change(&mut self.tree)?;
        self.changes += 1;
        if self.copy_at == Some(self.changes) {
            self.copy = Some(self.tree.clone());
        }
        Ok(result)
    }

    /// Syncs a file, unless this sync is to fail. Returns whether it succeeded.
    fn sync(&mut self, ino: Ino) -> Result<bool, TreeError> {
        self.syncs += 1;
        let fails = self.failing_sync == Some(self.syncs);
        self.change(|tree| {
            let file = tree.file_mut(ino)?;
            if fails {
                file.fail_sync();
            } else {
                file.sync();
            }
            Ok(!fails)
        })
    }
}

impl MountedDisk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// If FUSE is not available or not permitted.
    pub fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("mesa-disk-").tempdir()?;
        let disk = Arc::new(Mutex::new(Disk {
            tree: Tree::new(),
            changes: 0,
            copy_at: None,
            copy: None,
            syncs: 0,
            failing_sync: None,
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("mesa-faults".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Adapter(disk.clone()), directory.path(), &config)?;
        Ok(Self { _session: session, directory, disk })
    }

    /// Mounts an empty disk for a scenario. `None` without FUSE, which it reports; in CI that is an error.
    pub fn new_or_skip(scenario: &str) -> Result<Option<Self>, String> {
        match Self::new() {
            Ok(disk) => Ok(Some(disk)),
            Err(error) if std::env::var_os("CI").is_some() => Err(format!("{scenario}: no simulated disk: {error}")),
            Err(error) => {
                eprintln!("{scenario}: no simulated disk ({error}): power cuts were NOT tested");
                Ok(None)
            }
        }
    }

    /// Returns the path of a file on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Simulates a power cut. No living process may have files open on the disk.
    pub fn cut_power(&self, cut: PowerCut, random: &mut Random) -> Losses {
        lock(&self.disk).tree.cut_power(cut, random)
    }

    /// Empties the disk, and copies it after `changes` further changes, for
    /// [`cut_power_at_copy`](Self::cut_power_at_copy).
    pub fn empty_and_copy_after(&self, changes: u64) {
        let mut disk = lock(&self.disk);
        disk.set_tree(Tree::new());
        (disk.changes, disk.copy_at, disk.copy) = (0, Some(changes), None);
    }

    /// Returns the number of syncs of files since the disk was created or emptied.
    pub fn syncs(&self) -> u64 {
        lock(&self.disk).syncs
    }

    /// Empties the disk. Then the given sync of a file fails, and the system takes its changes for written.
    pub fn empty_and_fail_sync(&self, sync: u64) {
        let mut disk = lock(&self.disk);
        disk.set_tree(Tree::new());
        (disk.syncs, disk.failing_sync) = (0, Some(sync));
    }

    /// Returns the number of changes since the disk was created or emptied: writes, changes of names and lengths, and
    /// syncs.
    pub fn changes(&self) -> u64 {
        lock(&self.disk).changes
    }

    /// Simulates a power cut at the time of the copy. `None` if there were too few changes for a copy.
    ///
    /// No living process may have files open on the disk.
    pub fn cut_power_at_copy(&self, cut: PowerCut, random: &mut Random) -> Option<Losses> {
        let mut disk = lock(&self.disk);
        let copy = disk.copy.take()?;
        disk.set_tree(copy);
        Some(disk.tree.cut_power(cut, random))
    }

    /// Returns the bytes of all files on it.
    pub fn bytes(&self) -> usize {
        lock(&self.disk).tree.bytes()
    }

    /// Returns its mount point.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Adapter(Arc<Mutex<Disk>>);

impl From<TreeError> for Errno {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::NotFound => Self::ENOENT,
            TreeError::Exists => Self::EEXIST,
            TreeError::IsDirectory => Self::EISDIR,
            TreeError::NotDirectory => Self::ENOTDIR,
            TreeError::NotEmpty => Self::ENOTEMPTY,
        }
    }
}

fn attributes(tree: &Tree, ino: Ino) -> Result<FileAttr, TreeError> {
    let is_directory = tree.is_directory(ino)?;
    let size = if is_directory { 0 } else { tree.file(ino)?.len() as u64 };
    let (time, owner) = (SystemTime::UNIX_EPOCH, rustix::process::geteuid().as_raw());
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: if is_directory { 0o700 } else { 0o600 },
        nlink: 1,
        uid: owner,
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

fn reply_entry(reply: ReplyEntry, entry: Result<FileAttr, TreeError>) {
    match entry {
        Ok(attributes) => reply.entry(&CACHE_TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

impl Adapter {
    fn change(&self, reply: ReplyEmpty, change: impl FnOnce(&mut Tree) -> Result<(), TreeError>) {
        match lock(&self.0).change(change) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }
}

impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = &lock(&self.0).tree;
        reply_entry(reply, tree.look_up(parent.0, name).and_then(|ino| attributes(tree, ino)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&lock(&self.0).tree, ino.0) {
            Ok(attributes) => reply.attr(&CACHE_TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = lock(&self.0);
        let result = match size {
            Some(size) => disk.change(|tree| tree.file_mut(ino.0).map(|file| file.set_len(size as usize))),
            None => Ok(()),
        };
        match result.and_then(|()| attributes(&disk.tree, ino.0)) {
            Ok(attributes) => reply.attr(&CACHE_TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut disk = lock(&self.0);
        let created = disk.change(|tree| tree.create(parent.0, name, true));
        reply_entry(reply, created.and_then(|ino| attributes(&disk.tree, ino)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(reply, |tree| tree.remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.change(reply, |tree| tree.remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        self.change(reply, |tree| tree.rename((parent.0, name), (newparent.0, newname)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut disk = lock(&self.0);
        let created = disk.change(|tree| tree.create(parent.0, name, false));
        match created.and_then(|ino| attributes(&disk.tree, ino)) {
            Ok(attributes) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&CACHE_TTL, &attributes, Generation(0), FileHandle(0), direct);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).tree.file(ino.0) {
            Ok(file) => reply.data(file.read(offset as usize, size as usize)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).change(|tree| tree.file_mut(ino.0).map(|file| file.write(offset as usize, data))) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match lock(&self.0).sync(ino.0) {
            Ok(true) => reply.ok(),
            Ok(false) => reply.error(Errno::EIO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = (offset + length) as usize;
        match mode {
            // Only reserves blocks.
            FALLOC_FL_KEEP_SIZE => reply.ok(),
            0 => self.change(reply, |tree| {
                let file = tree.file_mut(ino.0)?;
                if file.len() < end {
                    file.set_len(end);
                }
                Ok(())
            }),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.change(reply, |tree| tree.sync_directory(ino.0));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = &lock(&self.0).tree;
        let names = match tree.list(ino.0) {
            Ok(names) => names,
            Err(error) => return reply.error(error.into()),
        };
        for (at, (name, ino)) in names.iter().enumerate().skip(offset as usize) {
            let is_directory = tree.is_directory(*ino).unwrap_or_default();
            let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}
