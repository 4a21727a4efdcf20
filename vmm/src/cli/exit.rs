//! How ckvmm ends: the exit statuses that scripts depend on, and an error's one line.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::host::terminal::say;

/// The process's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: the guest powered off, or the verb did what it was asked.
    Success,
    /// 1: it failed.
    Failed,
    /// 2: wrong usage or configuration.
    Usage,
    /// 3: the guest panicked or triple-faulted.
    GuestCrashed,
    /// 85: checkpointed and stopped; run again.
    Checkpointed,
    /// What the job ended with that was run.
    Job(u8),
}

impl ExitStatus {
    /// As the system has it.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::Failed => 1,
            ExitStatus::Usage => 2,
            ExitStatus::GuestCrashed => 3,
            ExitStatus::Checkpointed => 85,
            ExitStatus::Job(status) => status,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Wrong usage that clap cannot see; exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Prints `error` as one line and says how to exit.
pub(crate) fn report(error: &anyhow::Error) -> ExitStatus {
    say(&one_line(&text_of(error)));
    status_of(error)
}

/// The error and its causes, without those that its text repeats anyway.
fn text_of(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        _ if text.is_empty() => cause,
        true => text,
        false => format!("{text}: {cause}"),
    })
}

fn status_of(error: &anyhow::Error) -> ExitStatus {
    let usage = error.chain().any(|cause| {
        // a transparent error is not a link of the chain itself
        let own = matches!(cause.downcast_ref(), Some(crate::error::Error::Config(_)));
        let client = matches!(cause.downcast_ref(), Some(ClientError::Problem { status: 400, .. }));
        own || client || cause.is::<ConfigError>() || cause.is::<UsageError>()
    });
    if usage { ExitStatus::Usage } else { ExitStatus::Failed }
}

/// `text` on one line, whatever somebody's file name or value held.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// clap's complaint in the same form: one line, and where help is.
pub(crate) fn report_usage(error: &clap::Error, verb: Option<&str>) -> ExitStatus {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say("no command given; `ckvmm --help` lists them");
        return ExitStatus::Usage;
    }
    let text = error.to_string();
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
    let said: Vec<&str> = said.into_iter().filter(|l| !l.is_empty() && !l.starts_with("For more")).collect();
    let said = said.join(" ").replace(" tip: ", ", ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let verb = verb.map(|v| format!(" {v}")).unwrap_or_default();
    say(&format!("{}; `ckvmm{verb} --help` shows how it is used", one_line(said)));
    ExitStatus::Usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn an_error_stays_on_one_line() {
        assert_eq!(one_line("a\nb\tc\u{7}\n"), "a\\nb\\tc\\u{7}");
    }

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("/dev/kvm: {0}; load it")]
        struct Opening(#[source] std::fmt::Error);
        let error = anyhow::Error::new(Opening(std::fmt::Error)).context("boot");
        assert_eq!(text_of(&error), format!("boot: /dev/kvm: {}; load it", std::fmt::Error));
    }

    #[test]
    fn configuration_is_2_and_the_rest_is_1() {
        let config = anyhow::Error::new(ConfigError::field("vcpus", "0", "give 1"));
        assert_eq!(status_of(&config), ExitStatus::Usage);
        assert_eq!(status_of(&Err::<(), _>(config).context("boot").unwrap_err()), ExitStatus::Usage);
        let inside = crate::error::Error::Config(ConfigError::field("vcpus", "0", "give 1"));
        assert_eq!(status_of(&anyhow::Error::new(inside)), ExitStatus::Usage);
        assert_eq!(status_of(&anyhow::Error::new(UsageError("x".into()))), ExitStatus::Usage);
        assert_eq!(status_of(&anyhow::anyhow!("disk full")), ExitStatus::Failed);
    }
}
