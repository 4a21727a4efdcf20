//! What a supervisor shows of its network.

use ckvmm_net::Node;
use ckvmm_net::coordinator::Member;
use serde_json::{Value, json};

use super::{Seat, Supervisor};
use crate::api::socket::default_path;
use crate::cli::ExitStatus;
use crate::network::message::SoFar;

impl Supervisor {
    /// How the network ended.
    pub(super) fn status(&self) -> ExitStatus {
        if self.stopped {
            return ExitStatus::Checkpointed;
        }
        if let Some(status) = self.job.as_ref().and_then(|job| job.verdict?) {
            return ExitStatus::Job(status);
        }
        let status = |seat: &Seat| seat.process.as_ref().map_or(seat.before, |member| member.ended?.status());
        let ended = || self.seats.iter().filter_map(status);
        let lost = self.coordinator.members().contains(&Member::Lost);
        if self.job.is_none() && !lost && ended().all(|status| status == ExitStatus::Success.code()) {
            ExitStatus::Success
        } else if ended().any(|status| status == ExitStatus::GuestCrashed.code()) {
            ExitStatus::GuestCrashed
        } else {
            ExitStatus::Failed
        }
    }

    /// As `ckvmm network status --json` prints it.
    pub(super) fn show(&self) -> Value {
        let nodes = self.seats.iter().zip(self.coordinator.members());
        let so_far = |node| self.deadline.as_ref().and_then(|deadline| deadline.so_far(Node(node)));
        let nodes: Vec<Value> =
            nodes.zip(0..).map(|((seat, member), node)| self.show_node(seat, *member, so_far(node))).collect();
        json!({
            "name": self.terms.name,
            "pid": std::process::id(),
            "started": self.less_ns.is_some(),
            "incarnation": self.incarnation,
            "store": self.store.path(),
            "last_checkpoint": self.last,
            "restores": self.failures.restores(),
            "nodes": nodes,
        })
    }

    fn show_node(&self, seat: &Seat, member: Member, so_far: Option<&SoFar>) -> Value {
        let state = match member {
            Member::On => "on",
            Member::Off => "off",
            Member::Lost => "lost",
        };
        let vm = format!("{}-{}", self.terms.name, seat.name);
        json!({
            "name": seat.name,
            "state": state,
            "pid": seat.process.as_ref().map(|member| member.process.pid().as_raw()),
            // Where its VM, which has this environment, listens.
            "api_socket": vm.parse().ok().map(|vm| default_path(&vm)),
            "cut_so_far": so_far,
            "last_part": seat.part,
        })
    }

    /// The parts of the last cut, in words.
    pub(super) fn parts(&self) -> String {
        let parts = || self.seats.iter().filter_map(|seat| seat.part);
        let pause = parts().map(|part| part.pause_us).max().unwrap_or(0);
        let sum = |count: fn(&super::Part) -> u64| parts().map(|part| count(&part)).sum::<u64>();
        format!(
            "{} VMs, {} MiB of RAM, each paused {:.1} ms at most, {} frames under way",
            parts().count(),
            sum(|part| part.written_bytes) >> 20,
            pause as f64 / 1000.0,
            sum(|part| part.logged_frames),
        )
    }
}
