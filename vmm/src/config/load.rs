//! From a file or a manifest to a checked [`VmConfig`], and back.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::ConfigError;
use super::files::InputFile;
use super::spec::{Serial, VmConfig};
use super::{check, jsonc};

/// Largest `vm.json`, in bytes.
pub const CONFIG_MAX: u64 = 1 << 20;

impl VmConfig {
    /// Reads `vm.json`. Relative paths in it are relative to the directory that it stands in.
    ///
    /// # Errors
    /// A file that cannot be read, is no JSON or describes no VM.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let value = Self::load_value(path)?;
        Self::from_value(value, path.parent().unwrap_or(Path::new(""))).map_err(|e| e.in_file(path))
    }

    /// Reads `vm.json` as JSON only, to be changed by [`VmConfig::set`] and given to [`VmConfig::from_value`].
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON.
    pub fn load_value(path: &Path) -> Result<Value, ConfigError> {
        let text = InputFile { field: "", path, max: CONFIG_MAX, block_device: false, write: false }.read()?;
        jsonc::parse(&text).map_err(|e| ConfigError::Syntax {
            path: path.display().to_string(),
            line: e.line,
            column: e.column,
            what: e.what,
        })
    }

    /// Checks a configuration. Relative paths are relative to `base` (empty: the working directory).
    ///
    /// # Errors
    /// The first field that is missing, unknown or wrong, with its value and the mend.
    pub fn from_value(mut value: Value, base: &Path) -> Result<Self, ConfigError> {
        if let Some(object) = value.as_object_mut() {
            object.remove("$schema");
            // before all else: the fields of another version are not ours to judge
            check::version(object.get("version"))?;
        }
        check::shapes(&value)?;
        let parsed = serde_path_to_error::deserialize::<_, Self>(&value);
        let mut config = parsed.map_err(|e| ConfigError::from_serde(e, &value))?;
        check::check(&config)?;
        config.make_absolute(base)?;
        check::absolute_paths(&config)?;
        Ok(config)
    }

    /// The configuration as JSON, with absolute paths; what a manifest holds.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("every path is UTF-8 (make_absolute) and nothing else can fail")
    }

    fn make_absolute(&mut self, base: &Path) -> Result<(), ConfigError> {
        let base = match base.as_os_str().is_empty() {
            true => std::env::current_dir(),
            false => std::path::absolute(base),
        };
        let unusable =
            |e: std::io::Error| ConfigError::field("paths", e.to_string(), "run it in an existing directory");
        let base = base.map_err(unusable)?;
        if base.to_str().is_none() {
            let what = "the directory's path is not UTF-8, so that no manifest can hold it";
            return Err(ConfigError::file(&base, what, "give the directory another name"));
        }
        self.paths_mut().for_each(|path| *path = base.join(&*path));
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let serial = match &mut self.serial {
            Serial::File(path) | Serial::Socket(path) => Some(path),
            Serial::Stdio | Serial::None => None,
        };
        let kernel = [&mut self.kernel.image].into_iter().chain(&mut self.kernel.initrd);
        kernel.chain(self.disks.iter_mut().map(|d| &mut d.path)).chain(serial).chain(&mut self.checkpoint.dir)
    }
}
