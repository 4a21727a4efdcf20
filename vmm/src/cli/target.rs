//! Which VM a verb speaks to: its name, or `--api-socket PATH`.

use std::path::PathBuf;

use super::UsageError;
use crate::api::socket;
use crate::client::Client;
use crate::config::Id;

// The VM that a verb speaks to. (A comment for documentation would stand in the verb's help.)
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// The VM's name (`ckvmm ps` lists them)
    #[arg(value_name = "VM")]
    vm: Option<String>,
    /// The VM's API socket, instead of its name
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
}

impl Target {
    pub(super) fn client(self) -> anyhow::Result<Client> {
        client(self.vm.as_deref(), self.api_socket)
    }
}

/// A client for the VM of that name, or behind that socket.
pub(super) fn client(vm: Option<&str>, api_socket: Option<PathBuf>) -> anyhow::Result<Client> {
    let path = match (api_socket, vm) {
        (Some(path), _) => path,
        (None, Some(vm)) => {
            let not_a_name = |e| UsageError(format!("{vm}: a VM's name {e}; `ckvmm ps` lists those that run"));
            let name: Id = vm.parse().map_err(not_a_name)?;
            socket::check_default_dir()?;
            socket::default_path(&name)
        }
        (None, None) => return Err(UsageError("no VM: give its name or --api-socket PATH".into()).into()),
    };
    Ok(Client::new(path)?)
}
