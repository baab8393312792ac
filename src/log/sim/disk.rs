//! A file system that forgets what was not synced.
//!
//! Each file has two contents: what the running system sees, and what the
//! disk has. In between, every 512-byte sector that was written and not
//! synced has the list of the contents it went through; a power cut leaves
//! any one of them, or none, each sector for itself. Names are the same: a
//! creation, renaming or removal is on its way until its folder is synced,
//! and a power cut leaves any part of what is on its way, though of one file
//! never a later step without the earlier ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::faults::{Call, Faults, Verdict};
use crate::log::io::{Access, Held, Io, IoFile};

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// What a system reads whole or not at all.
pub const PAGE: usize = 4_096;

type NodeId = usize;

/// A file, whatever its names are.
#[derive(Clone, Default)]
struct Node {
    /// As the running system sees it.
    seen: Vec<u8>,
    /// As the disk has it.
    durable: Vec<u8>,
    /// For each sector written and not synced, what it held after each write,
    /// and how long the file was then.
    dirty: BTreeMap<usize, Vec<(Vec<u8>, usize)>>,
    /// Sectors that the medium does not give back.
    bad: BTreeSet<usize>,
}

impl Node {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[at..end].copy_from_slice(bytes);
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            let from = sector * SECTOR;
            let content = self.seen[from..self.seen.len().min(from + SECTOR)].to_vec();
            self.dirty.entry(sector).or_default().push((content, self.seen.len()));
        }
    }

    /// Whether a write there needs the rest of a page that cannot be read.
    fn cannot_complete(&self, at: usize, n: usize) -> bool {
        let is_bad = |page: usize| {
            let sectors = page * PAGE / SECTOR..(page + 1) * PAGE / SECTOR;
            self.bad.range(sectors).any(|sector| !self.dirty.contains_key(sector))
        };
        let whole = at.div_ceil(PAGE)..(at + n) / PAGE;
        (at / PAGE..(at + n).div_ceil(PAGE)).any(|page| !whole.contains(&page) && is_bad(page))
    }

    /// The disk takes version `keep` of each dirty sector, where 0 is none of
    /// them and 1 the first.
    fn settle(&mut self, mut keep: impl FnMut(usize) -> usize) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let Some(kept) = keep(versions.len()).checked_sub(1) else { continue };
            let (content, length) = &versions[kept.min(versions.len() - 1)];
            let from = sector * SECTOR;
            if self.durable.len() < *length {
                self.durable.resize(*length, 0);
            }
            self.durable[from..from + content.len()].copy_from_slice(content);
            self.bad.remove(&sector);
        }
    }

    fn settle_all(&mut self) {
        self.settle(|versions| versions);
    }
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Folder(PathBuf),
    Create(PathBuf, NodeId),
    Rename(PathBuf, PathBuf, NodeId),
    Remove(PathBuf, NodeId),
}

impl Change {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Folder(_) => None,
            Self::Create(_, node) | Self::Rename(_, _, node) | Self::Remove(_, node) => Some(*node),
        }
    }

    /// The folder whose sync makes it durable.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) | Self::Create(path, _) | Self::Rename(_, path, _) | Self::Remove(path, _) => {
                path.parent()
            }
        }
    }
}

/// The names of files and folders.
#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<PathBuf, NodeId>,
    folders: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Folder(path) => drop(self.folders.insert(path.clone())),
            Change::Create(path, node) => drop(self.files.insert(path.clone(), *node)),
            Change::Rename(from, to, node) => {
                if self.files.get(from) == Some(node) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *node);
            }
            Change::Remove(path, node) => {
                if self.files.get(path) == Some(node) {
                    self.files.remove(path);
                }
            }
        }
    }

    /// What lies in a folder that is not there is not there either.
    fn prune(&mut self) {
        let folders = self.folders.clone();
        self.files.retain(|path, _| path.parent().is_some_and(|folder| folders.contains(folder)));
    }
}

struct State {
    root: PathBuf,
    nodes: Vec<Node>,
    seen: Names,
    durable: Names,
    changes: Vec<Change>,
    locks: BTreeSet<PathBuf>,
    /// Which life of the process this is; handles of earlier lives are dead.
    life: u64,
    calls: u64,
    down: bool,
    faults: Faults,
    rng: SmallRng,
    trace: u32,
    /// Whether each call is printed.
    loud: bool,
}

/// A simulated disk and the system that runs on it. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The system goes on and keeps what it has in memory.
    Killed,
    /// Everything that was not synced is at risk.
    PowerCut,
}

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    Nothing,
    All,
    Some,
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn media_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn is_down() -> io::Error {
    io::Error::other("the simulated machine is down")
}

impl Disk {
    /// An empty disk with the folder `root`.
    pub fn new(root: &Path, seed: u64) -> Self {
        let folders: BTreeSet<PathBuf> = root.ancestors().map(Path::to_owned).collect();
        let names = Names { folders, ..Names::default() };
        Self(Arc::new(Mutex::new(State {
            root: root.to_owned(),
            nodes: Vec::new(),
            seen: names.clone(),
            durable: names,
            changes: Vec::new(),
            locks: BTreeSet::new(),
            life: 0,
            calls: 0,
            down: false,
            faults: Faults::default(),
            rng: SmallRng::seed_from_u64(seed),
            trace: 0,
            loud: std::env::var_os("THALWEG_SIM_TRACE").is_some(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Draws from another seed from now on.
    pub fn reseed(&self, seed: u64) {
        self.state().rng = SmallRng::seed_from_u64(seed);
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Whether the crash that was planned has happened.
    pub fn is_down(&self) -> bool {
        self.state().down
    }

    /// A checksum of every call and of what became of it.
    pub fn trace(&self) -> u32 {
        self.state().trace
    }

    /// Ends the process, with its locks and open files. What follows is the
    /// next start.
    pub fn end(&self, end: End, leaves: Leaves) {
        let state = &mut *self.state();
        state.life += 1;
        state.down = false;
        state.locks.clear();
        match end {
            End::Killed => state.forget_clean_pages(),
            End::PowerCut => state.cut_power(leaves),
        }
    }

    /// Flips one bit of `path` at `at`, for good: of what the disk has and of
    /// what is on its way there.
    pub fn flip(&self, path: &Path, at: u64, bit: u8) {
        let state = &mut *self.state();
        let node = &mut state.nodes[state.seen.files[path]];
        let (at, flipped) = (at as usize, 1 << bit);
        node.seen[at] ^= flipped;
        node.durable[at] ^= flipped;
        for (content, _) in node.dirty.get_mut(&(at / SECTOR)).into_iter().flatten() {
            if let Some(byte) = content.get_mut(at % SECTOR) {
                *byte ^= flipped;
            }
        }
    }

    /// The medium no longer gives back the page of `path` that holds `at`:
    /// systems read pages, as a whole or not at all.
    pub fn spoil(&self, path: &Path, at: u64) {
        let state = &mut *self.state();
        let node = state.seen.files[path];
        let page = at as usize / PAGE * PAGE / SECTOR;
        state.nodes[node].bad.extend(page..page + PAGE / SECTOR);
    }

    /// The files that the running system sees, with their contents.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        state.seen.files.iter().map(|(path, node)| (path.clone(), state.nodes[*node].seen.clone())).collect()
    }

    /// Enters a file whose contents are durable elsewhere, as a publisher
    /// does: renames it into place, and then syncs the folder.
    pub fn publish(&self, path: &Path) -> io::Result<()> {
        {
            let state = &mut *self.state();
            state.call(Call::Rename, path)?;
            let node = state.add_node();
            state.change(Change::Create(path.to_owned(), node));
            state.after_call()?;
        }
        self.sync_dir(path.parent().unwrap())
    }
}

impl State {
    /// Counts a call and says what is to become of it.
    fn call(&mut self, call: Call, path: &Path) -> io::Result<Verdict> {
        if self.down {
            return Err(is_down());
        }
        self.calls += 1;
        let mut verdict = self.faults.judge(call, self.calls, &mut self.rng);
        if verdict == Verdict::Works && call == Call::Read && self.faults.reads_that_fail > 0 {
            self.faults.reads_that_fail -= 1;
            verdict = Verdict::Fails;
        }
        if verdict == Verdict::DiesBefore {
            self.down = true;
        }
        let line = format!(
            "{} {call:?} {} {verdict:?}",
            self.calls,
            path.strip_prefix(&self.root).unwrap().display()
        );
        self.trace = crc32c::crc32c_append(self.trace, line.as_bytes());
        if self.loud {
            eprintln!("{line}");
        }
        if self.down { Err(is_down()) } else { Ok(verdict) }
    }

    /// The crash in the middle of a call: it was done, and nobody hears of it.
    fn after_call(&mut self) -> io::Result<()> {
        if self.faults.dies_after(self.calls) {
            self.down = true;
            return Err(is_down());
        }
        Ok(())
    }

    fn add_node(&mut self) -> NodeId {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }

    fn change(&mut self, change: Change) {
        self.seen.apply(&change);
        self.changes.push(change);
    }

    fn node_at(&self, path: &Path) -> io::Result<NodeId> {
        self.seen.files.get(path).copied().ok_or_else(|| not_found(path))
    }

    /// Makes durable every change in `folder`, and what had to come before.
    fn sync_names(&mut self, folder: &Path) {
        let nodes: BTreeSet<NodeId> = (self.changes.iter())
            .filter(|change| change.folder() == Some(folder))
            .filter_map(Change::node)
            .collect();
        for change in std::mem::take(&mut self.changes) {
            let here = change.folder() == Some(folder) || change.node().is_some_and(|n| nodes.contains(&n));
            if here { self.durable.apply(&change) } else { self.changes.push(change) }
        }
    }

    /// Pages that are not dirty may be read from the disk again at any time.
    /// Only after a failed sync does that make a difference.
    fn forget_clean_pages(&mut self) {
        for node in &mut self.nodes {
            for sector in 0..node.seen.len().div_ceil(SECTOR) {
                if node.dirty.contains_key(&sector) || self.rng.random_bool(0.5) {
                    continue;
                }
                let range = sector * SECTOR..node.seen.len().min((sector + 1) * SECTOR);
                let durable = node.durable.get(range.clone()).unwrap_or_default();
                if durable.len() == range.len() {
                    node.seen[range].copy_from_slice(durable);
                }
            }
        }
    }

    fn cut_power(&mut self, leaves: Leaves) {
        self.cut_names(leaves);
        // How many of the writes each file as a whole may have had: some cuts
        // leave nearly everything, some nearly nothing.
        let share = [0.1, 0.5, 0.9][self.rng.random_range(0..3)];
        let rng = &mut self.rng;
        for node in &mut self.nodes {
            node.settle(|versions| match leaves {
                Leaves::Nothing => 0,
                Leaves::All => versions,
                Leaves::Some if rng.random_bool(share) => rng.random_range(1..=versions),
                Leaves::Some => 0,
            });
            node.seen.clone_from(&node.durable);
        }
    }

    /// Of the changes of each file a random number, the earliest first.
    fn cut_names(&mut self, leaves: Leaves) {
        let changes = std::mem::take(&mut self.changes);
        let mut left: BTreeMap<Option<NodeId>, usize> = BTreeMap::new();
        changes.iter().for_each(|change| *left.entry(change.node()).or_default() += 1);
        for count in left.values_mut() {
            *count = match leaves {
                Leaves::Nothing => 0,
                Leaves::All => *count,
                Leaves::Some => self.rng.random_range(0..=*count),
            };
        }
        for change in &changes {
            let left = left.get_mut(&change.node()).unwrap();
            if *left > 0 {
                *left -= 1;
                self.durable.apply(change);
            }
        }
        self.durable.prune();
        self.seen = self.durable.clone();
    }

    fn bytes_used(&self) -> usize {
        let linked: BTreeSet<NodeId> = self.seen.files.values().copied().collect();
        linked.into_iter().map(|node| self.nodes[node].seen.len()).sum()
    }
}

impl Io for Disk {
    fn open(&self, path: &Path, _access: Access) -> io::Result<Box<dyn IoFile>> {
        let state = &mut *self.state();
        state.call(Call::Look, path)?;
        let node = state.node_at(path)?;
        Ok(Box::new(Handle { disk: self.clone(), path: path.to_owned(), node, life: state.life }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn IoFile>> {
        let state = &mut *self.state();
        if state.call(Call::Create, path)? == Verdict::Full {
            return Err(no_space());
        }
        let node = state.add_node();
        state.change(Change::Create(path.to_owned(), node));
        state.after_call()?;
        Ok(Box::new(Handle { disk: self.clone(), path: path.to_owned(), node, life: state.life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        state.call(Call::Rename, to)?;
        let node = state.node_at(from)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned(), node));
        state.after_call()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        state.call(Call::Remove, path)?;
        let node = state.node_at(path)?;
        state.change(Change::Remove(path.to_owned(), node));
        state.after_call()
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        state.call(Call::Create, path)?;
        if !state.seen.folders.contains(path) {
            state.change(Change::Folder(path.to_owned()));
        }
        state.after_call()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        match state.call(Call::SyncNames, path)? {
            // The journal keeps what it could not write, unlike pages.
            Verdict::Fails => return Err(media_error()),
            Verdict::Lies => return Ok(()),
            _ => {}
        }
        if state.faults.dies_after(state.calls) {
            return state.after_call();
        }
        state.sync_names(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = &mut *self.state();
        state.call(Call::Look, path)?;
        let here = state.seen.files.keys().filter(|file| file.parent() == Some(path));
        Ok(here.map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        let state = &mut *self.state();
        state.call(Call::Look, path)?;
        Ok(state.seen.files.get(path).map(|node| state.nodes[*node].seen.len() as u64))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Held>> {
        let state = &mut *self.state();
        state.call(Call::Look, path)?;
        if !state.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimulatedLock { disk: self.clone(), path: path.to_owned(), life: state.life })))
    }
}

struct SimulatedLock {
    disk: Disk,
    path: PathBuf,
    life: u64,
}

impl Debug for SimulatedLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedLock")
    }
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let state = &mut *self.disk.state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    path: PathBuf,
    node: NodeId,
    life: u64,
}

impl Handle {
    fn call(&self, state: &mut State, call: Call) -> io::Result<Verdict> {
        if state.life != self.life {
            return Err(is_down());
        }
        state.call(call, &self.path)
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let verdict = self.call(state, Call::Sync)?;
        if state.faults.dies_after(state.calls) {
            return state.after_call();
        }
        let State { nodes, rng, .. } = state;
        match verdict {
            Verdict::Lies => {}
            Verdict::Fails => {
                // Some sectors made it; the kernel takes all for written.
                nodes[self.node].settle(|versions| rng.random_range(0..=versions));
                return Err(media_error());
            }
            _ => nodes[self.node].settle_all(),
        }
        Ok(())
    }
}

impl IoFile for Handle {
    fn len(&self) -> io::Result<u64> {
        let state = &mut *self.disk.state();
        self.call(state, Call::Look)?;
        Ok(state.nodes[self.node].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = &mut *self.disk.state();
        if self.call(state, Call::Read)? == Verdict::Fails {
            return Err(media_error());
        }
        let node = &state.nodes[self.node];
        let seen = node.seen.get(at as usize..).unwrap_or_default();
        let n = seen.len().min(buffer.len());
        let sectors = at as usize / SECTOR..(at as usize + n).div_ceil(SECTOR);
        // What is dirty is in memory, whatever has become of the disk.
        if node.bad.range(sectors).any(|sector| !node.dirty.contains_key(sector)) {
            return Err(media_error());
        }
        buffer[..n].copy_from_slice(&seen[..n]);
        Ok(n)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        assert!(slices.len() <= 1_024, "over IOV_MAX");
        let state = &mut *self.disk.state();
        let verdict = self.call(state, Call::Write)?;
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        match verdict {
            Verdict::Full => return Err(no_space()),
            Verdict::Fails => return Err(media_error()),
            Verdict::Short if bytes.len() > 1 => {
                let n = state.rng.random_range(1..bytes.len());
                bytes.truncate(n);
            }
            _ => {}
        }
        if let Some(budget) = state.faults.budget {
            let grows = (at as usize + bytes.len()).saturating_sub(state.nodes[self.node].seen.len());
            let over = (state.bytes_used() + grows).saturating_sub(budget).min(grows);
            bytes.truncate(bytes.len() - over.min(bytes.len()));
            if bytes.is_empty() && over > 0 {
                return Err(no_space());
            }
        }
        if state.nodes[self.node].cannot_complete(at as usize, bytes.len()) {
            return Err(media_error());
        }
        state.nodes[self.node].write(at as usize, &bytes);
        state.after_call()?;
        Ok(bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
