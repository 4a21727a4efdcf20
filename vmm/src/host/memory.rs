//! How much memory is left for this process: what the host has, and what the limits of its control groups leave.
//!
//! ```text
//! /proc/meminfo                    MemAvailable
//! /proc/self/cgroup, mountinfo     which groups, and where they are
//! GROUP and all above it           limit − (charged − what of that is page cache)
//! ```
//!
//! Page cache is charged to a group and given up when the group needs memory, so it counts as free. What cannot be read
//! limits nothing: whoever asks does without.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the kernel says all this.
const PROC: &str = "/proc";
/// A limit from here on is none: version 1 writes the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

/// Memory that can still be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    /// So much.
    pub bytes: u64,
    /// Who has no more: `this host`, or `the control group PATH`.
    pub whose: String,
}

/// The least that host and control groups leave; `None` if nothing is known.
pub fn free() -> Option<Free> {
    free_in(Path::new(PROC))
}

/// Bytes that the host has left for whoever needs them.
pub fn available_bytes() -> Option<u64> {
    kib(&fs::read_to_string(format!("{PROC}/meminfo")).ok()?, "MemAvailable:")
}

/// Bytes of memory that are this process's own, not a file's: nearly all of it is the guest's RAM, and copies of it.
pub fn own_bytes() -> Option<u64> {
    kib(&fs::read_to_string(format!("{PROC}/self/status")).ok()?, "RssAnon:")
}

fn free_in(proc: &Path) -> Option<Free> {
    let read = |name| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let host = kib(&read("meminfo"), "MemAvailable:").map(|bytes| Free { bytes, whose: "this host".into() });
    let groups = groups(&read("self/cgroup"), &read("self/mountinfo"));
    let groups = groups.into_iter().filter_map(|group| {
        Some(Free { bytes: group.left()?, whose: format!("the control group {}", group.dir.display()) })
    });
    host.into_iter().chain(groups).min_by_key(|free| free.bytes)
}

/// The number behind `name` in a file of lines `NAME 123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The two versions of control groups: files with a limit each, with what is charged, and in `memory.stat` the page
/// cache.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    limits: &'static [&'static str],
    charged: &'static str,
    cache: [&'static str; 2],
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    charged: "memory.usage_in_bytes",
    // Of the groups below it as well.
    cache: ["total_inactive_file ", "total_active_file "],
};
/// Beyond `memory.high` a process hardly gets on: it is a limit like the other.
const V2: Version = Version {
    limits: &["memory.max", "memory.high"],
    charged: "memory.current",
    cache: ["inactive_file ", "active_file "],
};

#[derive(Debug, PartialEq, Eq)]
struct Group {
    dir: PathBuf,
    version: &'static Version,
}

impl Group {
    /// Bytes below its limit, if it has one.
    fn left(&self) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limits = self.version.limits.iter().filter_map(|name| number(name));
        let limit = limits.filter(|limit| *limit < NO_LIMIT).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let cache = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let cache: u64 = self.version.cache.iter().filter_map(|name| cache(name)).sum();
        Some(limit.saturating_sub(number(self.version.charged)?.saturating_sub(cache)))
    }
}

/// The groups that this process is in, with all above them, by `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn groups(memberships: &str, mounts: &str) -> Vec<Group> {
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let version = match controllers {
            "" => &V2,
            list if list.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        let Some((root, mount)) = mounts.lines().find_map(|mount| mounted(mount, version)) else { continue };
        // A container may see only a part of the hierarchy, mounted as if it were all.
        let Ok(below) = Path::new(path).strip_prefix(root) else { continue };
        let lowest = Path::new(mount).join(below);
        let all = lowest.ancestors().take_while(|dir| dir.starts_with(mount));
        found.extend(all.map(|dir| Group { dir: dir.to_path_buf(), version }));
    }
    found
}

/// What part of a hierarchy with memory is mounted where, if a line of mountinfo says so (proc_pid_mountinfo(5)).
fn mounted<'a>(line: &'a str, version: &Version) -> Option<(&'a str, &'a str)> {
    let (place, kind) = line.split_once(" - ")?;
    let (place, kind): (Vec<&str>, Vec<&str>) = (place.split(' ').collect(), kind.split(' ').collect());
    let fits = match *kind.first()? {
        "cgroup2" => *version == V2,
        "cgroup" => *version == V1 && kind.last()?.split(',').any(|option| option == "memory"),
        _ => false,
    };
    fits.then_some((*place.get(3)?, *place.get(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A host with 900 MiB, and a process in the group `a/b` of a hierarchy whose part `root` is mounted.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(kind: &str, membership: &str, root: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mount = dir.path().join("groups");
            fs::create_dir_all(mount.join("a/b")).unwrap();
            fs::create_dir(dir.path().join("self")).unwrap();
            fs::write(dir.path().join("meminfo"), "MemTotal: 2048000 kB\nMemAvailable:  921600 kB\n").unwrap();
            fs::write(dir.path().join("self/cgroup"), membership).unwrap();
            let mounts = format!(
                "23 1 0:5 / /proc rw - proc proc rw\n31 23 0:28 {root} {} rw,relatime shared:4 - {kind}\n",
                mount.display()
            );
            fs::write(dir.path().join("self/mountinfo"), mounts).unwrap();
            Fake(dir)
        }

        fn set(&self, group: &str, files: &[(&str, &str)]) {
            for (name, content) in files {
                fs::write(self.0.path().join("groups").join(group).join(name), content).unwrap();
            }
        }

        #[track_caller]
        fn is(&self, bytes: u64, whose: &str) {
            let free = free_in(self.0.path()).unwrap();
            assert_eq!(free.bytes, bytes, "{free:?}");
            assert!(free.whose.ends_with(whose), "{free:?}");
        }
    }

    #[test]
    fn a_host_without_limits_has_what_is_available() {
        let fake = Fake::new("cgroup2 cgroup2 rw", "0::/a/b\n", "/");
        fake.is(900 * MIB, "this host");
        let none = [("memory.max", "max\n"), ("memory.high", "max\n"), ("memory.current", "1048576\n")];
        fake.set("a/b", &none);
        fake.set("", &[("memory.stat", "inactive_file 0\n")]);
        fake.is(900 * MIB, "this host");
    }

    #[test]
    fn the_tightest_group_counts_and_its_page_cache_is_free() {
        let fake = Fake::new("cgroup2 cgroup2 rw,nsdelegate", "0::/a/b\n", "/");
        let group = |max: &'static str, current: &'static str| [("memory.max", max), ("memory.current", current)];
        fake.set("a/b", &group("536870912\n", "104857600\n"));
        fake.is(412 * MIB, "groups/a/b");
        fake.set("a", &group("314572800\n", "209715200\n"));
        fake.is(100 * MIB, "groups/a");
        fake.set("a", &[("memory.stat", "anon 5\ninactive_file 52428800\nactive_file 20971520\nslab 7\n")]);
        fake.is(170 * MIB, "groups/a");
        fake.set("a/b", &[("memory.high", "209715200\n")]);
        fake.is(100 * MIB, "groups/a/b");
        fake.set("a/b", &[("memory.current", "309715200\n")]);
        fake.is(0, "groups/a/b");
    }

    #[test]
    fn version_1_has_names_of_its_own() {
        let memberships = "9:name=systemd:/x\n4:memory,hugetlb:/a/b\n0::/\n";
        let fake = Fake::new("cgroup cgroup rw,hugetlb,memory", memberships, "/");
        fake.set("", &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "5\n")]);
        fake.is(900 * MIB, "this host");
        let usage = [("memory.limit_in_bytes", "209715200\n"), ("memory.usage_in_bytes", "104857600\n")];
        fake.set("a/b", &usage);
        fake.set("a/b", &[("memory.stat", "inactive_file 1048576\ntotal_inactive_file 2097152\n")]);
        fake.is(102 * MIB, "groups/a/b");
    }

    #[test]
    fn a_part_of_the_hierarchy_that_is_mounted_as_all_of_it() {
        let fake = Fake::new("cgroup2 cgroup2 rw", "0::/docker/1f/a\n", "/docker/1f");
        fake.set("a", &[("memory.max", "2097152"), ("memory.current", "1048576")]);
        fake.is(MIB, "groups/a");
        let elsewhere = Fake::new("cgroup2 cgroup2 rw", "0::/docker/2e/a\n", "/docker/1f");
        elsewhere.set("a", &[("memory.max", "2097152"), ("memory.current", "1048576")]);
        elsewhere.is(900 * MIB, "this host");
    }

    #[test]
    fn this_host_says_something() {
        assert!(free().is_some_and(|free| free.bytes > 0));
        assert!(available_bytes() > Some(0) && own_bytes() > Some(0));
    }
}
