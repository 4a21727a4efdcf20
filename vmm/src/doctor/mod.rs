//! Whether this host can run VMs, how well, and what to change.
//!
//! Each part looks at one thing and returns [`Check`]s; nothing is changed, what is made for a test is removed.

mod backend;
mod host;
mod kvm;
mod ram;
mod ram_speed;
mod reflink;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use backend::Backend;
pub use ram_speed::Speed;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but could be better.
    Warning,
    /// Something does not work.
    Failure,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Ok, found: found.into(), mend: None }
    }

    fn warning(name: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn failure(name: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Failure, found: found.into(), mend: Some(mend.into()) }
    }
}

/// What is known about this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether Linux guests run here.
    pub linux_guests: bool,
    /// Whether bare-metal guests that stay in user mode run here.
    pub bare_metal_guests: bool,
    /// What stands behind `/dev/kvm`.
    pub backend: Backend,
    /// Speed of RAM in pages of 4 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub small_pages: Option<Speed>,
    /// Speed of RAM in huge pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<Speed>,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

/// Looks at this host. Checkpoints would go into `checkpoints`. Takes about a second.
#[must_use]
pub fn examine(checkpoints: &Path) -> Report {
    let backend = Backend::detect();
    let mut checks = vec![backend.check()];
    let kvm = kvm::check(backend);
    let usable = kvm.iter().all(|check| check.level != Level::Failure);
    checks.extend(kvm);
    let (small_pages, huge_pages) = (ram_speed::measure(false), ram_speed::measure(true));
    checks.extend(ram::check(small_pages, huge_pages));
    checks.push(reflink::check(checkpoints));
    checks.push(host::space(checkpoints));
    checks.push(host::tun());
    Report {
        linux_guests: usable && backend.runs_linux(),
        bare_metal_guests: usable,
        backend,
        small_pages,
        huge_pages,
        checks,
    }
}

/// The text of a small file below /proc or /sys, without the line break at its end.
fn read_small(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_examination_looks_at_everything_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let report = examine(dir.path());
        let names: Vec<&str> = report.checks.iter().map(|c| c.name.as_str()).collect();
        for name in ["virtualisation", "/dev/kvm", "RAM", "transparent huge pages", "reflink", "space", "TAP"] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        assert!(report.checks.iter().all(|c| c.mend.is_some() == (c.level != Level::Ok)));
        assert!(!report.linux_guests || report.bare_metal_guests);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
