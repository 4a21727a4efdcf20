//! What goes to stdout: tables, JSON, numbers that people read.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use ckvmm_snapshot::Manifest;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::config::Bytes;

/// Prints `text` and a line break. A reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("stdout: cannot be written"),
        _ => Ok(()),
    }
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value).context("output: cannot be written as JSON")?)
}

/// A table without lines, columns apart by two spaces.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Bytes that the files of the checkpoint in `dir` take on the disk, those that it wrote and those that it has of others;
/// holes take none.
pub(crate) fn on_disk(dir: &Path, manifest: &Manifest) -> (u64, u64) {
    let (shared, own): (Vec<_>, Vec<_>) = manifest.files.keys().partition(|name| Manifest::is_shared(name));
    let sum = |names: Vec<&String>| {
        let sizes = names.into_iter().filter_map(|name| std::fs::metadata(dir.join(name)).ok());
        sizes.map(|file| file.blocks().saturating_mul(512)).sum()
    };
    (sum(own), sum(shared))
}

/// How long ago `then` was.
pub(crate) fn age(then: Timestamp) -> String {
    time(u64::try_from(Timestamp::now().duration_since(then).as_micros()).unwrap_or(0))
}

/// The beginning of an id, enough to tell a few apart.
pub(crate) fn brief(id: &Uuid) -> String {
    id.to_string().chars().take(8).collect()
}

/// `1GiB`, `1.5GiB`, `700KiB`.
pub(crate) fn bytes(n: u64) -> String {
    let unit = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match unit.iter().find(|(unit, _)| n >= *unit) {
        Some((unit, _)) if n.is_multiple_of(*unit) => Bytes(n).to_string(),
        Some((unit, name)) => {
            let tenths = u128::from(n) * 10 / u128::from(*unit);
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        }
        None => format!("{n}B"),
    }
}

/// `3d4h`, `2h5m`, `12m30s`, `4.2s`, `35ms`, `20us`.
pub(crate) fn time(us: u64) -> String {
    let duration = Duration::from_micros(us);
    match duration.as_secs() {
        0 if us < 1000 => format!("{us}us"),
        0 => format!("{}ms", us / 1000),
        s @ 1..60 => format!("{s}.{}s", duration.subsec_millis() / 100),
        s @ 60..3600 => format!("{}m{}s", s / 60, s % 60),
        s @ 3600..86400 => format!("{}h{}m", s / 3600, s / 60 % 60),
        s => format!("{}d{}h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1 << 30), "1GiB");
        assert_eq!(bytes(3 << 29), "1.5GiB");
        assert_eq!(bytes(700 << 10), "700KiB");
        assert_eq!(bytes(u64::MAX), "16777215.9TiB");
        assert_eq!(time(20), "20us");
        assert_eq!(time(35_900), "35ms");
        assert_eq!(time(4_290_000), "4.2s");
        assert_eq!(time(750_000_000), "12m30s");
        assert_eq!(time(u64::MAX), "213503982d8h");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        assert_eq!(table(&["NAME", "X"], [vec!["a".into(), "1".into()]]), "NAME  X\na     1");
    }
}
