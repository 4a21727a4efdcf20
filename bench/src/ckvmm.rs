//! ckvmm with its guest.

use std::{fs, path::PathBuf, time::Instant};

use ckvmm_tests::{LIMIT, api::Api, bare_metal, config, process::Ckvmm};
use serde_json::Value;

use crate::{
    case::Case,
    scratch::Scratch,
    vm::{Taken, Vm, occupied},
};

pub(crate) struct CkvmmVm {
    dir: PathBuf,
    store: PathBuf,
    /// Absent after its end.
    process: Option<Ckvmm>,
}

impl CkvmmVm {
    pub(crate) fn boot(mode: &str, case: Case, scratch: &mut Scratch) -> Self {
        let dir = scratch.dir(case.place);
        let store = dir.join("checkpoints");
        let mut config = bare_metal::config(&case.command_line());
        config["memory"] = format!("{}MiB", case.ram_mib()).into();
        config["vcpus"] = case.vcpus.into();
        config["checkpoint"]["mode"] = mode.into();
        config["checkpoint"]["keep"] = 1.into();
        let mut command = scratch.ckvmm(&dir);
        command.arg("boot").arg("--config").arg(config::write(&dir, &config));
        let process = scratch.start(command);
        process.console.expect("CKVMM filled", LIMIT);
        CkvmmVm { dir, store, process: Some(process) }
    }

    /// What the VMM says of its last checkpoint.
    pub(crate) fn last_checkpoint(&self) -> Value {
        let socket = self.dir.join("ckvmm").join(bare_metal::NAME).with_extension("sock");
        Api::new(&socket).vm()["last_checkpoint"].take()
    }
}

impl Vm for CkvmmVm {
    fn process(&mut self) -> &mut Ckvmm {
        self.process.as_mut().expect("one runs")
    }

    fn checkpoint(&mut self) -> Taken {
        let begun = Instant::now();
        let image = bare_metal::checkpoint(self.process());
        let durable = begun.elapsed();
        let manifest = fs::read(image.join("manifest.json")).expect("it was just made");
        let manifest: Value = serde_json::from_slice(&manifest).expect("it is JSON");
        let said = manifest["pause_us"].as_f64().map(|us| us / 1e6);
        // What other checkpoints wrote has their ids for a suffix.
        let own = manifest["files"].as_object().expect("a manifest lists files").keys();
        let own = own.filter(|name| name.rsplit('.').next().is_none_or(|suffix| suffix.len() != 36));
        Taken { durable, said, written: own.map(|name| occupied(&image.join(name))).sum() }
    }

    fn end(&mut self) {
        self.process = None;
        // What a restore has made.
        let _ = fs::remove_dir_all(self.dir.join("work"));
    }

    fn restart(&mut self, scratch: &Scratch) {
        let mut command = scratch.ckvmm(&self.dir);
        command.arg("restore").arg(self.image()).arg("--work").arg(self.dir.join("work"));
        self.process = Some(scratch.start(command));
    }

    fn image(&self) -> PathBuf {
        self.store.join("latest").canonicalize().expect("there is a checkpoint")
    }
}

impl Drop for CkvmmVm {
    fn drop(&mut self) {
        self.end();
        // Images are large; the next case needs the room.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
