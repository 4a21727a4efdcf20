//! The rules of the house that a program can check.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ckvmm_tests::paths;

/// Longest file in lines, its tests apart.
const LINES_MAX: usize = 340;
/// Longest function in lines.
const FUNCTION_LINES_MAX: usize = 70;

/// `snapshot ← net ← devices ← vmm`: each crate with those of its own that it may use.
const MAY_USE: [(&str, &[&str]); 4] = [
    ("snapshot", &[]),
    ("net", &["ckvmm-snapshot"]),
    ("devices", &["ckvmm-snapshot", "ckvmm-net"]),
    ("vmm", &["ckvmm-snapshot", "ckvmm-net", "ckvmm-devices"]),
];

/// Dependencies that a crate must not see.
const NEVER_SEES: [(&str, &[&str]); 3] = [
    ("snapshot", &["kvm-ioctls", "kvm-bindings", "event-manager", "virtio-queue"]),
    ("net", &["kvm-ioctls", "kvm-bindings", "vm-memory"]),
    ("devices", &["kvm-ioctls", "kvm-bindings"]),
];

fn sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for (crate_name, _) in MAY_USE {
        collect(&paths::root().join(crate_name).join("src"), &mut found);
    }
    collect(&paths::root().join("tests/src"), &mut found);
    collect(&paths::root().join("bench/src"), &mut found);
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.insert(path, text);
        }
    }
}

/// The lines before the file's tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"))
}

/// `tests.rs` beside a file, or a file in `tests/`.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.parent().is_some_and(|parent| parent.ends_with("tests"))
}

fn none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn crates_depend_in_one_direction() {
    let mut broken = Vec::new();
    for (name, may_use) in MAY_USE {
        let manifest = fs::read_to_string(paths::root().join(name).join("Cargo.toml")).unwrap();
        let dependencies = manifest.lines().filter_map(|line| line.split_once(".workspace").map(|(name, _)| name));
        for dependency in dependencies.clone().filter(|dependency| dependency.starts_with("ckvmm-")) {
            if !may_use.contains(&dependency) {
                broken.push(format!("{name} uses {dependency}"));
            }
        }
        let (_, never) = NEVER_SEES.iter().find(|(crate_name, _)| *crate_name == name).unwrap_or(&("", &[]));
        broken.extend(dependencies.filter(|it| never.contains(it)).map(|it| format!("{name} sees {it}")));
    }
    none(broken);
}

#[test]
fn versions_stand_once_in_the_workspace() {
    let mut broken = Vec::new();
    for name in ["snapshot", "net", "devices", "vmm", "tests", "bench"] {
        let manifest = fs::read_to_string(paths::root().join(name).join("Cargo.toml")).unwrap();
        let with_version = |line: &&str| line.contains("version = \"") || line.contains(" = \"");
        let own_keys = ["name = ", "path = ", "description = "];
        broken.extend(
            manifest
                .lines()
                .filter(with_version)
                .filter(|line| !own_keys.iter().any(|key| line.starts_with(key)))
                .map(|line| format!("{name}/Cargo.toml: {line}")),
        );
    }
    none(broken);
}

#[test]
fn files_are_short_and_open_with_what_they_are() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let lines = code(&text).count();
        if lines > LINES_MAX {
            broken.push(format!("{}: {lines} lines, at most {LINES_MAX}", path.display()));
        }
        if !text.starts_with("//!") {
            broken.push(format!("{}: no module documentation", path.display()));
        }
    }
    none(broken);
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let mut start: Option<(usize, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let opens = line.trim_start().starts_with("fn ") || line.contains(" fn ");
            if opens && start.is_none() && !line.trim_start().starts_with("//") && !line.trim_end().ends_with(';') {
                start = Some((number, " ".repeat(indent) + "}"));
            }
            let Some((first, end)) = &start else { continue };
            if line == end || (number == *first && line.trim_end().ends_with('}')) {
                if number - first > FUNCTION_LINES_MAX {
                    broken.push(format!("{}:{}: {} lines", path.display(), first + 1, number - first));
                }
                start = None;
            }
        }
    }
    none(broken);
}

#[test]
fn unsafe_code_is_announced_and_has_reasons() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        // A file of tests is allowed what the file allows that names it.
        let announced = text.contains("#![allow(unsafe_code)]") || is_test(&path);
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_unsafe = (line.contains("unsafe {") || line.contains("unsafe impl")) && !line.contains("//");
            if !is_unsafe {
                continue;
            }
            if !announced {
                broken.push(format!("{}:{}: unsafe in a file that does not allow it", path.display(), number + 1));
            }
            let reason = lines[number.saturating_sub(8)..number].iter().any(|line| line.contains("// SAFETY:"));
            if !reason {
                broken.push(format!("{}:{}: no SAFETY reason", path.display(), number + 1));
            }
        }
    }
    none(broken);
}

#[test]
fn every_file_stands_on_the_map() {
    let map = fs::read_to_string(paths::root().join("ARCHITECTURE.md")).unwrap();
    let root = paths::root();
    let missing = sources()
        .into_keys()
        .filter_map(|path| path.strip_prefix(&root).ok().map(Path::to_owned))
        .filter(|path| !path.ends_with("lib.rs") && !path.ends_with("main.rs") && !is_test(path))
        .filter(|path| {
            let name = if path.ends_with("mod.rs") { path.parent().unwrap() } else { path.as_path() };
            !map.contains(&*name.file_name().unwrap().to_string_lossy())
        })
        .map(|path| format!("{} is not on the map in ARCHITECTURE.md", path.display()));
    none(missing.collect());
}

/// True if `line` promises to do something later.
fn promises(line: &str) -> bool {
    ["TODO", "FIXME", "XXX", "HACK"].iter().any(|word| line.contains(word))
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        broken.extend(
            text.lines()
                .enumerate()
                .filter(|(_, line)| promises(line))
                .map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim())),
        );
    }
    none(broken);
}
