//! The tree as a file system. Every read and write comes here, for nothing is cached above; a `sync_file_range` does not,
//! and syncs nothing. Locks are left to the kernel.

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

use super::{Cut, Ino, Lost, Tree, Trouble};
use crate::support::seeded_rng::Random;

/// For how long the kernel may believe what it was told: after a cut nothing of it is true.
const BELIEVED: Duration = Duration::ZERO;

/// Blocks of a disk that is never full.
const BLOCKS: u64 = 1 << 28;
const BLOCK_BYTES: u32 = 4096;

/// A disk that is there until this is dropped.
pub struct Mounted {
    // Before the directory it is mounted on, which can only then be removed.
    _session: BackgroundSession,
    directory: tempfile::TempDir,
    tree: Arc<Mutex<Tree>>,
}

impl Mounted {
    /// An empty one.
    ///
    /// # Errors
    /// Where there is no FUSE, or it may not be used.
    pub fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("mesa-disk-").tempdir()?;
        let tree = Arc::new(Mutex::new(Tree::new()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("mesa-faults".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Adapter(tree.clone()), directory.path(), &config)?;
        Ok(Self { _session: session, directory, tree })
    }

    /// A place on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The power goes, and comes again. Whoever has files open here must be dead.
    pub fn cut(&self, cut: Cut, random: &mut Random) -> Lost {
        lock(&self.tree).cut(cut, random)
    }

    /// Bytes on it.
    pub fn bytes(&self) -> usize {
        lock(&self.tree).bytes()
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}

fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Adapter(Arc<Mutex<Tree>>);

impl From<Trouble> for Errno {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotThere => Self::ENOENT,
            Trouble::There => Self::EEXIST,
            Trouble::NoFile => Self::EISDIR,
            Trouble::NoDirectory => Self::ENOTDIR,
            Trouble::NotEmpty => Self::ENOTEMPTY,
        }
    }
}

fn attributes(tree: &Tree, ino: Ino) -> Result<FileAttr, Trouble> {
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

impl Adapter {
    fn entry(&self, reply: ReplyEntry, find: impl FnOnce(&mut Tree) -> Result<Ino, Trouble>) {
        let mut tree = lock(&self.0);
        match find(&mut tree).and_then(|ino| attributes(&tree, ino)) {
            Ok(attributes) => reply.entry(&BELIEVED, &attributes, Generation(0)),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn done(&self, reply: ReplyEmpty, what: impl FnOnce(&mut Tree) -> Result<(), Trouble>) {
        match what(&mut lock(&self.0)) {
            Ok(()) => reply.ok(),
            Err(trouble) => reply.error(trouble.into()),
        }
    }
}

impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |tree| tree.look_up(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&lock(&self.0), ino.0) {
            Ok(attributes) => reply.attr(&BELIEVED, &attributes),
            Err(trouble) => reply.error(trouble.into()),
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
        let mut tree = lock(&self.0);
        let set = match size {
            Some(size) => tree.file_mut(ino.0).map(|file| file.set_len(size as usize)),
            None => Ok(()),
        };
        match set.and_then(|()| attributes(&tree, ino.0)) {
            Ok(attributes) => reply.attr(&BELIEVED, &attributes),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        self.entry(reply, |tree| tree.create(parent.0, name, true));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |tree| tree.remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |tree| tree.remove(parent.0, name, true));
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
        self.done(reply, |tree| tree.rename((parent.0, name), (newparent.0, newname)));
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
        let mut tree = lock(&self.0);
        match tree.create(parent.0, name, false).and_then(|ino| attributes(&tree, ino)) {
            Ok(attributes) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&BELIEVED, &attributes, Generation(0), FileHandle(0), direct);
            }
            Err(trouble) => reply.error(trouble.into()),
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
        match lock(&self.0).file(ino.0) {
            Ok(file) => reply.data(file.read(offset as usize, size as usize)),
            Err(trouble) => reply.error(trouble.into()),
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
        match lock(&self.0).file_mut(ino.0) {
            Ok(file) => {
                file.write(offset as usize, data);
                reply.written(data.len() as u32);
            }
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.done(reply, |tree| tree.file_mut(ino.0).map(super::file::File::sync));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.done(reply, |tree| tree.sync_directory(ino.0));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = lock(&self.0);
        let names = match tree.list(ino.0) {
            Ok(names) => names,
            Err(trouble) => return reply.error(trouble.into()),
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
