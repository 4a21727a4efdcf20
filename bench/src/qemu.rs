//! QEMU with its guest: the machine `microvm`, which is the nearest to ckvmm's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use ckvmm_tests::{LIMIT, paths, process::Ckvmm};

use crate::{
    case::Case,
    qmp::Qmp,
    scratch::Scratch,
    vm::{Taken, Vm, occupied},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// Debian's package that has it.
const PACKAGE: &str = "qemu-system-x86";

pub(crate) struct QemuVm {
    dir: PathBuf,
    case: Case,
    background: bool,
    /// Absent after its end.
    process: Option<Ckvmm>,
    /// Absent until it is needed: a restore has no time for it.
    qmp: Option<Qmp>,
}

/// QEMU's version, or why there is none to compare with.
pub(crate) fn version() -> Result<String, String> {
    let output = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|_| format!("{PROGRAM} is not installed (Debian's package {PACKAGE}); no peer"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or("QEMU of an unknown version").to_owned())
}

/// Whether this host lets QEMU write-protect a guest's pages; else why not.
pub(crate) fn background_snapshots(scratch: &mut Scratch) -> Result<(), String> {
    let mut vm = QemuVm::boot(true, Case::new(16, 16), scratch);
    vm.qmp().set_background_snapshot()
}

impl QemuVm {
    pub(crate) fn boot(background: bool, case: Case, scratch: &mut Scratch) -> Self {
        let dir = scratch.dir(case.place);
        let mut vm = QemuVm { dir, case, background, process: None, qmp: None };
        vm.start(scratch, None);
        vm.process().console.expect("CKVMM filled", LIMIT);
        vm
    }

    fn start(&mut self, scratch: &Scratch, image: Option<&Path>) {
        let socket = self.dir.join("qmp");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(PROGRAM);
        // Its CPU has no architectural capabilities: QEMU 7 ends if KVM does not take the value that it has read there.
        command
            .args(["-machine", "microvm,accel=kvm", "-cpu", "host,-arch-capabilities"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-m", &format!("{}", self.case.ram_mib()), "-smp", &format!("{}", self.case.vcpus)])
            .arg("-kernel")
            .arg(paths::guest("bare-metal.elf"))
            .args(["-append", &self.case.command_line()])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        if let Some(image) = image {
            command.args(["-incoming", &format!("exec:cat {}", image.display())]);
        }
        self.process = Some(scratch.start(command));
    }

    fn qmp(&mut self) -> &mut Qmp {
        let socket = self.dir.join("qmp");
        self.qmp.get_or_insert_with(|| Qmp::connect(&socket))
    }
}

impl Vm for QemuVm {
    fn process(&mut self) -> &mut Ckvmm {
        self.process.as_mut().expect("one runs")
    }

    fn checkpoint(&mut self) -> Taken {
        let image = self.image();
        let next = self.dir.join("image.new");
        let file = File::create(&next).expect("there is room for an image");
        let background = self.background;
        let qmp = self.qmp();
        let begun = Instant::now();
        if background {
            qmp.set_background_snapshot().expect("it was looked whether it can");
        } else {
            qmp.ok("stop", serde_json::json!({}));
        }
        qmp.migrate_to(&file);
        if !background {
            qmp.ok("cont", serde_json::json!({}));
        }
        // QEMU itself does not ask for that.
        file.sync_all().expect("an image can be written");
        fs::rename(&next, &image).expect("the image's directory is there");
        Taken { durable: begun.elapsed(), said: None, written: occupied(&image) }
    }

    fn end(&mut self) {
        (self.process, self.qmp) = (None, None);
    }

    fn restart(&mut self, scratch: &Scratch) {
        let image = self.image();
        self.start(scratch, Some(&image));
        // What is typed before its serial port has been restored is lost.
        self.qmp().go_on();
    }

    fn image(&self) -> PathBuf {
        self.dir.join("image")
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.end();
        // Images are large; the next case needs the room.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
