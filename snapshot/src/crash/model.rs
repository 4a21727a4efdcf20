//! A file system that forgets: what is in its cache, and what of it is durable. Pure, it touches no file.
//!
//! Invariants: a change of a name is durable when its own directory is synced, data and length when their file is, and
//! neither for any other reason.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::content::{Content, Data, DataChange};
use super::journal::{FileId, Op};

type NodeId = usize;
const ROOT: NodeId = 0;

/// What becomes of all that is not durable.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// Changes of names that are lost, by their number.
    pub(super) lost: BTreeSet<usize>,
    pub(super) data: Data,
}

/// What is on the disk: every path below the root.
#[derive(Debug, Default, Hash)]
pub(super) struct Tree(pub(super) BTreeMap<PathBuf, Item>);

#[derive(Debug, Hash)]
pub(super) enum Item {
    Directory,
    File(Content),
    Link(PathBuf),
}

#[derive(Debug)]
enum Node {
    Directory(Directory),
    File { id: FileId, durable: Content, since: Vec<DataChange> },
    Link(PathBuf),
}

#[derive(Debug, Default)]
struct Directory {
    now: Names,
    durable: Names,
    /// Changes since it was synced, each with its number.
    since: Vec<(usize, NameChange)>,
}

type Names = BTreeMap<OsString, NodeId>;

#[derive(Debug, Clone)]
enum NameChange {
    Add(OsString, NodeId),
    Remove(OsString),
    Rename { from: OsString, to: OsString, node: NodeId },
}

#[derive(Debug)]
pub(super) struct Model {
    nodes: Vec<Node>,
    files: BTreeMap<FileId, NodeId>,
    name_changes: usize,
}

impl Model {
    /// An empty directory.
    pub(super) fn new() -> Self {
        Model { nodes: vec![Node::Directory(Directory::default())], files: BTreeMap::new(), name_changes: 0 }
    }

    /// Single changes that make up `op`, where the kernel makes several.
    pub(super) fn steps_of(&self, op: &Op) -> Vec<Op> {
        let Op::RemoveTree(path) = op else { return vec![op.clone()] };
        let mut steps = Vec::new();
        if let Node::Directory(directory) = &self.nodes[self.find(path)] {
            for name in directory.now.keys() {
                steps.extend(self.steps_of(&Op::RemoveTree(path.join(name))));
            }
        }
        steps.push(Op::Remove(path.clone()));
        steps
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::MakeDirectory(path) => self.add(path, Node::Directory(Directory::default())),
            Op::Symlink { target, link } => self.add(link, Node::Link(target.clone())),
            Op::Create(path, id) => {
                self.files.insert(*id, self.nodes.len());
                self.add(path, Node::File { id: *id, durable: Content::default(), since: Vec::new() });
            }
            Op::Link(file, path) => {
                let node = self.files[file];
                self.change(path, |name| NameChange::Add(name, node));
            }
            Op::Write { file, offset, bytes } => {
                self.since(*file).push(DataChange::Write { offset: *offset, bytes: bytes.clone() });
            }
            Op::SetLength(file, bytes) => self.since(*file).push(DataChange::SetLength(*bytes)),
            Op::Sync(file) => {
                let Node::File { durable, since, .. } = &mut self.nodes[self.files[file]] else { unreachable!() };
                since.drain(..).for_each(|change| durable.apply(&change));
            }
            Op::SyncDirectory(path) => {
                let directory = self.directory(path);
                directory.durable.clone_from(&directory.now);
                directory.since.clear();
            }
            Op::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "between directories it is not modelled");
                let (node, from) = (self.find(from), name_of(from));
                self.change(to, |to| NameChange::Rename { from, to, node });
            }
            Op::Remove(path) => self.change(path, NameChange::Remove),
            Op::RemoveTree(_) => unreachable!("see steps_of"),
            Op::Mark(_) => {}
        }
    }

    /// Numbers of the changes of names that are not durable, in their order.
    pub(super) fn not_durable(&self) -> Vec<usize> {
        let since = self.nodes.iter().flat_map(|node| match node {
            Node::Directory(directory) => &*directory.since,
            _ => &[],
        });
        let mut numbers: Vec<usize> = since.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// What a disk holds after a power loss with this outcome.
    pub(super) fn tree(&self, outcome: &Outcome) -> Tree {
        let mut tree = Tree::default();
        self.walk(ROOT, Path::new(""), outcome, &mut tree);
        tree
    }

    fn walk(&self, node: NodeId, path: &Path, outcome: &Outcome, tree: &mut Tree) {
        let item = match &self.nodes[node] {
            Node::Link(target) => Item::Link(target.clone()),
            Node::File { id, durable, since } => Item::File(durable.after_power_loss(since, outcome.data, *id)),
            Node::Directory(directory) => {
                for (name, node) in self.names_left(directory, outcome) {
                    self.walk(node, &path.join(name), outcome, tree);
                }
                Item::Directory
            }
        };
        if node != ROOT {
            tree.0.insert(path.to_path_buf(), item);
        }
    }

    fn names_left(&self, directory: &Directory, outcome: &Outcome) -> Names {
        let mut names = directory.durable.clone();
        for (number, change) in &directory.since {
            if !outcome.lost.contains(number) {
                self.change_names(&mut names, change.clone());
            }
        }
        names
    }

    fn change_names(&self, names: &mut Names, change: NameChange) {
        match change {
            NameChange::Add(name, node) => drop(names.insert(name, node)),
            NameChange::Remove(name) => drop(names.remove(&name)),
            NameChange::Rename { from, to, node } => {
                match &self.nodes[node] {
                    // It has one name, also where the rename before this one was lost.
                    Node::Directory(_) => names.retain(|_, other| *other != node),
                    _ => drop(names.remove(&from)),
                }
                names.insert(to, node);
            }
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.change(path, |name| NameChange::Add(name, node));
    }

    /// Changes the name of `path` in its directory.
    fn change(&mut self, path: &Path, change: impl FnOnce(OsString) -> NameChange) {
        let change = change(name_of(path));
        let parent = path.parent().expect("a path below the root");
        let mut now = std::mem::take(&mut self.directory(parent).now);
        self.change_names(&mut now, change.clone());
        let number = self.name_changes;
        self.name_changes += 1;
        let directory = self.directory(parent);
        directory.now = now;
        directory.since.push((number, change));
    }

    fn directory(&mut self, path: &Path) -> &mut Directory {
        let node = self.find(path);
        match &mut self.nodes[node] {
            Node::Directory(directory) => directory,
            other => panic!("{} is no directory: {other:?}", path.display()),
        }
    }

    fn since(&mut self, file: FileId) -> &mut Vec<DataChange> {
        let Node::File { since, .. } = &mut self.nodes[self.files[&file]] else { unreachable!() };
        since
    }

    fn find(&self, path: &Path) -> NodeId {
        path.iter().fold(ROOT, |node, name: &OsStr| match &self.nodes[node] {
            Node::Directory(directory) => {
                *directory.now.get(name).unwrap_or_else(|| panic!("{} is not there", path.display()))
            }
            other => panic!("{}: {other:?} is no directory", path.display()),
        })
    }
}

fn name_of(path: &Path) -> OsString {
    path.file_name().expect("a path below the root").to_owned()
}

mod tests;
