//! What a network does when one of its VMs is gone without a word, or a link between two.
//!
//! Invariants: pure. A guest that powers off is no failure, and never comes here. A network goes back by itself at most
//! `max_restores` times, whoever supervises it, so that a checkpoint that kills its VMs ends it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is done about a VM that is gone, or a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Nothing: the others run on, and somebody restores the network.
    #[default]
    RunOn,
    /// The network goes back to its last checkpoint by itself.
    Restore,
}

/// What is done about failures, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    on_failure: OnFailure,
    max_restores: u32,
    /// How often the network has gone back by itself.
    restores: u32,
}

/// What is done about one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// The others run on.
    RunOn,
    /// All go back to this checkpoint.
    GoBack(PathBuf),
    /// The network ends, for this reason.
    End(String),
}

/// How often at most a network goes back by itself if `net.json` does not say.
pub fn default_max_restores() -> u32 {
    3
}

impl Failures {
    /// As `net.json` says, of a network that has gone back `restores` times.
    pub fn new(on_failure: OnFailure, max_restores: u32, restores: u32) -> Self {
        Failures { on_failure, max_restores, restores }
    }

    /// How often the network has gone back by itself.
    pub fn restores(&self) -> u32 {
        self.restores
    }

    /// How often at most it does.
    pub fn max_restores(&self) -> u32 {
        self.max_restores
    }

    /// A VM is gone, or a link; `last` is the last checkpoint.
    pub fn another(&mut self, last: Option<&Path>) -> Remedy {
        match (self.on_failure, last) {
            (OnFailure::RunOn, _) => Remedy::RunOn,
            (OnFailure::Restore, None) => Remedy::End("there is no checkpoint to go back to; run it again".into()),
            (OnFailure::Restore, Some(last)) if self.restores >= self.max_restores => Remedy::End(format!(
                "the network has gone back {} times already (\"max_restores\"); mend that, then `ckvmm network restore {}`",
                self.restores,
                last.display()
            )),
            (OnFailure::Restore, Some(last)) => {
                self.restores += 1;
                Remedy::GoBack(last.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_goes_back_as_often_as_it_may() {
        let last = Some(Path::new("/store/000002"));
        let mut failures = Failures::new(OnFailure::Restore, 2, 0);
        assert!(matches!(failures.another(None), Remedy::End(line) if line.contains("no checkpoint")));
        for restores in 1..=2 {
            assert_eq!(failures.another(last), Remedy::GoBack("/store/000002".into()));
            assert_eq!(failures.restores(), restores);
        }
        let Remedy::End(line) = failures.another(last) else { panic!("it goes back for ever") };
        assert!(line.contains("2 times") && line.ends_with("`ckvmm network restore /store/000002`"), "{line}");
        assert!(matches!(Failures::new(OnFailure::Restore, 2, 2).another(last), Remedy::End(_)));
        assert_eq!(Failures::new(OnFailure::RunOn, 9, 0).another(last), Remedy::RunOn);
    }
}
