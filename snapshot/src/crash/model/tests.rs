//! The rules of the model: what it must be able to forget, and what it must not.

use std::collections::BTreeSet;

use super::*;

fn run(ops: &[Op]) -> Model {
    let mut model = Model::new();
    ops.iter().for_each(|op| model.apply(op));
    model
}

/// Each file with what can be read of it, when these changes of names are lost.
fn files(model: &Model, lost: impl IntoIterator<Item = usize>, data: Data) -> BTreeMap<String, Vec<u8>> {
    let tree = model.tree(&Outcome { lost: lost.into_iter().collect(), data });
    let files = tree.0.into_iter().filter_map(|(path, item)| match item {
        Item::File(content) => Some((path.to_string_lossy().into_owned(), rendered(&content))),
        _ => None,
    });
    files.collect()
}

fn rendered(content: &Content) -> Vec<u8> {
    let mut bytes = vec![0; content.bytes as usize];
    for piece in &content.pieces {
        bytes[piece.offset as usize..][..piece.data().len()].copy_from_slice(piece.data());
    }
    bytes
}

fn create(name: &str) -> Op {
    Op::Create(name.into(), 0)
}

fn write(offset: u64, bytes: &[u8]) -> Op {
    Op::Write { file: 0, offset, bytes: bytes.into() }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: from.into(), to: to.into() }
}

fn sync_root() -> Op {
    Op::SyncDirectory("".into())
}

fn one(name: &str, bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    [(name.to_owned(), bytes.to_vec())].into()
}

#[test]
fn what_is_not_synced_may_be_lost_and_what_is_may_not() {
    let mut model = run(&[create("a"), write(0, b"xy")]);
    assert_eq!(model.not_durable(), [0]);
    assert!(files(&model, [0], Data::All).is_empty());
    assert_eq!(files(&model, [], Data::Nothing), one("a", b""));
    assert_eq!(files(&model, [], Data::Lengths), one("a", b"\0\0"));
    assert_eq!(files(&model, [], Data::All), one("a", b"xy"));
    // Neither sync makes durable what is the other's.
    model.apply(&Op::Sync(0));
    assert!(files(&model, [0], Data::Nothing).is_empty());
    model.apply(&write(1, b"z"));
    model.apply(&sync_root());
    assert!(model.not_durable().is_empty());
    assert_eq!(files(&model, [], Data::Nothing), one("a", b"xy"));
    assert_eq!(files(&model, [], Data::All), one("a", b"xz"));
}

#[test]
fn a_rename_is_done_or_not_and_may_overtake_the_data() {
    let model = run(&[create("a"), sync_root(), write(0, b"x"), rename("a", "b")]);
    assert_eq!(files(&model, [1], Data::All), one("a", b"x"));
    assert_eq!(files(&model, [], Data::Nothing), one("b", b""));
    // It brings what it names along, even if the name that this had is lost.
    let model = run(&[create("a"), rename("a", "b")]);
    assert_eq!(files(&model, [0], Data::All), one("b", b""));
}

#[test]
fn a_directory_has_one_name_whichever_renames_are_lost() {
    let directory = |name: &str| Op::MakeDirectory(name.into());
    let model = run(&[directory("a"), sync_root(), rename("a", "b"), rename("b", "c")]);
    for lost in [vec![], vec![1], vec![2], vec![1, 2]] {
        let tree = model.tree(&Outcome { lost: lost.iter().copied().collect(), data: Data::All });
        assert_eq!(tree.0.len(), 1, "{lost:?}: {tree:?}");
    }
}

#[test]
fn each_name_of_a_file_comes_and_goes_alone() {
    let model = run(&[create("a"), sync_root(), Op::Link(0, "b".into()), Op::Remove("a".into())]);
    let names = |lost: &[usize]| files(&model, lost.iter().copied(), Data::All).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&[]), ["b"]);
    assert_eq!(names(&[1]), [""; 0]);
    assert_eq!(names(&[2]), ["a", "b"]);
    assert_eq!(names(&[1, 2]), ["a"]);
}

#[test]
fn a_tree_is_removed_from_its_leaves_on() {
    let model = run(&[Op::MakeDirectory("d".into()), create("d/a")]);
    let steps = model.steps_of(&Op::RemoveTree("d".into()));
    assert_eq!(steps, [Op::Remove("d/a".into()), Op::Remove("d".into())]);
}

#[test]
fn a_write_breaks_between_sectors_and_leaves_old_or_new() {
    const BYTES: usize = 20_000;
    let model = run(&[create("a"), sync_root(), write(100, &[1; BYTES]), Op::Sync(0), write(100, &[2; BYTES])]);
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        for data in [Data::Torn(seed), Data::Mixed(seed)] {
            let files = files(&model, [], data);
            let bytes = &files["a"][100..];
            assert!(bytes.len() == BYTES && bytes.iter().all(|byte| [1, 2].contains(byte)), "{data:?}");
            let breaks: Vec<usize> = (1..BYTES).filter(|at| bytes[*at] != bytes[at - 1]).collect();
            assert!(breaks.iter().all(|at| (at + 100) % 512 == 0), "{data:?}: {breaks:?}");
            assert!(
                matches!(data, Data::Mixed(_)) || breaks.is_empty() || bytes[0] == 2,
                "not its beginning: {data:?}"
            );
            seen.insert((bytes[0], breaks.len().min(3), bytes[BYTES - 1]));
        }
    }
    for wanted in [(1, 0, 1), (2, 0, 2), (2, 1, 1), (1, 1, 2), (1, 2, 1), (2, 3, 1)] {
        assert!(seen.contains(&wanted), "never {wanted:?}: {seen:?}");
    }
}
