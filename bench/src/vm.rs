//! A VMM with its guest, whoever's it is.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ckvmm_tests::process::Ckvmm;

use crate::{
    case::{Case, Method},
    ckvmm::CkvmmVm,
    qemu::QemuVm,
    scratch::Scratch,
};

/// What a VMM can do. Its guest's serial line is its standard input and output.
pub(crate) trait Vm {
    /// The process.
    fn process(&mut self) -> &mut Ckvmm;

    /// A checkpoint, in the place of the one before: returns when it is durable.
    fn checkpoint(&mut self) -> Taken;

    /// Ends the process.
    fn end(&mut self);

    /// Starts another one from the last checkpoint, the process having ended; returns as soon as its guest can be asked.
    fn restart(&mut self, scratch: &Scratch);

    /// The last checkpoint, a file or a directory.
    fn image(&self) -> PathBuf;
}

/// A checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// From the request to the disk.
    pub(crate) durable: Duration,
    /// The pause, as the VMM says it, in seconds.
    pub(crate) said: Option<f64>,
    /// Bytes that it has on its file system.
    pub(crate) written: u64,
}

/// Boots the case's guest, and waits until its RAM is filled.
pub(crate) fn boot(method: Method, case: Case, scratch: &mut Scratch) -> Box<dyn Vm> {
    match method {
        Method::Ckvmm => Box::new(CkvmmVm::boot("auto", case, scratch)),
        Method::CkvmmFork => Box::new(CkvmmVm::boot("fork", case, scratch)),
        Method::CkvmmStop => Box::new(CkvmmVm::boot("stop", case, scratch)),
        Method::QemuStop => Box::new(QemuVm::boot(false, case, scratch)),
        Method::QemuBackground => Box::new(QemuVm::boot(true, case, scratch)),
    }
}

/// All files in `path`, or itself.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    entries.flat_map(|entry| files(&entry.expect("a directory can be listed").path())).collect()
}

/// What the files in `path`, or itself, occupy.
pub(crate) fn occupied(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files(path).iter().map(|file| fs::metadata(file).map_or(0, |metadata| metadata.blocks() * 512)).sum()
}
