//! What an error looks like: one line that names the thing and the mend, and an exit status.

use std::process::Output;

/// The exit status of wrong usage or configuration.
pub const USAGE: i32 = 2;
/// The exit status of a failure.
pub const FAILED: i32 = 1;
/// The exit status when a guest has panicked or triple-faulted.
pub const CRASHED: i32 = 3;

/// Sees that a command ended with `status`, nothing on standard output, and one line on standard error that names each
/// of `named` and what to do. Returns the line.
///
/// # Panics
/// If it did not.
pub fn refused(output: &Output, status: i32, named: &[&str]) -> String {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let [line] = lines[..] else { panic!("not one line: {lines:#?}") };
    is_error(line, named);
    line.to_owned()
}

/// Sees that `line` is an error's: it names each of `named`, and what to do.
///
/// # Panics
/// If it is not.
pub fn is_error(line: &str, named: &[&str]) {
    assert!(line.starts_with("ckvmm: "), "{line}");
    assert!(line.contains("; "), "no mend: {line}");
    for name in named {
        assert!(line.contains(name), "{name:?} is not named: {line}");
    }
}
