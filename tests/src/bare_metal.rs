//! Our own small guest in a directory of its own. It runs at real speed on any KVM.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    LIMIT,
    api::Api,
    config,
    console::value,
    paths,
    process::{self, Ckvmm},
};

/// The name of the VM in these tests.
pub const NAME: &str = "t";

/// A VM called `t` that runs our own guest with the command line `job`: no disk, no network.
pub fn config(job: &str) -> Value {
    json!({
        "version": 1,
        "name": NAME,
        "memory": "32MiB",
        "kernel": { "image": paths::guest("bare-metal.elf"), "cmdline": job },
        "checkpoint": { "dir": "checkpoints" },
    })
}

/// Adds a disk of `bytes` bytes of data (no hole) that is made in `dir`.
///
/// # Panics
/// If it cannot be made.
pub fn with_disk(mut config: Value, dir: &Path, bytes: usize) -> Value {
    let path = dir.join("disk.raw");
    let content: Vec<u8> = (0..bytes).map(|at| (at / 512) as u8 | 1).collect();
    fs::write(&path, content).expect("the test's directory can be written");
    config["disks"] = json!([{ "id": "root", "path": path }]);
    config
}

/// Where a VM and its checkpoints live.
#[derive(Debug)]
pub struct Home(TempDir);

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty directory.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        Home(tempfile::tempdir().expect("there is room for temporary files"))
    }

    /// An empty directory in memory, where nothing waits for a disk; anywhere if there is none.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn in_memory() -> Self {
        tempfile::tempdir_in("/dev/shm").map_or_else(|_| Home::new(), Home)
    }

    /// An empty directory in the directory `parent`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn within(parent: &Path) -> Self {
        Home(tempfile::tempdir_in(parent).expect("there is room for a directory"))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The checkpoint of that number.
    pub fn checkpoint(&self, number: u32) -> PathBuf {
        self.join(format!("checkpoints/{number:06}"))
    }

    /// The API of the VM `t`.
    pub fn api(&self) -> Api {
        Api::new(&self.socket())
    }

    /// The socket of the VM `t`.
    pub fn socket(&self) -> PathBuf {
        self.join(format!("ckvmm/{NAME}.sock"))
    }

    /// Starts `ckvmm boot` and waits for nothing.
    pub fn start(&self, config: &Value, more: &[&str]) -> Ckvmm {
        let file = config::write(self.path(), config);
        let boot = [OsStr::new("boot"), OsStr::new("--config"), file.as_os_str()];
        Ckvmm::start(self.path(), boot.into_iter().chain(more.iter().map(OsStr::new)))
    }

    /// Boots and waits until the guest's job runs, its arena filled if it has one.
    pub fn boot(&self, config: &Value) -> Ckvmm {
        let vm = self.start(config, &[]);
        let job = config["kernel"]["cmdline"].as_str().unwrap_or_default();
        let fills = ["job=write", "job=pagefill", "job=disks"].iter().any(|fills| job.contains(fills));
        vm.console.expect(if fills { "CKVMM filled" } else { "CKVMM ready" }, LIMIT);
        vm
    }

    /// Runs `ckvmm boot` that is expected to end by itself.
    pub fn boot_to_its_end(&self, config: &Value, more: &[&str]) -> Output {
        let file = config::write(self.path(), config);
        let boot = [OsStr::new("boot"), OsStr::new("--config"), file.as_os_str()];
        process::run(self.path(), boot.into_iter().chain(more.iter().map(OsStr::new)))
    }

    /// Starts `ckvmm restore` and waits for nothing.
    pub fn restore(&self, checkpoint: &Path, more: &[&str]) -> Ckvmm {
        let arguments = [OsStr::new("restore"), checkpoint.as_os_str()];
        Ckvmm::start(self.path(), arguments.into_iter().chain(more.iter().map(OsStr::new)))
    }

    /// Runs `ckvmm ARGUMENTS` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        process::run(self.path(), arguments)
    }

    /// What `ckvmm ARGUMENTS` prints, without the last line break; it must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("output is UTF-8").trim_end().to_owned()
    }

    /// What `ckvmm ARGUMENTS` prints, as JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The names in a directory, hidden ones too.
    ///
    /// # Panics
    /// If it cannot be listed.
    pub fn names(&self, dir: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.join(dir)).expect("the directory is there");
        let names = entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// How many steps the guest has done: it must answer, so it runs.
///
/// # Panics
/// If it does not answer.
pub fn steps(vm: &mut Ckvmm) -> u64 {
    vm.console.skip();
    vm.type_line("s");
    vm.console
        .next("status of the guest", LIMIT, |line| value(line.strip_prefix("CKVMM status ")?, "steps")?.parse().ok())
}

/// Sees that the guest, which writes, goes on.
///
/// # Panics
/// If it does not.
pub fn goes_on(vm: &mut Ckvmm) {
    let before = steps(vm);
    assert!(steps(vm) > before, "the guest answers and does nothing");
}

/// Sends SIGUSR1 and waits until the checkpoint is durable; returns its directory.
///
/// # Panics
/// If there is none.
pub fn checkpoint(vm: &Ckvmm) -> PathBuf {
    vm.signal(Signal::SIGUSR1);
    committed(vm)
}

/// Waits for the message of a checkpoint; returns its directory.
///
/// # Panics
/// If there is none, or it is not whole.
pub fn committed(vm: &Ckvmm) -> PathBuf {
    let dir = vm.messages.next("checkpoint", LIMIT, |line| {
        let (dir, numbers) = line.strip_prefix("ckvmm: checkpoint ")?.split_once(": ")?;
        numbers.contains("durable").then(|| PathBuf::from(dir))
    });
    assert!(dir.join("manifest.json").exists(), "{} is not committed", dir.display());
    dir
}
